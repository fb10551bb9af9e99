"""Losses per token, to be minimised, and the weights of the tokens in their mean.

The trainer multiplies the policy's losses by the weights, sums them over the mask, and divides by the number of tokens in
the whole mini-batch. Losses stay per token on purpose: a mean over a micro-batch would weigh tokens by how the batch
happened to be cut.
"""

import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    logsigmoid,
)

from rlhf.algorithms.masking import masked_sum


def token_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """Probability ratio of each token: rho = pi / pi_old = exp(log_probs - old_log_probs). All (B, T)."""
    assert log_probs.shape == old_log_probs.shape
    return (log_probs - old_log_probs).exp()


def sequence_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Probability ratio of each completion, normalised by its length.

    s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|) = exp(mean_t(log_probs - old_log_probs)), the same for each of its tokens.
    GSPO, Zheng et al. 2025 (arXiv 2507.18071), equation 7. All (B, T); 1 for a completion without tokens.
    """
    assert log_probs.shape == old_log_probs.shape == mask.shape
    lengths = mask.sum(1).clamp(min=1)  # (B,)
    log_ratio = masked_sum(log_probs - old_log_probs, mask, 1) / lengths  # (B,)
    return log_ratio.exp().unsqueeze(1).expand_as(mask)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The policy gradient's loss, -A_t log pi(a_t | s_t). Williams 1992. All (B, T)."""
    assert log_probs.shape == advantages.shape, (log_probs.shape, advantages.shape)
    return -advantages * log_probs


def surrogate_loss(ratio: Tensor, advantages: Tensor) -> Tensor:
    """The surrogate -rho A. TRPO, Schulman et al. 2015 (arXiv 1502.05477), equation 14. All (B, T).

    At rho = 1 its gradient is the policy gradient.
    """
    assert ratio.shape == advantages.shape
    return -advantages * ratio


def clipped_surrogate_loss(ratio: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """The clipped surrogate -min(rho A, clip(rho, 1 - c, 1 + c) A), c = clip_range.

    PPO, Schulman et al. 2017 (arXiv 1707.06347), equation 7. All (B, T).
    """
    assert ratio.shape == advantages.shape
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped_ratio)


def clip_higher_loss(
    ratio: Tensor, advantages: Tensor, *, clip_range: float, clip_range_high: float
) -> Tensor:
    """The clipped surrogate with a separate upper range: clip(rho, 1 - clip_range, 1 + clip_range_high).

    DAPO, Yu et al. 2025 (arXiv 2503.14476), equation 10: a higher upper bound lets unlikely tokens become likely.
    All (B, T).
    """
    assert ratio.shape == advantages.shape
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range_high)
    return torch.maximum(-advantages * ratio, -advantages * clipped_ratio)


def equal_tokens(mask: Tensor) -> Tensor:
    """Weight 1 for every token: the loss is the mean over all tokens of the mini-batch. (B, T)."""
    return torch.ones(mask.shape, device=mask.device)


