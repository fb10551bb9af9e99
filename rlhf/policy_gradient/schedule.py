"""The Trainer's keys that count optimiser steps, in a run that is counted in rollouts.

A run cannot stop, save or evaluate in the middle of a rollout, which would be lost. So each number of
steps must end where a rollout ends. It is never rounded: an error names the nearest numbers that do.
"""

import math
from dataclasses import dataclass

from rlhf.errors import UserError

NO, STEPS, BEST = "no", "steps", "best"


def nearest_multiples(value: int, divisor: int) -> str:
    """The positive multiples of `divisor` on both sides of `value`, for an error message."""
    below = value // divisor * divisor
    if below == 0:
        return f"{divisor}"
    return f"{below} or {below + divisor}"


def check_multiple(name: str, value: int, divisor: int, meaning: str) -> None:
    """Refuse a size that does not divide, with the nearest that do. meaning: of the divisor."""
    if value < 1 or value % divisor:
        nearest = nearest_multiples(value, divisor)
        raise UserError(
            f"{name}={value} must be a multiple of {divisor} ({meaning}): use {nearest}"
        )


@dataclass(frozen=True)
class Requested:
    """The keys of a PolicyGradientConfig that count optimiser steps, before TrainingArguments may act on them."""

    max_steps: int
    save_strategy: str | None
    save_steps: float | None
    eval_strategy: str | None
    eval_steps: float | None
    load_best_model_at_end: bool

    @classmethod
    def take(cls, args) -> "Requested":
        """Read the keys, and set those of which TrainingArguments would complain to nothing."""
        values = {name: getattr(args, name) for name in cls.__dataclass_fields__}
        for name in ("save_strategy", "eval_strategy"):
            strategy = values[name]
            values[name] = getattr(strategy, "value", strategy)  # text of an enum
            setattr(args, name, NO)
        args.load_best_model_at_end = False
        return cls(**values)

    @property
    def picks_the_best(self) -> bool:
        """True if evaluations are compared by metric_for_best_model."""
        return self.load_best_model_at_end or self.save_strategy == BEST


def place_on_rollouts(args, requested: Requested) -> None:
    """Set the length of the run, and let logs, evaluations and checkpoints end where a rollout ends."""
    per_rollout = args.steps_per_rollout
    args.total_episodes = episodes(args, requested.max_steps)
    args.max_steps = args.total_episodes // args.rollout_batch_size * per_rollout
    args.logging_steps = per_rollout

    args.eval_strategy = strategy_of("eval", args, requested)
    if args.eval_strategy == STEPS:
        # As in TrainingArguments, an evaluation comes with each log if nothing says how often.
        steps = period("eval", args, requested)
        args.eval_steps = steps or per_rollout
    args.save_strategy = strategy_of("save", args, requested)
    # Without a word about them, checkpoints are made by the clock.
    args.wants_no_checkpoints = requested.save_strategy == NO or args.save_every == 0
    if args.save_strategy == STEPS:
        args.save_steps = period("save", args, requested)
        if args.save_steps is None:
            raise UserError(
                f"save_strategy: steps needs save_every (rollouts), or save_steps: a multiple of {per_rollout}"
            )
    if args.save_strategy == BEST and args.eval_strategy == NO:
        raise UserError("save_strategy: best needs evaluations: set eval_every")
    if requested.load_best_model_at_end:
        args.load_best_model_at_end = True
        check_best_is_saved(args)


def episodes(args, max_steps: int) -> int:
    """The completions of the run: total_episodes, or as many as max_steps optimiser steps need."""
    per_rollout = args.steps_per_rollout
    if max_steps == -1:  # not given
        total = args.total_episodes
        if total is None:
            total = args.DEFAULT_EPISODES
        check_multiple("total_episodes", total, args.rollout_batch_size, "rollout_batch_size")
        return total
    check_multiple("max_steps", max_steps, per_rollout, "optimiser steps of a rollout")
    from_steps = max_steps // per_rollout * args.rollout_batch_size
    if args.total_episodes not in (None, from_steps):
        raise UserError(
            f"max_steps={max_steps} means total_episodes={from_steps} ({per_rollout} steps for each "
            f"{args.rollout_batch_size} completions), and total_episodes={args.total_episodes} is given: keep one of the two"
        )
    return from_steps


def strategy_of(kind: str, args, requested: Requested) -> str:
    """The time to evaluate or to save: no, steps or (to save) best. kind: eval or save."""
    strategy = getattr(requested, f"{kind}_strategy")
    every = getattr(args, f"{kind}_every")
    steps = getattr(requested, f"{kind}_steps")
    if strategy is None:
        return STEPS if every or steps else NO
    allowed = (NO, STEPS, BEST) if kind == "save" else (NO, STEPS)
    if strategy not in allowed:
        raise UserError(
            f"{kind}_strategy={strategy!r}: use {' or '.join(allowed)}, or {kind}_every, which counts rollouts"
        )
    if strategy != STEPS and every:
        raise UserError(f"{kind}_strategy={strategy} and {kind}_every={every}: keep one of the two")
    return strategy


def period(kind: str, args, requested: Requested) -> int | None:
    """Optimiser steps between evaluations or checkpoints; None if not given. kind: eval or save."""
    per_rollout = args.steps_per_rollout
    every = getattr(args, f"{kind}_every")
    steps = getattr(requested, f"{kind}_steps")
    if not steps:
        return every * per_rollout if every else None
    if steps < 1:  # a share of the run, as in TrainingArguments
        steps = math.ceil(steps * args.max_steps)
    if steps != int(steps):
        raise UserError(
            f"{kind}_steps={steps} must be a whole number, or a share of the run below 1"
        )
    check_multiple(f"{kind}_steps", int(steps), per_rollout, "optimiser steps of a rollout")
    if every and steps != every * per_rollout:
        raise UserError(
            f"{kind}_steps={int(steps)} is {int(steps) // per_rollout} rollouts, and {kind}_every={every}: keep one of "
            "the two"
        )
    return int(steps)


def check_can_evaluate(args, eval_rows: list | None) -> None:
    """Refuse evaluations without rows, before the first step and not at the first evaluation."""
    if args.eval_strategy != NO and not eval_rows:
        raise UserError(
            f"eval_every={args.eval_steps // args.steps_per_rollout}: there are no evaluation prompts: give "
            "eval_dataset_name or eval_fraction, or set eval_every to 0"
        )


def check_best_is_saved(args) -> None:
    """Refuse load_best_model_at_end where the best of the evaluations may have no checkpoint."""
    if args.eval_strategy == NO:
        raise UserError("load_best_model_at_end needs evaluations: set eval_every")
    if args.save_strategy != BEST and args.save_steps != args.eval_steps:
        every = args.eval_steps // args.steps_per_rollout
        raise UserError(
            f"load_best_model_at_end needs a checkpoint of each evaluation: set save_every: {every} (as eval_every), or "
            "save_strategy: best"
        )


def check_best_metric(args) -> None:
    """Set the metric that picks the best checkpoint: the score, unless another is named together with its direction."""
    metric = (args.metric_for_best_model or "score").removeprefix("eval_")
    is_score = metric.startswith("score") and metric != "score_std"
    if args.greater_is_better is None:
        if not is_score:
            raise UserError(
                f"metric_for_best_model={metric}: set greater_is_better to true or false too, for only of a score is more "
                "always better"
            )
        args.greater_is_better = True
    args.metric_for_best_model = metric
