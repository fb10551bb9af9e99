import pytest
import torch

from rlhf.algorithms.advantages import (
    gae,
    group_center,
    group_standardize,
    leave_one_out,
    rewards_to_go,
)

RAGGED = torch.arange(6) < torch.tensor([6, 1, 4, 2, 0])[:, None]


def slow_gae(rewards, values, lengths, gamma, gae_lambda):
    """The definition, one row and one pair of times after another."""
    result = torch.zeros_like(rewards)
    for row, length in enumerate(lengths):
        for t in range(length):
            for later in range(t, length):
                following = values[row, later + 1] if later + 1 < length else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                result[row, t] += (gamma * gae_lambda) ** (later - t) * delta
    return result


def test_rewards_to_go_by_hand():
    rewards, mask = (
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]]),
        torch.tensor([[True] * 3, [True, True, False]]),
    )
    # 1 + (2 + 3/2)/2 = 2.75, 2 + 3/2 = 3.5, 3;  4 + 5/2 = 6.5, 5
    assert rewards_to_go(rewards, mask, gamma=0.5).tolist() == [[2.75, 3.5, 3.0], [6.5, 5.0, 0.0]]


def test_rewards_to_go_without_discount_is_the_rest_of_the_sum():
    rewards = torch.randn(5, 6)
    found = rewards_to_go(rewards, RAGGED, gamma=1.0)
    for row, length in enumerate(RAGGED.sum(1).tolist()):
        for t in range(length):
            torch.testing.assert_close(found[row, t], rewards[row, t:length].sum())


def test_invariant_16_gae_by_hand():
    """gamma 1, lambda 1/2, rewards 0 0 1, values 1 2 3: deltas 1, 1, -2."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert gae(rewards, values, mask, gamma=1.0, gae_lambda=0.5).tolist() == [[1.0, 0.0, -2.0]]


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 0.95, 1.0])
def test_invariant_16_gae_equals_the_double_loop_on_ragged_rows(gamma, gae_lambda):
    rewards, values = torch.randn(5, 6, dtype=torch.double), torch.randn(5, 6, dtype=torch.double)
    found = gae(rewards, values, RAGGED, gamma=gamma, gae_lambda=gae_lambda)
    expected = slow_gae(rewards, values, RAGGED.sum(1).tolist(), gamma, gae_lambda)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_invariant_16_without_discount_and_lambda_1_it_is_returns_to_go_minus_values():
    rewards, values = torch.randn(5, 6), torch.randn(5, 6)
    found = gae(rewards, values, RAGGED, gamma=1.0, gae_lambda=1.0)
    for row, length in enumerate(RAGGED.sum(1).tolist()):
        for t in range(length):
            expected = rewards[row, t:length].sum() - values[row, t]
            torch.testing.assert_close(found[row, t], expected, atol=1e-5, rtol=1e-5)


def test_invariant_16_value_after_the_last_token_is_0():
    """One token, reward 1, value 0.4: advantage 0.6, whatever the value model says of the padding behind it."""
    rewards, mask = torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]])
    found = gae(rewards, torch.tensor([[0.4, 50.0]]), mask, gamma=1.0, gae_lambda=0.9)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.0]]))


def test_invariant_16_padding_changes_nothing():
    rewards, values = torch.randn(5, 6), torch.randn(5, 6)
    wild = [torch.where(RAGGED, x, torch.full_like(x, float("nan"))) for x in (rewards, values)]
    assert torch.equal(
        gae(rewards, values, RAGGED, gamma=0.9, gae_lambda=0.9),
        gae(*wild, RAGGED, gamma=0.9, gae_lambda=0.9),
    )


def test_all_masked():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    values = torch.randn(2, 3)
    assert not gae(values, values, nothing, gamma=1.0, gae_lambda=0.9).any()
    assert not rewards_to_go(values, nothing, gamma=1.0).any()


def test_leave_one_out_by_hand():
    """1, 2, 6: 1 - 4, 2 - 3.5, 6 - 1.5."""
    found = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), num_generations=3)
    assert found.tolist() == [-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]


def test_leave_one_out_sums_to_0_in_each_group_and_does_not_mix_groups():
    totals = torch.randn(8)
    found = leave_one_out(totals, num_generations=4)
    torch.testing.assert_close(found.view(2, 4).sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    moved = totals.clone()
    moved[4:] += 100
    torch.testing.assert_close(leave_one_out(moved, num_generations=4)[:4], found[:4])


def test_group_standardize_by_hand():
    """0, 1, 2: mean 1, standard deviation (n - 1) 1."""
    found = group_standardize(torch.tensor([0.0, 1.0, 2.0, 10.0, 30.0, 20.0]), num_generations=3)
    expected = torch.tensor([-1.0, 0.0, 1.0, -1.0, 1.0, 0.0])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("value", [0.1, 5.0, 1000.1])
def test_group_of_equal_scores_gives_0(value):
    assert group_standardize(torch.full((7,), value), num_generations=7).abs().max().item() < 1e-3


# ---- Dr. GRPO ----


def test_group_center_by_hand():
    totals = torch.tensor([1.0, 3.0, 10.0, 10.0])
    assert group_center(totals, num_generations=2).tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_group_center_is_leave_one_out_times_a_constant():
    """R_i - mean = (R_i - mean of the others) (n - 1) / n."""
    totals = torch.randn(12)
    expected = leave_one_out(totals, num_generations=4) * 3 / 4
    torch.testing.assert_close(group_center(totals, num_generations=4), expected)


def test_group_center_of_equal_large_rewards_is_exactly_0():
    assert not group_center(torch.full((3,), 1e6 + 0.1), num_generations=3).any()
