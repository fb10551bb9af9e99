"""The data loader of policy-gradient training: it samples a rollout, hands it out in micro-batches, samples the next.

Each optimiser step takes exactly `accumulation` batches from it just before it runs, so a new rollout always sees the
newest weights. It must therefore not go through `accelerator.prepare`, whose loader reads one batch ahead.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from rlhf.completions.rollout import Rollout
from rlhf.data.padding import right_pad


@lru_cache(maxsize=8)
def permutation(size: int, *, seed: int, stream: int) -> Tensor:
    """A permutation that is the same on every process, whatever was drawn before."""
    return torch.randperm(
        size, generator=torch.Generator().manual_seed((seed * 999_983 + stream) % 2**63)
    )


def choose_rows(total: int, count: int, *, start: int, seed: int) -> list[int]:
    """`count` positions from an endless stream of permutations of range(total), beginning at place `start` of it."""
    chosen: list[int] = []
    while len(chosen) < count:
        round_, place = divmod(start + len(chosen), total)
        chosen += permutation(total, seed=seed, stream=round_)[
            place : place + count - len(chosen)
        ].tolist()
    return chosen


class RolloutLoader:
    """Yields micro-batches of this process; all processes hold the same rollout and agree on every mini-batch.

    make_rollout(index) -> Rollout of all processes; mini_batch_size: completions per optimiser step over all processes.
    A batch is a dict of row tensors with `num_tokens`, the tokens that count in its whole mini-batch: losses are summed
    and divided by it, so that micro-batches and processes of unequal length weigh each token the same. `rollout`, `epoch`
    and `update` say where it stands: the number of the rollout, of the pass over it, and of the mini-batch in the pass.

    texts(n): the plain texts, as token ids, that go with the n-th completion handed out in the run (PPO-ptx); they come
    right-padded as `text_ids`, `text_mask`, with `num_text_tokens` to be predicted in the whole mini-batch.
    """

    def __init__(
        self,
        make_rollout: Callable[[int], Rollout],
        *,
        epochs: int,
        mini_batch_size: int,
        micro_batch_size: int,
        process_index: int,
        processes: int,
        seed: int,
        first_rollout: int = 0,
        texts: Callable[[int], list[list[int]]] | None = None,
        pad_token_id: int = 0,
    ):
        self.make_rollout, self.epochs = make_rollout, epochs
        self.mini_batch_size, self.micro_batch_size = mini_batch_size, micro_batch_size
        self.process_index, self.processes = process_index, processes
        self.seed, self.index = seed, first_rollout
        self.texts, self.pad_token_id = texts, pad_token_id

    def __iter__(self) -> Iterator[dict]:
        while True:
            yield from self.batches(self.make_rollout(self.index))
            self.index += 1

    def batches(self, rollout: Rollout) -> Iterator[dict]:
        lengths = rollout.mask.sum(1).cpu()
        for epoch in range(self.epochs):
            order = permutation(
                len(rollout), seed=self.seed, stream=self.index * self.epochs + epoch
            )
            for number, rows in enumerate(order.split(self.mini_batch_size)):
                num_tokens = lengths[rows].sum().clamp(min=1)
                rows = rows[
                    lengths[rows].argsort(stable=True)
                ]  # rows of like length share a micro-batch
                texts = self.texts_of(
                    len(rows),
                    passed=(self.index * self.epochs + epoch) * len(rollout) + number * len(rows),
                )
                micro_batches = list(zip(rows.split(self.micro_batch_size), texts))
                for micro, extra in micro_batches[self.process_index :: self.processes]:
                    yield {
                        **rollout.rows(micro.to(rollout.mask.device)),
                        **{name: tensor.to(rollout.mask.device) for name, tensor in extra.items()},
                        "num_tokens": num_tokens,
                        "rollout": self.index,
                        "epoch": epoch,
                        "update": number,
                    }

    def texts_of(self, count: int, *, passed: int) -> list[dict[str, Tensor]]:
        """For each micro-batch of a mini-batch of `count` completions its plain texts; `passed`: completions before it."""
        starts = range(0, count, self.micro_batch_size)
        if self.texts is None:
            return [{}] * len(starts)
        texts = [self.texts(passed + place) for place in range(count)]
        tokens = torch.tensor(sum(len(text) - 1 for group in texts for text in group))
        found = []
        for start in starts:
            together = [
                text for group in texts[start : start + self.micro_batch_size] for text in group
            ]
            ids, mask = right_pad(together, self.pad_token_id)
            found.append({"text_ids": ids, "text_mask": mask, "num_text_tokens": tokens})
        return found
