"""The formulas of ILQL against values worked by hand, and against second definitions."""

import pytest
import torch

from rlhf.algorithms.ilql import (
    answer_losses,
    bellman_targets,
    chosen_and_log_probs,
    expectile_loss,
    guided_logits,
    move_towards,
)

YES, NO = True, False


def test_the_target_is_the_next_value_and_at_the_last_token_the_score():
    values = torch.tensor([[5.0, 2.0, 4.0], [1.0, 3.0, float("nan")], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[YES, YES, YES], [YES, YES, NO], [NO, NO, NO]])
    targets = bellman_targets(values, mask, torch.tensor([10.0, -1.0, 9.0]), gamma=0.5)
    assert targets.tolist() == [[1.0, 2.0, 10.0], [1.5, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_expectile_loss_by_hand():
    losses = expectile_loss(torch.tensor([2.0, -2.0, 0.0]), expectile=0.75)
    assert losses.tolist() == [3.0, 1.0, 0.0]
    # 0.5 is half the squared error.
    differences = torch.randn(20)
    assert torch.equal(expectile_loss(differences, expectile=0.5), differences**2 / 2)


@pytest.mark.parametrize("expectile", [0.5, 0.8, 0.95])
def test_the_minimum_of_the_expectile_loss_weighs_both_sides(expectile):
    """At the expectile e of numbers x: expectile E[(x - e)+] = (1 - expectile) E[(e - x)+] (arXiv 2110.06169)."""
    numbers = torch.tensor([0.0, 1.0, 5.0], dtype=torch.double)
    estimate = torch.zeros(1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([estimate], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = expectile_loss(numbers - estimate, expectile=expectile).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    above = (numbers - estimate).clamp(min=0).sum() * expectile
    below = (estimate - numbers).clamp(min=0).sum() * (1 - expectile)
    assert above.item() == pytest.approx(below.item(), abs=1e-6)


def test_the_mean_expectile_is_the_mean_and_larger_ones_are_nearer_to_the_best():
    numbers = torch.tensor([0.0, 1.0, 5.0])
    grid = torch.linspace(-1, 6, 7001)
    best = []
    for expectile in (0.5, 0.9, 0.999):
        losses = expectile_loss(numbers.unsqueeze(1) - grid, expectile=expectile).sum(0)
        best.append(grid[losses.argmin()].item())
    assert best[0] == pytest.approx(2.0, abs=1e-2)
    assert best[0] < best[1] < best[2] and best[2] > 4.9


def test_the_chosen_value_and_its_log_softmax_by_hand():
    quality = torch.tensor([[0.0, 0.0], [0.0, float(torch.tensor(3.0).log())]])
    chosen, log_probs = chosen_and_log_probs(quality, torch.tensor([1, 1]), temperature=1.0)
    assert chosen.tolist() == [0.0, quality[1, 1].item()]
    assert log_probs.exp().tolist() == pytest.approx([0.5, 0.75])


def test_the_four_terms_by_hand_and_which_of_them_has_a_gradient():
    shape = (1, 2)
    quality = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]]], requires_grad=True)
    bellman = torch.tensor([[2.0, 0.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1.0]], requires_grad=True)
    values = torch.tensor([[0.0, 3.0]], requires_grad=True)
    log_probs = torch.full(shape, -0.5, requires_grad=True)
    terms = answer_losses(
        quality=quality,
        quality_log_probs=torch.full((2, *shape), -0.25),
        target=target,
        values=values,
        log_probs=log_probs,
        bellman=bellman,
        expectile=0.75,
    )
    assert terms["q"].tolist() == [[2.0, 8.0]]
    assert terms["v"].tolist() == [[0.75, 1.0]]
    assert terms["cql"].tolist() == [[0.5, 0.5]] and terms["nll"].tolist() == [[0.5, 0.5]]
    sum(term.sum() for term in terms.values()).backward()
    assert bellman.grad is None and target.grad is None
    assert quality.grad is not None and values.grad is not None and log_probs.grad is not None


def test_the_guided_distribution_by_hand():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    quality = torch.tensor([[1.0, 0.0, 50.0]])
    guided = guided_logits(logits, quality, torch.tensor([0.5]), coef=2.0)
    odds = torch.softmax(guided, -1)[0]
    assert (odds[0] / odds[1]).item() == pytest.approx(torch.tensor(2.0).exp().item())
    assert odds[2] == 0  # a token that the policy never says
    assert guided_logits(logits, quality, torch.tensor([0.5]), coef=0.0) is logits
    # V is the same for all tokens, so that only Q decides.
    other = guided_logits(logits, quality, torch.tensor([-9.0]), coef=2.0)
    assert torch.allclose(torch.softmax(other, -1)[0], odds)


def test_copies_move_by_their_rate():
    target, source = torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.0])
    move_towards([target], [source], rate=0.25)
    assert target.tolist() == [0.25, 3.0] and source.tolist() == [1.0, 0.0]
    move_towards([target], [source], rate=1.0)
    assert torch.equal(target, source)
