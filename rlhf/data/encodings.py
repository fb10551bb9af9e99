"""Rows of token ids: encoded once for all processes and runs, and mapped from the cache."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import pyarrow

from rlhf.data.cache import Writer, stored
from rlhf.data.fingerprints import encoding_key, module_fingerprint
from rlhf.data.parallel import encode_in_parts
from rlhf.data.stored_numbers import NUMBERS, StoredNumbers

Columns = dict[str, pyarrow.DataType]


class EncodedRows(Sequence):
    """Rows with the columns of an Arrow file, read like dictionaries of numbers and lists, again each time.

    table: the columns. A number in the column `row` stands for the row of `rows` that was encoded.
    counts: what the encoder counted, by its name; 0 for all other names.
    name: of the content; None where it is not known.
    names: columns that are read; None: all.
    order: indices in the table, in the order of these rows; None: that of the table.
    """

    def __init__(
        self,
        table: pyarrow.Table,
        rows: Sequence[dict],
        counts: Counter[str],
        name: str | None = None,
        names: Sequence[str] | None = None,
        order: np.ndarray | None = None,
    ):
        self.table, self.rows, self.counts, self.name = table, rows, counts, name
        self.names, self.order = names or table.column_names, order
        self.columns = {name: StoredNumbers(table.column(name)) for name in table.column_names}

    def __len__(self) -> int:
        return len(self.table) if self.order is None else len(self.order)

    def __getitem__(self, index):
        """A row, or of a slice the list of its rows."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self.order is not None:
            index = self.order[index]
        entry = {name: self.columns[name].plain(index) for name in self.names}
        # The file has its index. The row itself, with its texts, is only read where it is asked for.
        if "row" in entry:
            entry["row"] = self.rows[entry["row"]]
        return entry

    @cached_property
    def lengths(self) -> list[int]:
        """Token ids in input_ids of each row; of several lists, in the longest."""
        lengths = self.columns["input_ids"].lengths
        if self.order is not None:
            lengths = lengths[self.order]
        return lengths.tolist()

    def only(self, *names: str) -> "EncodedRows":
        """The rows with some of the columns."""
        return EncodedRows(self.table, self.rows, self.counts, self.name, names, self.order)

    def without(self, *names: str) -> "EncodedRows":
        """The rows with the other columns."""
        return self.only(*(name for name in self.names if name not in names))

    def by_length(self) -> "EncodedRows":
        """The shortest row first, so that batches have little padding. Rows of one length stay in their order."""
        order = np.argsort(self.lengths, kind="stable")
        if self.order is not None:
            order = self.order[order]
        return EncodedRows(self.table, self.rows, self.counts, self.name, self.names, order)


class Converted(Sequence):
    """Rows that a function converts whenever they are read."""

    def __init__(self, convert: Callable[[dict], object], rows: EncodedRows):
        self.convert, self.rows = convert, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.convert(self.rows[index])


def encode_once(
    encode: Callable[..., Iterator[dict]],
    tokenizer,
    rows: Sequence[dict],
    columns: Columns,
    *,
    row_by_row: bool = False,
    **settings,
) -> EncodedRows:
    """Rows of token ids that an encoder makes of rows, from the cache where they are there.

    encode: a function of a module, f(tokenizer, rows, counts, **settings), which gives the values of each row that it makes
    by the names of `columns`, and counts in the Counter `counts`. Nothing else may decide what it gives.
    row_by_row: the encoder reads each row by itself, so that several processes may share the rows.
    settings: values that JSON can hold.
    """
    code = module_fingerprint(encode.__module__)
    key = encoding_key(encode.__name__, rows, tokenizer, code, list(columns), settings)
    if row_by_row:
        encode = partial(encode_in_parts, encode)
    return _encoded(key, encode, tokenizer, rows, columns, settings)


def encode_for_now(
    encode: Callable[..., Iterator[dict]], tokenizer, rows, columns: Columns, **settings
) -> EncodedRows:
    """Encode rows into a file that is gone with the process. settings: any values."""
    return _encoded(None, encode, tokenizer, rows, columns, settings)


def _encoded(key: str | None, encode, tokenizer, rows, columns, settings: dict) -> EncodedRows:
    def fill(writer: Writer) -> dict:
        counts: Counter[str] = Counter()
        for entry in encode(tokenizer, rows, counts, **settings):
            values = tuple(entry[name] for name in columns)
            writer.add(values, size=sum(map(_size, values)))
        return {"counts": counts}

    content = stored(key, pyarrow.schema(columns), fill, "encoding")
    # A tokenizer is saved with the truncation of its last call, which must not depend on the cache.
    tokenizer("a")
    return EncodedRows(content.table, rows, Counter(content.note["counts"]), key)


def input_columns(tokenizer, kind: pyarrow.DataType = NUMBERS) -> Columns:
    """The columns of what a tokenizer gives to a model for a text, or with `LISTS` for several."""
    return dict.fromkeys(tokenizer("a"), kind)


def _size(value) -> int:
    """Bytes of a value, about."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return sum(map(_size, value))
    return 4 * len(value) if isinstance(value, Sequence | np.ndarray) else 8
