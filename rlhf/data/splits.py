"""Splits rows into train and eval rows that share no prompt."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np

from rlhf.data.chat import as_messages
from rlhf.data.files import READERS
from rlhf.data.folders import has_split
from rlhf.data.hub import load_hub_splits
from rlhf.data.load import (
    CheckedRows,
    Loaded,
    Ratings,
    collect_rows,
    is_local,
)
from rlhf.data.rows import CHECKS, KINDS, RATED, shorten
from rlhf.data.stored_rows import take
from rlhf.errors import UserError

# The columns that can be the prompt of a row: the first of them that a row has decides its side of a split.
PROMPT_COLUMNS = ("prompt", "messages", "context", "tokens", "text")


def prompt_key(row: dict, kind: str | None = None) -> str:
    """The part of a row that must not be on both sides of a split: its prompt, or the start of its conversation.

    White space does not count, and a string prompt equals the same text as one user message.

    kind: of the row, because an extra column may have the name of a prompt column. Without it the first well-formed
    prompt column counts.
    """
    column = _prompt_column(row, kind)
    # A tagged sentence equals the same text in one string.
    if column == "tokens":
        return _key([("user", " ".join(row["tokens"]))])
    messages = as_messages(row[column])
    if column == "messages":
        messages = _before_first_answer(messages)
    turns = []
    for message in messages:
        words = message["content"].split()
        turns.append((message["role"], " ".join(words)))
    return _key(turns)


def _before_first_answer(messages: list[dict]) -> list[dict]:
    """The start of a conversation. Two that differ only after the first answer have the same prompt.

    A greeting of the assistant, before any user, is part of the prompt.
    """
    roles = [message["role"] for message in messages]
    start = 0
    if "user" in roles:
        start = roles.index("user")
    if "assistant" not in roles[start:]:
        return messages  # the user speaks last
    end = roles.index("assistant", start)
    return messages[: end or None]  # an answer to nothing is told apart by its text


def _prompt_column(row: dict, kind: str | None) -> str:
    columns = PROMPT_COLUMNS
    if kind:
        columns = [column for column in columns if column in KINDS[kind].columns]
        # The rows of a kind were checked.
        if len(columns) == 1:
            return columns[0]
    return next(column for column in columns if column in row and not CHECKS[column](row[column]))


def _question_key(row: dict, kind: str | None) -> str:
    """The prompt and, where a row has choices, these in any order.

    Splits that others made, as SWAG's, repeat short texts like "He nods." with other choices, which is another question.
    """
    key = prompt_key(row, kind)
    if kind is None or "choices" not in KINDS[kind].columns:
        return key
    choices = sorted(" ".join(choice.split()) for choice in row["choices"])
    return _key([*json.loads(key), *(("choice", choice) for choice in choices)])


def _key(turns: list[tuple[str, str]]) -> str:
    return json.dumps(turns, ensure_ascii=False)


def split_rows(
    rows: Sequence[dict], fraction: float, seed: int, kind: str | None = None
) -> tuple[Sequence[dict], Sequence[dict]]:
    """(train, test) by a seeded hash of the prompt: about `fraction` of the prompts are test.

    All rows of a prompt are on one side, and they stay there when other rows are added. A side that would be empty gets
    the prompt whose hash is nearest to it.
    """
    if not 0 < fraction < 1:
        raise UserError(f"eval_fraction={fraction} must be between 0 and 1, as in 0.1")
    # One number for each row: the prompts themselves may not fit in memory.
    positions = _numbers(prompt_number(row, kind, seed) for row in rows)
    distinct = len(np.unique(positions))
    if distinct < 2:
        raise UserError(
            f"eval_fraction={fraction} of {distinct} distinct prompts leaves the train or the eval side empty: "
            "add rows, or give eval_dataset_name"
        )
    is_test = positions < np.uint64(ceil(fraction * 2**64))
    is_test |= positions == positions.min()
    is_test &= positions != positions.max()
    return take(rows, np.flatnonzero(~is_test)), take(rows, np.flatnonzero(is_test))


def _numbers(numbers: Iterable[int]) -> np.ndarray:
    """Numbers below 2^64 as an array, eight bytes each."""
    return np.frombuffer(array("Q", numbers), dtype=np.uint64)


def prompt_number(row: dict, kind: str | None = None, seed: int = 0) -> int:
    """A uniform number below 2^64 that belongs to the prompt of a row, which tells it from other prompts."""
    return _position(prompt_key(row, kind), seed)


def _position(key: str, seed: int) -> int:
    """A uniform number below 2^64 that belongs to a prompt."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


OVERLAPS = ("error", "drop")


def check_disjoint(train: Sequence[dict], test: Sequence[dict], kind: str | None = None) -> None:
    """UserError where a prompt is in both; of multiple choice, where a text with the same choices is."""
    shared = shared_prompts(train, test, kind)
    if shared:
        raise UserError(
            f"{len(shared)} prompts are in both train and eval rows, the first: {_first(shared)}; remove them from one, "
            "set overlap: drop to drop them from the train rows, or let eval_fraction split one data set "
            "(dataset_test_split: null, no eval_dataset_name)"
        )


def drop_shared(
    train: Sequence[dict], test: Sequence[dict], kind: str | None = None
) -> tuple[Sequence[dict], list[str]]:
    """(the train rows whose prompts are not in the test rows, the shared prompts in the order of the test rows)."""
    train_hashes, test_hashes = _question_hashes(train, kind), _question_hashes(test, kind)
    kept = np.flatnonzero(~np.isin(train_hashes, test_hashes))
    if not len(kept):
        raise UserError(
            "overlap: drop: every train prompt is in the eval rows too, so no train row is left"
        )
    return take(train, kept), _shared(train_hashes, test_hashes, test, kind)


def shared_prompts(
    train: Sequence[dict], test: Sequence[dict], kind: str | None = None
) -> list[str]:
    """The keys of prompts in both, in the order of the test rows."""
    return _shared(_question_hashes(train, kind), _question_hashes(test, kind), test, kind)


def _question_hashes(rows: Sequence[dict], kind: str | None) -> np.ndarray:
    """A number for each row that tells its prompt, since the prompts may not fit in memory."""
    return _numbers(_position(_question_key(row, kind), 0) for row in rows)


def _shared(
    train_hashes: np.ndarray, test_hashes: np.ndarray, test: Sequence[dict], kind: str | None
) -> list[str]:
    """The keys of the test rows whose hashes are train hashes, without repeats."""
    indices = np.flatnonzero(np.isin(test_hashes, train_hashes))
    keys = [_question_key(test[i], kind) for i in indices.tolist()]
    return list(dict.fromkeys(keys))


def _first(keys: list[str]) -> str:
    """The first three prompts, for a message."""
    return "; ".join(repr(_readable(key)) for key in islice(keys, 3))


def _readable(key: str) -> str:
    """The text of a prompt key, for a message."""
    texts = [text for _, text in json.loads(key)]
    return shorten(" | ".join(texts), 80)


@dataclass
class Splits:
    """Train and eval rows of one kind. eval may be [].

    sources: name, rows and sha256 of each source, for the record of a run.
    """

    train: Sequence[dict]
    eval: Sequence[dict]
    kind: str
    sources: list[dict]
    warnings: list[str] = field(default_factory=list)


def check_is_set(settings) -> None:
    """UserError where a runs.settings.DataSettings names no rows to train on."""
    if not settings.dataset_name:
        raise UserError(
            "dataset_name is not set: give a file, a folder of .jsonl files, or a Hub id"
        )


