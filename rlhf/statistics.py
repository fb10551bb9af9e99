"""How far a share that was counted on some rows may lie from the share on all rows of that kind."""

import math

from torch import Tensor

Z = 1.96  # 97.5 % quantile of the normal distribution


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share counted on n rows (Wilson 1927), which has a width at 0 and at 1 too:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    centre, scale = share + Z * Z / (2 * n), 1 + Z * Z / n
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, min(share, (centre - half) / scale)), min(
        1.0, max(share, (centre + half) / scale)
    )


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's; 0 when either is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = first.norm() * second.norm()
    return (first.dot(second) / scale).item() if scale > 0 else 0.0
