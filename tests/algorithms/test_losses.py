import math

import numpy as np
import pytest
import torch

from rlhf.algorithms.losses import (
    balanced_weights,
    clip_higher_loss,
    clipped_surrogate_loss,
    clipped_value_loss,
    consistency_loss,
    constant_length,
    equal_completions,
    equal_tokens,
    kwise_ranking_loss,
    policy_gradient_loss,
    sequence_ratio,
    surrogate_loss,
    token_ratio,
    value_loss,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)

LOG_2 = math.log(2)


def test_policy_gradient_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = policy_gradient_loss(log_probs, torch.tensor([[3.0, -0.5]]))
    assert loss.tolist() == [[3.0, -1.0]]
    loss.sum().backward()
    assert log_probs.grad.tolist() == [[-3.0, 0.5]]


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # A > 0 and already more likely than 1 + c: clipped, no gradient
        (0.5, 2.0, -1.0, -1.0),  # A > 0 and less likely: the gradient brings it back
        (0.5, -2.0, 1.6, 0.0),  # A < 0 and already less likely than 1 - c: clipped, no gradient
        (1.5, -2.0, 3.0, 3.0),  # A < 0 and more likely: the gradient brings it back
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_invariant_19_clipped_surrogate_by_hand(ratio, advantage, expected, gradient):
    """d loss / d log_prob is -A x ratio where it is not clipped."""
    log_probs = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    loss = clipped_surrogate_loss(
        token_ratio(log_probs, torch.tensor([[-1.0]])), torch.tensor([[advantage]]), clip_range=0.2
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    assert log_probs.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_invariant_19_at_ratio_1_the_gradient_is_the_policy_gradient():
    log_probs, advantages = torch.randn(3, 4), torch.randn(3, 4)
    gradients = []
    for loss in (
        lambda x: clipped_surrogate_loss(token_ratio(x, log_probs), advantages, clip_range=0.2),
        lambda x: policy_gradient_loss(x, advantages),
    ):
        variable = log_probs.clone().requires_grad_()
        loss(variable).sum().backward()
        gradients.append(variable.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("value", "expected", "gradient"),
    [  # old value 1, clip range 0.2
        (1.1, 0.5 * 0.9**2, -0.9),  # return 2, inside
        (
            1.5,
            0.5 * 0.8**2,
            0.0,
        ),  # moved towards the return by more than the range: clipped, no gradient
        (0.5, 0.5 * 1.5**2, -1.5),  # moved away: the worse of the two counts, with its gradient
    ],
)
def test_invariant_19_clipped_value_loss_by_hand(value, expected, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    loss = clipped_value_loss(
        values, torch.tensor([[1.0]]), torch.tensor([[2.0]]), value_clip_range=0.2
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.sum().backward()
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_invariant_19_value_loss_by_hand_and_wide_clipping_is_none():
    values, returns = torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 3.0]])
    assert value_loss(values, returns).tolist() == [[2.0, 0.5]]
    old = torch.tensor([[0.0, 0.0]])
    assert clipped_value_loss(values, old, returns, value_clip_range=100.0).tolist() == [[2.0, 0.5]]


def test_losses_at_padding_are_finite_and_have_no_gradient():
    """Outside the mask log-probs, values, advantages and returns are all 0."""
    zero = torch.zeros(1, 2)
    for formula in (
        lambda x: policy_gradient_loss(x, zero),
        lambda x: clipped_surrogate_loss(token_ratio(x, zero), zero, clip_range=0.2),
        lambda x: clipped_value_loss(x, zero, zero, value_clip_range=0.2),
    ):
        variable = zero.clone().requires_grad_()
        loss = formula(variable)
        loss.sum().backward()
        assert not loss.any() and not variable.grad.any()


# ---- GSPO, DAPO and the weights of tokens ----

TWO = torch.tensor([[True, True, True], [True, False, False]])


def test_surrogate_by_hand():
    assert surrogate_loss(torch.tensor([[1.5, 0.5]]), torch.tensor([[2.0, -2.0]])).tolist() == [
        [-3.0, 1.0]
    ]


def test_sequence_ratio_by_hand():
    """Log ratios log 8, 0, 0 have mean log 2; a single token has its own; what is masked does not count."""
    old = torch.zeros(2, 3)
    log_probs = torch.tensor([[math.log(8.0), 0.0, 0.0], [math.log(3.0), 9.0, float("nan")]])
    torch.testing.assert_close(
        sequence_ratio(log_probs, old, TWO), torch.tensor([[2.0] * 3, [3.0] * 3])
    )


