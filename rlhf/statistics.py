"""Confidence intervals for proportions, correlation and ranks."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

# The app counts feedback before torch is there: torch is imported where tensors come in.
if TYPE_CHECKING:
    from torch import Tensor

Z = 1.96  # 97.5 % quantile of the normal distribution: a 95 % interval has two such tails


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share counted on n rows (Wilson 1927). It has a width at shares of 0 and 1 too.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    centre = share + Z * Z / (2 * n)
    variance = share * (1 - share) / n + Z * Z / (4 * n * n)
    half_width = Z * math.sqrt(variance)
    scale = 1 + Z * Z / n
    low = (centre - half_width) / scale
    high = (centre + half_width) / scale
    # Rounding must not put the share outside its interval, nor the interval outside [0, 1].
    low = max(0.0, min(share, low))
    high = min(1.0, max(share, high))
    return low, high


def correlation(first: "Tensor | Sequence[float]", second: "Tensor | Sequence[float]") -> float:
    """Pearson's correlation of two (N,) tensors or arrays, -1 to 1; 0.0 where either is constant."""
    import torch

    first, second = torch.as_tensor(first), torch.as_tensor(second)
    first = first - first.mean()
    second = second - second.mean()
    scale = first.norm() * second.norm()
    if scale == 0:
        return 0.0
    return (first.dot(second) / scale).item()


def ranks(values: "Tensor | Sequence[float]") -> "Tensor":
    """Ranks (N,) from 1, fp64; equal values share the mean of theirs. Pearson's correlation of ranks is Spearman's."""
    import torch

    _, index, counts = torch.unique(
        torch.as_tensor(values), return_inverse=True, return_counts=True
    )
    last_ranks = counts.cumsum(0).double()  # of each distinct value
    mean_ranks = last_ranks - (counts - 1) / 2
    return mean_ranks[index]


def spearman_interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of Spearman's correlation of n >= 4 pairs (Bonett and Wright 2000), by Fisher's transformation.

    tanh(atanh(rho) +- z sqrt((1 + rho^2 / 2) / (n - 3)))
    """
    if abs(rho) >= 1:  # atanh is infinite
        return rho, rho
    half_width = Z * math.sqrt((1 + rho * rho / 2) / (n - 3))
    centre = math.atanh(rho)
    return math.tanh(centre - half_width), math.tanh(centre + half_width)


def two_way_bootstrap(values: "Tensor", *, resamples: int, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of (draws, rows) values, where both draws and rows are drawn again.

    Two-way bootstrap (Owen 2007, "The pigeonhole bootstrap"): the mean of the values at resampled rows and columns.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    draws, rows = values.shape
    means = []
    for _ in range(resamples):
        chosen_draws = torch.randint(draws, (draws,), generator=generator)
        chosen_rows = torch.randint(rows, (rows,), generator=generator)
        # The mean over chosen draws first: the order does not matter, and this one is small.
        means.append(values[chosen_draws].mean(0)[chosen_rows].mean())
    return middle_95(torch.stack(means))


def middle_95(values: "Tensor") -> tuple[float, float]:
    """The percentiles 2.5 and 97.5 of resampled values, the interval of a bootstrap."""
    return values.quantile(0.025).item(), values.quantile(0.975).item()
