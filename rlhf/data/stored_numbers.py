"""Lists of whole numbers in a mapped Arrow file, such as token ids: many rows in bounded memory."""

from collections.abc import Sequence

import numpy as np
import pyarrow


def number_columns(*names: str) -> pyarrow.Schema:
    """The schema of a file with such columns."""
    return pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in names])


class StoredNumbers(Sequence):
    """The lists of a column, each as an array (T,) int32 that cannot be written to.

    lengths: of all lists, (N,) int64.
    """

    def __init__(self, column: pyarrow.ChunkedArray):
        self.values: list[np.ndarray] = []  # of a chunk, all lists one after another
        self.ends: list[np.ndarray] = []  # of a chunk, where each list begins, and the last ends
        self.starts = [0]  # of the chunks, and the end of the last
        lengths = []
        for chunk in column.chunks:
            # to_numpy would import pandas, which takes half a second.
            _, offsets, _, values = chunk.buffers()
            ends = np.frombuffer(offsets, dtype=np.int32)[: len(chunk) + 1]
            self.values.append(np.frombuffer(values, dtype=np.int32))
            self.ends.append(ends)
            self.starts.append(self.starts[-1] + len(chunk))
            lengths.append(np.diff(ends))
        self.lengths = np.concatenate([np.zeros(0, dtype=np.int64), *lengths])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"list {index} of {len(self)}")
        index = int(index) % len(self)
        chunk = int(np.searchsorted(self.starts, index, side="right")) - 1
        start, stop = self.ends[chunk][index - self.starts[chunk] :][:2]
        return self.values[chunk][start:stop]
