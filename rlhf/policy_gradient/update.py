"""The update: the loss of a micro-batch as a pure function, and the means of what is logged of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms import Algorithm, call, takes
from rlhf.algorithms.kl import k3
from rlhf.algorithms.losses import clipped_value_loss, value_loss
from rlhf.algorithms.masking import masked_sum
from rlhf.models.actor_critic import Evaluation


@dataclass(frozen=True)
class LossSettings:
    """The settings of the loss; `PolicyGradientConfig` has their defaults and sources."""

    clip_range: float
    clip_range_high: float
    value_clip_range: float | None
    value_coef: float
    entropy_coef: float
    ptx_coef: float
    max_completion_length: int

    @classmethod
    def from_config(cls, args) -> "LossSettings":
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


def micro_batch_loss(
    outputs: Evaluation, batch: dict, algorithm: Algorithm, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of the mini-batch's loss, and its share of each metric.

    outputs: what the model says of the batch now. Without log-probs only the value model learns.
    batch: a batch of `rollouts.RolloutLoader`, with what the model said at rollout time
    Shares of all micro-batches and processes add up to the mean over the mini-batch.
    """
    mask, num_tokens = batch["mask"], batch["num_tokens"]
    loss, sums = 0.0, {}  # sums over tokens
    if outputs.log_probs is not None:
        losses, comparison = policy_losses(outputs.log_probs, batch, algorithm, settings)
        loss = masked_sum(losses, mask)
        sums["policy_loss"] = loss
        if outputs.entropy is not None:
            sums["entropy_bonus"] = settings.entropy_coef * masked_sum(outputs.entropy, mask)
            loss = loss - sums["entropy_bonus"]
        sums |= comparison
    if outputs.values is not None:
        sums["value_loss"] = masked_sum(value_losses(outputs.values, batch, settings), mask)
        loss = loss + settings.value_coef * sums["value_loss"]
    loss = loss / num_tokens
    metrics = {name: value.detach() / num_tokens for name, value in sums.items()}
    if outputs.text_log_probs is not None:  # PPO-ptx: a mean over the tokens of the plain text
        text_loss = -outputs.text_log_probs.sum() / batch["num_text_tokens"]
        loss = loss + settings.ptx_coef * text_loss
        metrics["ptx_loss"] = text_loss.detach()
    first_update = batch["epoch"] == batch["update"] == 0
    if first_update and outputs.log_probs is not None:
        # The policy is still the one that sampled: this must be 0.
        ratio = (outputs.log_probs.detach() - batch["log_probs"]).exp()
        metrics["first_ratio_error"] = ((ratio - 1).abs() * mask).max()
    return loss, metrics


def policy_losses(
    log_probs: Tensor, batch: dict, algorithm: Algorithm, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted policy loss of each token (B, T), and how far the policy is from the one that sampled, as token sums."""
    mask, old_log_probs = batch["mask"], batch["log_probs"]
    ratio = call(algorithm.ratio, log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    losses = call(
        algorithm.policy_loss,
        log_probs=log_probs,
        old_log_probs=old_log_probs,
        ref_log_probs=batch["ref_log_probs"],
        ratio=ratio,
        advantages=batch["advantages"],
        mask=mask,
        clip_range=settings.clip_range,
        clip_range_high=settings.clip_range_high,
    )
    weights = call(
        algorithm.token_weights,
        mask=mask,
        num_tokens=batch["num_tokens"],
        num_completions=batch["num_completions"],
        max_completion_length=settings.max_completion_length,
    )
    clips_higher = takes(algorithm.policy_loss, "clip_range_high")
    upper = settings.clip_range_high if clips_higher else settings.clip_range
    deviation = ratio.detach() - 1
    clipped = (deviation > upper) | (deviation < -settings.clip_range)
    comparison = {
        "approx_kl": masked_sum(k3(old_log_probs - log_probs.detach()), mask),
        "ratio": masked_sum(ratio.detach(), mask),
        "clip_fraction": masked_sum(clipped.float(), mask),
    }
    return weights * losses, comparison


def value_losses(values: Tensor, batch: dict, settings: LossSettings) -> Tensor:
    """Value loss of each token, (B, T)."""
    if settings.value_clip_range is None:
        return value_loss(values, batch["returns"])
    return clipped_value_loss(
        values, batch["values"], batch["returns"], value_clip_range=settings.value_clip_range
    )


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
        rows = {**self.common, **self.largest, **self.sums}
        names = sorted(rows)
        if not names:  # every update was skipped
            return {}
        columns = [rows[name].to(device).float() for name in names]  # norms may be on the CPU
        per_process = gather(torch.stack(columns).unsqueeze(0))
        means = {}
        for i, name in enumerate(names):
            column, updates = per_process[:, i], max(self.updates[name], 1)
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
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