def test_the_gradient_of_the_sequence_ratio_is_shared_by_its_tokens():
    """d s / d log_prob_t = s / length, and 0 at padding."""
    log_probs = torch.log(torch.tensor([[8.0, 1.0, 1.0], [3.0, 5.0, 5.0]])).requires_grad_()
    sequence_ratio(log_probs, torch.zeros(2, 3), TWO)[:, 0].sum().backward()
    expected = torch.tensor([[2 / 3] * 3, [3.0, 0.0, 0.0]])
    torch.testing.assert_close(log_probs.grad, expected)


def test_the_sequence_ratio_of_one_token_is_the_token_ratio():
    log_probs, old = torch.randn(4, 1), torch.randn(4, 1)
    mask = torch.ones(4, 1, dtype=torch.bool)
    torch.testing.assert_close(sequence_ratio(log_probs, old, mask), token_ratio(log_probs, old))


def test_the_sequence_ratio_of_nothing_is_1():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert (sequence_ratio(torch.randn(2, 3), torch.randn(2, 3), nothing) == 1).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "gradient"),
    [
        (
            1.25,
            2.0,
            -2.5,
            -2.0,
        ),  # inside the wider upper range, where clip_range would have clipped
        (1.5, 2.0, -2.6, 0.0),  # A > 0 and above 1.3: clipped
        (0.5, -2.0, 1.6, 0.0),  # A < 0 and below 0.8: clipped
        (1.5, -2.0, 3.0, 2.0),  # A < 0 and more likely: the gradient brings it back
    ],
)
def test_clip_higher_by_hand(ratio, advantage, expected, gradient):
    """d loss / d ratio is -A where it is not clipped."""
    ratio = torch.tensor([[ratio]], requires_grad=True)
    advantages = torch.tensor([[advantage]])
    loss = clip_higher_loss(ratio, advantages, clip_range=0.2, clip_range_high=0.3)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.sum().backward()
    assert ratio.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_clip_higher_with_equal_ranges_is_the_clipped_surrogate():
    ratio, advantages = torch.rand(5, 4) * 2, torch.randn(5, 4)
    higher = clip_higher_loss(ratio, advantages, clip_range=0.2, clip_range_high=0.2)
    assert torch.equal(higher, clipped_surrogate_loss(ratio, advantages, clip_range=0.2))


def test_clip_higher_at_padding_is_0():
    zero = torch.zeros(1, 2)
    assert not clip_higher_loss(zero + 1, zero, clip_range=0.2, clip_range_high=0.28).any()


def test_token_weights_by_hand():
    """Two completions of 3 and 1 tokens, the whole mini-batch: N = 4, B = 2."""
    assert equal_tokens(TWO).tolist() == [[1.0] * 3] * 2
    expected = [[2 / 3] * 3, [2.0] * 3]  # N / B = 2, divided by the lengths
    torch.testing.assert_close(equal_completions(TWO, torch.tensor(4), 2), torch.tensor(expected))
    weights = constant_length(TWO, torch.tensor(4), 2, max_completion_length=8)
    torch.testing.assert_close(weights, torch.full((2, 3), 4 / (2 * 8)))


def test_token_weights_give_the_means_they_are_named_after():
    """sum(weight x loss) / N over the mask, against a second definition, row by row."""
    losses, mask = torch.randn(4, 5), torch.arange(5) < torch.tensor([[5], [1], [3], [2]])
    tokens = mask.sum()

    def mean(weights):
        return (weights * losses)[mask].sum() / tokens

    rows = [row[kept] for row, kept in zip(losses, mask)]
    torch.testing.assert_close(mean(equal_tokens(mask)), torch.cat(rows).mean())
    of_completions = torch.stack([row.mean() for row in rows]).mean()
    torch.testing.assert_close(mean(equal_completions(mask, tokens, 4)), of_completions)
    by_constant = torch.stack([row.sum() / 7 for row in rows]).mean()
    weights = constant_length(mask, tokens, 4, max_completion_length=7)
    torch.testing.assert_close(mean(weights), by_constant)


def test_token_weights_of_nothing_are_finite():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert equal_completions(nothing, torch.tensor(1), 2).isfinite().all()
    assert constant_length(nothing, torch.tensor(1), 2, max_completion_length=3).isfinite().all()


# ---- K-wise ranking ----


def test_invariant_33_by_hand():
    """Scores 2, 1, 0 with ranks 0, 1, 1: two ordered pairs, margins 1 and 2; the tie is dropped."""
    loss, pairs = kwise_ranking_loss(
        torch.tensor([[2.0, 1.0, 0.0]]),
        torch.tensor([[0, 1, 1]]),
        torch.ones(1, 3, dtype=torch.bool),
    )
    assert loss.item() == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2, rel=1e-6
    )
    assert pairs.tolist() == [2]


