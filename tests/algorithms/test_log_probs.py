import math

import pytest
import torch
from torch import nn

from rlhf.algorithms.log_probs import (
    masked_log_probs,
    token_log_probs,
    token_log_probs_and_entropy,
)


def test_by_hand():
    """Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(3, 3)
    log_probs, entropy = token_log_probs_and_entropy(
        logits, torch.tensor([0, 1, 2]), temperature=1.0
    )
    expected = [math.log(1 / 8), math.log(2 / 8), math.log(5 / 8)]
    torch.testing.assert_close(log_probs, torch.tensor(expected))
    by_hand = -(1 / 8 * math.log(1 / 8) + 2 / 8 * math.log(2 / 8) + 5 / 8 * math.log(5 / 8))
    torch.testing.assert_close(entropy, torch.full((3,), by_hand))


def test_invariant_07_logits_are_divided_by_the_temperature():
    """At temperature 1/2 the odds 1 : 2 : 5 are squared: 1/30, 4/30, 25/30."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(3, 3)
    log_probs = token_log_probs(logits, torch.tensor([0, 1, 2]), temperature=0.5)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([1 / 30, 4 / 30, 25 / 30]))


def test_invariant_11_log_softmax_is_fp32():
    logits = (4 * torch.randn(8, 50)).to(torch.bfloat16)
    ids = torch.randint(50, (8,))
    log_probs, entropy = token_log_probs_and_entropy(logits, ids, temperature=0.7)
    exact = torch.log_softmax(logits.double() / 0.7, -1).gather(1, ids[:, None])[:, 0]
    assert log_probs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("formula", [token_log_probs, token_log_probs_and_entropy])
def test_invariant_11_chunks_equal_the_whole_forward_and_backward(chunk_size, formula):
    hidden, head, ids = torch.randn(7, 5), nn.Linear(5, 11, bias=False), torch.randint(11, (7,))
    weights = torch.randn(7)
    found = []
    for whole in (True, False):
        states = hidden.clone().requires_grad_()
        head.zero_grad()
        if whole:
            outputs = formula(head(states), ids, temperature=0.8)
        else:
            mask = torch.ones(7, dtype=torch.bool)
            outputs = masked_log_probs(
                formula, states, head, ids, mask, temperature=0.8, chunk_size=chunk_size
            )
        (outputs * weights).sum().backward()  # (7,) or (2, 7)
        found.append((outputs.detach(), states.grad, head.weight.grad.clone()))
    for all_at_once, in_chunks in zip(*found, strict=True):
        torch.testing.assert_close(in_chunks, all_at_once, atol=1e-6, rtol=1e-5)


def test_only_masked_positions_are_computed():
    hidden, head, ids = torch.randn(2, 3, 5), nn.Linear(5, 11), torch.randint(11, (2, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    hidden[~mask] = float("nan")
    log_probs, entropy = masked_log_probs(
        token_log_probs_and_entropy, hidden, head, ids, mask, temperature=1.0, chunk_size=2
    )
    assert log_probs[~mask].tolist() == entropy[~mask].tolist() == [0.0, 0.0, 0.0]
    expected = torch.log_softmax(head(hidden[1, 0]), -1)[ids[1, 0]]
    torch.testing.assert_close(log_probs[1, 0], expected)


def test_all_masked():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    ids, head = torch.zeros(2, 3, dtype=torch.long), nn.Linear(5, 11)
    log_probs, entropy = masked_log_probs(
        token_log_probs_and_entropy,
        torch.randn(2, 3, 5),
        head,
        ids,
        mask,
        temperature=1.0,
        chunk_size=2,
    )
    assert not log_probs.any() and not entropy.any()


def test_invariant_30_entropy_is_never_negative():
    certain = torch.tensor([[0.0, -1e4, -float("inf")], [50.0, 0.0, -50.0]])
    _, entropy = token_log_probs_and_entropy(certain, torch.tensor([0, 0]), temperature=1.0)
    assert (entropy >= 0).all() and torch.isfinite(entropy).all()
    _, uniform = token_log_probs_and_entropy(torch.zeros(1, 9), torch.tensor([3]), temperature=1.0)
    assert uniform.item() == pytest.approx(math.log(9), rel=1e-6)


def test_gradient_is_that_of_the_plain_formula():
    """d log p_i / d logits = onehot_i - p."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log().requires_grad_()
    token_log_probs(logits, torch.tensor([1]), temperature=1.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 8, 1 - 2 / 8, -5 / 8]]))


def test_gradient_of_the_entropy_by_hand():
    """d H / d logit_i = -p_i (log p_i + H); impossible tokens take no part."""
    p = torch.tensor([1 / 8, 2 / 8, 5 / 8])
    logits = torch.cat([p.log(), torch.tensor([-float("inf")])]).unsqueeze(0).requires_grad_()
    log_probs, entropy = token_log_probs_and_entropy(logits, torch.tensor([1]), temperature=1.0)
    entropy.sum().backward()
    by_hand = -p * (p.log() - (p * p.log()).sum())
    torch.testing.assert_close(logits.grad[0, :3], by_hand)
    assert logits.grad[0, 3] == 0
    plain = token_log_probs(logits, torch.tensor([1]), temperature=1.0)
    torch.testing.assert_close(plain, log_probs)
