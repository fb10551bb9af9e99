"""Best of n: n answers to each prompt, ordered by their scores, and what the best of k answers scores for each k up to n.

To take the best of n samples moves a policy towards the reward without training. Its KL to the policy that samples is at
most log n - (n - 1) / n nats per completion, whatever the reward is: `kl_bound`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.completions.batches import decode_in_batches
from rlhf.completions.rollout import Prompts, completion_texts, unpadded
from rlhf.completions.sample import SampledTokens, uniform_numbers
from rlhf.completions.score import ScoringBatch
from rlhf.data.chat import Prompt
from rlhf.data.padding import left_pad
from rlhf.data.ratings import ranks
from rlhf.data.rows import CHECKS


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the answers to a prompt, and how many are sampled at a time.

    n: answers to each prompt.
    max_completion_length: in tokens.
    batch_size: answers sampled at a time. They do not depend on it.
    stop_token_ids: any of them ends an answer.
    warp: logits (B, V) -> the logits to sample from, the temperature included.
    columns: of the rows, for reward functions.
    guided: f(prompt ids, uniforms) that decodes with values instead, see `guided`.
    """

    n: int
    max_completion_length: int
    seed: int
    batch_size: int
    stop_token_ids: tuple[int, ...]
    warp: Callable[[Tensor], Tensor]
    columns: tuple[str, ...]
    guided: Callable[[list[list[int]], Tensor], SampledTokens] | None = None


@dataclass(frozen=True)
class Answer:
    """One answer. parts: each reward by itself. ended: it has its end-of-text token."""

    completion: str
    score: float
    ended: bool
    parts: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """The n answers to a prompt, best first. Of equal scores the one that was sampled first is the first.

    number: of the prompt in the data.
    """

    number: int
    prompt: Prompt
    answers: list[Answer]


# ---- sampling and scoring ----------------------------------------------------------------------------------------


@torch.no_grad()
def sample_answers(
    model, tokenizer, prompts: Prompts, rewards, settings: SamplingSettings
) -> list[Answers]:
    """n scored answers to each prompt.

    The random numbers of an answer are those of the seed, of the prompt's number in the data and of the answer's own: not of
    the prompts that are sampled with it.

    rewards: a `WeightedSum`
    """
    n, length = settings.n, settings.max_completion_length
    count = len(prompts.ids)
    copies = prompts.choose(torch.arange(count).repeat_interleave(n).tolist())
    uniforms = []
    for number in prompts.numbers:
        uniforms.append(uniform_numbers(n, length, seed=settings.seed, stream=number))
    sampled = decoded(model, tokenizer, copies.ids, torch.cat(uniforms), settings)
    completion_ids = unpadded(sampled.ids, sampled.mask)
    texts = completion_texts(tokenizer, completion_ids, sampled.ended)
    scores, parts = rewards(
        ScoringBatch(
            prompts=[row["prompt"] for row in copies.rows],
            completions=texts,
            columns={name: [row.get(name) for row in copies.rows] for name in settings.columns},
            tokenizer=tokenizer,
            prompt_ids=copies.ids,
            completion_ids=completion_ids,
            row_names=copies.row_names(),
        )
    )
    # Row i * n + j is answer j to prompt i.
    answers = []
    for i, (text, score, ended) in enumerate(zip(texts, scores.tolist(), sampled.ended.tolist())):
        of_each = {name: float(part[i]) for name, part in parts.items()}
        answers.append(Answer(text, score, ended, of_each))
    results = []
    for i in range(count):
        row = prompts.rows[i]
        own = answers[i * n : (i + 1) * n]
        # A stable sort: of equal scores the first stays first.
        best_first = sorted(own, key=lambda answer: -answer.score)
        results.append(Answers(prompts.numbers[i], row["prompt"], best_first))
    return results


