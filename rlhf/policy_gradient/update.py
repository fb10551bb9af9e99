"""The update: the loss of a micro-batch as a pure function."""

from dataclasses import dataclass

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
    clip_range_high: float | None  # None: the algorithm has none
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

    outputs: of the model for this batch, now. Without log-probs only the value model learns.
    batch: a batch of `rollouts.RolloutLoader`, with the model's outputs at rollout time
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
    metrics = {name: value.detach() / num_tokens for name, value in sums.items()}  # shares too
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
    # A token's weight depends on the whole mini-batch, or shares would not add up.
    weights = call(
        algorithm.token_weights,
        mask=mask,
        num_tokens=batch["num_tokens"],
        num_completions=batch["num_completions"],
        max_completion_length=settings.max_completion_length,
    )
    clips_higher = takes(algorithm.policy_loss, "clip_range_high")
    upper = settings.clip_range_high if clips_higher else settings.clip_range
    deviation = ratio.detach() - 1  # (B, T)
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
