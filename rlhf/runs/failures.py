"""Errors of any process: each failing process writes `error-RANK.txt` into the output folder, and the others end.

A process that waits for a dead one in a collective would wait for minutes. So each looks for such files once a second.
"""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rlhf.errors import Interrupted, UserError
from rlhf.runs.durable import write_text
from rlhf.runs.record import RECORD, read_object

PREFIX = "error-"
LOOK_EVERY = 1.0  # seconds between two looks for errors of other processes
GRACE = 5.0  # seconds in which a process that has lost another ends by itself


# In the errors of gloo and NCCL, and of their store, when a process at the other end has died.
SIGNS_OF_DEATH = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Failed to recv",
    "remote process exited",
)


def describe(error: BaseException) -> str:
    """The message of a UserError, or of a signal. Of others, the type too."""
    if isinstance(error, UserError | Interrupted):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def write_failure(folder: str | os.PathLike, rank: int, error: BaseException) -> None:
    """Write what a process died of. Where the disk takes no more, the error that is printed must do."""
    text = describe(error)
    if not isinstance(error, UserError):
        text += "\n\n" + "".join(traceback.format_exception(error))
    with suppress(OSError):
        write_text(Path(folder) / f"{PREFIX}{rank}.txt", text)


def read_failure(folder: str | os.PathLike, rank: int) -> str | None:
    """The words with which the process of this rank has failed; None if it has not."""
    try:
        text = (Path(folder) / f"{PREFIX}{rank}.txt").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.partition("\n\n")[0]


def failures_of_others(folder: str | os.PathLike, rank: int) -> dict[int, str]:
    """rank -> what that process died of, for every other one."""
    failures = {}
    for path in sorted(Path(folder).glob(f"{PREFIX}*.txt")):
        other = path.stem.removeprefix(PREFIX)
        if other.isdigit() and int(other) != rank:
            failures[int(other)] = read_failure(folder, int(other)) or "unknown"
    return failures


def forget_failures(folder: str | os.PathLike) -> None:
    """Remove what an earlier run has left."""
    for path in Path(folder).glob(f"{PREFIX}*.txt"):
        path.unlink(missing_ok=True)


def first_failure(folder: str | os.PathLike, rank: int, *, wait: float = 0.0) -> str | None:
    """A sentence about another process that has failed; None if none has within `wait` seconds."""
    end = time.monotonic() + wait
    while True:
        for other, text in failures_of_others(folder, rank).items():
            return f"process {other} failed: {text}"
        if time.monotonic() >= end:
            return None
        time.sleep(0.1)


def lost_process(error: BaseException) -> UserError | None:
    """The error to report where the cause of this one is that another process has died, and said nothing."""
    text = str(error)
    # DistNetworkError and DistBackendError are RuntimeErrors too.
    if not isinstance(error, RuntimeError) or not any(sign in text for sign in SIGNS_OF_DEATH):
        return None
    return UserError(
        "another process has ended without a word: it was killed, as by the system when memory is short, or left by "
        "os._exit. The launcher says which, and its exit code"
    )


def signal_of_main(folder: str | os.PathLike) -> int:
    """The number of the signal by which the main process has ended the run, as its record says; 0 where none has."""
    error = read_object(Path(folder) / RECORD).get("error") or ""
    stopped = re.match(r"(?:process 0: )?stopped by (SIG[A-Z]+)", error)
    return int(signal.Signals[stopped[1]]) if stopped else 0


def said_by_main(folder: str | os.PathLike, error: BaseException, *, wait: float) -> bool:
    """True if the main process has failed with the same words, which it has printed. Waits so many seconds for it."""
    end = time.monotonic() + wait
    while True:
        said = read_failure(folder, 0)
        if said is not None or time.monotonic() >= end:
            return said == describe(error)
        time.sleep(0.1)


def watch_others(
    folder: str | os.PathLike, rank: int, at_end: Callable[[str], None]
) -> threading.Event:
    """Watch for errors of other processes in a thread, until the event is set.

    at_end(message): called before this process is ended, if it has not ended by itself.
    """
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(LOOK_EVERY):
            message = first_failure(folder, rank)
            if message is None:
                continue
            if not stopped.wait(GRACE):
                at_end(message)
                sys.stderr.flush()
                os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch_others").start()
    return stopped
