"""Arrow files that are made once from data and mapped by every process: checked rows, and their encodings.

A file is named by everything that decides its content, so that a file that is there is right. It is written under another
name and renamed when it is whole. Its last batch is empty and carries a note about the rest and a checksum of all: a file
that was cut off or has a wrong byte is made again. A disk that is full or read-only costs speed, never the run: the
content then stays in memory.

RLHF_CACHE names the folder (default: `rlhf` in the cache folder of `datasets`, HF_DATASETS_CACHE), or is `off`. Nothing is
ever removed from it: delete it, or old files in it, when no run reads them.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Keys in the last batch's metadata.
NOTE = b"rlhf"
CHECKSUM = b"crc32"  # of the file up to the last batch, then of the note
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 24  # of the values of a batch, about
SECONDS_BETWEEN_LINES = 5


def folder() -> Path | None:
    """The folder of the cache; None where it is switched off, and on Windows."""
    given = os.environ.get("RLHF_CACHE")
    if given == "off" or fcntl is None:
        return None
    if given:
        return Path(given)
    given = os.environ.get("HF_DATASETS_CACHE")
    if given:
        return Path(given) / "rlhf"
    home = os.environ.get("HF_HOME")
    if not home:
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "datasets" / "rlhf"


@dataclass
class Stored:
    """The content of an Arrow file.

    table: its columns, mapped from the file; in memory where it could not be written.
    note: what was noted about it, JSON values.
    path: the file, which stays; None where there is none.
    """

    table: pyarrow.Table
    note: dict
    path: Path | None = None


def stored(
    key: str | None,
    schema: pyarrow.Schema,
    fill: Callable[["Writer"], dict],
    doing: str,
) -> Stored:
    """The file of `key`, made by `fill` if it is not there. Of several processes, one makes it and the others wait.

    key: a name for its content; None: the content is made, and no file stays.
    fill: adds rows to the writer, and returns the note; with "keep": False in it no file stays. Its errors are passed on.
    doing: what takes the time, as "reading rows.jsonl", for a line every few seconds.
    """
    home = folder()
    if key is None or home is None:
        return _made(None, schema, fill, doing)
    path = home / f"{key}.arrow"
    there = _opened(path)
    if there:
        return there
    with _locked(path) as alone:
        # Another process may have made it in the meantime.
        there = _opened(path)
        if there:
            return there
        if alone:
            _remove_unfinished(path)
        return _made(path, schema, fill, doing)


def _made(path: Path | None, schema: pyarrow.Schema, fill: Callable, doing: str) -> Stored:
    home, name = folder(), "rows"
    if path:
        home, name = path.parent, path.stem
    writer = Writer(schema, home, doing, name)
    if path is None:
        writer.remove_name()
    try:
        note = fill(writer)
        if not note.pop("keep", True):
            path = None
        return writer.close(note, path)
    finally:
        writer.discard()


def _opened(path: Path) -> Stored | None:
    """The content of a file that is whole, or None."""
    try:
        with suppress(OSError):
            os.utime(path)  # so that old files can be told by their time
        return _mapped(path)
    except (OSError, pyarrow.ArrowException, ValueError, KeyError, TypeError):
        return None


def _remove_unfinished(path: Path) -> None:
    """Removes what a killed process left of a file. Only for the process that holds its lock."""
    for unfinished in path.parent.glob(f"{path.stem}-*.tmp"):
        with suppress(OSError):
            unfinished.unlink()


def _mapped(path: Path) -> Stored:
    """Maps a file. ValueError or ArrowException where it is cut off, has a wrong byte, or is another program's."""
    source = pyarrow.memory_map(str(path))
    reader = pyarrow.ipc.open_stream(source)
    batches = []
    note = None
    while note is None:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration as error:
            raise ValueError(f"{path}: no note at its end") from error
        if metadata is None:
            batches.append(batch)
        else:
            note = json.loads(metadata[NOTE])
            # Before a value is read: wrong offsets lead out of the file.
            if metadata[CHECKSUM] != _checksum(source, note["size"], metadata[NOTE]):
                raise ValueError(f"{path}: a byte of it was changed")
    table = pyarrow.Table.from_batches(batches, reader.schema)
    if note["rows"] != len(table):
        raise ValueError(f"{path}: {len(table)} rows, {note['rows']} noted")
    return Stored(table, note, path)


def _checksum(source: pyarrow.MemoryMappedFile, size: int, note: bytes) -> bytes:
    """The checksum of a mapped file. size: bytes before its last batch."""
    checksum = crc32(source.read_at(size, 0))
    return str(crc32(note, checksum)).encode()


@contextmanager
def _locked(path: Path):
    """Holds the lock of a file while others wait, and gives True; False where no lock can be made.

    A process that ends releases it.
    """
    file = None
    alone = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        alone = True
    except OSError:
        pass  # each process then makes its own content
    try:
        yield alone
    finally:
        if file:
            file.close()


