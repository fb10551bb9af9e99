"""Rewards: scores of whole completions -> one reward per token."""

import torch
from torch import Tensor


def token_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Reward of each token: the KL penalty, plus the score on the last token.

    reward_t = -kl_coef * log_ratio_t on completion tokens. InstructGPT, equation 2, per token as in Ziegler et al. 2019.
    Its sum over t is score - kl_coef * sum_t log_ratio_t. A row without a single token gets no reward at all.

    scores (B,); log_ratio (B, T) = log pi - log pi_ref; mask (B, T) bool, True from the first completion token to EOS
    inclusive. Returns (B, T), 0 outside the mask.
    """
    assert scores.shape == mask.shape[:1], (scores.shape, mask.shape)
    assert log_ratio.shape == mask.shape, (log_ratio.shape, mask.shape)
    rewards = (-kl_coef * log_ratio).masked_fill(~mask, 0.0)
    lengths = mask.sum(1)
    rows = torch.nonzero(lengths).squeeze(1)  # those that have a last token
    rewards[rows, lengths[rows] - 1] += scores[rows].to(rewards.dtype)
    return rewards


def missing_eos_penalty(scores: Tensor, ended: Tensor, *, penalty: float) -> Tensor:
    """Scores minus a penalty where the completion was cut off before its stop token.

    N implementation details, 4.3. scores (B,); ended (B,) bool, True when the completion itself contains its stop token.
    """
    return torch.where(ended, scores, scores - penalty)
