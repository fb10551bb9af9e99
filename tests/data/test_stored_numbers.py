"""Lists of numbers from an Arrow file are those that were written."""

from functools import partial

import numpy as np
import pytest

from rlhf.data import cache
from rlhf.data.cache import Writer
from rlhf.data.stored_numbers import StoredNumbers, number_columns

LISTS = [[1, 2, 3], [], [4], [5, 6]]


@pytest.mark.parametrize("as_given", [list, partial(np.array, dtype=np.int64)])
@pytest.mark.parametrize("rows_in_batch", [1, 3, 9])
def test_lists_of_all_batches(as_given, rows_in_batch, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BATCH_ROWS", rows_in_batch)
    writer = Writer(number_columns("ids"), tmp_path, "writing")
    for numbers in LISTS:
        writer.add((as_given(numbers),), size=8)
    stored = StoredNumbers(writer.close({}, None).table.column("ids"))
    assert [numbers.tolist() for numbers in stored] == LISTS
    assert stored[-1].tolist() == [5, 6] and stored[np.int64(2)].dtype == np.int32
    assert stored.lengths.tolist() == [3, 0, 1, 2]
    for index in (4, -5):
        with pytest.raises(IndexError, match="of 4"):
            stored[index]


def test_no_list_at_all(tmp_path):
    writer = Writer(number_columns("ids"), tmp_path, "writing")
    stored = StoredNumbers(writer.close({}, None).table.column("ids"))
    assert list(stored) == [] and stored.lengths.tolist() == []
