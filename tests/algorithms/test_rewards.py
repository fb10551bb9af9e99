import pytest
import torch

from rlhf.algorithms.rewards import missing_eos_penalty, token_rewards

LOG_RATIO = torch.tensor([[0.5, -1.0, 2.0], [1.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])
SCORES = torch.tensor([10.0, -3.0])


def test_invariant_13_by_hand():
    """The score stands on the last token that counts: third of the first row, first of the second."""
    expected = [[-0.05, 0.1, 10.0 - 0.2], [-3.0 - 0.1, 0.0, 0.0]]
    torch.testing.assert_close(
        token_rewards(SCORES, LOG_RATIO, MASK, kl_coef=0.1), torch.tensor(expected)
    )


def test_invariant_13_sum_is_score_minus_kl():
    mask = torch.arange(6) < torch.tensor([1, 6, 3, 2])[:, None]
    log_ratio, scores = torch.randn(4, 6), torch.randn(4)
    total = token_rewards(scores, log_ratio, mask, kl_coef=0.3).sum(1)
    expected = [
        scores[i] - 0.3 * sum(log_ratio[i, t] for t in range(6) if mask[i, t]) for i in range(4)
    ]
    torch.testing.assert_close(total, torch.stack(expected))


def test_invariant_13_without_kl_only_the_last_token_is_rewarded():
    assert token_rewards(SCORES, LOG_RATIO, MASK, kl_coef=0.0).tolist() == [
        [0.0, 0.0, 10.0],
        [-3.0, 0.0, 0.0],
    ]


def test_padding_changes_nothing():
    wild = torch.where(MASK, LOG_RATIO, torch.full_like(LOG_RATIO, float("nan")))
    first, second = (token_rewards(SCORES, x, MASK, kl_coef=0.1) for x in (LOG_RATIO, wild))
    assert torch.equal(first, second)


def test_all_masked():
    assert not token_rewards(SCORES, LOG_RATIO, torch.zeros_like(MASK), kl_coef=0.1).any()


def test_invariant_05_penalty_only_where_the_completion_was_cut_off():
    ended = torch.tensor([True, False])
    assert missing_eos_penalty(SCORES, ended, penalty=1.5).tolist() == [10.0, -4.5]
    assert missing_eos_penalty(SCORES, ended, penalty=0.0).tolist() == SCORES.tolist()
    assert missing_eos_penalty(SCORES, torch.zeros(2, dtype=torch.bool), penalty=1.0).tolist() == [
        9.0,
        -4.0,
    ]


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        token_rewards(SCORES, LOG_RATIO[:, :2], MASK, kl_coef=0.1)
