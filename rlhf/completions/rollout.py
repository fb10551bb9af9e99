"""Prompts -> Rollout: completions of the current policy with everything an update needs to know about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from rlhf.algorithms import Algorithm, call
from rlhf.algorithms.kl import k1
from rlhf.algorithms.masking import masked_mean, masked_sum
from rlhf.algorithms.rewards import missing_eos_penalty, token_rewards
from rlhf.completions.batches import decode_in_batches
from rlhf.completions.diversity import distinct_n, repetition
from rlhf.completions.score import ScoringBatch
from rlhf.data.chat import as_text, completion_text
from rlhf.data.padding import left_pad
from rlhf.models.actor_critic import ActorCritic


@dataclass(frozen=True)
class Rollout:
    """A batch of B sampled completions with their log-probs, values and scores. Fixed while the policy is updated.

    prompt_ids, prompt_mask (B, P): left-padded
    completion_ids (B, T): right-padded
    mask (B, T) bool: True from the first completion token to EOS inclusive
    ended (B,) bool: True when the completion has its EOS
    log_probs, entropy (B, T): of the policy that sampled
    ref_log_probs (B, T): of the reference
    values (B, T): of the value model, 0 without one
    scores (B,): before KL; parts: each reward separately, (B,)
    rewards, advantages, returns (B, T): None until `estimate` makes a rollout that has them
    row_numbers (B,): of the prompts in the data

    All (B, T) tensors of numbers are 0 outside the mask.
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
    row_numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """A micro-batch: the chosen rows, without columns that are padding in all of them."""
        return choose(self.tensors(), index)


def choose(tensors: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The chosen rows of a rollout's tensors, without columns that are padding in all of them."""
    batch = {name: tensor[index] for name, tensor in tensors.items()}
    first = int(batch["prompt_mask"].any(0).float().argmax())  # prompts are padded on the left
    width = max(1, int(batch["mask"].sum(1).max()))
    for name, tensor in batch.items():
        if name.startswith("prompt"):
            batch[name] = tensor[:, first:]
        elif tensor.dim() == 2:
            batch[name] = tensor[:, :width]
    return batch


@dataclass(frozen=True)
class Prompts:
    """Data rows with their prompts as token ids and their numbers in the data. name: "training" or "evaluation"."""

    rows: Sequence[dict]
    ids: Sequence[list[int]]
    numbers: Sequence[int]
    name: str

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))

    def choose(self, indices: list[int]) -> "Prompts":
        rows = [self.rows[i] for i in indices]
        ids = [self.ids[i] for i in indices]
        return Prompts(rows, ids, [self.numbers[i] for i in indices], self.name)

    def row_names(self) -> list[str]:
        return [f"{self.name} row {number}" for number in self.numbers]


@dataclass(frozen=True)
class CollectSettings:
    """Settings of `collect`. Those without a comment are fields of `PolicyGradientConfig`."""

    temperature: float
    max_completion_length: int
    batch_size: int  # rows per forward pass
    stop_token_ids: tuple[int, ...]  # of the policy
    columns: tuple[str, ...]  # of the rows, for reward functions: None where a row lacks one
    missing_eos_penalty: float
    sampling_batch_size: int | None = None  # rows sampled at a time; None: all


@torch.no_grad()
def collect(
    model: ActorCritic,
    reference: Callable[[dict], Tensor],
    rewards: Callable[[ScoringBatch], tuple[Tensor, dict[str, Tensor]]],
    tokenizer,
    prompts: Prompts,
    uniforms: Tensor | None,
    settings: CollectSettings,
) -> Rollout:
    """Sample one completion for each prompt, score it, and run policy, value model and reference on it.

    reference: a batch -> log-probs (B, T)
    prompts: their rows have a "prompt" and any other columns, which reward functions get
    uniforms (B, max_completion_length): numbers that decide the sampling; None takes the most probable tokens
    """
    device = next(model.parameters()).device
    rows = prompts.rows
    ids, prompt_mask = left_pad(prompts.ids, tokenizer.pad_token_id)
    ids, prompt_mask = ids.to(device), prompt_mask.to(device)
    sampled = decode_in_batches(
        model.policy,
        ids,
        prompt_mask,
        batch_size=settings.sampling_batch_size or len(ids),
        stop_token_ids=settings.stop_token_ids,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        uniforms=uniforms,
    )
    completion_ids = unpadded(sampled.ids, sampled.mask)
    texts = completion_texts(tokenizer, completion_ids, sampled.ended)
    scores, parts = rewards(
        ScoringBatch(
            prompts=[row["prompt"] for row in rows],
            completions=texts,
            columns={name: [row.get(name) for row in rows] for name in settings.columns},
            tokenizer=tokenizer,
            prompt_ids=prompts.ids,
            completion_ids=completion_ids,
            row_names=prompts.row_names(),
        )
    )
    penalty = settings.missing_eos_penalty
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": prompt_mask,
        "completion_ids": sampled.ids,
        "mask": sampled.mask,
    }
    return Rollout(
        **inputs,
        **forward_passes(model, reference, inputs, settings),
        ended=sampled.ended,
        scores=missing_eos_penalty(scores.to(device), sampled.ended, penalty=penalty),
        row_numbers=torch.tensor(prompts.numbers, device=device),
        parts={name: part.to(device) for name, part in parts.items()},
    )


