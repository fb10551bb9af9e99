import pytest
import torch

from rlhf.algorithms.masking import (
    center,
    masked_mean,
    masked_sum,
    masked_var,
    standardize,
    where_doubles_exist,
)

VALUES = torch.tensor([[1.0, 2.0, 99.0], [3.0, float("nan"), -99.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)


def test_sums_and_means_by_hand():
    assert masked_sum(VALUES, MASK).item() == 6.0
    assert masked_sum(VALUES, MASK, 1).tolist() == [3.0, 3.0]
    assert masked_mean(VALUES, MASK).item() == 2.0
    assert masked_var(VALUES, MASK).item() == pytest.approx(2 / 3)  # ((1-2)^2 + 0 + (3-2)^2) / 3


def test_nothing_counts():
    for formula in (masked_sum, masked_mean, masked_var):
        assert formula(VALUES, NOTHING).item() == 0.0
    for formula in (center, standardize):
        assert formula(VALUES, NOTHING).tolist() == [[0.0] * 3] * 2


def test_full_mask_is_the_plain_statistic():
    values = torch.randn(4, 5)
    full = torch.ones(4, 5, dtype=torch.bool)
    torch.testing.assert_close(masked_mean(values, full), values.mean())
    torch.testing.assert_close(masked_var(values, full), values.var(correction=0))


def test_center_by_hand():
    assert center(VALUES, MASK).tolist() == [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_invariant_18_whitening_by_hand():
    """1, 2, 3: mean 2, variance 2/3, so +-sqrt(3/2)."""
    root = 1.5**0.5
    expected = torch.tensor([[-root, 0.0, 0.0], [root, 0.0, 0.0]])
    torch.testing.assert_close(standardize(VALUES, MASK), expected, atol=1e-6, rtol=0)


def test_invariant_18_whitening_ignores_padding_and_gives_mean_0_variance_1():
    values, mask = 7 + 3 * torch.randn(6, 5), torch.rand(6, 5) < 0.6
    white = standardize(values, mask)[mask].double()
    assert white.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.var(correction=0).item() == pytest.approx(1, abs=1e-5)
    changed = standardize(torch.where(mask, values, torch.full_like(values, 1e6)), mask)
    torch.testing.assert_close(changed, standardize(values, mask), atol=0, rtol=0)


@pytest.mark.parametrize("value", [0.1, -3.3, 1000.1])
@pytest.mark.parametrize("count", [1, 3, 7, 24])
def test_invariant_18_whitening_of_equal_values_is_0(value, count):
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask.view(-1)[:count] = True
    assert standardize(torch.full((4, 6), value), mask).abs().max().item() < 1e-3


def test_shapes_and_kinds_are_checked():
    with pytest.raises(AssertionError):
        masked_mean(VALUES, MASK.float())
    with pytest.raises(AssertionError):
        masked_mean(VALUES, MASK[:1])


def test_doubles_are_computed_on_the_cpu_for_mps():
    class OnMps:
        device = torch.device("mps")

        def cpu(self):
            return "on the CPU"

    assert where_doubles_exist(OnMps()) == "on the CPU"
    values = torch.ones(2)
    assert where_doubles_exist(values) is values