def _array(values: Iterable, kind: pyarrow.DataType) -> pyarrow.Array:
    """Values as an Arrow array: bytes, numbers, or lists of numbers or of such lists.

    pyarrow.array does the same, but imports pandas for it, which takes half a second.
    """
    if pyarrow.types.is_primitive(kind):
        numbers = values
        if not isinstance(values, np.ndarray):
            numbers = np.fromiter(values, kind.to_pandas_dtype())
        data = numbers.astype(kind.to_pandas_dtype(), copy=False)
        if pyarrow.types.is_boolean(kind):
            data = np.packbits(data, bitorder="little")
        return pyarrow.Array.from_buffers(kind, len(numbers), [None, pyarrow.py_buffer(data)])
    values = list(values)
    lengths = [len(value) for value in values]
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pyarrow.py_buffer(offsets)]
    if pyarrow.types.is_binary(kind):
        buffers.append(pyarrow.py_buffer(b"".join(values)))
        return pyarrow.Array.from_buffers(kind, len(lengths), buffers)
    if values and isinstance(values[0], np.ndarray):
        inner = np.concatenate(values)
    else:
        inner = chain.from_iterable(values)
    items = _array(inner, kind.value_type)
    return pyarrow.Array.from_buffers(kind, len(lengths), buffers, children=[items])


class Writer:
    """Writes rows into an Arrow file in batches, and goes on in memory where that fails.

    home: the folder of the file; None: that of temporary files.
    name: the start of its name until it is whole.
    """

    def __init__(self, schema: pyarrow.Schema, home: Path | None, doing: str, name: str = "rows"):
        self.schema = schema
        self.doing = doing
        self.rows = 0
        self.batch: list[tuple] = []  # the rows of the next one
        self.size = 0  # bytes in it, about
        self.batches: list[pyarrow.RecordBatch] = []  # in memory
        self.written = 0  # batches in the file
        self.path: Path | None = None  # of the file that is being written
        self.handle: int | None = None  # by which it is read even if its folder is removed
        self.sink = self.stream = None
        self.told = time.monotonic()
        self.start = self.told
        if fcntl is None:  # Windows, where an open file keeps its name: the rows stay in memory
            return
        try:
            if home:
                home.mkdir(parents=True, exist_ok=True)
            self.handle, path = tempfile.mkstemp(".tmp", f"{name}-", home)
            self.path = Path(path)
            self.sink = pyarrow.OSFile(path, "wb")
            self.stream = pyarrow.ipc.new_stream(self.sink, schema)
        except OSError:
            self.discard()

    @property
    def readable(self) -> Path:
        """The file, which may have lost its name."""
        return Path(f"/dev/fd/{self.handle}")

    def add(self, values: tuple, size: int) -> None:
        """Adds a row: a value for each column, of about `size` bytes."""
        self.batch.append(values)
        self.rows += 1
        self.size += size
        if self.size > BATCH_BYTES or len(self.batch) == BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that were added since the last batch."""
        arrays = []
        for values, field in zip(zip(*self.batch, strict=True), self.schema, strict=True):
            arrays.append(_array(values, field.type))
        self.batch.clear()
        self.size = 0
        self._write(pyarrow.RecordBatch.from_arrays(arrays, schema=self.schema))
        now = time.monotonic()
        if now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            print(
                f"{self.doing}: {self.rows:,} rows in {now - self.start:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def _write(self, batch: pyarrow.RecordBatch) -> None:
        if self.stream:
            try:
                self.stream.write_batch(batch)
                self.written += 1
                return
            except OSError:
                self._move_to_memory()
        self.batches.append(batch)

    def _move_to_memory(self) -> None:
        """Reads back what reached the disk before it was full."""
        with suppress(OSError):
            self.sink.close()
        self.stream = None
        if self.written:
            with pyarrow.OSFile(str(self.readable), "rb") as file:
                reader = pyarrow.ipc.open_stream(file)
                for _ in range(self.written):
                    self.batches.append(reader.read_next_batch())
        self.discard()

    def close(self, note: dict, path: Path | None) -> Stored:
        """Ends the file and maps it. It gets the name `path`; with None it has no name and is gone with the process."""
        if self.batch:
            self.flush()
        note = {**note, "rows": self.rows}
        if self.stream:
            try:
                return self._finish(note, path)
            except OSError:
                self._move_to_memory()
        return Stored(pyarrow.Table.from_batches(self.batches, self.schema), note)

    def _finish(self, note: dict, path: Path | None) -> Stored:
        note["size"] = self.sink.tell()
        text = json.dumps(note).encode()
        with pyarrow.memory_map(str(self.readable)) as written:
            checksum = _checksum(written, note["size"], text)
        arrays = [_array([], field.type) for field in self.schema]
        last = pyarrow.RecordBatch.from_arrays(arrays, schema=self.schema)
        self.stream.write_batch(last, custom_metadata={NOTE: text, CHECKSUM: checksum})
        self.stream.close()
        self.sink.close()
        os.fsync(self.handle)
        # The mapping lives on without a name, or with another.
        result = _mapped(self.readable)
        result.path = None
        if path is not None:
            with suppress(OSError):  # the folder is gone
                os.replace(self.path, path)
                self.path, result.path = None, path
        return result

    def remove_name(self) -> None:
        """Leaves the file to this process alone, so that nothing stays where it is killed."""
        if self.path:
            with suppress(OSError):
                self.path.unlink()
        self.path = None

    def discard(self) -> None:
        """Removes a file that was not finished."""
        if self.sink:
            with suppress(OSError):
                self.sink.close()
        self.remove_name()
        if self.handle is not None:
            os.close(self.handle)
        self.handle = self.sink = self.stream = None
