"""Completions -> one score each: reward models, Python functions, and their weighted sum.

A Python reward is `f(prompts, completions, **columns) -> list[float]`: prompts as in the data rows, completions as text,
and every other column of the rows by name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.completions.finite_scores import as_scores
from rlhf.completions.functions import FunctionScorer
from rlhf.completions.reward_inputs import RewardInput, RewardInputs, score_inputs
from rlhf.data.chat import Prompt
from rlhf.errors import UserError
from rlhf.models.load import load_reward_model, load_tokenizer
from rlhf.models.parts import context_length, freeze


@dataclass
class ScoringBatch:
    """B prompts with one completion each.

    columns: the other columns of the data rows
    tokenizer, prompt_ids, completion_ids: the policy's, with the ids it read and wrote, where they are known
    row_names: of the rows in the data, for messages; None where they are not known
    """

    prompts: list[Prompt]
    completions: list[str]
    columns: dict[str, list] = field(default_factory=dict)
    tokenizer: object | None = None
    prompt_ids: list[list[int]] | None = None
    completion_ids: list[list[int]] | None = None
    row_names: list[str] | None = None


def column_names(rows: Iterable[dict]) -> tuple[str, ...]:
    """Columns that any row has, except prompt and completion: what reward functions get. Rows of one file may differ."""
    names: set[str] = set()
    for row in rows:
        names.update(row)
    return tuple(sorted(names - {"prompt", "completion"}))


class RewardModelScorer:
    """Scores by a reward model, at the last real token of prompt + completion, as it was trained.

    Decoders score the policy's own ids when both tokenizers agree. Otherwise the text is tokenised again, as the reward
    model reads it (`RewardInputs`).
    """

    def __init__(self, model, tokenizer, *, batch_size: int = 32):
        self.model, self.tokenizer, self.batch_size = freeze(model), tokenizer, batch_size
        self.limit = context_length(model)
        self.inputs = RewardInputs(model, tokenizer)

    @classmethod
    def load(cls, path: str, *, dtype: str = "float32") -> "RewardModelScorer":
        return cls(load_reward_model(path, dtype=dtype), load_tokenizer(path))

    def __call__(self, batch: ScoringBatch) -> Tensor:
        return as_scores(self.score(self.inputs.of_batch(batch)), batch, "the reward model")

    @torch.no_grad()
    def score(self, rows: list[RewardInput]) -> Tensor:
        """One score per encoded row: (B,), fp32, on the CPU."""
        lengths = [len(row.ids) for row in rows]
        if max(lengths) > self.limit:
            raise UserError(
                f"the reward model reads at most {self.limit} tokens, prompt + completion has {max(lengths)}: "
                "shorten max_completion_length or the prompts"
            )
        pad = self.tokenizer.pad_token_id or 0
        scores = torch.zeros(len(rows))
        # Rows of like length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        for start in range(0, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            inputs = [rows[i] for i in index]
            scores[index] = score_inputs(self.model, inputs, pad_token_id=pad).cpu()
        return scores


class WeightedSum:
    """Weighted sum of scores, sum_i weight_i * score_i."""

    def __init__(
        self,
        scorers: dict[str, Callable[[ScoringBatch], Tensor]],
        weights: Sequence[float] | None = None,
    ):
        weights = list(weights or []) or [1.0] * len(scorers)
        if not scorers:
            raise UserError("no reward given: set reward_model_path, reward_functions, or both")
        if len(weights) != len(scorers):
            raise UserError(
                f"reward_weights has {len(weights)} numbers for {len(scorers)} rewards ({', '.join(scorers)}): "
                "give one each, reward models first"
            )
        for name, weight in zip(scorers, weights, strict=True):
            if not math.isfinite(weight):
                raise UserError(f"reward_weights: {weight} of {name} must be a finite number")
        self.scorers = scorers
        self.weights = dict(zip(scorers, weights, strict=True))

    def __call__(self, batch: ScoringBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores (B,), and by name each score before its weight, (B,)."""
        parts = {name: scorer(batch) for name, scorer in self.scorers.items()}
        total = sum(self.weights[name] * part for name, part in parts.items())
        return as_scores(total, batch, "the weighted sum of the rewards"), parts


def load_scorers(
    reward_models: Sequence[str], functions: Sequence[str], *, dtype: str = "float32", limits=None
) -> dict[str, Callable]:
    """Scorers by a short name each. dtype: of the reward models' weights; limits: the CallLimits of functions.

    Reward models are `reward_model`, `reward_model_2`, ... Functions have their own names, or their whole path where
    the name is taken.
    """
    scorers: dict[str, Callable] = {}
    for number, path in enumerate(reward_models, start=1):
        suffix = f"_{number}" if number > 1 else ""
        scorers[f"reward_model{suffix}"] = RewardModelScorer.load(path, dtype=dtype)
    for path in functions:
        scorer = FunctionScorer.load(path, limits)
        name = path if scorer.name in scorers else scorer.name
        if name in scorers:
            raise UserError(
                f"reward_functions names {path} twice: name it once and give it a weight"
            )
        scorers[name] = scorer
    return scorers
