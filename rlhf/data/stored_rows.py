"""Rows in a mapped Arrow file, which behave like a list of dictionaries in bounded memory.

A row is the text of its JSON, not one Arrow value per column: Arrow cannot tell an absent column from None, nor keep 1,
1.0 and true in one column. The rows of a small source are kept as dictionaries too, because they are read many times.
Each access to a row of a large one makes a new dictionary, so a row is never changed in its list.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow

# Bytes of JSON up to which the dictionaries stay in memory. Those take up to ten times as much.
SMALL = 1 << 24
SCHEMA = pyarrow.schema([("row", pyarrow.binary())])
_encoder = json.JSONEncoder(ensure_ascii=False)
# `default`: parquet has dates and decimals, which JSON does not.
_sorted_encoder = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


def row_digest(row: dict) -> str:
    """sha256 of a row's content. The order of its columns does not matter."""
    return _digest(_sorted_encoder.encode(row))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def encode_with_digest(row: dict) -> tuple[bytes | None, str]:
    """The JSON of a row and its `row_digest`. Texts are encoded once for both.

    The JSON is None for values that it does not have, as a date of a parquet file.
    """
    ordered, by_name = [], {}
    try:
        for column, value in row.items():
            name, text = _encoder.encode(column), _encoder.encode(value)
            ordered.append(f"{name}: {text}")
            if isinstance(value, list | dict) and "{" in text:
                text = _sorted_encoder.encode(value)
            by_name[column] = f"{name}: {text}"
    except (TypeError, ValueError):
        return None, row_digest(row)
    sorted_texts = [by_name[column] for column in sorted(by_name)]
    digest = _digest("{" + ", ".join(sorted_texts) + "}")
    data = "{" + ", ".join(ordered) + "}"
    # Half a surrogate pair cannot be UTF-8, and may be in an extra column.
    return data.encode("utf-8", errors="surrogatepass"), digest


def decode_row(data: bytes) -> dict:
    """The row of a JSON that encode_with_digest made."""
    return json.loads(data.decode("utf-8", errors="surrogatepass"))


class StoredRows(Sequence):
    """A sequence of rows.

    column: the JSON of all rows of a source.
    fingerprint: of that content, for what is made of the rows; None where it is not known.
    indices: the rows of this sequence, of all of them; None: all.
    decoded: the rows themselves, where they stay in memory.
    others: index -> row of those that JSON does not hold.
    """

    def __init__(
        self,
        column: pyarrow.ChunkedArray,
        fingerprint: str | None,
        indices: np.ndarray | None = None,
        decoded: list[dict] | None = None,
        others: dict[int, dict] | None = None,
    ):
        self.column = column
        self.source = fingerprint
        self.indices = indices
        self.decoded = decoded
        self.others = others or {}
        self.chunks = column.chunks
        self.starts = [0]  # of the chunks, and the end of the last
        for chunk in self.chunks:
            self.starts.append(self.starts[-1] + len(chunk))

    @property
    def fingerprint(self) -> str | None:
        """A name of these rows in this order, or None."""
        if self.source is None or self.indices is None:
            return self.source
        digest = hashlib.sha256(self.source.encode())
        digest.update(np.ascontiguousarray(self.indices, dtype=np.int64))
        return digest.hexdigest()

    def __len__(self) -> int:
        if self.indices is None:
            return len(self.column)
        return len(self.indices)

    def __getitem__(self, index):
        """A row, or of a slice the list of its rows."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"row {index} of {length}")
        if index < 0:
            index += length
        if self.indices is not None:
            index = int(self.indices[index])
        return self._read(index)

    def _read(self, index: int) -> dict:
        """A row by its index in the source."""
        if self.decoded is not None:
            return self.decoded[index]
        if index in self.others:
            return self.others[index]
        chunk = bisect_right(self.starts, index) - 1
        value = self.chunks[chunk][index - self.starts[chunk]]
        return decode_row(value.as_py())

    def __iter__(self) -> Iterator[dict]:
        if self.indices is not None:
            for index in self.indices.tolist():
                yield self._read(index)
        elif self.decoded is not None:
            yield from self.decoded
        else:
            for index in range(len(self.column)):
                yield self._read(index)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return NotImplemented
        return all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None

    # As of lists: the dictionaries of both.
    def __add__(self, other: Sequence[dict]) -> list[dict]:
        return [*self, *other]

    def __radd__(self, other: Sequence[dict]) -> list[dict]:
        return [*other, *self]

    def __mul__(self, times: int) -> list[dict]:
        return list(self) * times

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"

    def take(self, indices: np.ndarray) -> "StoredRows":
        """The rows at these indices, in this order. Nothing is copied but the indices."""
        if self.indices is not None:
            indices = self.indices[indices]
        return StoredRows(self.column, self.source, indices, self.decoded, self.others)


def take(rows: Sequence[dict], indices: np.ndarray) -> Sequence[dict]:
    """The rows at these indices, in this order."""
    if isinstance(rows, StoredRows):
        return rows.take(indices)
    return [rows[i] for i in indices.tolist()]
