"""Advantages: by how much a token, or a completion, did better than expected.

Completions are right-padded: the mask of each row is True on a prefix. Time runs over completion tokens only, and the
value after the last token is 0, since the episode ends there. All formulas run in fp32 or better.
"""

import torch
from torch import Tensor

from rlhf.algorithms.masking import where_doubles_exist


def rewards_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on.

    G_t = sum_{l >= 0} gamma^l r_{t+l}, over tokens that count. REINFORCE, Williams 1992. All (B, T).
    """
    assert rewards.shape == mask.shape, (rewards.shape, mask.shape)
    rewards = rewards.masked_fill(~mask, 0.0)
    result = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + gamma * running
        result[:, t] = running
    return result.masked_fill(~mask, 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimation.

    A_t = sum_{l >= 0} (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t.
    Schulman et al. 2016 (arXiv 1506.02438), equation 16. values_t is V(s_t), of the state before token t. All (B, T);
    0 outside the mask.
    """
    assert rewards.shape == values.shape == mask.shape, (rewards.shape, values.shape, mask.shape)
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    # The episode ends with the last token: the value after it is 0.
    after_the_end = torch.zeros_like(values[:, :1])
    next_values = torch.cat([values[:, 1:], after_the_end], dim=1)
    deltas = rewards + gamma * next_values - values
    return rewards_to_go(deltas, mask, gamma=gamma * gae_lambda)


def leave_one_out(totals: Tensor, *, num_generations: int) -> Tensor:
    """Reward of a completion minus the mean of the others in its group.

    A_i = R_i - mean of the other R of its group, R the summed reward of a completion.
    RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), equation 8.

    totals (B,), the `num_generations` (>= 2) completions of one prompt next to each other. Returns (B,).
    """
    groups = totals.view(-1, num_generations)  # (prompts, G)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).view(-1)


def group_standardize(totals: Tensor, *, num_generations: int) -> Tensor:
    """Reward of a completion, standardised within its group.

    A_i = (R_i - mean of its group) / std of its group. GRPO, Shao et al. 2024 (arXiv 2402.03300), 4.1.2.

    totals (B,), groups of `num_generations` (>= 2) next to each other. A group of equal scores gives 0. Returns (B,).
    """
    # In fp32 a large mean would be rounded, and equal scores would differ from it.
    groups = where_doubles_exist(totals).double().view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    scale = groups.std(1, keepdim=True) + 1e-4
    return (centred / scale).view(-1).to(totals)


def group_center(totals: Tensor, *, num_generations: int) -> Tensor:
    """Reward of a completion minus the mean of its group.

    A_i = R_i - mean of its group. Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783), 3.2: dividing by the standard deviation
    would give more weight to prompts that are too easy or too hard.

    totals (B,), groups of `num_generations` (>= 2) next to each other. Returns (B,).
    """
    groups = where_doubles_exist(totals).double().view(-1, num_generations)  # (prompts, G)
    centred = groups - groups.mean(1, keepdim=True)
    return centred.view(-1).to(totals)