def forward_passes(
    model: ActorCritic,
    reference: Callable[[dict], Tensor],
    inputs: dict[str, Tensor],
    settings: CollectSettings,
) -> dict[str, Tensor]:
    """log_probs, entropy, values and ref_log_probs (B, T) of completions that exist, 0 outside the mask."""
    mask = inputs["mask"]
    names = ("log_probs", "entropy", "values", "ref_log_probs")
    results = {name: torch.zeros(mask.shape, device=mask.device) for name in names}
    # Rows of like length share a batch, so that little of it is padding.
    by_length = (inputs["prompt_mask"].sum(1) + mask.sum(1)).argsort()
    for index in by_length.split(settings.batch_size):
        batch = choose(inputs, index)
        width = batch["mask"].shape[1]  # of the longest completion in it
        outputs = model(**batch, temperature=settings.temperature, entropy=True)
        results["log_probs"][index, :width] = outputs.log_probs
        results["entropy"][index, :width] = outputs.entropy
        results["ref_log_probs"][index, :width] = reference(batch)
        if outputs.values is not None:
            results["values"][index, :width] = outputs.values
    return results


def estimate(
    rollout: Rollout,
    algorithm: Algorithm,
    *,
    kl_coef: float,
    gamma: float,
    gae_lambda: float,
    num_generations: int,
) -> Rollout:
    """A new Rollout with rewards, advantages and returns.

    Under several processes call it on the gathered rollout, so that means and variances are those of all completions.
    """
    mask = rollout.mask
    log_ratio = rollout.log_probs - rollout.ref_log_probs  # (B, T). k1 returns it as it is.
    rewards = token_rewards(rollout.scores, k1(log_ratio), mask, kl_coef=kl_coef)
    # (B, T), or (B,) where whole completions are compared
    advantages = call(
        algorithm.advantages,
        rewards=rewards,
        totals=rewards.sum(1),  # (B,)
        values=rollout.values,
        mask=mask,
        gamma=gamma,
        gae_lambda=gae_lambda,
        num_generations=num_generations,
    )
    if advantages.dim() == 1:  # the same for each token of a completion
        advantages = advantages.unsqueeze(1).expand_as(mask).masked_fill(~mask, 0.0)
    returns = (advantages + rollout.values).masked_fill(~mask, 0.0)  # before normalising
    if algorithm.normalize is not None:
        advantages = algorithm.normalize(advantages, mask)
    return replace(rollout, rewards=rewards, advantages=advantages, returns=returns)


def statistics(rollout: Rollout) -> dict[str, float]:
    """The numbers that are logged of a rollout. Lengths in tokens, KL in nats per completion."""
    mask = rollout.mask
    log_ratio = rollout.log_probs - rollout.ref_log_probs
    completions = unpadded(rollout.completion_ids, mask)  # token ids, for repetition
    results = {
        "score": rollout.scores.mean(),
        "score_std": rollout.scores.std(correction=0),
        "kl": masked_sum(log_ratio, mask, 1).mean(),  # k1: unbiased
        "completion_length": mask.sum(1).float().mean(),
        "eos_rate": rollout.ended.float().mean(),
        "entropy": masked_mean(rollout.entropy, mask),
        "surprise": -masked_mean(rollout.log_probs, mask),  # entropy, estimated on the samples
        "unique_completions": len(set(map(tuple, completions))) / len(rollout),
        "distinct_2": distinct_n(completions, 2),
        "repetition": repetition(completions),
    }
    results |= {f"score_{name}": part.mean() for name, part in rollout.parts.items()}
    if rollout.returns is not None:
        total, error = rollout.returns, rollout.returns - rollout.values
        # 1 when the values are the returns, 0 when they tell nothing about them
        variance = masked_mean((total - masked_mean(total, mask)) ** 2, mask)
        unexplained = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
        results["value_mean"] = masked_mean(rollout.values, mask)
        results["return_mean"] = masked_mean(total, mask)
        results["explained_variance"] = 1 - unexplained / variance.clamp(min=1e-12)
    return {name: float(value) for name, value in results.items()}


def samples(rollout: Rollout, rows: list[dict], tokenizer) -> list[dict]:
    """One readable dict per completion: prompt, completion, score, KL, and each reward separately."""
    kl = masked_sum(rollout.log_probs - rollout.ref_log_probs, rollout.mask, 1)  # (B,)
    ids = unpadded(rollout.completion_ids, rollout.mask)
    results = []
    for i, text in enumerate(completion_texts(tokenizer, ids, rollout.ended)):
        sample = {
            "prompt": as_text(rows[i]["prompt"]),
            "completion": text,
            "score": float(rollout.scores[i]),
            "kl": float(kl[i]),
        }
        for name, part in rollout.parts.items():
            sample.setdefault(name, float(part[i]))  # a reward may be called "score" too
        results.append(sample)
    return results


def completion_texts(tokenizer, ids: list[list[int]], ended: Tensor) -> list[str]:
    """The text of each completion, without its stop token."""
    texts = []
    for completion, has_ended in zip(ids, ended.tolist(), strict=True):
        texts.append(completion_text(tokenizer, completion, ended=has_ended))
    return texts


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The token ids of each row that count."""
    lengths = mask.sum(1).tolist()  # padding is on the right
    return [row[:length] for row, length in zip(ids.tolist(), lengths)]
