"""Log-probabilities of answers, and the ways to rank answers by them.

With s_y = sum of log p over the tokens of answer y:
- sum: s_y, as in GPT-3 for answers of one token, and `acc` of lm_eval.
- per_token: s_y / tokens of y (GPT-3, Brown et al. 2020, section 2.4).
- per_byte: s_y / UTF-8 bytes of y, which does not depend on the tokenizer; for ASCII it is `acc_norm` of lm_eval.
- calibrated: contextual calibration (Zhao et al. 2021, arXiv 2102.09690, section 5). With p = softmax(s), and p_cf its mean
  over inputs without content, the answer is argmax of diag(p_cf)^-1 p, which is argmax_y (s_y - log p_cf(y)).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rlhf.algorithms.log_probs import token_log_probs
from rlhf.completions.cache import cache_argument, keeps_all_keys
from rlhf.data.padding import right_pad
from rlhf.errors import UserError
from rlhf.few_shot.prompts import Candidates, shared_length
from rlhf.models.logits import output_of
from rlhf.models.parts import accepted_inputs, trunk_of

CONTENT_FREE = ("N/A", "[MASK]", "")  # the three inputs of Zhao et al.
MANY = 4  # forward passes of a question, from which on it is a group of its own
WORTH_READING = 8  # tokens that are read once for all
METHODS = ("sum", "per_token", "per_byte", "calibrated")


@torch.no_grad()
def answer_log_probs(
    model: nn.Module, items: Sequence[Candidates], *, pad_token_id: int, batch_size: int
) -> list[Tensor]:
    """Summed log-probability of each answer of each question, fp64: (answers,) tensors.

    Answers that differ only in their last token share a forward pass. The tokens that a group of questions begins with,
    such as the shots, are read once where the model keeps their keys and values.
    """
    can_continue = cache_argument(type(trunk_of(model))) is not None and keeps_all_keys(model)
    groups = _groups(items) if can_continue else [(list(range(len(items))), 0)]
    results: dict[int, Tensor] = {}
    for chosen, shared in groups:
        sums = _group_log_probs(
            model,
            [items[i] for i in chosen],
            shared,
            pad_token_id=pad_token_id,
            batch_size=batch_size,
        )
        results |= zip(chosen, sums)
    return [results[i] for i in range(len(items))]


def _groups(items: Sequence[Candidates]) -> list[tuple[list[int], int]]:
    """Questions whose answers are scored together, and the number of tokens that all of them begin with and share."""
    inputs = [{tuple(sequence[:-1]) for sequence in item.sequences} for item in items]
    # A question with many answers shares all of itself with them, and not only the shots with other questions.
    chosen = [[i] for i in range(len(items)) if len(inputs[i]) >= MANY]
    chosen.append([i for i in range(len(items)) if len(inputs[i]) < MANY])
    groups = []
    for indices in filter(None, chosen):
        # The token before the first scored one predicts it: it is read with the rest.
        shared = min(items[i].start - 1 for i in indices)
        rows = set().union(*(inputs[i] for i in indices))
        first = min(rows)
        shared = min(shared, *(shared_length(first, row) for row in rows))
        groups.append((indices, shared if len(rows) > 1 and shared >= WORTH_READING else 0))
    return groups


def _group_log_probs(
    model: nn.Module,
    items: Sequence[Candidates],
    shared: int,
    *,
    pad_token_id: int,
    batch_size: int,
) -> list[Tensor]:
    """The sums of a group of questions. shared: tokens at the beginning that are read once."""
    passes: dict[tuple[int, ...], int] = {}  # input ids -> index of its forward pass
    for item in items:
        for sequence in item.sequences:
            passes.setdefault(tuple(sequence[shared:-1]), len(passes))
    # For each pass: the tokens to score behind some of its positions, and the sums that they add to.
    wanted: list[list[tuple[int, list[int], int]]] = [[] for _ in passes]
    total = 0
    for item in items:
        for sequence in item.sequences:
            index = passes[tuple(sequence[shared:-1])]
            wanted[index].append((item.start - shared, sequence[item.start :], total))
            total += 1
    sums = torch.zeros(total, dtype=torch.float64)
    cache = _read(model, items[0].sequences[0][:shared]) if shared else None
    inputs = list(passes)
    # Sequences of like length share a batch.
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        _add_batch(model, inputs, wanted, chosen, sums, pad_token_id, cache)
    if not sums.isfinite().all():
        raise UserError(
            "the model gives log-probabilities that are not finite: check its weights for NaN"
        )
    return list(sums.split([len(item.sequences) for item in items]))


def _read(model: nn.Module, ids: list[int]) -> DynamicCache:
    """The keys and values of some tokens, as a batch of one row."""
    cache = DynamicCache(config=model.config)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    trunk = trunk_of(model)
    trunk(input_ids=tokens, use_cache=True, **{cache_argument(type(trunk)): cache})
    return cache


def _add_batch(
    model: nn.Module,
    inputs: list[tuple[int, ...]],
    wanted: list[list[tuple[int, list[int], int]]],
    chosen: list[int],
    sums: Tensor,
    pad_token_id: int,
    cache: DynamicCache | None,
) -> None:
    """Run the chosen inputs, after what the cache holds, and add the log-probs of their tokens to `sums`."""
    device = next(model.parameters()).device
    # Padding behind a causal model's tokens changes nothing in front of it.
    ids, mask = right_pad([inputs[i] for i in chosen], pad_token_id)  # (B, L)
    trunk = trunk_of(model)
    arguments = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
    if cache is None:
        arguments["use_cache"] = False
    else:
        arguments |= _continued(trunk, arguments["attention_mask"], cache)
    states = trunk(**accepted_inputs(trunk, arguments)).last_hidden_state  # (B, L, H)
    rows, columns, targets, sum_index = [], [], [], []
    for row, index in enumerate(chosen):
        for start, tokens, number in wanted[index]:
            for offset, token in enumerate(tokens):
                rows.append(row)
                columns.append(start + offset - 1)  # the position that predicts the token
                targets.append(token)
                sum_index.append(number)
    target_ids = torch.tensor(targets, device=device)
    logits = output_of(model)(states[rows, columns])  # (tokens, V)
    log_probs = token_log_probs(logits, target_ids, temperature=1.0)
    sums.index_add_(0, torch.tensor(sum_index), log_probs.double().cpu())


def _continued(trunk: nn.Module, mask: Tensor, cache: DynamicCache) -> dict:
    """The inputs of a batch whose rows, of this mask (B, L), all continue the one row of a cache."""
    count, read = len(mask), cache.get_seq_length()
    past = copy.deepcopy(cache)  # which the pass adds its own keys to
    past.batch_repeat_interleave(count)
    whole = torch.cat([mask.new_ones(count, read), mask], dim=1)
    return {
        "attention_mask": whole,
        cache_argument(type(trunk)): past,
        "use_cache": True,
    }


def method_scores(log_probs: Tensor, item: Candidates, bias: Tensor | None) -> dict[str, Tensor]:
    """Scores of the answers of one question, (answers,), by method.

    log_probs: sums, (answers,). bias: log p_cf, or None where nothing is calibrated.
    """
    tokens = [len(sequence) - item.start for sequence in item.sequences]
    scores = {
        "sum": log_probs,
        "per_token": log_probs / torch.tensor(tokens),
        "per_byte": log_probs / torch.tensor(item.lengths),
    }
    if bias is not None:
        scores["calibrated"] = calibrate(log_probs, bias)
    return scores


def content_free_bias(log_probs: Sequence[Tensor]) -> Tensor:
    """log p_cf, (answers,): the mean over content-free inputs of softmax(s), given s of each, (answers,)."""
    return torch.stack([values.softmax(-1) for values in log_probs]).mean(0).log()


def calibrate(log_probs: Tensor, bias: Tensor) -> Tensor:
    """log q + constant, where q = diag(p_cf)^-1 p, (answers,)."""
    return log_probs - bias


def best(scores: Tensor) -> tuple[int, bool]:
    """(index of the best answer, True for a tie). The first of equal answers wins, as in lm_eval."""
    top = scores.max()
    ties = int((scores == top).sum())
    return int((scores == top).int().argmax()), ties > 1
