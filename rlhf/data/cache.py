"""Arrow files that are made once from data and mapped by every process: checked rows, and their encodings.

A file is named by everything that decides its content, so that a file that is there is right. It is written under another
name and renamed when it is whole. Its last batch is empty and carries a note about the rest: a file without it was cut
off, and is made again. A disk that is full or read-only costs speed, never the run: the content then stays in memory.

RLHF_CACHE names the folder (default: `rlhf` in the cache folder of `datasets`, HF_DATASETS_CACHE), or is `off`. Nothing is
ever removed from it: delete it, or old files in it, when no run reads them.
"""

import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow

NOTE = b"rlhf"  # the key of the note in the last batch's metadata
BATCH_ROWS = 1000
BATCH_BYTES = 1 << 24  # of the values of a batch, about
SECONDS_BETWEEN_LINES = 5


def folder() -> Path | None:
    """The folder of the cache; None where it is switched off."""
    given = os.environ.get("RLHF_CACHE")
    if given == "off":
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
    with _locked(path):
        # Another process may have made it in the meantime.
        there = _opened(path)
        if there:
            return there
        return _made(path, schema, fill, doing)


def _made(path: Path | None, schema: pyarrow.Schema, fill: Callable, doing: str) -> Stored:
    writer = Writer(schema, path.parent if path else folder(), doing)
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
    except (OSError, pyarrow.ArrowException, ValueError, KeyError):
        return None


def _mapped(path: Path) -> Stored:
    """Maps a file. ValueError or ArrowException where it is cut off or another program's."""
    reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
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
    table = pyarrow.Table.from_batches(batches, reader.schema)
    if note["rows"] != len(table):
        raise ValueError(f"{path}: {len(table)} rows, {note['rows']} noted")
    return Stored(table, note, path)


@contextmanager
def _locked(path: Path):
    """Holds the lock of a file while others wait. A process that ends releases it. Without one where none can be made."""
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # each process then makes its own content
    try:
        yield
    finally:
        if file:
            file.close()


def _array(values: Sequence, kind: pyarrow.DataType) -> pyarrow.Array:
    """Values as an Arrow array: bytes, or lists of numbers.

    pyarrow.array does the same, but imports pandas for it, which takes half a second.
    """
    lengths = [len(value) for value in values]
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pyarrow.py_buffer(offsets)]
    if pyarrow.types.is_binary(kind):
        buffers.append(pyarrow.py_buffer(b"".join(values)))
        return pyarrow.Array.from_buffers(kind, len(lengths), buffers)
    item = kind.value_type.to_pandas_dtype()
    if values and isinstance(values[0], np.ndarray):
        numbers = np.concatenate(values, dtype=item)
    else:
        numbers = np.fromiter(chain.from_iterable(values), item)
    data = [None, pyarrow.py_buffer(numbers)]
    items = pyarrow.Array.from_buffers(kind.value_type, len(numbers), data)
    return pyarrow.Array.from_buffers(kind, len(lengths), buffers, children=[items])


class Writer:
    """Writes rows into an Arrow file in batches, and goes on in memory where that fails.

    home: the folder of the file; None: that of temporary files.
    """

    def __init__(self, schema: pyarrow.Schema, home: Path | None, doing: str):
        self.schema = schema
        self.doing = doing
        self.rows = 0
        self.batch: list[tuple] = []  # the rows of the next one
        self.size = 0  # bytes in it, about
        self.batches: list[pyarrow.RecordBatch] = []  # in memory
        self.written = 0  # batches in the file
        self.path: Path | None = None  # of the file that is being written
        self.sink = self.stream = None
        self.told = time.monotonic()
        self.start = self.told
        try:
            if home:
                home.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".tmp", "rows-", home)
            os.close(handle)
            self.path = Path(name)
            self.sink = pyarrow.OSFile(name, "wb")
            self.stream = pyarrow.ipc.new_stream(self.sink, schema)
        except OSError:
            self.discard()

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
            with pyarrow.OSFile(str(self.path), "rb") as file:
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
        arrays = [_array([], field.type) for field in self.schema]
        last = pyarrow.RecordBatch.from_arrays(arrays, schema=self.schema)
        self.stream.write_batch(last, custom_metadata={NOTE: json.dumps(note)})
        self.stream.close()
        self.sink.close()
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        if path is None:
            # The mapping lives on without a name.
            result = _mapped(self.path)
            result.path = None
            return result
        os.replace(self.path, path)
        self.path = None
        return _mapped(path)

    def discard(self) -> None:
        """Removes a file that was not finished."""
        if self.sink:
            with suppress(OSError):
                self.sink.close()
        if self.path:
            self.path.unlink(missing_ok=True)
        self.path = self.sink = self.stream = None
