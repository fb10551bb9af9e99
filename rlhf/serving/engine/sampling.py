"""From the logits of a batch of answers to their next tokens. Both ways to generate draw here.

Each answer has settings of its own. A token depends only on the logits of its row, the request's seed, the answer's index
and the step: not on the other rows, and never on the global random state. The steps and their order are those of
transformers' own sampling: repetition penalty, temperature, top-k, top-p.

Omitted on purpose: a full sort of the vocabulary for top-p, which takes longer than the forward pass of a small model. The
likeliest CANDIDATES tokens are enough, except for very flat distributions.
"""

import torch
from torch import Tensor

from rlhf.completions.sample import sample_tokens

COLDEST = 1e-4  # a temperature at which the likeliest token is as good as sure
CANDIDATES = 512  # tokens that are sorted at first


def choose_tokens(logits: Tensor, answers: list) -> list[int | None]:
    """The next token of each answer; None where its logits (B, V) are not finite numbers.

    answers: B objects with settings, uniforms, tokens and prompt_ids, see `Answer`.
    """
    logits = logits.float()
    likeliest, greedy = logits.max(-1)
    finite = torch.isfinite(likeliest).tolist()
    tokens: list[int | None] = greedy.tolist()
    logits = penalised(logits, answers)
    drawn = []
    for i, answer in enumerate(answers):
        if not finite[i]:
            tokens[i] = None
        elif answer.settings.temperature > 0:
            drawn.append(i)
        elif answer.settings.repetition_penalty != 1:
            tokens[i] = int(logits[i].argmax())
    if drawn:
        sampled = _draw(logits[drawn], [answers[i] for i in drawn])
        for i, token in zip(drawn, sampled, strict=True):
            tokens[i] = token
    return tokens


def penalised(logits: Tensor, answers: list) -> Tensor:
    """The logits (B, V), smaller for the tokens that a row already has, by its repetition penalty."""
    result = logits
    for i, answer in enumerate(answers):
        penalty = answer.settings.repetition_penalty
        if penalty == 1:
            continue
        if result is logits:
            result = logits.clone()
        seen = torch.tensor(answer.prompt_ids + answer.tokens, device=logits.device)
        values = logits[i, seen]
        result[i, seen] = torch.where(values < 0, values * penalty, values / penalty)
    return result


def _draw(logits: Tensor, answers: list) -> list[int]:
    """One token per row (B, V), each by the random number of its answer and step."""
    temperatures, top_k, top_p, uniforms = [], [], [], []
    for answer in answers:
        settings = answer.settings
        # A smaller number would divide the scores to infinity.
        temperatures.append(max(float(settings.temperature), COLDEST))
        top_k.append(settings.top_k)
        top_p.append(float(settings.top_p))
        uniforms.append(float(answer.uniforms[len(answer.tokens)]))
    device = logits.device
    scores = logits / torch.tensor(temperatures, device=device).unsqueeze(1)
    if any(top_k) or min(top_p) < 1:
        scores = keep_likely(
            scores,
            top_k=torch.tensor(top_k, device=device),
            top_p=torch.tensor(top_p, device=device),
        )
    draws = torch.tensor(uniforms, dtype=torch.float64)
    return sample_tokens(scores, draws, temperature=1.0).tolist()


def keep_likely(scores: Tensor, *, top_k: Tensor, top_p: Tensor, candidates: int = CANDIDATES):
    """The scores (B, V) with -inf for the tokens outside of top-k and then of top-p, per row.

    top_k (B,): 0 keeps all. top_p (B,): 1 keeps all. Tokens as likely as the last one that is kept are kept too.
    """
    size = scores.shape[1]
    count = min(candidates, size)
    values = scores.topk(count).values  # (B, count), the likeliest first
    wanted = torch.where(top_k > 0, top_k, size).clamp(max=size)  # (B,)
    cuts_by_rank = wanted < size
    if count < size and bool((cuts_by_rank & (wanted > count)).any()):
        return keep_likely(scores, top_k=top_k, top_p=top_p, candidates=size)

    lowest = values.gather(1, (wanted - 1).clamp(max=count - 1).unsqueeze(1))  # (B, 1)
    lowest = lowest.masked_fill(~cuts_by_rank.unsqueeze(1), float("-inf"))
    scores = scores.masked_fill(scores < lowest, float("-inf"))

    cuts_by_mass = top_p < 1
    total = scores.logsumexp(-1, keepdim=True)
    probabilities = (values - total).exp().masked_fill(values < lowest, 0.0)
    before = probabilities.cumsum(-1) - probabilities  # mass of the likelier tokens
    kept = (before < top_p.unsqueeze(1)).sum(-1)  # (B,), at least 1
    if count < size and bool((cuts_by_mass & (kept == count)).any()):
        return keep_likely(scores, top_k=top_k, top_p=top_p, candidates=size)
    smallest = values.gather(1, (kept - 1).clamp(min=0).unsqueeze(1))
    smallest = smallest.masked_fill(~cuts_by_mass.unsqueeze(1), float("-inf"))
    return scores.masked_fill(scores < smallest, float("-inf"))


def token_logprobs(logits: Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-prob of a token under logits (V,), and the `count` likeliest tokens with theirs."""
    log_probs = logits.float().log_softmax(-1)
    best = log_probs.topk(min(count, len(log_probs)))
    top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return float(log_probs[token]), top
