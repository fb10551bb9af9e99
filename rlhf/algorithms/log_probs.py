"""Log-probabilities of chosen tokens, and the entropy of the distribution they were chosen from.

Always in fp32: a bf16 log-softmax moves the PPO ratio by several percent. The chunked form never holds the logits of all
positions at once, so that a vocabulary of 50,000 fits next to a long completion; it recomputes them in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float) -> Tensor:
    """log softmax(logits / temperature)[token].

    logits (..., V), any dtype; token_ids (...), int64. Returns (...), fp32.
    """
    return _chosen(_log_distribution(logits, token_ids, temperature), token_ids)


def token_log_probs_and_entropy(
    logits: Tensor, token_ids: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """`token_log_probs`, and the entropy (...) >= 0 of the distribution, both differentiable.

    A function of its own: the entropy takes as long as the log-probs, and few passes need it.
    """
    log_distribution = _log_distribution(logits, token_ids, temperature)
    return _chosen(log_distribution, token_ids), _entropy(log_distribution)


def _log_distribution(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    assert logits.shape[:-1] == token_ids.shape, (logits.shape, token_ids.shape)
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _chosen(log_distribution: Tensor, token_ids: Tensor) -> Tensor:
    return log_distribution.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def _entropy(log_distribution: Tensor) -> Tensor:
    possible = log_distribution.clamp(
        min=torch.finfo(torch.float32).min
    )  # 0 * -inf of impossible tokens would be NaN
    return -(log_distribution.exp() * possible).sum(-1).clamp(max=0.0)


def chunked(
    formula: Callable,
    hidden: Tensor,
    output_layer: torch.nn.Module,
    token_ids: Tensor,
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """`formula` (one of the two above) of output_layer(hidden), `chunk_size` positions at a time.

    hidden (N, H); output_layer maps H to V; token_ids (N,). Returns what the formula returns, as a tuple of (N,): equal to
    the full computation, forward and backward.
    """
    assert hidden.dim() == 2 and token_ids.shape == hidden.shape[:1], (
        hidden.shape,
        token_ids.shape,
    )

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        found = formula(output_layer(states), ids, temperature=temperature)
        return found if isinstance(found, tuple) else (found,)

    if len(hidden) <= chunk_size:
        return part(hidden, token_ids)
    chunks = zip(hidden.split(chunk_size), token_ids.split(chunk_size), strict=True)
    recompute = torch.is_grad_enabled()
    parts = [checkpoint(part, *c, use_reentrant=False) if recompute else part(*c) for c in chunks]
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def masked(
    formula: Callable,
    hidden: Tensor,
    output_layer: torch.nn.Module,
    token_ids: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, ...]:
    """`chunked` where the mask counts, 0 elsewhere: no logits are made for padding.

    hidden (B, T, H), token_ids (B, T), mask (B, T) bool. Returns a tuple of (B, T) tensors.
    """
    found = chunked(
        formula,
        hidden[mask],
        output_layer,
        token_ids[mask],
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return tuple(
        torch.zeros(mask.shape, dtype=part.dtype, device=mask.device).masked_scatter(mask, part)
        for part in found
    )
