"""Examples for SFT and for pairs of texts: token ids with labels, encoded once and mapped from the cache."""

from collections.abc import Callable, Iterable, Sequence

import pyarrow
import pyarrow.compute
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable

from rlhf.data.cache import Writer, stored
from rlhf.data.padding import IGNORED

# The types that `datasets` gives to columns of these names.
SCHEMA = pyarrow.schema(
    [
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int64())),
    ]
)
BYTES_PER_TOKEN = 12  # an id and a label

Example = tuple[list[int], Sequence[bool]]  # token ids, and True where a token is learned


def stored_examples(
    key: str | None, encode: Callable[[], Iterable[Example]], longest: int
) -> tuple[Dataset, int]:
    """(data set with input_ids and labels, how many examples of more than `longest` tokens were dropped).

    key: of the cache. encode: gives the examples, and is not called where they are there already.
    """

    def fill(writer: Writer) -> dict:
        too_long = 0
        for ids, mask in encode():
            if len(ids) > longest:
                too_long += 1
                continue
            writer.add((ids, labels_of(ids, mask)), size=BYTES_PER_TOKEN * len(ids))
        return {"too_long": too_long}

    content = stored(key, SCHEMA, fill, "encoding")
    # `datasets` would hash all of a table to name it.
    name = key or generate_random_fingerprint()
    examples = Dataset(InMemoryTable(content.table), fingerprint=name)
    return examples, content.note["too_long"]


def stored_pairs(
    key: str | None, encode: Callable[[], Iterable[tuple[list[int], list[int]]]], longest: tuple
) -> tuple[Dataset, list[int]]:
    """(data set with input_ids, the source, and labels, the target; the indices of the pairs that are in it).

    key: of the cache. encode: gives all pairs, and is not called where they are there already.
    longest: tokens of a source and of a target; a pair with a longer one is dropped.
    """

    def fill(writer: Writer) -> dict:
        kept = []
        for i, (source, target) in enumerate(encode()):
            if len(source) > longest[0] or len(target) > longest[1]:
                continue
            kept.append(i)
            writer.add((source, target), size=BYTES_PER_TOKEN * (len(source) + len(target)))
        return {"kept": kept}

    content = stored(key, SCHEMA, fill, "encoding")
    name = key or generate_random_fingerprint()
    return Dataset(InMemoryTable(content.table), fingerprint=name), content.note["kept"]


def labels_of(ids: Sequence[int], mask: Sequence[bool]) -> list[int]:
    """The ids that are learned, IGNORED for the others."""
    labels = list(ids)
    for i, counts in enumerate(mask):
        if not counts:
            labels[i] = IGNORED
    return labels


def lengths_of(examples: Sequence[dict]) -> list[int]:
    """Token ids of each example, read as a column where they are one."""
    if isinstance(examples, Dataset):
        column = examples.with_format("arrow")[:].column("input_ids")
        return pyarrow.compute.list_value_length(column).to_pylist()
    return [len(example["input_ids"]) for example in examples]


def in_order(first: Sequence[dict], second: Sequence[dict], order: Sequence[int]) -> Sequence[dict]:
    """Examples of both by their index, that of the second counted on from the first."""
    if isinstance(first, Dataset):
        both = concatenate_datasets(
            [first, Dataset.from_list(list(second), features=first.features)]
        )
        return both.select(order)
    examples = [*first, *second]
    return [examples[i] for i in order]
