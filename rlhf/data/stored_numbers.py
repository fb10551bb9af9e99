"""Whole numbers in a mapped Arrow file, such as token ids: many rows in bounded memory."""

from collections.abc import Sequence

import numpy as np
import pyarrow

NUMBER = pyarrow.int32()
NUMBERS = pyarrow.list_(NUMBER)
LISTS = pyarrow.list_(NUMBERS)  # of numbers
LARGE_NUMBERS = pyarrow.list_(pyarrow.int64())
REAL = pyarrow.float64()
FLAG = pyarrow.bool_()


def number_columns(*names: str) -> pyarrow.Schema:
    """The schema of a file with columns of lists of numbers."""
    return pyarrow.schema([(name, NUMBERS) for name in names])


class StoredNumbers(Sequence):
    """The values of a column: numbers, arrays (T,) of them that cannot be written to, or lists of such arrays."""

    def __init__(self, column: pyarrow.ChunkedArray):
        self.parts = [_parts(chunk) for chunk in column.chunks]
        # Of the chunks, and the end of the last.
        self.starts = np.cumsum([0, *map(len, column.chunks)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int):
        if not -len(self) <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        index = int(index) % len(self)
        chunk = int(np.searchsorted(self.starts, index, side="right")) - 1
        return _value(self.parts[chunk], index - self.starts[chunk])

    def plain(self, index: int):
        """A value as Python's own numbers and lists."""
        value = self[index]
        if isinstance(value, list):
            return [array.tolist() for array in value]
        return value.tolist()

    @property
    def lengths(self) -> np.ndarray:
        """Numbers in each list, or in the longest of each list of lists, none of which is empty: (N,) int64."""
        lengths = [np.zeros(0, dtype=np.int64)]
        for *outer, ends, _ in self.parts:
            of_lists = np.diff(ends)
            if outer:
                of_lists = np.maximum.reduceat(of_lists, outer[0][:-1])
            lengths.append(of_lists)
        return np.concatenate(lengths)


def _parts(chunk: pyarrow.Array) -> list[np.ndarray]:
    """All numbers of a chunk, and before them where each list begins and the last ends: the outer ones first."""
    # to_numpy would import pandas, which takes half a second. Without the masks of missing values, of which there are none.
    *offsets, values = chunk.buffers()[1::2]
    kind, count, parts = chunk.type, len(chunk), []
    for buffer in offsets:
        ends = np.frombuffer(buffer, dtype=np.int32)[: count + 1]
        parts.append(ends)
        kind, count = kind.value_type, int(ends[-1])
    if pyarrow.types.is_boolean(kind):
        bits = np.frombuffer(values, dtype=np.uint8)
        numbers = np.unpackbits(bits, count=count, bitorder="little").astype(bool)
    else:
        numbers = np.frombuffer(values, dtype=kind.to_pandas_dtype())[:count]
    return [*parts, numbers]


def _value(parts: list[np.ndarray], index: int):
    """A value of a chunk."""
    first, *rest = parts
    if not rest:
        return first[index]
    start, stop = first[index : index + 2].tolist()
    if len(rest) == 1:
        return rest[0][start:stop]
    return [_value(rest, i) for i in range(start, stop)]
