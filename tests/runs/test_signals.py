"""SIGTERM and SIGINT in each phase of a run."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rlhf.errors import Interrupted
from rlhf.runs import signals
from rlhf.runs.record import RunRecord, read_jsonl
from rlhf.runs.signals import SIGNALS, Signals

STEPS = 12


def weight_in(folder) -> float:
    return torch.load(folder / "weights.pt")["weight"].item()


def losses(folder) -> list[tuple]:
    rows = read_jsonl(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def evaluations(folder) -> list[tuple]:
    rows = read_jsonl(folder / "metrics.jsonl")
    return [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGTERM, 143, "SIGTERM"),
        pytest.param(signal.SIGINT, 130, "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_a_step_leaves_a_checkpoint_of_this_step(
    toy, tmp_path, capsys, number, code, name
):
    flags = ("--max_steps", STEPS, "--eval_strategy", "steps", "--eval_steps", 3)
    assert toy.run(tmp_path / "whole", *flags) == 0
    toy.at = {6: lambda: os.kill(os.getpid(), number)}
    capsys.readouterr()
    assert toy.run(tmp_path / "run", *flags) == code
    # save_steps is 4: the signal has made this one
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    assert not (tmp_path / "run" / "weights.pt").exists()
    record = RunRecord.load(tmp_path / "run")
    assert record.status == "interrupted" and record.steps == 6
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"stopped by {name}: at step 6: continue with ")
    assert error.endswith("--resume_from_checkpoint true")
    assert "Traceback" not in error
    toy.at = {}
    assert toy.run(tmp_path / "run", *flags, "--resume_from_checkpoint", "true") == 0
    assert weight_in(tmp_path / "run") == weight_in(tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    # That of step 6 was due, and came before the end.
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("step", [pytest.param(11, marks=pytest.mark.slow), 12])
def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_evaluation(
    toy, tmp_path, terminate, step
):
    """An epoch has 12 steps."""
    flags = (
        "--num_train_epochs",
        2,
        "--eval_strategy",
        "epoch",
        "--load_best_model_at_end",
        "true",
    )
    flags = (*flags, "--save_strategy", "epoch", "--learning_rate", 0.9)
    assert toy.run(tmp_path / "whole", *flags) == 0
    toy.at = {step: terminate}
    assert toy.run(tmp_path / "run", *flags) == 143
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{step}"]
    toy.at = {}
    assert toy.run(tmp_path / "run", *flags, "--resume_from_checkpoint", "true") == 0
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    assert weight_in(tmp_path / "run") == weight_in(tmp_path / "whole")


def test_a_signal_before_the_training_ends_at_once(toy, tmp_path, capsys, terminate):
    toy.prepare = terminate
    assert toy.run(tmp_path / "run", "--max_steps", STEPS) == 143
    assert capsys.readouterr().err.strip() == "stopped by SIGTERM: nothing was trained"
    assert RunRecord.load(tmp_path / "run").status == "interrupted" and toy.trainers == []


def test_a_signal_after_the_training_leaves_a_trained_run(toy, tmp_path, capsys, terminate):
    toy.evaluate = terminate
    assert toy.run(tmp_path / "run", "--max_steps", STEPS) == 143
    record = RunRecord.load(tmp_path / "run")
    assert record.status == "trained" and record.steps == STEPS
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(
        f"the model is trained and saved, not evaluated: rlhf finish {tmp_path / 'run'}"
    )
    assert weight_in(tmp_path / "run") != 0


def test_a_signal_while_the_model_is_saved_waits_for_that(toy, tmp_path, monkeypatch, terminate):
    save = torch.save

    def save_slowly(content, path):
        if str(path).endswith("weights.pt"):
            terminate()
        save(content, path)

    monkeypatch.setattr(torch, "save", save_slowly)
    evaluated = []
    toy.evaluate = evaluated.append
    assert toy.run(tmp_path / "run", "--max_steps", STEPS) == 143
    assert RunRecord.load(tmp_path / "run").status == "trained" and evaluated == []
    assert weight_in(tmp_path / "run") != 0


def test_a_signal_in_the_save_of_a_checkpoint_waits_for_that(toy, tmp_path, monkeypatch, terminate):
    from transformers import Trainer

    save = Trainer._save_rng_state

    def save_and_terminate(trainer, folder):
        if trainer.state.global_step == 4:
            terminate()
        save(trainer, folder)

    monkeypatch.setattr(Trainer, "_save_rng_state", save_and_terminate)
    assert toy.run(tmp_path / "run", "--max_steps", STEPS) == 143
    # The signal came after the end of step 4, so the next step is the last.
    folders = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert folders == ["checkpoint-4", "checkpoint-5"]
    assert (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").is_file()


def test_save_strategy_no_keeps_nothing_but_what_a_signal_saves(toy, tmp_path, terminate):
    toy.at = {5: terminate}
    assert toy.run(tmp_path / "run", "--max_steps", STEPS, "--save_strategy", "no") == 143
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_second_signal_ends_the_process_at_once(monkeypatch, terminate):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with SIGNALS.listening(), SIGNALS.held_back():
        terminate()
        terminate()  # at once: the launcher and the terminal pass on the same one
        assert codes == [] and SIGNALS.number == signal.SIGTERM
        SIGNALS._first_at -= 1
        terminate()
        assert codes == [143]


def test_the_death_of_the_launcher_never_is_the_second_signal(monkeypatch, terminate):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with SIGNALS.listening(), SIGNALS.held_back():
        terminate()
        SIGNALS._first_at -= 1
        os.kill(os.getpid(), signals.LAUNCHER_DIED)
    assert codes == []


def test_the_death_of_the_launcher_is_a_sigterm():
    with SIGNALS.listening(), pytest.raises(Interrupted) as stopped:
        os.kill(os.getpid(), signals.LAUNCHER_DIED)
    assert stopped.value.exit_code == 143


def test_sampling_is_given_up_and_nothing_else(terminate):
    done = []
    with SIGNALS.listening():
        with pytest.raises(Interrupted), SIGNALS.held():
            terminate()
            done.append("step")
            with signals.abandonable():
                done.append("sampling")
        assert done == ["step"]
    assert not SIGNALS.number
    # Outside a run a signal is what it always is.
    with signals.abandonable():
        done.append("outside")
    assert done == ["step", "outside"]


def test_a_signal_of_one_run_does_not_end_the_next(monkeypatch, terminate):
    codes = []
    monkeypatch.setattr(signals, "DEAF", 0.05)
    monkeypatch.setattr(os, "_exit", codes.append)
    with SIGNALS.listening(), pytest.raises(Interrupted):
        terminate()
    with SIGNALS.listening():
        time.sleep(0.2)
    assert codes == []


def test_a_signal_is_noted_until_the_block_ends(terminate):
    listener = Signals()
    with listener.listening(), pytest.raises(Interrupted), listener.held():
        terminate()
        assert listener.number == signal.SIGTERM


DEAF_PROCESS = """
import ctypes, os, signal, sys
from rlhf.runs import signals

signals.DEAF = 0.2
with signals.SIGNALS.listening():
    signals.SIGNALS._is_held = sys.argv[1] == "in training"
    signal.siginterrupt(signal.SIGTERM, False)  # the call of C goes on after a signal, as a collective does
    reader, _ = os.pipe()
    print("ready", flush=True)
    ctypes.CDLL(None).read(reader, ctypes.create_string_buffer(1), 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "needed"), [("before training", 1), ("in training", 2)])
def test_a_process_that_waits_in_code_of_c_ends_too(phase, needed):
    command = [sys.executable, "-c", DEAF_PROCESS, phase]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    for _ in range(needed):
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
