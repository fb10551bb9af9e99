"""Examples for SFT and for pairs of texts: token ids with labels. Encoded rows as data sets of `datasets`."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow.compute
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable

from rlhf.data.chat import encode_examples
from rlhf.data.encodings import Columns, EncodedRows
from rlhf.data.padding import IGNORED
from rlhf.data.stored_numbers import LARGE_NUMBERS, NUMBERS

# The types that `datasets` gives to columns of these names.
COLUMNS: Columns = {"input_ids": NUMBERS, "labels": LARGE_NUMBERS}


def demonstrations(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, longest: int
) -> Iterator[dict]:
    """Yields COLUMNS of the examples of rows, with labels IGNORED where nothing is learned.

    Counts too_long, those of more than `longest` tokens, which are dropped.
    """
    for row in rows:
        for ids, mask in encode_examples(tokenizer, row):
            if len(ids) > longest:
                counts["too_long"] += 1
            else:
                yield {"input_ids": ids, "labels": labels_of(ids, mask)}


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


def dataset_of(rows: EncodedRows) -> Dataset:
    """Encoded rows in the order of their file, without copying them."""
    table = InMemoryTable(rows.table.select(rows.names))
    # `datasets` would hash all of a table to name it.
    return Dataset(table, fingerprint=rows.name or generate_random_fingerprint())


def in_order(first: Sequence[dict], second: Sequence[dict], order: Sequence[int]) -> Sequence[dict]:
    """Examples of both by their index, that of the second counted on from the first."""
    if isinstance(first, Dataset):
        both = concatenate_datasets(
            [first, Dataset.from_list(list(second), features=first.features)]
        )
        return both.select(order)
    examples = [*first, *second]
    return [examples[i] for i in order]
