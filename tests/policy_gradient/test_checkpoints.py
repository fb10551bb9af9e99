"""Checkpoints of policy-gradient training: between rollouts, and whole."""

import pytest
import torch

from rlhf.runs.checkpoint_clock import CheckpointClock
from rlhf.runs.manifest import flaw
from rlhf.runs.verified_save import checkpoints_of


@pytest.mark.slow
def test_checkpoints_by_the_clock_come_between_rollouts_and_are_whole(make_trainer, tmp_path):
    """A ten-millionth of a minute has passed after every step. A rollout has 16 steps, the run 64."""
    trainer = make_trainer("run", total_episodes=64)
    trainer.add_callback(CheckpointClock(trainer, 1e-7))
    trainer.train()
    # none at the last step; the newest two stay
    checkpoints = checkpoints_of(tmp_path / "run")
    assert [path.name for path in checkpoints] == ["checkpoint-32", "checkpoint-48"]
    assert [flaw(path) for path in checkpoints] == ["", ""]
    resumed = make_trainer("resumed", total_episodes=64)
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    weights = dict(resumed.model.named_parameters())
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, weights[name]), name
