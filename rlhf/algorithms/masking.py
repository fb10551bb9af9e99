"""Statistics over the tokens that count. `mask` is bool, of the same shape as the values, True = the token counts."""

import torch
from torch import Tensor


def _check(values: Tensor, mask: Tensor) -> None:
    assert values.shape == mask.shape, (values.shape, mask.shape)
    assert mask.dtype == torch.bool, mask.dtype


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values that count, 0 where none does. Values that do not count may be NaN."""
    _check(values, mask)
    kept = values.masked_fill(~mask, 0.0)  # and not a product with the mask: NaN x 0 is NaN
    if dim is None:
        return kept.sum()
    return kept.sum(dim)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values that count, 0 when none does."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Variance (divided by n, not n - 1) of the values that count, 0 when none does."""
    deviations = values - masked_mean(values, mask)
    return masked_mean(deviations**2, mask)


def center(values: Tensor, mask: Tensor) -> Tensor:
    """Centred values, x - mean over the tokens that count, 0 elsewhere."""
    deviations = values - masked_mean(values, mask)
    return deviations.masked_fill(~mask, 0.0)


def standardize(values: Tensor, mask: Tensor) -> Tensor:
    """Standardised values, (x - mean) / std over the tokens that count, 0 elsewhere: mean 0, variance 1.

    A single token or equal values give 0, not infinity. Under several processes the caller passes the gathered batch.
    """
    # In fp32 the rounding of the mean alone would be scaled up to 1.
    exact = where_doubles_exist(values).double()
    mask = mask.to(exact.device)
    scale = masked_var(exact, mask).sqrt() + 1e-8
    return (center(exact, mask) / scale).to(values)


def where_doubles_exist(values: Tensor) -> Tensor:
    """The same values, any shape, on a device that computes in fp64: the CPU instead of Apple's MPS."""
    return values.cpu() if values.device.type == "mps" else values
