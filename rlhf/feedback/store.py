"""An append-only file of events, FOLDER/events.jsonl, which several processes may write to at once.

An event is one write under a lock, then a sync: a killed writer leaves the event whole or not at all. If the power fails in
a write, the last line may be cut off. It stays, the next event begins on a line of its own, and readers report it.
Recipes read the folder as it is: names that begin with a dot, which the app adds, are not data.
"""

import hashlib
import json
import logging
import os
import secrets
import threading
import unicodedata
from collections.abc import Iterable, Iterator
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
BLOCK = 8 << 20  # bytes that are read at once
HEAD = 256  # bytes by which a file is known again
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cursor:
    """The end of what was read of a file: bytes, and lines. head: how it began, since its name may be given to another."""

    offset: int = 0
    line: int = 0
    head: bytes = b""


class Replaced(Exception):
    """The file that a cursor belongs to is gone, or was cut back or replaced: it is to be read from its beginning."""


class Store:
    """The events in a folder, which is made with the first of them.

    problems: a line for each line of the file that could not be read, as `path:line: reason`. Complete after `events`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._known: list[Event] = []
        self._ids: set[str] = set()
        self._cursor = Cursor()

    def append(self, event: Event) -> Event:
        """Write an event and sync it. UserError for a bad event, and where it could not be written whole."""
        # Whoever appends learns of a mistake, not the one who reads.
        check(event)
        append_line(self.path, to_row(event))
        return event

    def events(self) -> Iterator[Event]:
        """Every good event, in the order of the file, of which a block at a time is in memory.

        UserError where the file is replaced meanwhile.
        """
        self.problems = []
        cursor, seen = Cursor(), set()
        is_last = False
        while not is_last:
            before = cursor
            try:
                events, cursor = self.read_from(before, self.problems, seen=seen, most=BLOCK)
                # The rest has no line end: it was cut off, or somebody writes it.
                is_last = cursor.offset == before.offset
                if is_last:
                    events, _ = self.read_from(before, self.problems, seen=seen, unfinished=True)
            except Replaced:
                raise UserError(f"{self.path} was replaced while it was read: try again") from None
            yield from events

    def all(self) -> list[Event]:
        """Every good event as a list. Only what was appended since the last call is read, by whichever process."""
        with self._lock:
            try:
                fresh, self._cursor = self.read_from(self._cursor, [], seen=self._ids)
            # The folder was emptied, or put back from a copy.
            except Replaced:
                self._forget()
                fresh, self._cursor = self.read_from(self._cursor, [], seen=self._ids)
            self._known += fresh
            return list(self._known)

    def read_from(
        self,
        cursor: Cursor,
        problems: list[str],
        *,
        seen: set[str] | None = None,
        unfinished: bool = False,
        most: int | None = None,
    ) -> tuple[list[Event], Cursor]:
        """(the events after a cursor, the cursor after them). Adds to `problems` what could not be read.

        seen: ids of earlier events; those of the new ones are added, and an event with one of them is passed over, as in a
        file that was put together from copies. unfinished: read a last line that lacks its end too. It is behind the
        cursor, since it may be completed. most: bytes to read; None is all. Replaced if the cursor is of another file.
        """
        events = []
        lines, end = read_lines(self.path, cursor, unfinished=unfinished, most=most)
        for number, data in lines:
            try:
                event = from_row(parse(data))
                # Two folders that were copied into one may share events.
                if seen is not None and event.id in seen:
                    raise UserError(f"id: {event.id} was read before, passed over")
                events.append(event)
                if seen is not None:
                    seen.add(event.id)
            except UserError as error:
                problems.append(f"{self.path}:{number}: {error}")
        return events, end

    def annotator(self, name: str) -> str:
        """The name under which somebody is stored: 16 digits of sha256 of a salt and the name. "" for no name."""
        # "Ann", " ann" and "ANN" are one person, and so is a name whose accents another keyboard makes of two characters.
        name = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
        if not name:
            return ""
        digest = hashlib.sha256(f"{self._salt()}{name}".encode(errors="replace"))
        return digest.hexdigest()[:16]

    def _salt(self) -> str:
        """The secret with which the names of this folder are hashed."""
        path = self.folder / ".salt"
        if not path.exists() and any(event.annotator for event in self.all()):
            logger.warning(
                "%s is gone: people of earlier events count as others from now on; restore it from a copy",
                path,
            )
        return self.secret(path.name)

    def secret(self, name: str) -> str:
        """A secret of this folder in a file of this name, made once and readable by its owner only."""
        path = self.folder / name
        try:
            if not path.exists():
                self._make_secret(path)
            salt = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: names cannot be hashed ({error}): check the folder"
            ) from error
        # An empty salt would let anybody try names until one fits.
        if len(salt) < 32:
            raise UserError(
                f"{path}: {len(salt)} characters are too few: restore it from a copy; without it everybody counts as "
                "somebody new"
            )
        return salt

    def _make_secret(self, path: Path) -> None:
        make_folder(self.folder)
        temporary = self.folder / f"{path.name}.{secrets.token_hex(8)}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                # Written whole under another name, so that no process reads half of it.
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # of two processes, one makes it
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)


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
    append_lines(path, [row])


def append_lines(path: Path, rows: Iterable[dict]) -> None:
    """Append JSON lines in one write, as `append_line`: all of them or none."""
    data = b"".join(_line(row) for row in rows)
    if not data:
        return
    make_folder(path.parent)
    try:
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if is_new:
                sync_folder(path.parent)
            with locked(descriptor, shared=False):
                _write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"{path}: the event was not saved ({error.strerror}): free space or check the folder, then repeat it"
        ) from error


def _line(row: dict) -> bytes:
    try:
        data = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"an event that is not JSON ({error})") from error
    if len(data) > MAX_LINE:
        raise UserError(f"{len(data)} bytes: an event has at most {MAX_LINE}: shorten the texts")
    return data


def _write(descriptor: int, data: bytes) -> None:
    """One synced write at the end of a locked file, on a line of its own. What is not saved whole is taken back."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = b"\n" + data  # the line before was cut off
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(28, "the disk is full")
        # The app says "Saved" only after this. Some file systems notice only here that the disk is full.
        os.fsync(descriptor)
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
    path: Path, cursor: Cursor, *, unfinished: bool = False, most: int | None = None
) -> tuple[list[tuple[int, bytes]], Cursor]:
    """((line number, bytes) of the lines after a cursor without blank ones, the cursor after the last whole line).

    unfinished: give a last line that lacks its end too. most: bytes to read, and more only to the end of a line; None is
    all of the file. Replaced if the cursor is of another file.
    """
    try:
        with open(path, "rb") as file:
            with locked(file.fileno(), shared=True):  # no writer is in the middle of a line
                head = file.read(HEAD)
                size = file.seek(0, os.SEEK_END)
                # A new file may be longer than the old one was.
                if size < cursor.offset or not head.startswith(cursor.head):
                    raise Replaced
                file.seek(cursor.offset)
                data = file.read(most)
                if most is not None:
                    data += file.readline()
    except FileNotFoundError:
        if cursor.offset:
            raise Replaced from None
        return [], cursor
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the folder") from error
    lines = data.split(b"\n")
    # What follows the last line end: nothing, or an unfinished line.
    rest = lines[-1]
    offset = cursor.offset + len(data) - len(rest)
    end = Cursor(offset, cursor.line + len(lines) - 1, cursor.head or head[:offset])
    if not cursor.offset:  # an editor on Windows puts one before the first line
        lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
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
