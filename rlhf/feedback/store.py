"""An append-only file of events, FOLDER/events.jsonl, which several processes may write to at once.

An event is one write under a lock, then a sync: a killed writer leaves the event whole or not at all. If the power fails in
a write, the last line may be cut off. It stays, the next event begins on a line of its own, and readers report it.
Recipes read the folder as it is: names that begin with a dot, which the app adds, are not data.
"""

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.feedback.events import Event, check, from_row, to_row

try:
    import fcntl
except ImportError:  # Windows: one process may write
    fcntl = None

NAME = "events.jsonl"
MAX_LINE = 8 << 20  # bytes of one event


@dataclass(frozen=True)
class Cursor:
    """The end of what was read of a file: bytes, and lines."""

    offset: int = 0
    line: int = 0


class Store:
    """The events in a folder, which is made with the first of them.

    problems: a line for each line of the file that could not be read, as `path:line: reason`. Complete after `events`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._known: list[Event] = []
        self._cursor = Cursor()

    def append(self, event: Event) -> Event:
        """Write an event and sync it. UserError for a bad event, and where it could not be written whole."""
        # Whoever appends learns of a mistake, not the one who reads.
        check(event)
        append_line(self.path, to_row(event))
        return event

    def events(self) -> Iterator[Event]:
        """Every good event, in the order of the file."""
        self.problems = []
        yield from self.read_from(Cursor(), self.problems, unfinished=True)[0]

    def all(self) -> list[Event]:
        """Every good event as a list. Only what was appended since the last call is read, by whichever process."""
        with self._lock:
            if self.path.exists() and self.path.stat().st_size < self._cursor.offset:
                self._known, self._cursor = [], Cursor()  # the file was replaced
            fresh, self._cursor = self.read_from(self._cursor, [])
            self._known += fresh
            return list(self._known)

    def read_from(
        self, cursor: Cursor, problems: list[str], *, unfinished: bool = False
    ) -> tuple[list[Event], Cursor]:
        """(the events after a cursor, the cursor after them). Adds to `problems` what could not be read.

        unfinished: read a last line that lacks its end too. It is behind the cursor, since it may be completed.
        """
        events = []
        lines, end = read_lines(self.path, cursor, unfinished=unfinished)
        for number, data in lines:
            try:
                events.append(from_row(parse(data)))
            except UserError as error:
                problems.append(f"{self.path}:{number}: {error}")
        return events, end

    def annotator(self, name: str) -> str:
        """The name under which somebody is stored: 16 digits of sha256 of a salt and the name. "" for no name."""
        # "Ann", " ann" and "ANN" are one person.
        name = " ".join(name.split()).lower()
        if not name:
            return ""
        digest = hashlib.sha256(f"{self._salt()}{name}".encode())
        return digest.hexdigest()[:16]

    def _salt(self) -> str:
        """The secret of this folder, made once and readable by its owner only."""
        path = self.folder / ".salt"
        if not path.exists():
            make_folder(self.folder)
            temporary = self.folder / f".salt.{secrets.token_hex(8)}"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                # Written whole under another name, so that no process reads half of it.
                file.write(secrets.token_hex(32))
            try:
                os.link(temporary, path)  # of two processes, one makes it
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return path.read_text()


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner reads, because people's words are in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}): name a folder that can be written to"
        ) from error


def append_line(path: Path, row: dict) -> None:
    """Append one JSON line under a lock and sync it. UserError if it cannot be written; the file then is as before."""
    data = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    if len(data) > MAX_LINE:
        raise UserError(f"{len(data)} bytes: an event has at most {MAX_LINE}: shorten the texts")
    make_folder(path.parent)
    try:
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            with locked(descriptor, shared=False):
                _write(descriptor, data + b"\n")
                # The app says "Saved" only after this.
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: the event was not saved ({error.strerror}): free space or check the folder, then repeat it"
        ) from error


def _write(descriptor: int, data: bytes) -> None:
    """One write at the end of a locked file, on a line of its own. What is written in part is taken back."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # the line before was cut off
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(28, "the disk is full")
    except OSError:
        # Nobody else writes meanwhile: the lock is held.
        os.ftruncate(descriptor, size)
        raise


@contextmanager
def locked(descriptor: int, *, shared: bool) -> Iterator[None]:
    """Hold the lock of an open file. Closing the file gives it back, and so does the end of the process."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def sync_folder(folder: Path) -> None:
    """Make the name of a new file survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ----------------------------------------------------------------------------------------------------------


def read_lines(
    path: Path, cursor: Cursor, *, unfinished: bool = False
) -> tuple[list[tuple[int, bytes]], Cursor]:
    """((line number, bytes) of the lines after a cursor without blank ones, the cursor after the last whole line).

    unfinished: give a last line that lacks its end too.
    """
    try:
        with open(path, "rb") as file:
            with locked(file.fileno(), shared=True):  # no writer is in the middle of a line
                file.seek(cursor.offset)
                data = file.read()
    except FileNotFoundError:
        return [], cursor
    lines = data.split(b"\n")
    # What follows the last line end: nothing, or an unfinished line.
    rest = lines[-1]
    end = Cursor(cursor.offset + len(data) - len(rest), cursor.line + len(lines) - 1)
    if not unfinished:
        lines.pop()
    numbered = enumerate(lines, start=cursor.line + 1)
    return [(number, line) for number, line in numbered if line.strip()], end


def parse(data: bytes):
    """The JSON of one line. UserError where it is not one whole JSON value."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a whole event, passed over ({error}): was it cut off?") from error


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")
