"""Counts the windows of rows for an n-gram model, in all processes together."""

import torch
from torch import Tensor
from tqdm import tqdm

from rlhf.baselines.ngram import add_counts, count_windows


def count_rows(rows, order: int) -> tuple[Tensor, Tensor]:
    """`count_windows` of CausalRows. Each process counts its share of them, and all get the sum."""
    index, processes = 0, 1
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together:
        index, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = range(index, len(rows), processes)
    bar = tqdm(share, desc="counting", unit=" rows", disable=index > 0, leave=False)
    counts = count_windows((rows[i]["input_ids"] for i in bar), order)
    if not together:
        return counts
    # Counts differ in size between processes, which a gather of tensors does not allow.
    parts = [None] * processes
    torch.distributed.all_gather_object(parts, counts)
    return add_counts(parts)
