"""Encodes rows in several processes at once, for encoders that read each row by itself."""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

PART = 1000  # rows
MOST_PROCESSES = 8

_task: tuple | None = None  # what the processes do, which they have from the fork


def encode_in_parts(
    encode: Callable[..., Iterator[dict]],
    tokenizer,
    rows: Sequence[dict],
    counts: Counter,
    **settings,
) -> Iterator[dict]:
    """Yield the entries of an encoder of `encode_once`, in its order. One part, one core or no fork: from this process."""
    global _task
    starts = range(0, len(rows), PART)
    processes = 1
    if sys.platform == "linux":  # elsewhere a process starts without the data, or may hang
        processes = min(len(os.sched_getaffinity(0)), len(starts), MOST_PROCESSES)
    if processes < 2:
        yield from encode(tokenizer, rows, counts, **settings)
        return
    _task = (encode, tokenizer, rows, settings)
    try:
        with multiprocessing.get_context("fork").Pool(processes, _prepare) as pool:
            for entries, part_counts in pool.imap(_encode_part, starts):
                counts.update(part_counts)
                yield from entries
    finally:
        _task = None


def _prepare() -> None:
    """Leave signals to the first process, which ends the others, and tokenizers without threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _encode_part(start: int) -> tuple[list[dict], Counter]:
    encode, tokenizer, rows, settings = _task
    counts: Counter[str] = Counter()
    entries = []
    for entry in encode(tokenizer, rows[start : start + PART], counts, **settings):
        if "row" in entry:
            entry["row"] += start
        entries.append(entry)
    return entries, counts
