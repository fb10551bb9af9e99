"""The algorithms as a table: what differs between them, and nothing else.

One trainer, one kind of rollout, one row here. The KL penalty is part of the reward in all of them (InstructGPT,
equation 2), so that their numbers can be compared. The papers of the GRPO family put it into the loss or drop it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.algorithms.advantages import (
    gae,
    group_center,
    group_standardize,
    leave_one_out,
    rewards_to_go,
)
from rlhf.algorithms.losses import (
    clip_higher_loss,
    clipped_surrogate_loss,
    constant_length,
    equal_completions,
    equal_tokens,
    policy_gradient_loss,
    sequence_ratio,
    surrogate_loss,
    token_ratio,
)
from rlhf.algorithms.masking import center, standardize

__all__ = ["ALGORITHMS", "TRUST_REGION", "Algorithm", "UpdateRule", "call", "takes"]


@dataclass(frozen=True)
class UpdateRule:
    """The rule that turns a gradient into a step of the policy.

    one_step_per_rollout: one step with the gradient of the whole rollout; later passes train the value model alone
    surrogate_only: no other loss (value, entropy, plain text) may move the policy's weights
    clips_gradient: max_grad_norm limits the policy's gradient; false where the rule itself sets the step's length
    needs_double_backward: needs whole weights in full precision, and attention that has a second derivative
    """

    one_step_per_rollout: bool
    surrogate_only: bool
    clips_gradient: bool
    needs_double_backward: bool


OPTIMIZER = UpdateRule(
    one_step_per_rollout=False,
    surrogate_only=False,
    clips_gradient=True,
    needs_double_backward=False,
)
TRUST_REGION = UpdateRule(
    one_step_per_rollout=True,
    surrogate_only=True,
    clips_gradient=False,
    needs_double_backward=True,
)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table: formulas of this package, and how they are used.

    advantages: a function of `advantages.py`; `completions.rollout.estimate` calls it
    normalize: a function of `masking.py` applied to the advantages, or None
    policy_loss: a function of `losses.py`, a loss per token; `policy_gradient.update.policy_losses` calls it
    ratio: pi / pi_old, of each token or of each completion
    token_weights: how much each token's loss weighs in the mean over a mini-batch
    epochs: default number of passes over a rollout
    clip_range, clip_range_high: defaults of the clip range below 1 and, where the loss has one of its own, above 1
    update: how the gradient becomes a step of the policy
    """

    advantages: Callable
    normalize: Callable | None
    policy_loss: Callable
    ratio: Callable = token_ratio
    token_weights: Callable = equal_tokens
    epochs: int = 1
    clip_range: float = 0.2
    clip_range_high: float | None = None
    update: UpdateRule = OPTIMIZER

    @property
    def needs_values(self) -> bool:
        """True when a value model is learned."""
        return takes(self.advantages, "values")

    @property
    def grouped(self) -> bool:
        """True when several completions of one prompt are compared."""
        return takes(self.advantages, "num_generations")


def call(formula: Callable, **available):
    """Call a formula with those of the available quantities that its signature names."""
    return formula(**{name: available[name] for name in inspect.signature(formula).parameters})


def takes(formula: Callable, name: str) -> bool:
    """True when the formula has a parameter of this name."""
    return name in inspect.signature(formula).parameters


# fmt: off
ALGORITHMS = {
    #                      advantages         normalize    policy loss             what else differs
    "reinforce": Algorithm(rewards_to_go,     center,      policy_gradient_loss),
    "a2c":       Algorithm(gae,               None,        policy_gradient_loss),
    "trpo":      Algorithm(gae,               standardize, surrogate_loss,         epochs=4, update=TRUST_REGION),
    "ppo":       Algorithm(gae,               standardize, clipped_surrogate_loss, epochs=4),
    "rloo":      Algorithm(leave_one_out,     None,        policy_gradient_loss),
    "grpo":      Algorithm(group_standardize, None,        clipped_surrogate_loss),
    "dr_grpo":   Algorithm(group_center,      None,        clipped_surrogate_loss, token_weights=constant_length),
    "dapo":      Algorithm(group_standardize, None,        clip_higher_loss,       clip_range_high=0.28),
    "gspo":      Algorithm(group_standardize, None,        clip_higher_loss,       ratio=sequence_ratio,
                           token_weights=equal_completions, clip_range=3e-4, clip_range_high=4e-4),
}
# fmt: on
