"""The part that all trainers of the recipes share."""

from rlhf.runs.nonfinite import NonFiniteGuard


class RunTrainer(NonFiniteGuard):
    """Mixin for a transformers.Trainer that a recipe runs, named first: `class RewardTrainer(RunTrainer, Trainer)`.

    facts: what identifies the run that trains (`Run.facts`); {} outside a recipe.
    steps_between_checkpoints: optimiser steps after which a checkpoint can be made; 1 where any step will do.
    """

    facts: dict = {}
    steps_between_checkpoints: int = 1
