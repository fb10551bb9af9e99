import pytest
import torch

from rlhf.data.padding import left_pad, right_pad, right_pad_columns

ROWS = [[5, 6, 7], [], [8]]


@pytest.mark.parametrize("as_row", [list, torch.LongTensor])
def test_rows_are_padded_at_their_start(as_row):
    ids, mask = left_pad([as_row(row) for row in ROWS], 13)
    assert ids.tolist() == [[5, 6, 7], [13, 13, 13], [13, 13, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, False], [False, False, True]]
    assert (ids.dtype, mask.dtype) == (torch.long, torch.bool)


@pytest.mark.parametrize("as_row", [list, torch.LongTensor])
def test_rows_are_padded_at_their_end(as_row):
    ids, mask = right_pad([as_row(row) for row in ROWS], 13)
    assert ids.tolist() == [[5, 6, 7], [13, 13, 13], [8, 13, 13]]
    assert mask.tolist() == [[True, True, True], [False, False, False], [True, False, False]]
    assert (ids.dtype, mask.dtype) == (torch.long, torch.bool)


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_the_mask_does_not_take_an_element_for_padding_because_of_its_value(pad):
    ids, mask = pad([[0, 0], [0, 0]], 0)
    assert mask.all() and ids.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("pad", [left_pad, right_pad])
def test_rows_without_any_element(pad):
    ids, mask = pad([[], []], 13)
    assert ids.shape == mask.shape == (2, 0) and ids.dtype == torch.long


def test_columns_are_padded_with_their_own_values_or_stacked():
    rows = [
        {"input_ids": [5, 6], "labels": [-100, 6], "number": 1},
        {"input_ids": [7], "labels": [7], "number": 0},
    ]
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    batch = right_pad_columns(rows, {"input_ids": 13, "labels": -100, "token_type_ids": 0})
    values = {name: tensor.tolist() for name, tensor in batch.items()}
    assert values == {
        "input_ids": [[5, 6], [7, 13]],
        "labels": [[-100, 6], [7, -100]],
        "number": [1, 0],
    }