def decoded(
    model, tokenizer, prompt_ids: list[list[int]], uniforms: Tensor, settings: SamplingSettings
) -> SampledTokens:
    """One completion of each prompt. uniforms (B, max_completion_length)."""
    if settings.guided is not None:
        return settings.guided(prompt_ids, uniforms)
    ids, mask = left_pad(prompt_ids, tokenizer.pad_token_id or 0)  # the mask excludes padding
    device = next(model.parameters()).device
    return decode_in_batches(
        model,
        ids.to(device),
        mask.to(device),
        batch_size=settings.batch_size,
        uniforms=uniforms,
        stop_token_ids=settings.stop_token_ids,
        max_completion_length=settings.max_completion_length,
        temperature=1.0,  # `warp` has divided by it
        warp=settings.warp,
    )


# ---- rows to train on --------------------------------------------------------------------------------------------


def usable(answers: Answers, *, keep_unended: bool) -> list[Answer]:
    """The answers that rows may teach, best first: each text once, and none that was cut off unless `keep_unended`.

    A recipe closes what it learns with the end-of-text token, and so a text that was cut off would teach to stop there.
    """
    # The first of equal texts is the best of them.
    kept: dict[str, Answer] = {}
    for answer in answers.answers:
        if answer.ended or keep_unended:
            kept.setdefault(answer.completion, answer)
    return [answer for answer in kept.values() if not is_blank(answer.completion)]


def is_blank(completion: str) -> bool:
    """True for a text that no recipe reads: one of white space alone, for instance. One such row would stop a recipe."""
    return CHECKS["completion"](completion) is not None


def demonstrations(prompt: Prompt, answers: list[Answer], *, keep: int, min_score: float | None):
    """Rows for SFT: the first `keep` answers, without those that score less than `min_score`."""
    rows = []
    for answer in answers[:keep]:
        if min_score is None or answer.score >= min_score:
            rows.append({"prompt": prompt, "completion": answer.completion, "score": answer.score})
    return rows


def ranking(prompt: Prompt, answers: list[Answer], *, min_margin: float) -> dict | None:
    """A row for a reward model or DPO.

    None where all scores are equal, or the best answer and the last differ by less than `min_margin`.
    """
    if not answers:
        return None
    scores = [answer.score for answer in answers]
    margin = scores[0] - scores[-1]
    if margin <= 0 or margin < min_margin:
        return None
    return {
        "prompt": prompt,
        "completions": [answer.completion for answer in answers],
        "ranks": ranks(scores),
        "scores": scores,
    }


# ---- the best of k -----------------------------------------------------------------------------------------------


def best_of_means(scores: Tensor) -> Tensor:
    """The expected highest score of k of the n answers, for k = 1 to n: (P, n) -> (P, n), fp64. Unbiased for each k."""
    return means_of_the_last(scores.double().sort(dim=1).values)


def means_of_the_last(ordered: Tensor) -> Tensor:
    """The expected value of the last of k of n values, for k = 1 to n: (P, n) -> (P, n), fp64.

    ordered: by the score that chooses, which need not be the values themselves. The value at i = 1 ... n is the last of k
    that are drawn without replacement in C(i-1, k-1) of the C(n, k) draws (the estimator of pass@k, arXiv 2107.03374, for
    numbers instead of passes).
    """
    n = ordered.shape[1]
    ordered = ordered.double()  # sums of n terms, some of them tiny
    smaller = torch.arange(n, dtype=torch.float64)  # the number of scores before each
    weights = torch.full((n,), 1 / n, dtype=torch.float64)  # of k = 1
    means = []
    for k in range(1, n + 1):
        means.append(ordered @ weights)
        # From k to k + 1, as the binomials of a large n are too long to compute one by one.
        weights = weights * (smaller - k + 1).clamp(min=0) * (k + 1) / (k * max(1, n - k))
    return torch.stack(means, dim=1)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: KL(best of n || policy) in nats per completion, at most.

    Used as the KL itself by arXiv 2009.01325 and 2210.10760. It is an upper bound (arXiv 2401.01879, theorem 1), near the
    KL where no completion is likely, and far above it where n samples often repeat each other.
    """
    return math.log(n) - (n - 1) / n
