"""The loss of a micro-batch as a pure function, without a Trainer."""

import math

import pytest
import torch

from rlhf.algorithms import ALGORITHMS
from rlhf.models.actor_critic import Evaluation
from rlhf.policy_gradient.update import LossSettings, micro_batch_loss

MASK = torch.tensor([[True, True, True], [True, False, False]])
SETTINGS = dict(
    clip_range=0.2,
    clip_range_high=0.3,
    value_clip_range=None,
    value_coef=0.5,
    entropy_coef=0.25,
    ptx_coef=2.0,
    max_completion_length=8,
)


def batch_of(log_ratio, advantages, mask=MASK, **more):
    """A whole mini-batch in which the policy of now has log-probs 0, so that old ones are minus the log ratio."""
    log_ratio = torch.tensor(log_ratio).masked_fill(~mask, 0.0)
    zero = torch.zeros(mask.shape)
    batch = dict(mask=mask, log_probs=-log_ratio, ref_log_probs=zero, values=zero, returns=zero)
    batch |= dict(advantages=torch.tensor(advantages).masked_fill(~mask, 0.0))
    batch |= dict(num_tokens=mask.sum().clamp(min=1), num_completions=len(mask))
    return batch | dict(rollout=0, epoch=0, update=1) | more


def loss_of(name, batch, *, entropy=None, values=None, text=None, **settings):
    outputs = Evaluation(torch.zeros(batch["mask"].shape), entropy, values, text)
    return micro_batch_loss(outputs, batch, ALGORITHMS[name], LossSettings(**SETTINGS | settings))


LOG = math.log
BATCH = batch_of(
    [[LOG(1.25), LOG(1.5), 0.0], [LOG(0.5), 9.0, 9.0]], [[2.0, 2.0, 2.0], [-2.0, 7.0, 7.0]]
)


@pytest.mark.parametrize(
    ("name", "expected", "clipped"),
    [
        # Tokens: ratios 1.25 and 1.5 clipped to 1.2, 1, and 0.5 to 0.8. A = 2, 2, 2, -2.
        ("grpo", (-2.4 - 2.4 - 2.0 + 1.6) / 4, 3 / 4),
        # The same sum, divided by 2 completions x 8 tokens.
        ("dr_grpo", (-2.4 - 2.4 - 2.0 + 1.6) / 16, 3 / 4),
        # Up to 1.3: the first ratio is not clipped.
        ("dapo", (-2.5 - 2.6 - 2.0 + 1.6) / 4, 2 / 4),
        # s = (1.25 x 1.5)^(1/3) = 1.2331 inside, and 0.5 clipped to 0.8; the mean of two completions.
        ("gspo", (-2 * 1.875 ** (1 / 3) + 1.6) / 2, 1 / 4),
        ("reinforce", 0.0, 3 / 4),  # log-probs are 0
    ],
)
def test_the_policy_loss_of_a_mini_batch_by_hand(name, expected, clipped):
    loss, metrics = loss_of(name, BATCH)
    assert loss.item() == metrics["policy_loss"].item() == pytest.approx(expected, abs=1e-6)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped)
    assert "first_ratio_error" not in metrics and "value_loss" not in metrics


def test_values_entropy_and_text_by_hand():
    """Values 1 against returns 0: 1/2 per token; entropy 3 per token; text: -(-1 - 2) / 4 tokens of the mini-batch."""
    ones = torch.ones(MASK.shape).masked_fill(~MASK, 0.0)
    batch = BATCH | {"num_text_tokens": torch.tensor(4)}
    text = torch.tensor([[-1.0, -2.0, 0.0]])
    loss, metrics = loss_of("ppo", batch, entropy=3 * ones, values=ones, text=text)
    plain, _ = loss_of("ppo", BATCH)
    assert metrics["value_loss"].item() == pytest.approx(0.5)
    assert metrics["entropy_bonus"].item() == pytest.approx(0.25 * 3)
    assert metrics["ptx_loss"].item() == pytest.approx(0.75)
    expected = plain.item() + 0.5 * 0.5 - 0.75 + 2.0 * 0.75
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_without_log_probs_only_the_value_model_learns():
    values = torch.ones(MASK.shape)
    outputs = Evaluation(None, None, values)
    loss, metrics = micro_batch_loss(outputs, BATCH, ALGORITHMS["ppo"], LossSettings(**SETTINGS))
    assert set(metrics) == {"value_loss"} and loss.item() == pytest.approx(0.25)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_invariant_20_shares_of_micro_batches_add_up(name):
    torch.manual_seed(1)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3], [2]])
    log_ratio, advantages = (0.3 * torch.randn(4, 5)).tolist(), torch.randn(4, 5).tolist()
    whole = batch_of(log_ratio, advantages, mask)
    loss, metrics = loss_of(name, whole)
    totals = ("num_tokens", "num_completions", "rollout", "epoch", "update")
    shares = []
    for rows in ([0, 1, 2], [3]):
        part = {k: v if k in totals else v[rows] for k, v in whole.items()}
        shares.append(loss_of(name, part))
    torch.testing.assert_close(sum(share for share, _ in shares), loss)
    for key, value in metrics.items():
        torch.testing.assert_close(sum(share[key] for _, share in shares), value)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_at_padding_changes_nothing_and_no_tokens_give_0(name):
    loss, _ = loss_of(name, BATCH)
    wild = dict(BATCH)
    for key in ("log_probs", "advantages", "ref_log_probs"):
        wild[key] = torch.where(MASK, BATCH[key], 3.0)
    torch.testing.assert_close(loss_of(name, wild)[0], loss)
    nothing = batch_of([[1.0]], [[1.0]], torch.zeros(1, 1, dtype=torch.bool))
    assert loss_of(name, nothing)[0].item() == 0


def test_invariant_08_the_error_of_the_first_ratio_is_measured_in_the_first_update_only():
    first = BATCH | {"update": 0}
    _, metrics = loss_of("ppo", first)
    assert metrics["first_ratio_error"].item() == pytest.approx(0.5)  # ratios 1.5 and 0.5
