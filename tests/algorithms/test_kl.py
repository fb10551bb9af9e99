import math

import pytest
import torch

from rlhf.algorithms.kl import adapt_kl_coef, k1, k2, k3

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
EXACT = (
    0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
)  # KL(policy || reference), by hand


@pytest.mark.parametrize("estimator", [k1, k3])
def test_invariant_14_average_over_all_outcomes_is_the_exact_kl(estimator):
    log_ratio = POLICY.log() - REFERENCE.log()
    assert (POLICY * estimator(log_ratio)).sum().item() == pytest.approx(EXACT, rel=1e-12)
    reverse = (REFERENCE * (REFERENCE / POLICY).log()).sum().item()
    assert abs(reverse - EXACT) > 0.01  # so that the wrong direction could not pass


def test_invariant_14_k1_may_be_negative_and_k3_never_is():
    log_ratio = POLICY.log() - REFERENCE.log()
    assert k1(log_ratio)[2] < 0
    assert (k3(torch.linspace(-5, 5, 100)) >= 0).all()


def test_invariant_14_k3_is_exact_near_0_in_fp32():
    """exp(-x) - 1 + x = x^2 / 2 - x^3 / 6 + ...; at the small ratios of a PPO update rounding must not hide it."""
    assert k3(torch.tensor(1e-3)).item() == pytest.approx(1e-6 / 2 - 1e-9 / 6, rel=1e-3)
    assert k3(torch.tensor(-1e-3)).item() == pytest.approx(1e-6 / 2 + 1e-9 / 6, rel=1e-3)


def test_by_hand():
    log_two = torch.tensor(math.log(2.0))
    assert k1(log_two).item() == pytest.approx(math.log(2))
    assert k2(log_two).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(log_two).item() == pytest.approx(0.5 - 1 + math.log(2), rel=1e-5)


def test_equal_distributions_have_none():
    for estimator in (k1, k2, k3):
        assert estimator(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_padding_where_both_log_probs_are_0_adds_nothing():
    log_ratio = torch.tensor([[0.4, 0.0], [-0.1, 0.0]])
    for estimator in (k1, k2, k3):
        assert estimator(log_ratio)[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.02 * (1 + 0.1 * 512 / 10_000)),  # error 0.1
        (60.0, 0.02 * (1 + 0.2 * 512 / 10_000)),  # clipped at 0.2
        (0.0, 0.02 * (1 - 0.2 * 512 / 10_000)),  # clipped at -0.2
        (6.0, 0.02),
    ],
)
def test_invariant_15_adaptive_coefficient_by_hand(kl, expected):
    assert adapt_kl_coef(0.02, kl=kl, target=6.0, horizon=10_000, episodes=512) == pytest.approx(
        expected, rel=1e-9
    )
