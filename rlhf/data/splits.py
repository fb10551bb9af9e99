"""Rows -> train and eval rows that share no prompt."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from rlhf.data.chat import as_messages
from rlhf.data.load import Loaded, is_local, load_hub_splits, load_rows
from rlhf.data.rows import CHECKS, KINDS
from rlhf.errors import UserError


def prompt_key(row: dict, kind: str | None = None) -> str:
    """What must not stand on both sides of a split: the prompt, the opening of a conversation, or the text.

    White space does not count, and a string prompt equals the same text as one user message. kind: of the row, since an
    extra column may bear one of these names; without it the first well-formed one counts.
    """
    names = ("prompt", "messages", "context", "tokens", "text")
    if kind:
        names = tuple(name for name in names if name in KINDS[kind].columns)
    column = next(name for name in names if name in row and not CHECKS[name](row[name]))
    if column == "tokens":
        return json.dumps([["user", " ".join(row["tokens"])]], ensure_ascii=False)
    turns = as_messages(row[column])
    if column == "messages":
        turns = turns[: [turn["role"] for turn in turns].index("assistant")]
    return json.dumps(
        [[turn["role"], " ".join(turn["content"].split())] for turn in turns], ensure_ascii=False
    )


def split_rows(
    rows: list[dict], fraction: float, seed: int, kind: str | None = None
) -> tuple[list[dict], list[dict]]:
    """(train, test) by a seeded hash of the prompt: about `fraction` of the prompts are test.

    A prompt never stands on both sides, and it stays on its side when rows are added.
    """
    if not 0 < fraction < 1:
        raise UserError(f"eval_fraction={fraction} must lie between 0 and 1, as in 0.1")
    sides: tuple[list[dict], list[dict]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(f"{seed} {prompt_key(row, kind)}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < fraction * 2**64].append(row)
    if not all(sides):
        prompts = len({prompt_key(row, kind) for row in rows})
        empty = "train" if not sides[0] else "eval"
        raise UserError(
            f"eval_fraction={fraction} of {prompts} distinct prompts leaves the {empty} side empty: add rows, change "
            "eval_fraction or seed, or give eval_dataset_name"
        )
    return sides


def check_disjoint(train: list[dict], test: list[dict], kind: str | None = None) -> None:
    """UserError where a prompt stands in both."""
    known = {prompt_key(row, kind) for row in train}
    shared = dict.fromkeys(key for row in test if (key := prompt_key(row, kind)) in known)
    if shared:
        first = "; ".join(repr(_opening(key)) for key in islice(shared, 3))
        raise UserError(
            f"{len(shared)} prompts stand in both train and eval rows, the first: {first}; remove them from one, "
            "or let eval_fraction split one data set (dataset_test_split: null, no eval_dataset_name)"
        )


def _opening(key: str) -> str:
    text = " | ".join(text for _, text in json.loads(key))
    return text if len(text) <= 80 else text[:77] + "..."


def to_dataset(rows: list[dict]):
    """Rows as a datasets.Dataset with the columns of all rows; where some prompts are messages, all become messages."""
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if len({type(row.get("prompt")) for row in rows}) > 1:
        rows = [{**row, "prompt": as_messages(row["prompt"])} for row in rows]
    names = dict.fromkeys(chain.from_iterable(rows))
    columns = {}
    for name in names:
        try:
            columns[name] = pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, TypeError, OverflowError) as error:
            raise UserError(
                f"column {name} mixes types ({error}): give it one type in all rows, or drop it"
            ) from error
    return Dataset(InMemoryTable(pyarrow.table(columns)))


@dataclass
class Splits:
    """train and eval rows (eval may be []) of one kind; sources: name, rows, sha256 of each, for the run record."""

    train: list[dict]
    eval: list[dict]
    kind: str
    sources: list[dict]
    warnings: list[str] = field(default_factory=list)


def load_splits(
    settings, kinds: Sequence[str], *, seed: int, checks: dict[str, Callable] | None = None
) -> Splits:
    """What a recipe trains and evaluates on; checks: as in load.CheckedRows.

    Eval rows are the first of these that is given: eval_dataset_name; dataset_test_split, where the Hub data set has
    that split or the folder has `<dataset_test_split>.jsonl`; eval_fraction of the prompts; none.
    """

    def load(name: str, split: str | None, kinds: Sequence[str]) -> Loaded:
        return load_rows(
            name,
            kinds=kinds,
            columns=settings.columns,
            split=split,
            config=settings.dataset_config if name == settings.dataset_name else None,
            limit=settings.dataset_limit,
            skip_bad=settings.skip_bad,
            checks=checks,
            separator=settings.document_separator,
        )

    if not settings.dataset_name:
        raise UserError(
            "dataset_name is not set: give a file, a folder of .jsonl files, or a Hub id"
        )
    train = load(settings.dataset_name, settings.dataset_train_split, kinds)
    test_name = settings.eval_dataset_name
    if not test_name and _has_split(
        settings.dataset_name, settings.dataset_config, settings.dataset_test_split
    ):
        test_name = settings.dataset_name
    loaded = [train]
    train_rows, eval_rows = train.rows, []
    if test_name:
        loaded.append(load(test_name, settings.dataset_test_split, (train.kind,)))
        eval_rows = loaded[1].rows
        check_disjoint(train_rows, eval_rows, train.kind)
    elif settings.eval_fraction:
        train_rows, eval_rows = split_rows(train_rows, settings.eval_fraction, seed, train.kind)
    sources = [source for part in loaded for source in part.sources]
    return Splits(
        train_rows, eval_rows, train.kind, sources, [w for part in loaded for w in part.warnings]
    )


def _has_split(name: str, config: str | None, split: str | None) -> bool:
    if not split:
        return False
    if is_local(name):
        return Path(name, f"{split}.jsonl").is_file()
    return split in load_hub_splits(name, config)
