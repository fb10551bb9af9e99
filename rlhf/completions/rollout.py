"""Prompts -> Rollout: completions of the current policy with everything an update needs to know about them."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from rlhf.algorithms import Algorithm, call
from rlhf.algorithms.kl import k1
from rlhf.algorithms.masking import masked_mean, masked_sum
from rlhf.algorithms.rewards import missing_eos_penalty, token_rewards
from rlhf.completions.sample import decode
from rlhf.completions.score import Completed
from rlhf.data.chat import decode_text
from rlhf.data.padding import left_pad
from rlhf.models.actor_critic import ActorCritic


@dataclass
class Rollout:
    """B completions and what was thought of them when they were sampled. Fixed while the policy is updated.

    prompt_ids (B, P) left-padded, prompt_mask (B, P); completion_ids (B, T) right-padded; mask (B, T) bool, True from the
    first completion token to EOS inclusive; ended (B,) bool. log_probs and entropy of the policy that sampled,
    ref_log_probs of the reference, values of the value model (0 without one): (B, T), 0 outside the mask. scores (B,)
    before KL; parts: each reward by itself, (B,). rewards, advantages, returns (B, T): filled by `estimate`.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    mask: Tensor
    ended: Tensor
    log_probs: Tensor
    entropy: Tensor
    ref_log_probs: Tensor
    values: Tensor
    scores: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    rewards: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """A micro-batch: the chosen rows, without columns that are padding in all of them."""
        batch = {name: tensor[index] for name, tensor in self.tensors().items()}
        first = int(batch["prompt_mask"].any(0).float().argmax())
        width = max(1, int(batch["mask"].sum(1).max()))
        for name, tensor in batch.items():
            if name.startswith("prompt"):
                batch[name] = tensor[:, first:]
            elif tensor.dim() == 2:
                batch[name] = tensor[:, :width]
        return batch


@torch.no_grad()
def collect(
    model: ActorCritic,
    reference: Callable[[dict], Tensor],
    rewards: Callable[[Completed], tuple[Tensor, dict[str, Tensor]]],
    tokenizer,
    rows: list[dict],
    prompt_ids: list[list[int]],
    *,
    uniforms: Tensor | None,
    temperature: float,
    max_completion_length: int,
    batch_size: int,
    eos_penalty: float,
) -> Rollout:
    """Sample one completion for each row and look at it with every model.

    rows: data rows with "prompt" and any other columns (reward functions get them); prompt_ids: their encoded prompts;
    uniforms (B, max_completion_length) decide the sampling; batch_size: rows per forward pass when looking.
    """
    device = next(model.parameters()).device
    ids, prompt_mask = (
        tensor.to(device) for tensor in left_pad(prompt_ids, tokenizer.pad_token_id)
    )
    done = decode(
        model.policy,
        ids,
        prompt_mask,
        eos_token_id=tokenizer.eos_token_id,
        max_completion_length=max_completion_length,
        temperature=temperature,
        uniforms=uniforms,
    )
    completion_ids = [
        row[kept].tolist() for row, kept in zip(done.ids.cpu(), done.mask.cpu(), strict=True)
    ]
    columns = {
        key: [row.get(key) for row in rows]
        for key in rows[0]
        if key not in ("prompt", "completion")
    }
    scores, parts = rewards(
        Completed(
            prompts=[row["prompt"] for row in rows],
            completions=[decode_text(tokenizer, row) for row in completion_ids],
            columns=columns,
            tokenizer=tokenizer,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
        )
    )
    empty = torch.zeros(done.mask.shape, device=device)
    rollout = Rollout(
        prompt_ids=ids,
        prompt_mask=prompt_mask,
        completion_ids=done.ids,
        mask=done.mask,
        ended=done.ended,
        log_probs=empty.clone(),
        entropy=empty.clone(),
        ref_log_probs=empty.clone(),
        values=empty.clone(),
        scores=missing_eos_penalty(scores.to(device), done.ended, penalty=eos_penalty),
        parts={name: part.to(device) for name, part in parts.items()},
    )
    by_length = (prompt_mask.sum(1) + done.mask.sum(1)).argsort()
    for index in by_length.split(batch_size):
        batch = {key: value for key, value in rollout.rows(index).items() if key in FORWARD}
        width = batch["mask"].shape[1]
        seen = model(**batch, temperature=temperature, entropy=True)
        rollout.log_probs[index, :width], rollout.entropy[index, :width] = (
            seen.log_probs,
            seen.entropy,
        )
        rollout.ref_log_probs[index, :width] = reference(batch)
        if seen.values is not None:
            rollout.values[index, :width] = seen.values
    return rollout


FORWARD = ("prompt_ids", "prompt_mask", "completion_ids", "mask")


def estimate(
    rollout: Rollout,
    algorithm: Algorithm,
    *,
    kl_coef: float,
    gamma: float,
    gae_lambda: float,
    num_generations: int,
) -> Rollout:
    """Fill in rewards, advantages and returns. Under several processes: on the gathered rollout, so that means and
    variances are those of all completions."""
    mask = rollout.mask
    rewards = token_rewards(
        rollout.scores, k1(rollout.log_probs - rollout.ref_log_probs), mask, kl_coef=kl_coef
    )
    advantages = call(
        algorithm.advantages,
        rewards=rewards,
        totals=rewards.sum(1),
        values=rollout.values,
        mask=mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
        num_generations=num_generations,
    )
    if advantages.dim() == 1:  # one number per completion: the same for each of its tokens
        advantages = advantages.unsqueeze(1).expand_as(mask).masked_fill(~mask, 0.0)
    returns = (advantages + rollout.values).masked_fill(~mask, 0.0)  # before normalising
    if algorithm.normalize is not None:
        advantages = algorithm.normalize(advantages, mask)
    return replace(rollout, rewards=rewards, advantages=advantages, returns=returns)


def statistics(rollout: Rollout) -> dict[str, float]:
    """What is logged of a rollout. Lengths in tokens, KL in nats per completion."""
    mask = rollout.mask
    log_ratio = rollout.log_probs - rollout.ref_log_probs
    result = {
        "score": rollout.scores.mean(),
        "score_std": rollout.scores.std(correction=0),
        "kl": masked_sum(log_ratio, mask, 1).mean(),
        "completion_length": mask.sum(1).float().mean(),
        "eos_rate": rollout.ended.float().mean(),
        "entropy": masked_mean(rollout.entropy, mask),
        "surprise": -masked_mean(rollout.log_probs, mask),
        **{f"score_{name}": part.mean() for name, part in rollout.parts.items()},
    }
    if rollout.returns is not None:
        error, total = rollout.returns - rollout.values, rollout.returns
        variance = masked_mean((total - masked_mean(total, mask)) ** 2, mask)
        unexplained = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
        result["value_mean"] = masked_mean(rollout.values, mask)
        result["return_mean"] = masked_mean(total, mask)
        result["explained_variance"] = 1 - unexplained / variance.clamp(min=1e-12)
    return {name: float(value) for name, value in result.items()}
