"""Encodes rows in several processes at once, for encoders that read each row by itself."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

PART = 1000  # rows
MOST_PROCESSES = 8
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl.h

Task = tuple[Callable, object, Sequence[dict], dict]  # encoder, tokenizer, rows, settings
Encoded = tuple[list[dict], Counter]

_task: Task  # of a child


def encode_in_parts(
    encode: Callable[..., Iterator[dict]],
    tokenizer,
    rows: Sequence[dict],
    counts: Counter,
    **settings,
) -> Iterator[dict]:
    """Yield the entries of an encoder of `encode_once`, in its order. One part, one core or no fork: from this process.

    If a child is killed, as for want of memory, this process encodes the rest.
    """
    task = (encode, tokenizer, rows, settings)
    starts = range(0, len(rows), PART)
    processes = 1
    if sys.platform == "linux":  # elsewhere a process starts without the data, or may hang
        processes = min(len(os.sched_getaffinity(0)), len(starts), MOST_PROCESSES)
    done = 0
    if processes > 1:
        try:
            for entries, part_counts in _from_children(task, starts, processes):
                counts.update(part_counts)
                yield from entries
                done += 1
        except (BrokenProcessPool, OSError):  # OSError: no process can be started
            pass
    for start in starts[done:]:
        entries, part_counts = _encode(task, start)
        counts.update(part_counts)
        yield from entries


def _from_children(task: Task, starts: Sequence[int], processes: int) -> Iterator[Encoded]:
    fork = multiprocessing.get_context("fork")  # which copies nothing of the task
    pool = ProcessPoolExecutor(processes, fork, _begin, (task, os.getpid()))
    waiting = deque()
    try:
        for start in starts:
            waiting.append(pool.submit(_encode_part, start))
            if len(waiting) == 2 * processes:  # no more than are read soon stay in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(task: Task, parent: int) -> None:
    """Leave signals to the first process, end with it, and leave tokenizers without threads."""
    global _task
    _task = task
    end_with(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def end_with(parent: int, number: int) -> None:
    """Have this process sent a signal when its parent, whose process id is given, dies. Only Linux can do it."""
    if sys.platform == "win32":
        return
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(number))
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), number)


def _encode_part(start: int) -> Encoded:
    return _encode(_task, start)


def _encode(task: Task, start: int) -> Encoded:
    """The entries of a part, with the index of their row among all, and what was counted."""
    encode, tokenizer, rows, settings = task
    counts: Counter[str] = Counter()
    entries = []
    for entry in encode(tokenizer, rows[start : start + PART], counts, **settings):
        if "row" in entry:
            entry["row"] += start
        entries.append(entry)
    return entries, counts
