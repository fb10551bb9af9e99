"""The family as a table: what differs between the algorithms, and nothing else.

One trainer, one rollout, one row here. The KL penalty is part of the reward in all of them (InstructGPT, equation 2), so
that their numbers can be compared; GRPO's paper puts it into the loss instead.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.algorithms.advantages import gae, group_standardize, leave_one_out, rewards_to_go
from rlhf.algorithms.losses import clipped_surrogate_loss, policy_gradient_loss, surrogate_loss
from rlhf.algorithms.masking import center, standardize

__all__ = ["ALGORITHMS", "Algorithm", "call"]


@dataclass(frozen=True)
class Algorithm:
    """advantages: a function of `advantages.py`; normalize: a function of `masked.py` applied to them, or None;
    policy_loss: a function of `losses.py`; value_model: whether a value function is learned; epochs: default passes over
    a rollout; grouped: several completions per prompt are needed; trust_region: the policy makes one natural-gradient step
    per rollout (`trust_region.py`) in place of the optimiser's, and the remaining epochs are the value function's."""

    advantages: Callable
    normalize: Callable | None
    policy_loss: Callable
    value_model: bool
    epochs: int
    grouped: bool
    trust_region: bool


def call(formula: Callable, **available):
    """Call a formula with those of the available quantities that its signature names."""
    return formula(**{name: available[name] for name in inspect.signature(formula).parameters})


# fmt: off
ALGORITHMS = {
    #                      advantages         normalize    policy loss             value  epochs  grouped  trust region
    "reinforce": Algorithm(rewards_to_go,     center,      policy_gradient_loss,   False, 1,      False,   False),
    "a2c":       Algorithm(gae,               None,        policy_gradient_loss,   True,  1,      False,   False),
    "trpo":      Algorithm(gae,               standardize, surrogate_loss,         True,  4,      False,   True),
    "ppo":       Algorithm(gae,               standardize, clipped_surrogate_loss, True,  4,      False,   False),
    "rloo":      Algorithm(leave_one_out,     None,        policy_gradient_loss,   False, 1,      True,    False),
    "grpo":      Algorithm(group_standardize, None,        clipped_surrogate_loss, False, 1,      True,    False),
}
# fmt: on