def equal_completions(mask: Tensor, num_tokens: Tensor, num_completions: int) -> Tensor:
    """Weights that make every completion weigh the same: the loss is the mean of the completions' means.

    w_t = (N / B) / length of its completion. mask (B', T) of a micro-batch; N tokens and B completions of the whole
    mini-batch. Returns shape (B', T).
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1)  # (B', 1)
    return (num_tokens / num_completions / lengths).expand_as(mask)


def constant_length(
    mask: Tensor, num_tokens: Tensor, num_completions: int, *, max_completion_length: int
) -> Tensor:
    """Weights that divide each completion's summed loss by a constant instead of by its length.

    w_t = N / (B max_completion_length). Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783), 3.2: with the length as divisor a long
    wrong answer would be punished less. mask (B', T) of a micro-batch; N tokens and B completions of the whole
    mini-batch. Returns shape (B', T).
    """
    return (num_tokens / (num_completions * max_completion_length)).expand_as(mask)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Squared error of the values, (V - R)^2 / 2. All (B, T)."""
    assert values.shape == returns.shape
    return 0.5 * (values - returns) ** 2


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip_range: float
) -> Tensor:
    """Squared error of the values, clipped near the values of the rollout.

    max((V - R)^2, (V_clipped - R)^2) / 2, V_clipped within value_clip_range of the value at rollout time.
    From the PPO code of OpenAI baselines, not from the paper; N implementation details, 1.9. All (B, T).
    """
    assert values.shape == old_values.shape == returns.shape
    move = (values - old_values).clamp(-value_clip_range, value_clip_range)
    clipped = old_values + move
    # The worse of the two: moving away from the return is never clipped.
    return torch.maximum(value_loss(values, returns), value_loss(clipped, returns))


def kwise_ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ranking loss of the K answers to each prompt.

    -log sigmoid(r_better - r_worse), averaged over the strictly ordered pairs. InstructGPT, equation 1, with ties dropped:
    every prompt weighs the same whatever its K. K = 2 is the pairwise loss of Bradley and Terry.

    scores (B, K); ranks (B, K) ints, 0 = best; mask (B, K) bool, True where there is a completion.
    Returns loss (B,), 0 for a prompt whose completions all tie, and the number of ordered pairs (B,).
    """
    assert scores.shape == ranks.shape == mask.shape, (scores.shape, ranks.shape, mask.shape)
    better = ranks.unsqueeze(2) < ranks.unsqueeze(1)  # (B, K, K): row i before column j
    better = better & mask.unsqueeze(2) & mask.unsqueeze(1)
    margins = scores.unsqueeze(2) - scores.unsqueeze(1)  # (B, K, K)
    losses = torch.where(better, -logsigmoid(margins), torch.zeros_like(margins))
    pairs = better.sum((1, 2))  # (B,)
    return losses.sum((1, 2)) / pairs.clamp(min=1), pairs


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights of the classes with which every class weighs the same in total, and a row of the data 1 on average.

    n / (C n_c). King and Zeng 2001.
    counts (C, ...): rows of each class, n their sum, C the classes that have rows; a class without weighs 1. Same shape.
    """
    present = (counts > 0).sum(0)  # classes that have rows
    weights = counts.sum(0) / (present * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.ones(()))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy, -w_y log softmax(logits)_y. logits (B, K), labels (B,) ints, weights (K,) -> (B,).

    PyTorch's own mean divides by the sum of the weights: a micro-batch of one row would lose its weight.
    """
    assert logits.shape == (len(labels), len(weights)), (logits.shape, labels.shape, weights.shape)
    return cross_entropy(logits, labels, weight=weights, reduction="none")


def weighted_binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted binary cross-entropy, -w_y log p(y), p = sigmoid(logits) of y = 1.

    logits and labels (B, K), weights (2, K) of y = 0 and y = 1 -> (B, K).
    """
    assert logits.shape == labels.shape, (logits.shape, labels.shape)
    assert weights.shape == (2, labels.shape[1]), weights.shape
    weight = torch.where(labels > 0.5, weights[1], weights[0])  # (B, K)
    return weight * binary_cross_entropy_with_logits(logits, labels, reduction="none")


def consistency_loss(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Symmetric KL divergence of two answers of one model.

    (KL(p || q) + KL(q || p)) / 2 of p = softmax(logits), q = softmax(other_logits); both (B, K) -> (B,).
    R-Drop, Liang et al. 2021 (arXiv 2106.14448), equation 2: p and q are one model's answers under two dropout masks.
    """
    assert logits.shape == other_logits.shape, (logits.shape, other_logits.shape)
    log_p = log_softmax(logits, -1)  # (B, K)
    log_q = log_softmax(other_logits, -1)
    difference = log_p.exp() - log_q.exp()
    return 0.5 * (difference * (log_p - log_q)).sum(-1)
