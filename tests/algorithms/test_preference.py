"""The losses of direct preference optimisation, by hand and against trl's."""

import math

import pytest
import torch
from torch import tensor

from rlhf.algorithms import call
from rlhf.algorithms.preference import PAIR_LOSSES, pair_weights, pairs_of_ranks, sigmoid_loss

CHOSEN, REJECTED = tensor([0.5, -1.0]), tensor([-0.5, 1.0])
SETTINGS = dict(
    chosen_lengths=tensor([2.0, 4.0]),
    rejected_lengths=tensor([1.0, 2.0]),
    beta=0.5,
    label_smoothing=0.1,
    discopop_tau=0.05,
)


def s(x):
    return 1 / (1 + math.exp(-x))


def log_s(x):
    return math.log(s(x))


def loss(name, chosen=CHOSEN, rejected=REJECTED, **settings):
    return call(PAIR_LOSSES[name], chosen=chosen, rejected=rejected, **SETTINGS | settings)


# The margins beta (chosen - rejected) are 0.5 and -1, those per token 0.5 (0.25 + 0.5) and 0.5 (-0.25 - 0.5).
BY_HAND = {
    "sigmoid": [-log_s(0.5), -log_s(-1)],
    "hinge": [0.5, 2.0],
    "ipo": [(0.75 - 1) ** 2, (-0.75 - 1) ** 2],
    "sigmoid_norm": [-log_s(0.375), -log_s(-0.375)],
    "robust": [
        (-0.9 * log_s(0.5) + 0.1 * log_s(-0.5)) / 0.8,
        (-0.9 * log_s(-1) + 0.1 * log_s(1)) / 0.8,
    ],
    "exo_pair": [
        s(0.5) * (log_s(0.5) - math.log(0.9)) + s(-0.5) * (log_s(-0.5) - math.log(0.1)),
        s(-1) * (log_s(-1) - math.log(0.9)) + s(1) * (log_s(1) - math.log(0.1)),
    ],
    "nca_pair": [
        -log_s(0.25) - 0.5 * log_s(-0.25) - 0.5 * log_s(0.25),
        -log_s(-0.5) - 0.5 * log_s(0.5) - 0.5 * log_s(-0.5),
    ],
    "bco_pair": [-log_s(0.25) - log_s(0.25), -log_s(-0.5) - log_s(-0.5)],
    "sppo_hard": [(0.5 - 1) ** 2 + (-0.5 + 1) ** 2, (-1 - 1) ** 2 + (1 + 1) ** 2],
    "apo_zero": [1 - s(0.25) + s(-0.25), 1 - s(-0.5) + s(0.5)],
    "apo_down": [s(0.25) + 1 - s(0.5), s(-0.5) + 1 - s(-1)],
    "discopop": [
        -log_s(0.5) * (1 - s(10)) + math.exp(-0.5) * s(10),
        -log_s(-1) * (1 - s(-20)) + math.exp(1) * s(-20),
    ],
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_each_loss_by_hand(name):
    assert loss(name).tolist() == pytest.approx(BY_HAND[name], rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - {"apo_down", "discopop", "exo_pair"}))
def test_the_better_the_policy_tells_the_answers_apart_the_smaller_the_loss(name):
    """At ratios that the squared losses have not reached. The three others ask for something else."""
    losses = loss(name, chosen=tensor([-0.2, 0.2]), rejected=tensor([0.2, -0.2]))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_no_pair_has_no_loss(name):
    empty = torch.zeros(0)
    assert loss(name, empty, empty, chosen_lengths=empty, rejected_lengths=empty).shape == (0,)


def test_robust_loss_is_unbiased():
    """Its mean over labels of which a share is swapped is the loss of the right labels (lemma 3.1 of its paper)."""
    noisy = 0.9 * loss("robust") + 0.1 * loss("robust", REJECTED, CHOSEN)
    torch.testing.assert_close(noisy, sigmoid_loss(CHOSEN, REJECTED, beta=0.5))


def test_invariant_37_ties_are_no_pairs_and_each_prompt_counts_once():
    ranks = tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    mask = tensor([[True, True, True], [True, True, False], [True, True, True]])
    prompts, chosen, rejected = pairs_of_ranks(ranks, mask)
    pairs = list(zip(prompts.tolist(), chosen.tolist(), rejected.tolist(), strict=True))
    assert pairs == [(0, 0, 1), (0, 0, 2), (1, 1, 0)]
    assert pair_weights(prompts).tolist() == [0.5, 0.5, 1.0]
