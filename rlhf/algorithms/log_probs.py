"""Log-probabilities of chosen tokens, and the entropy of the distribution they were chosen from.

Always in fp32: a bf16 log-softmax moves the PPO ratio by several percent. The chunked form never holds the logits of all
positions at once, so that a vocabulary of 50,000 fits next to a long completion; it recomputes them in the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_log_probs(logits: Tensor, token_ids: Tensor, *, temperature: float) -> Tensor:
    """Log-probability of each token, log softmax(logits / temperature)[token].

    logits (..., V), any dtype; token_ids (...), int64. Returns (...), fp32.
    """
    return _chosen(_log_distribution(logits, token_ids, temperature), token_ids)


def token_log_probs_and_entropy(logits: Tensor, token_ids: Tensor, *, temperature: float) -> Tensor:
    """`token_log_probs`, and the entropy >= 0 of the distribution, both differentiable: (..., V) -> (2, ...).

    A function of its own: the entropy takes as long as the log-probs, and few passes need it.
    """
    log_distribution = _log_distribution(logits, token_ids, temperature)
    return torch.stack([_chosen(log_distribution, token_ids), _entropy(log_distribution)])


def _log_distribution(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    assert logits.shape[:-1] == token_ids.shape, (logits.shape, token_ids.shape)
    logits = logits.float()
    if temperature != 1:  # a division would cost a copy of the logits
        logits = logits / temperature
    return torch.log_softmax(logits, dim=-1)


def _chosen(log_distribution: Tensor, token_ids: Tensor) -> Tensor:
    return log_distribution.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def _entropy(log_distribution: Tensor) -> Tensor:
    # 0 * -inf of impossible tokens would be NaN.
    possible = log_distribution.clamp(min=torch.finfo(torch.float32).min)
    negative_entropy = (log_distribution.exp() * possible).sum(-1)
    return -negative_entropy.clamp(max=0.0)  # rounding


def masked_log_probs(
    formula: Callable,
    hidden: Tensor,
    output_layer: torch.nn.Module,
    token_ids: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    chunk_size: int,
) -> Tensor:
    """`formula` (one of the two above) of output_layer(hidden) where the mask is True, 0 elsewhere.

    hidden (B, T, H); output_layer maps H to V; token_ids (B, T); mask (B, T) bool. No logits are made for padding, and those
    of `chunk_size` positions at a time: equal to the full computation, forward and backward. Returns (B, T) or (2, B, T).
    """
    assert token_ids.shape == mask.shape == hidden.shape[:-1], (hidden.shape, token_ids.shape)

    def log_probs(states: Tensor, ids: Tensor) -> Tensor:
        return formula(output_layer(states), ids, temperature=temperature)

    states, ids = hidden[mask], token_ids[mask]  # (N, H), (N,)
    if len(ids) <= chunk_size:
        results = log_probs(states, ids)
    else:
        chunks = []
        for pair in zip(states.split(chunk_size), ids.split(chunk_size), strict=True):
            if torch.is_grad_enabled():  # do not keep the chunk's logits for the backward pass
                chunks.append(checkpoint(log_probs, *pair, use_reentrant=False))
            else:
                chunks.append(log_probs(*pair))
        results = torch.cat(chunks, dim=-1)  # (N,) or (2, N)
    padded = results.new_zeros(*results.shape[:-1], *mask.shape)
    return padded.masked_scatter(mask, results)
