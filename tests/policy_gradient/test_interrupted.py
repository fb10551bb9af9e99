"""A signal in a policy-gradient run: in the sampling of a rollout, and between its updates."""

import os
import signal

import pytest
from transformers import TrainerCallback

from rlhf.errors import Interrupted
from rlhf.policy_gradient import rollouts
from rlhf.runs.record import read_jsonl
from rlhf.runs.run import Run
from rlhf.runs.settings import ModelSettings
from rlhf.runs.signals import SIGNALS

SETTINGS = dict(total_episodes=64, epochs_per_rollout=2, learning_rate=3e-3, kl_target=0.5)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class TerminateAt(TrainerCallback):
    """A signal at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            terminate()


def train(trainer, checkpoint=None):
    trainer.args.resume_from_checkpoint = checkpoint
    run = Run("ppo", ModelSettings(), trainer.args)
    with SIGNALS.listening():
        run.train(trainer, trainer.save_model)


def logged(trainer) -> list[dict]:
    """The rows of the rollouts without times."""
    rows = []
    for row in read_jsonl(f"{trainer.args.output_dir}/metrics.jsonl"):
        if "score" in row:
            rows.append({name: value for name, value in row.items() if "seconds" not in name})
    return rows


def weights(trainer) -> dict:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("phase", [pytest.param("sampling", marks=pytest.mark.slow), "updates"])
def test_an_interrupted_run_equals_the_uninterrupted_one(
    make_trainer, tmp_path, monkeypatch, phase
):
    whole = make_trainer("whole", **SETTINGS)
    train(whole)
    size = whole.args.steps_per_rollout
    assert len(logged(whole)) == 4 and size > 1

    cut = make_trainer("cut", **SETTINGS)
    finished = []
    if phase == "updates":
        cut.add_callback(TerminateAt(2 * size + 1))  # after the first update of the third rollout
        expected = 3 * size
    else:
        expected = 2 * size
        collect = rollouts.collect

        def collect_and_terminate(*args):
            if cut.state.global_step == expected:
                terminate()
            finished.append(cut.state.global_step)
            return collect(*args)

        monkeypatch.setattr(rollouts, "collect", collect_and_terminate)
    with pytest.raises(Interrupted):
        train(cut)
    monkeypatch.undo()
    if phase == "sampling":
        assert finished == [0, size]  # that of the third rollout was given up
    checkpoints = [path.name for path in (tmp_path / "cut").glob("checkpoint-*")]
    assert checkpoints == [f"checkpoint-{expected}"]

    resumed = make_trainer("cut", **SETTINGS)
    train(resumed, str(tmp_path / "cut" / checkpoints[0]))
    assert logged(resumed) == logged(whole)
    assert resumed.rollouts.kl_coef == whole.rollouts.kl_coef
    for name, tensor in weights(whole).items():
        assert tensor.equal(weights(resumed)[name]), name