def test_invariant_33_two_answers_are_the_pairwise_loss():
    scores, ranks = torch.randn(6, 2), torch.tensor([[0, 1], [1, 0]] * 3)
    loss, _ = kwise_ranking_loss(scores, ranks, torch.ones(6, 2, dtype=torch.bool))
    better, worse = scores.gather(1, ranks.argsort(1)).T
    torch.testing.assert_close(loss, -torch.log(torch.sigmoid(better - worse)))


def test_invariant_33_every_prompt_weighs_the_same_whatever_its_k():
    """With equal scores each pair costs log 2, and so does each prompt, from K = 2 to K = 9."""
    for k in range(2, 10):
        loss, pairs = kwise_ranking_loss(
            torch.zeros(1, k), torch.arange(k)[None], torch.ones(1, k, dtype=torch.bool)
        )
        assert loss.item() == pytest.approx(LOG_2, rel=1e-6)
        assert pairs.item() == k * (k - 1) // 2


def test_invariant_33_padding_changes_nothing():
    scores, ranks = torch.tensor([[2.0, 1.0, 77.0]]), torch.tensor([[0, 1, 0]])
    padded, pairs = kwise_ranking_loss(scores, ranks, torch.tensor([[True, True, False]]))
    alone, _ = kwise_ranking_loss(scores[:, :2], ranks[:, :2], torch.ones(1, 2, dtype=torch.bool))
    assert torch.equal(padded, alone) and pairs.tolist() == [1]


@pytest.mark.parametrize("mask", [True, False])
def test_invariant_33_only_ties_or_nothing_at_all_gives_0_and_finite_gradients(mask):
    scores = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    ranks = torch.zeros(1, 3, dtype=torch.long)
    loss, pairs = kwise_ranking_loss(scores, ranks, torch.full((1, 3), mask))
    loss.sum().backward()
    assert loss.item() == 0 and pairs.item() == 0 and not scores.grad.any()


def test_invariant_33_gradient_raises_the_better_and_lowers_the_worse():
    scores = torch.zeros(1, 3, requires_grad=True)
    kwise_ranking_loss(scores, torch.tensor([[1, 0, 2]]), torch.ones(1, 3, dtype=torch.bool))[
        0
    ].sum().backward()
    torch.testing.assert_close(
        scores.grad, torch.tensor([[0.0, -1 / 3, 1 / 3]])
    )  # pairs of margin 0: 1/2 each, / 3


def test_balanced_weights_by_hand_and_as_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0, 0, 0, 0, 0, 0, 1, 1, 2]
    weights = balanced_weights(torch.tensor([6, 2, 1]))
    assert weights.tolist() == pytest.approx([9 / 18, 9 / 6, 9 / 3])
    assert weights.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels).tolist()
    )
    assert sum(weights[label] for label in labels) / 9 == pytest.approx(
        1
    )  # a row of the data weighs 1 on average
    assert balanced_weights(torch.tensor([3, 0, 1])).tolist() == pytest.approx([4 / 6, 1, 4 / 2])
    absent_present = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert balanced_weights(absent_present).tolist() == [
        pytest.approx([4 / 6, 1]),
        pytest.approx([2, 1]),
    ]


def test_weighted_cross_entropy_by_hand_and_as_pytorch():
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 0])
    weights = torch.tensor([2.0, 5.0])
    assert weighted_cross_entropy(logits, labels, weights).tolist() == pytest.approx(
        [2 * LOG_2, 2 * math.log(4)]
    )
    one = torch.ones(2)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert weighted_cross_entropy(logits, labels, one).mean().item() == pytest.approx(
        expected.item()
    )
    assert weighted_cross_entropy(logits[:0], labels[:0], weights).shape == (0,)


def test_weighted_binary_cross_entropy_by_hand_and_as_pytorch():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    weights = torch.tensor([[1.0, 7.0], [3.0, 1.0]])  # of absence, of presence
    loss = weighted_binary_cross_entropy(logits, labels, weights)
    assert loss[0].tolist() == pytest.approx([3 * LOG_2, 7 * math.log(4)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert weighted_binary_cross_entropy(
        logits, labels, torch.ones(2, 2)
    ).mean().item() == pytest.approx(expected.item())


def test_consistency_by_hand_and_as_pytorch():
    p, q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([[0.25, 0.75], [0.2, 0.8]])
    there = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    found = consistency_loss(p.log(), q.log() + 3.0)  # logits may be shifted
    assert found.tolist() == pytest.approx([(there + back) / 2, 0.0], abs=1e-6)
    divergence = torch.nn.functional.kl_div
    expected = divergence(q.log(), p, reduction="none") + divergence(p.log(), q, reduction="none")
    torch.testing.assert_close(found, expected.sum(-1) / 2)
    assert consistency_loss(p[:0], q[:0]).shape == (0,)