def load_splits(
    settings, kinds: Sequence[str], *, seed: int, checks: dict[str, Callable] | None = None
) -> Splits:
    """The rows on which a recipe trains and evaluates.

    Eval rows come from the first of these that is set:
    1. eval_dataset_name.
    2. dataset_test_split, if the Hub data set has that split, or the folder has files named after it.
    3. eval_fraction of the prompts.
    With none of them there are no eval rows.

    settings: a runs.settings.DataSettings.
    checks: further checks of columns, see load.CheckedRows.
    """
    check_is_set(settings)
    if settings.overlap not in OVERLAPS:
        raise UserError(f"overlap={settings.overlap!r}: use one of {', '.join(OVERLAPS)}")
    _check_train_split(settings.dataset_name, settings.dataset_train_split)
    train = _load(settings, settings.dataset_name, settings.dataset_train_split, kinds, checks)
    if settings.good_answers and train.source_kind not in RATED:
        raise UserError(
            f"good_answers: true, but {train.name} has {train.source_kind} rows, whose answers are not rated: remove the key"
        )
    eval_name = _eval_name(settings)
    if eval_name:
        # Only the kind of the train rows, so that both sides are the same.
        # Evaluation rows may be rankings already, where the training rows have scores.
        test = _load(
            settings, eval_name, settings.dataset_test_split, (train.kind,), checks, must_rank=False
        )
        return _joined(train, test, settings.overlap)
    train_rows, eval_rows = train.rows, []
    if settings.eval_fraction:
        train_rows, eval_rows = split_rows(train.rows, settings.eval_fraction, seed, train.kind)
        prompts = (prompt_key(row, train.kind) for row in eval_rows)
        first = next(prompts)
        if all(prompt == first for prompt in prompts):
            share = f"eval_fraction={settings.eval_fraction} of {len(train.rows)} rows"
            train.warnings.append(f"{share} holds out one prompt: its metrics say little")
    return Splits(train_rows, eval_rows, train.kind, train.sources, train.warnings)


def _joined(train: Loaded, test: Loaded, overlap: str) -> Splits:
    """Train and eval rows of two sources, without prompts that both have."""
    rows, kind = train.rows, train.kind
    sources = train.sources + test.sources
    warnings = train.warnings + test.warnings
    if overlap == "error":
        check_disjoint(rows, test.rows, kind)
    else:
        rows, shared = drop_shared(rows, test.rows, kind)
        count = len(train.rows) - len(rows)
        if shared:
            sources[0]["overlap_dropped"] = count
            warnings.append(
                f"overlap: drop: {count} train rows were dropped, because their {len(shared)} prompts are in the eval rows "
                f"too, the first: {_first(shared)}"
            )
    return Splits(rows, test.rows, kind, sources, warnings)


def _load(
    settings, name: str, split: str | None, kinds: Sequence[str], checks, *, must_rank: bool = True
) -> Loaded:
    config = None
    if name == settings.dataset_name:  # the config of one data set says nothing about another
        config = settings.dataset_config
    checked = CheckedRows(
        name,
        kinds=kinds,
        columns=settings.columns,
        split=split,
        config=config,
        checks=checks,
        separator=settings.document_separator,
        ratings=Ratings(settings.good_answers, settings.rank_by, must_rank),
    )
    return collect_rows(checked, limit=settings.dataset_limit, skip_bad=settings.skip_bad)


def _check_train_split(name: str, split: str | None) -> None:
    """UserError where a local source has no such split. Without "train" all of it is read, and any other name is meant."""
    if split in (None, "train") or not Path(name).exists():
        return
    if not has_split(Path(name), split, tuple(READERS)):
        raise UserError(
            f"dataset_train_split={split}: {name} has no such split; a folder has those that its files are named after, and "
            "a file has none: remove the key, or give the file itself"
        )


def _eval_name(settings) -> str | None:
    """The name of the source of the eval rows, or None where they have no source of their own."""
    if settings.eval_dataset_name:
        return settings.eval_dataset_name
    name, split = settings.dataset_name, settings.dataset_test_split
    streaming = settings.dataset_limit is not None
    if split and _has_split(name, settings.dataset_config, split, streaming=streaming):
        return name
    return None


def _has_split(name: str, config: str | None, split: str, *, streaming: bool) -> bool:
    if is_local(name):
        return has_split(Path(name), split, tuple(READERS))
    return split in load_hub_splits(name, config, streaming=streaming)
