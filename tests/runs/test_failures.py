"""Errors after the training, exits in user code, and errors of one process of several."""

import errno
import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from rlhf.errors import Interrupted, UserError
from rlhf.runs import durable, ending, failures
from rlhf.runs import run as frame
from rlhf.runs.ending import cause_of
from rlhf.runs.failures import (
    first_failure,
    forget_failures,
    read_failure,
    said_by_main,
    watch_others,
    write_failure,
)
from rlhf.runs.processes import on_main
from rlhf.runs.record import RunRecord, find_runs

STEPS = ("--max_steps", "6")


def fail(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.slow
def test_the_advice_after_a_full_disk_without_a_checkpoint_works(
    toy, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(frame, "plot_curves", lambda folder: None)
    toy.at = {3: fail(OSError(errno.ENOSPC, "No space left on device"))}
    assert toy.run(tmp_path / "run", *STEPS) == 2
    assert (
        "free some space, then start the run again with --resume_from_checkpoint auto"
        in capsys.readouterr().err
    )
    toy.at = {}
    assert toy.run(tmp_path / "run", *STEPS, "--resume_from_checkpoint", "auto") == 0
    assert RunRecord.load(tmp_path / "run").status == "done"


# ---- after the training ----


def test_an_error_of_the_evaluation_leaves_a_trained_model(toy, tmp_path, capsys):
    toy.evaluate = fail(UserError("no such column"))
    assert toy.run(tmp_path / "run", *STEPS) == 2
    record = RunRecord.load(tmp_path / "run")
    assert (record.status, record.error, record.steps) == ("evaluation failed", "no such column", 6)
    assert (tmp_path / "run" / "weights.pt").is_file()
    first, second = capsys.readouterr().err.strip().splitlines()[-2:]
    assert first == "error: no such column"
    assert second.endswith(
        f"saved in {tmp_path / 'run'}; evaluate it again with: rlhf finish {tmp_path / 'run'}"
    )
    assert find_runs(tmp_path) == [tmp_path / "run"]


@pytest.mark.parametrize(
    "stage", ["plot_curves", pytest.param("write_card", marks=pytest.mark.slow)]
)
def test_an_error_of_the_card_is_one_of_the_evaluation(toy, tmp_path, monkeypatch, stage):
    from rlhf.runs import card
    from rlhf.runs import run as frame

    module = {"plot_curves": frame, "write_card": card}[stage]
    monkeypatch.setattr(module, stage, fail(RuntimeError("no font")))
    with pytest.raises(RuntimeError, match="no font"):
        toy.run(tmp_path / "run", *STEPS)
    record = RunRecord.load(tmp_path / "run")
    assert (record.status, record.error) == ("evaluation failed", "RuntimeError: no font")


def test_a_run_is_done_when_its_card_is_there(toy, tmp_path, monkeypatch):
    """A kill at any moment leaves a run that `rlhf finish` takes, or one with its card."""
    folder, card_at = tmp_path / "run", []

    def boundary(path):
        if path == folder / "run.json" and RunRecord.load(folder).status == "done":
            card_at.append((folder / "README.md").read_text(encoding="utf-8"))

    monkeypatch.setattr(durable, "boundary", boundary)
    monkeypatch.setattr(frame, "plot_curves", lambda folder: None)
    assert toy.run(folder, *STEPS) == 0
    assert len(card_at) == 1 and "not evaluated" not in card_at[0]
    assert "not complete" not in card_at[0]


def test_a_checkpoint_of_the_last_step_is_made_where_there_is_none(toy, tmp_path, capsys):
    toy.evaluate = fail(RuntimeError("boom"))
    with pytest.raises(RuntimeError):
        toy.run(tmp_path / "run", *STEPS, "--save_strategy", "no")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    assert "evaluate it again with: rlhf finish" in capsys.readouterr().err


def test_no_checkpoint_is_made_of_weights_that_were_changed_since(toy, tmp_path, capsys):
    def change_and_fail(run):
        with torch.no_grad():
            toy.trainers[0].model.weight.add_(1)
        raise RuntimeError("boom")

    toy.evaluate = change_and_fail
    with pytest.raises(RuntimeError):
        toy.run(tmp_path / "run", *STEPS, "--save_strategy", "no")
    assert list((tmp_path / "run").glob("checkpoint-*")) == []
    assert "there is no checkpoint of its last step" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_that_failed_is_made_again_by_a_resume(toy, tmp_path):
    assert toy.run(tmp_path / "whole", *STEPS) == 0
    toy.evaluate = fail(UserError("no"))
    assert toy.run(tmp_path / "run", *STEPS) == 2
    weights = (tmp_path / "run" / "weights.pt").read_bytes()
    toy.evaluate = lambda run: None
    assert toy.run(tmp_path / "run", *STEPS, "--resume_from_checkpoint", "true") == 0
    record, whole = RunRecord.load(tmp_path / "run"), RunRecord.load(tmp_path / "whole")
    assert (record.status, record.error) == ("done", "") and record.metrics == whole.metrics
    assert (tmp_path / "run" / "weights.pt").read_bytes() == weights


# ---- other ends ----


def test_sys_exit_in_user_code_is_an_error(toy, tmp_path, capsys):
    toy.at = {3: lambda: sys.exit(0)}
    assert toy.run(tmp_path / "run", *STEPS) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {__file__}:") and "left by sys.exit(0)" in error
    assert RunRecord.load(tmp_path / "run").status == "failed"


def test_a_keyboard_interrupt_is_exit_code_130(toy, tmp_path, capsys):
    toy.at = {5: fail(KeyboardInterrupt())}
    assert toy.run(tmp_path / "run", *STEPS) == 130
    assert "stopped by SIGINT" in capsys.readouterr().err
    assert RunRecord.load(tmp_path / "run").status == "interrupted"


def test_the_record_names_the_error(toy, tmp_path):
    toy.at = {2: fail(ZeroDivisionError("by zero"))}
    with pytest.raises(ZeroDivisionError):
        toy.run(tmp_path / "run", *STEPS)
    record = RunRecord.load(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "ZeroDivisionError: by zero")


# ---- one process of several ----


def test_the_words_of_a_failure_are_those_that_are_printed(tmp_path):
    write_failure(tmp_path, 1, UserError("row 3 is empty"))
    write_failure(tmp_path, 2, ValueError("boom"))
    assert read_failure(tmp_path, 1) == "row 3 is empty"
    assert read_failure(tmp_path, 2) == "ValueError: boom" and read_failure(tmp_path, 0) is None
    assert first_failure(tmp_path, 0) == "process 1 failed: row 3 is empty"
    assert first_failure(tmp_path, 1) == "process 2 failed: ValueError: boom"
    forget_failures(tmp_path)
    assert first_failure(tmp_path, 0) is None and os.listdir(tmp_path) == []


def test_what_the_main_process_has_said_is_not_said_again(tmp_path):
    error = UserError("row 3 is empty")
    write_failure(tmp_path, 0, error)
    assert said_by_main(tmp_path, error, wait=0)
    assert not said_by_main(tmp_path, UserError("row 4 is empty"), wait=0)
    forget_failures(tmp_path)
    assert not said_by_main(tmp_path, error, wait=0.2)


def test_a_process_that_waits_for_a_dead_one_is_ended(tmp_path, monkeypatch):
    ended, said = threading.Event(), []
    monkeypatch.setattr(failures, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(failures, "GRACE", 0.01)
    monkeypatch.setattr(
        failures.os, "_exit", lambda code: (said.append(code), ended.set(), sys.exit())
    )
    watch_others(tmp_path, 0, said.append)
    time.sleep(0.05)
    assert said == []
    write_failure(tmp_path, 1, ValueError("boom"))
    assert ended.wait(5)
    assert said == ["process 1 failed: ValueError: boom", 1]


@pytest.mark.parametrize("error", [UserError("a bad row"), ValueError("boom")])
def test_the_main_process_that_lost_another_says_what_that_one_died_of(
    monkeypatch, tmp_path, error
):
    """Its own error is that of a connection, and says nothing."""
    run = SimpleNamespace()
    args = SimpleNamespace(world_size=2, process_index=0)
    run.args, run.folder, run.trainer = args, tmp_path, None
    write_failure(tmp_path, 1, error)
    lost = RuntimeError("Connection closed by peer")
    cause = cause_of(lost, run)
    assert str(cause) == f"process 1 failed: {failures.describe(error)}"
    # A signal of the launcher, which ends the others when one has failed, is not the cause either.
    stopped = cause_of(Interrupted(15), run)
    assert str(stopped) == f"process 1 failed: {failures.describe(error)}"


def test_an_error_is_described_by_its_type_unless_its_message_is_enough():
    assert failures.describe(ValueError("boom")) == "ValueError: boom"
    assert failures.describe(UserError("a bad row")) == "a bad row"
    assert failures.describe(Interrupted(15)) == "stopped by SIGTERM: nothing was trained"


def test_a_full_disk_names_the_way_to_continue(tmp_path):
    run = SimpleNamespace(args=SimpleNamespace(world_size=1), folder=tmp_path, trainer=None)
    run.record = SimpleNamespace(status="running")
    full = OSError(28, "No space left on device")
    again = "free some space, then start the run again with --resume_from_checkpoint auto"
    assert str(cause_of(full, run)).endswith(again)
    (tmp_path / "checkpoint-4").mkdir()
    goes_on = "then continue from checkpoint-4 with --resume_from_checkpoint true"
    assert str(cause_of(full, run)).endswith(goes_on)
    run.record.status = "trained"
    assert str(cause_of(full, run)).endswith(f"which is saved: rlhf finish {tmp_path}")


GLOO = "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:16051: Connection reset by peer"


@pytest.mark.parametrize(
    ("is_trained", "signal", "said"),
    [
        (None, 0, "another process has ended without a word: "),
        (None, 15, "stopped by SIGTERM: "),  # in preparation each ends at once
        (False, 15, "another process has ended without a word: "),  # in training all end together
        (True, 15, "stopped by SIGTERM: "),
    ],
)
def test_a_process_that_dies_without_a_word_is_said_to_have(
    monkeypatch, tmp_path, is_trained, signal, said
):
    monkeypatch.setattr(ending, "MAIN_PRINTS", 0.0)
    monkeypatch.setattr(ending.SIGNALS, "number", signal)
    record = SimpleNamespace(status="trained" if is_trained else "running")
    trainer = None if is_trained is None else "a trainer"
    args = SimpleNamespace(world_size=2, process_index=0)
    run = SimpleNamespace(args=args, folder=tmp_path, trainer=trainer, record=record)
    cause = cause_of(RuntimeError(f"{GLOO}\nC++ trace"), run)
    assert str(cause).startswith(said)
    boom = RuntimeError("boom")
    assert cause_of(boom, run) is boom


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("process 0: stopped by SIGTERM: at step 4: continue with ...", "stopped by SIGTERM: "),
        ("stopped by SIGINT: at step 4: continue with ...", "stopped by SIGINT: "),
        ("", "another process has ended without a word: "),
    ],
)
def test_a_process_that_the_main_one_left_at_a_signal_was_stopped_too(
    monkeypatch, tmp_path, error, said
):
    monkeypatch.setattr(ending, "MAIN_PRINTS", 0.0)
    monkeypatch.setattr(ending.SIGNALS, "number", 0)
    (tmp_path / "run.json").write_text(json.dumps({"status": "interrupted", "error": error}))
    args = SimpleNamespace(world_size=2, process_index=1)
    record = SimpleNamespace(status="running")
    run = SimpleNamespace(args=args, folder=tmp_path, trainer="a trainer", record=record)
    assert str(cause_of(RuntimeError(GLOO), run)).startswith(said)


def test_an_error_of_the_main_process_alone_is_that_of_all():
    assert on_main(lambda: 3) == 3
    with pytest.raises(UserError, match="no"):
        on_main(fail(UserError("no")))
