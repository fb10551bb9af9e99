"""Log-probabilities of chosen tokens, and the entropy of the distribution they were chosen from.

Always in fp32: a bf16 log-softmax moves the PPO ratio by several percent. The chunked form never holds the logits of all
positions at once, so that a vocabulary of 50,000 fits next to a long completion; it recomputes them in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[token] and the entropy of that softmax, which has no gradient here.

    logits (..., V), any dtype; token_ids (...), int64. Returns log_probs (...), entropy (...), fp32, entropy >= 0.
    """
    log_distribution = _log_distribution(logits, token_ids, temperature)
    with torch.no_grad():
        entropy = _entropy(log_distribution)
    return _chosen(log_distribution, token_ids), entropy


def token_log_probs_with_entropy(logits: Tensor, token_ids: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """`token_log_probs` whose entropy has a gradient, for an entropy bonus; it keeps one more (..., V) tensor."""
    log_distribution = _log_distribution(logits, token_ids, temperature)
    return _chosen(log_distribution, token_ids), _entropy(log_distribution)


def _log_distribution(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    assert logits.shape[:-1] == token_ids.shape, (logits.shape, token_ids.shape)
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _chosen(log_distribution: Tensor, token_ids: Tensor) -> Tensor:
    return log_distribution.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def _entropy(log_distribution: Tensor) -> Tensor:
    possible = log_distribution.clamp(min=torch.finfo(torch.float32).min)  # 0 * -inf of impossible tokens would be NaN
    return -(log_distribution.exp() * possible).sum(-1).clamp(max=0.0)


def chunked_token_log_probs(
    hidden: Tensor,
    output_layer: torch.nn.Module,
    token_ids: Tensor,
    formula: Callable,
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """`formula` (one of the two above) of output_layer(hidden), `chunk_size` positions at a time.

    hidden (N, H); output_layer maps H to V; token_ids (N,). Returns log_probs (N,), entropy (N,): equal to the full
    computation, forward and backward.
    """
    assert hidden.dim() == 2 and token_ids.shape == hidden.shape[:1], (hidden.shape, token_ids.shape)

    def part(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return formula(output_layer(states), ids, temperature=temperature)

    if len(hidden) <= chunk_size:
        return part(hidden, token_ids)
    chunks = zip(hidden.split(chunk_size), token_ids.split(chunk_size), strict=True)
    recompute = torch.is_grad_enabled()
    parts = [checkpoint(part, *c, use_reentrant=False) if recompute else part(*c) for c in chunks]
    log_probs, entropy = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropy)


def masked_token_log_probs(
    hidden: Tensor,
    output_layer: torch.nn.Module,
    token_ids: Tensor,
    mask: Tensor,
    formula: Callable,
    *,
    temperature: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy where the mask counts, 0 elsewhere: no logits are made for padding.

    hidden (B, T, H), token_ids (B, T), mask (B, T) bool. Returns two (B, T) tensors.
    """
    found, entropies = chunked_token_log_probs(
        hidden[mask], output_layer, token_ids[mask], formula, temperature=temperature, chunk_size=chunk_size
    )
    log_probs = torch.zeros(mask.shape, dtype=torch.float32, device=hidden.device).masked_scatter(mask, found)
    entropy = torch.zeros_like(log_probs).masked_scatter(mask, entropies)
    return log_probs, entropy
