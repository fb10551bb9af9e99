"""Rows of different lengths as one tensor, with a mask that is True on the elements that count."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

Row = Sequence[int] | Tensor  # either all rows of a call are tensors, or none

IGNORED = -100  # label of a token without a loss, as in transformers


def left_pad(rows: Sequence[Row], pad_value: int) -> tuple[Tensor, Tensor]:
    """Pads at the start of each row, so that all rows end in the last column.

    Returns the padded rows (B, L) and their mask (B, L), where L is the length of the longest row.
    """
    lengths = row_lengths(rows)
    width = int(lengths.max())
    mask = torch.arange(width) >= width - lengths.unsqueeze(1)  # (B, L)
    return _filled(mask, rows, pad_value), mask


def right_pad(rows: Sequence[Row], pad_value: int) -> tuple[Tensor, Tensor]:
    """Pads at the end of each row, so that all rows begin in the first column.

    Returns the padded rows (B, L) and their mask (B, L), where L is the length of the longest row.
    """
    lengths = row_lengths(rows)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # (B, L)
    return _filled(mask, rows, pad_value), mask


def right_pad_columns(
    rows: Sequence[dict[str, Tensor]], pad_values: dict[str, int]
) -> dict[str, Tensor]:
    """Batches rows of several columns, such as input_ids, labels and a number per row.

    Columns that `pad_values` names become (B, L), padded at the end with their value. All other columns have one shape
    in all rows and are stacked.
    """
    batch = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        if name in pad_values:
            batch[name], _ = right_pad(column, pad_values[name])
        else:
            batch[name] = torch.stack(column)
    return batch


def row_lengths(rows: Sequence[Row]) -> Tensor:
    """Number of elements of each row, (B,)."""
    return torch.tensor([len(row) for row in rows])


def _filled(mask: Tensor, rows: Sequence[Row], pad_value: int) -> Tensor:
    """A tensor of the mask's shape (B, L) with the rows where the mask is True, and `pad_value` elsewhere."""
    if isinstance(rows[0], Tensor):
        values = torch.cat(list(rows))
    else:
        values = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.long)
    # One assignment for all rows: a mask is filled row by row, in the order in which the rows were joined.
    padded = torch.full(mask.shape, pad_value, dtype=values.dtype)
    padded[mask] = values
    return padded
