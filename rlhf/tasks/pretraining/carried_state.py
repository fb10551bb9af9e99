"""The state of a recurrent model over the blocks of a text: truncated backpropagation through time (Zaremba et al. 2014).

The text is cut into as many streams as a batch has rows. Row i of a batch continues row i of the batch before and starts
from its last state, but no gradient goes back into that batch. An evaluation reads its rows in the same way.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from rlhf.baselines.language_model import RowState
from rlhf.errors import UserError
from rlhf.tasks.pretraining.encode import CausalRows

RECURRENT = ("rnn", "lstm", "gru")


def check_is_recurrent(model_type: str) -> None:
    """UserError for a model whose state cannot be carried."""
    if model_type not in RECURRENT:
        raise UserError(
            f"carry_state: a {model_type} model has no recurrent state to carry from block to block: use one of "
            f"{', '.join(RECURRENT)}, or set it to false"
        )


class Streams(Dataset):
    """Blocks in the order of B streams. Those at the end that fill no whole batch are dropped.

    batch_size: B, or the number of blocks if there are fewer. batches: of an epoch. lengths: tokens of each block.
    dropped: tokens.
    """

    def __init__(self, blocks: CausalRows, batch_size: int):
        self.blocks = blocks
        self.batch_size = min(batch_size, len(blocks))
        self.batches = len(blocks) // self.batch_size
        # all blocks are full
        self.lengths, rest = blocks.lengths[: len(self)], blocks.lengths[len(self) :]
        self.dropped = sum(rest)

    def __len__(self) -> int:
        return self.batch_size * self.batches

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        batch, stream = divmod(index, self.batch_size)
        return self.blocks[stream * self.batches + batch]


def evaluation_streams(blocks: CausalRows, largest: int) -> Streams:
    """Streams for batches of about `largest` rows, more than half as many, that drop as few blocks as possible."""
    largest = min(largest, len(blocks))
    sizes = range(largest, largest // 2, -1)
    # The first of equals, which is the largest.
    return Streams(blocks, min(sizes, key=lambda size: len(blocks) % size))


class CarriedState:
    """Hooks by which each forward pass of a model starts from the state after the one before. Epochs start from 0.

    train, evaluation: forward passes of an epoch; an evaluation may come between two of the training.
    """

    def __init__(self, model: nn.Module, *, train: int, evaluation: int):
        self.passes = {True: train, False: evaluation}  # keys: model.training
        self.done = {True: 0, False: 0}
        self.last: dict[bool, RowState | None] = {True: None, False: None}
        model.register_forward_pre_hook(self._start, with_kwargs=True)
        model.register_forward_hook(self._keep)

    def _start(self, model: nn.Module, args: tuple, inputs: dict) -> tuple[tuple, dict]:
        is_first = self.done[model.training] % self.passes[model.training] == 0
        cache = None if is_first else self.last[model.training]
        return args, inputs | {"cache": cache, "use_cache": True}

    def _keep(self, model: nn.Module, args: tuple, output) -> None:
        tensors = tuple(tensor.detach() for tensor in output.cache.tensors)
        self.last[model.training] = RowState(tensors, output.cache.dim)
        self.done[model.training] += 1

    def to_json(self) -> dict:
        """The state of the training, exactly: every number of 32 bits is one of 64."""
        tensors = self.last[True].tensors
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        values = [tensor.tolist() for tensor in tensors]
        return {
            "done": self.done[True],
            "dim": self.last[True].dim,
            "dtype": dtype,
            "values": values,
        }

    def restore(self, saved: dict, device: torch.device) -> None:
        """Go on from `to_json` of a checkpoint."""
        options = {"dtype": getattr(torch, saved["dtype"]), "device": device}
        tensors = tuple(torch.tensor(values, **options) for values in saved["values"])
        self.last[True] = RowState(tensors, saved["dim"])
        self.done[True] = saved["done"]
