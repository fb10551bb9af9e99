"""Looks at files of rows with `rlhf validate`, in a process of its own, within a limit of time."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from rlhf.errors import UserError

LIMIT = 180.0  # seconds
AT_ONCE = 2  # files that are looked at by all people together
COMMAND = (sys.executable, "-m", "rlhf.commands.look")

_free = threading.BoundedSemaphore(AT_ONCE)


def look(
    request: dict, *, limit: float = LIMIT, command: tuple[str, ...] = COMMAND
) -> Iterator[dict]:
    """Yield `{"rows": n, "seconds": s}` while a file is read, and at last `{"report": {...}}` (`rlhf.commands.look`).

    UserError where the file cannot be read, takes longer than the limit, or others are read already. The process ends
    with the iterator, so that nobody waits for a file that nobody looks at.
    """
    if not _free.acquire(blocking=False):
        raise UserError(f"{AT_ONCE} files are being read: wait until one is done")
    try:
        yield from _lines(request, limit, command)
    finally:
        _free.release()


def _lines(request: dict, limit: float, command: tuple[str, ...]) -> Iterator[dict]:
    process = subprocess.Popen(
        [*command, json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        start_new_session=True,
    )
    # Read by a thread, so that waiting for a line can end.
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    started, rows = time.monotonic(), 0
    try:
        while True:
            seconds = time.monotonic() - started
            if seconds > limit:
                raise UserError(
                    f"stopped after {limit:.0f} s and {rows:,} good rows: look at the whole file with "
                    f"rlhf validate {request['file']}"
                )
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                yield {"rows": rows, "seconds": seconds}
                continue
            if line is None:
                code = process.wait()
                raise UserError(
                    f"{request['file']}: reading it ended without a report (exit {code})"
                )
            answer = answer_of(line)
            if "error" in answer:
                raise UserError(answer["error"])
            if "report" in answer:
                yield answer
                return
            rows = answer.get("rows", rows)
            yield {"rows": rows, "seconds": seconds}
    finally:
        _end(process)


def answer_of(line: bytes) -> dict:
    """The JSON object of a line; {} for a line that a library has printed."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    # A number or a list is not ours either.
    return answer if isinstance(answer, dict) else {}


def _read(process: subprocess.Popen, lines: queue.Queue) -> None:
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen) -> None:
    # Its group, for the workers that reading may have.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
