"""Estimators of KL(policy || reference) from samples of the policy, and the adaptive coefficient.

`log_ratio` = log pi(token) - log pi_ref(token), on tokens drawn from pi. Names after J. Schulman, "Approximating KL
divergence" (2020).
"""

from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """The estimator log r: unbiased, may be negative on a sample. Any shape."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """The estimator (log r)^2 / 2: biased, low variance, >= 0. Any shape."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """The estimator exp(-log r) - 1 + log r: unbiased and >= 0. Any shape."""
    # expm1: near 0 the rounding of exp is larger than the result.
    return (-log_ratio).expm1() + log_ratio


def adapt_kl_coef(coef: float, *, kl: float, target: float, horizon: int, episodes: int) -> float:
    """The adaptive coefficient of Ziegler et al. 2019, section 2.2:

    error = clip(kl / target - 1, -0.2, 0.2); coef <- coef * (1 + error * episodes / horizon)

    kl: mean over completions of the summed KL of the last rollout; episodes: completions in that rollout.
    """
    # Clipped, so that one rollout of a very different KL cannot throw the coefficient off.
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / horizon)
