"""Checkpoints by the clock: one when some minutes have passed since the last, in every trainer."""

import time
from collections.abc import Callable

import torch
from transformers import TrainerCallback

DEFAULT_MINUTES = 10.0
LONGEST_WAIT = 1000  # steps between two looks at the clock, on several processes


def minutes_between_checkpoints(settings, args) -> float:
    """The minutes of `checkpoint_minutes`, or 10; 0, for never, where the user wants no checkpoints."""
    minutes = getattr(settings, "checkpoint_minutes", None)
    if minutes is not None:
        return minutes
    if wants_no_checkpoints(args):
        return 0.0
    return DEFAULT_MINUTES


def wants_no_checkpoints(args) -> bool:
    """True if the user gave `save_strategy: no` or, to ppo, `save_every: 0`. No recipe has them as defaults."""
    # Of ppo, whose own strategy is "no" where nothing is given.
    if hasattr(args, "wants_no_checkpoints"):
        return args.wants_no_checkpoints
    return args.save_strategy == "no"


class CheckpointClock(TrainerCallback):
    """Asks for a checkpoint at the next possible step when minutes have passed since the last.

    On several processes the main one looks at its clock and tells the others. They come together for that at steps that all
    know, some five times in the minutes, and not at every step. So a checkpoint may be late by a twentieth of them.

    trainer: a `RunTrainer`, whose `steps_between_checkpoints` says which steps are possible.
    seconds_now: the clock.
    """

    def __init__(self, trainer, minutes: float, seconds_now: Callable[[], float] = time.monotonic):
        self.trainer = trainer
        self.seconds = 60 * minutes
        self.seconds_now = seconds_now
        self.last_save = self.last_look = seconds_now()
        self.wait = 1  # possible steps until the next look
        self.passed = 0  # possible steps since the last look

    def on_train_begin(self, args, state, control, **kwargs):
        self.last_save = self.last_look = self.seconds_now()
        self.wait, self.passed = 1, 0

    def on_save(self, args, state, control, **kwargs):
        self.last_save = self.seconds_now()
        self.trainer.asked_by_time = None

    def on_step_end(self, args, state, control, **kwargs):
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if is_last or state.global_step % self.trainer.steps_between_checkpoints:
            return  # after the last step the model itself is saved
        if not self._is_due(args) or control.should_save:
            return
        control.should_save = True
        self.trainer.asked_by_time = state.global_step

    def _is_due(self, args) -> bool:
        if args.world_size == 1:
            return self.seconds_now() - self.last_save >= self.seconds
        self.passed += 1
        if self.passed < self.wait:
            return False
        due, self.wait = self._agree(args)
        self.passed = 0
        return bool(due)

    def _agree(self, args) -> tuple[int, int]:
        """(1 if a checkpoint is due, possible steps until the next look), as the main process says."""
        now = self.seconds_now()
        remaining = self.seconds - (now - self.last_save)
        seconds_per_step = max((now - self.last_look) / self.passed, 1e-6)
        self.last_look = now
        due = remaining <= 0
        if due:
            remaining = self.seconds
        seconds = max(remaining / 2, self.seconds / 20)
        wait = min(max(int(seconds / seconds_per_step), 1), LONGEST_WAIT)
        decision = torch.tensor([int(due), wait], device=args.device)
        torch.distributed.broadcast(decision, 0)
        due, wait = decision.tolist()
        return due, wait
