"""The means of what is logged of the updates: over micro-batches, processes and updates."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor


class UpdateMetrics:
    """Means, over the updates since the last log, of what the micro-batches return.

    The metrics of an update are kept aside until it is known that its gradient is finite.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.pending: dict[str, Tensor] = {}  # of the update under way, on this process
        self.sums: dict[str, Tensor] = {}  # of the updates since the last log, on this process
        self.common: dict[str, Tensor] = {}  # the same, of numbers equal on all processes
        self.updates: Counter[str] = Counter()  # how many updates each name has seen
        self.largest: dict[str, Tensor] = {}  # first_ratio_error

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the shares of one micro-batch."""
        metrics = dict(metrics)
        error = metrics.pop("first_ratio_error", None)
        if error is not None:
            known = self.largest.get("first_ratio_error", torch.zeros_like(error))
            self.largest["first_ratio_error"] = torch.maximum(known, error)
        add_to(self.pending, metrics)

    def keep_update(self) -> None:
        add_to(self.sums, self.pending)
        self.updates.update(self.pending.keys())
        self.pending = {}

    def drop_update(self) -> None:
        self.pending = {}

    def add_common(self, metrics: dict[str, Tensor]) -> None:
        """Add numbers of one update that are equal on all processes, such as norms of gradients."""
        add_to(self.common, metrics)
        self.updates.update(metrics.keys())

    def take(self, gather: Callable[[Tensor], Tensor], device) -> dict[str, float]:
        """The means, and begin again. gather: (1, N) of each process -> (processes, N)."""
        rows = self.common | self.largest | self.sums
        names = sorted(rows)
        if not names:  # every update was skipped
            return {}
        columns = [rows[name].to(device).float() for name in names]  # norms may be on the CPU
        per_process = gather(torch.stack(columns).unsqueeze(0))
        means = {}
        for i, name in enumerate(names):
            column = per_process[:, i]
            updates = max(self.updates[name], 1)
            if name in self.common:
                means[name] = float(column[0]) / updates
            elif name in self.largest:
                means[name] = float(column.max())
            else:
                means[name] = float(column.sum()) / updates
        self.reset()
        return means


def add_to(sums: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        before = sums.get(name, torch.zeros_like(value))
        sums[name] = before + value.detach()
