"""A mean over the prompts of a whole optimiser step, where its batches may hold different numbers of them."""

import math

import torch
from torch import Tensor


def count_ordered(batch: dict[str, Tensor]) -> int:
    """The number of prompts of a batch that have an ordered pair of completions."""
    ranks = batch["ranks"].float()  # (B, K)
    best = ranks.masked_fill(~batch["valid"], math.inf).amin(1)
    worst = ranks.masked_fill(~batch["valid"], -math.inf).amax(1)
    return int((best < worst).sum())


class StepMean:
    """Mixin for a Trainer whose batches have `ranks` and `valid` (`rankings.collate_rankings`), named first.

    count_of_batch: the number of what a mean is over. Another Trainer may count tokens, for instance.
    mean_ordered: that number, on average over all batches of a step and all processes.
    """

    mean_ordered: float | None = None
    count_of_batch = staticmethod(count_ordered)

    def get_batch_samples(self, *args, **kwargs):
        """The batches of the next step. Counts what is in them, so that each prompt or token weighs the same."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        total = torch.zeros(2, device=self.args.device)  # prompts, batches
        for batch in batches:
            total += torch.tensor([self.count_of_batch(batch), 1.0], device=self.args.device)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        prompts, number = total.tolist()
        self.mean_ordered = prompts / max(number, 1.0)
        return batches, count

    def count_for_mean(self, count: int, *, is_training: bool) -> float:
        """The number by which a batch divides its sum of losses. count: of its own prompts.

        In training the Trainer then averages over the batches and processes of the step.
        """
        if is_training and self.mean_ordered is not None:
            return self.mean_ordered
        return count
