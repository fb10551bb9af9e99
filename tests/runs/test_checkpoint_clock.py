"""Checkpoints by the clock: when, at which steps, and how seldom several processes come together for it."""

from types import SimpleNamespace

import pytest
import torch

from rlhf.runs.checkpoint_clock import CheckpointClock, minutes_between_checkpoints
from rlhf.runs.verified_save import checkpoints_of


def saved_steps(seconds_per_step: float, *, minutes=1.0, steps=200, between=1, world_size=1):
    """The steps after which a checkpoint is asked for, and the number of times that processes came together."""
    now = [0.0]
    trainer = SimpleNamespace(steps_between_checkpoints=between, asked_by_time=None)
    clock = CheckpointClock(trainer, minutes, seconds_now=lambda: now[0])
    args = SimpleNamespace(world_size=world_size, device=torch.device("cpu"))
    saved = []
    clock.on_train_begin(args, None, None)
    for step in range(1, steps + 1):
        now[0] += seconds_per_step
        state = SimpleNamespace(global_step=step, max_steps=steps)
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        clock.on_step_end(args, state, control)
        if control.should_save:
            assert trainer.asked_by_time == step
            saved.append(step)
            clock.on_save(args, state, control)
    return saved


def test_a_checkpoint_comes_when_its_minutes_have_passed():
    assert saved_steps(25.0, steps=10) == [3, 6, 9]
    assert saved_steps(120.0, steps=3) == [1, 2]  # none after the last step
    assert saved_steps(0.1, steps=100) == []


def test_a_checkpoint_comes_only_where_a_rollout_ends():
    assert saved_steps(25.0, steps=20, between=4) == [4, 8, 12, 16]
    assert saved_steps(10.0, steps=30, between=4) == [8, 16, 24]


def test_a_save_of_another_reason_starts_the_minutes_again():
    trainer = SimpleNamespace(steps_between_checkpoints=1, asked_by_time=None)
    now = [0.0]
    clock = CheckpointClock(trainer, 1.0, seconds_now=lambda: now[0])
    args = SimpleNamespace(world_size=1)
    now[0] = 59.0
    clock.on_save(args, None, None)
    now[0] = 61.0
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    clock.on_step_end(args, SimpleNamespace(global_step=1, max_steps=9), control)
    assert not control.should_save and trainer.asked_by_time is None


def test_several_processes_come_together_a_few_times_in_the_minutes(monkeypatch):
    looks = []
    monkeypatch.setattr(
        torch.distributed, "broadcast", lambda decision, source: looks.append(decision.tolist())
    )
    saved = saved_steps(0.1, steps=3000, world_size=2)
    # 600 steps of a tenth of a second are a minute.
    assert 4 <= len(saved) <= 5 and all(step >= 600 for step in saved)
    assert len(looks) < 35


@pytest.mark.parametrize(
    ("given", "strategy", "minutes"),
    [
        (None, "steps", 10.0),
        (None, "no", 0.0),
        (5.0, "no", 5.0),
        (0.0, "steps", 0.0),
        (None, "epoch", 10.0),
    ],
)
def test_ten_minutes_unless_the_user_wants_no_checkpoints(given, strategy, minutes):
    settings = SimpleNamespace(checkpoint_minutes=given)
    args = SimpleNamespace(save_strategy=strategy)
    assert minutes_between_checkpoints(settings, args) == minutes


def test_a_run_without_save_steps_keeps_two_checkpoints_by_time(tiny):
    """A millionth of a minute has passed after each of the six steps; the last has one for another reason."""
    folder = tiny("--save_steps", "100", "--checkpoint_minutes", "0.000001")
    names = [path.name for path in checkpoints_of(folder)]
    assert names == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
