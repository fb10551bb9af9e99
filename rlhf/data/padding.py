"""Rows of different lengths as one tensor, with a mask that says which tokens count."""

import torch
from torch import Tensor


def left_pad(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """ids (B, P) and mask (B, P) bool of rows of different lengths, right-aligned."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(row)
        mask[place, width - len(row) :] = True
    return ids, mask


def right_pad(rows: list[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """ids (B, L) and mask (B, L) bool of rows of different lengths, left-aligned."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = torch.full(mask.shape, pad_token_id)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask
