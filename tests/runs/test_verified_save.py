"""Checkpoints are whole or not there, whatever the moment of a kill."""

import json
import os
from pathlib import Path

import pytest
from transformers import TrainingArguments

from rlhf.errors import UserError
from rlhf.runs import durable
from rlhf.runs.manifest import flaw, read_manifest
from rlhf.runs.verified_save import checkpoints_of, recover, rotate

from .conftest import DATA, FLAGS, STEPS, make_trainer, same_weights

LAST_BOUNDARY = 60  # no save has more


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints_of(folder)]


def boundaries_of_a_run(tiny, monkeypatch) -> int:
    passed = []
    with monkeypatch.context() as patch:
        patch.setattr(durable, "boundary", passed.append)
        tiny(name="counted")
    return len(passed)


def check_kill(tiny, killed, whole, at: int) -> None:
    """Killed at a boundary, what is there is whole, and the resumed run equals the uninterrupted one."""
    folder = killed("--save_total_limit", 2, at=at, name=f"killed-{at}")
    for checkpoint in checkpoints_of(folder):
        assert flaw(checkpoint) == "", (at, checkpoint)
    resumed = tiny("--save_total_limit", 2, "--resume_from_checkpoint", "auto", name=f"killed-{at}")
    assert same_weights(whole, resumed), at
    assert names(resumed)[-2:] == ["checkpoint-4", "checkpoint-6"]
    assert not (resumed / ".saving").exists()


@pytest.fixture
def whole(tiny):
    return tiny("--save_total_limit", 2, name="whole")


def test_a_kill_between_any_two_files_of_a_save_loses_nothing(tiny, killed, whole, monkeypatch):
    """A sample of the boundaries; all of them in the slow test."""
    total = boundaries_of_a_run(tiny, monkeypatch)
    assert 3 * 8 < total < LAST_BOUNDARY  # three checkpoints
    for at in range(total // 3 + 4, total, 12):
        check_kill(tiny, killed, whole, at)


@pytest.mark.slow
def test_a_kill_at_every_file_boundary_loses_nothing(tiny, killed, whole, monkeypatch):
    for at in range(1, boundaries_of_a_run(tiny, monkeypatch) + 1):
        check_kill(tiny, killed, whole, at)


def test_the_manifest_names_every_file_and_the_run(tiny, whole):
    manifest = read_manifest(whole / "checkpoint-6")
    files = {path.name for path in (whole / "checkpoint-6").iterdir()}
    assert files == {*manifest["files"], "manifest.json"}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < files
    assert (manifest["step"], manifest["processes"], manifest["recipe"]) == (STEPS, 1, "tiny")
    assert manifest["data"] == DATA and manifest["config"]["save_steps"] == 2
    size = os.path.getsize(whole / "checkpoint-6" / "optimizer.pt")
    assert manifest["files"]["optimizer.pt"]["size"] == size


def trained(folder, *flags):
    """A run of the trainer without a recipe around it."""
    values = dict(zip([flag[2:] for flag in FLAGS[::2]], FLAGS[1::2], strict=True))
    whole_numbers = ("max_steps", "logging_steps", "per_device_train_batch_size", "save_steps")
    values |= {name: int(values[name]) for name in whole_numbers}
    values |= {"learning_rate": 0.1, "use_cpu": True, "disable_tqdm": True} | dict(flags)
    trainer = make_trainer(TrainingArguments(output_dir=str(folder), **values))
    trainer.train()
    return trainer


def test_the_best_checkpoint_is_named_by_its_last_path(tmp_path):
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "save_total_limit": 2,
    }
    trainer = trained(tmp_path / "run", *best.items())
    step = trainer.state.best_global_step
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{step}")
    state = json.loads((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    assert all(flaw(path) == "" for path in checkpoints_of(tmp_path / "run"))


def make_checkpoints(root: Path, *steps: int, by_time: tuple[int, ...] = ()) -> None:
    for step in steps:
        folder = root / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"by_time": step in by_time}))


@pytest.mark.parametrize(
    ("limit", "current", "best", "kept"),
    [
        (1, 8, None, [8]),
        (2, 8, 2, [2, 8]),
        (1, 8, 2, [2, 8]),  # two that must stay
        (3, 8, None, [4, 6, 8]),
        # Resumed from 4: those after 6 will be made again.
        (2, 6, None, [4, 6]),
        (None, 8, None, [2, 4, 6, 8]),
    ],
)
def test_the_current_and_the_best_checkpoint_stay(tmp_path, limit, current, best, kept):
    make_checkpoints(tmp_path, 2, 4, 6, 8)
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    rotate(tmp_path, current=tmp_path / f"checkpoint-{current}", best=best, limit=limit)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_of_checkpoints_by_time_two_stay(tmp_path):
    make_checkpoints(tmp_path, 10, 20, 33, 40, 57, 68, by_time=(20, 33, 57, 68))
    rotate(tmp_path, current=tmp_path / "checkpoint-68", best=None, limit=None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-40", "checkpoint-57", "checkpoint-68"]


def test_a_checkpoint_that_is_replaced_is_there_all_the_time(tiny, killed, whole):
    """Resumed from checkpoint-2, the run saves 4 and 6 again."""
    before = whole / "checkpoint-6" / "manifest.json"
    assert before.exists()
    state = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps(state | {"status": "running"}))
    passed = []

    def check(path):
        passed.append(path)
        present = list(whole.glob("checkpoint-6")) + list((whole / ".saving").glob("*checkpoint-6"))
        assert any(flaw(path) == "" for path in present)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "boundary", check)
        tiny(
            *("--save_total_limit", 2),
            *("--resume_from_checkpoint", whole / "checkpoint-4"),
            name="whole",
        )
    assert passed and names(whole) == ["checkpoint-4", "checkpoint-6"]


def test_what_a_killed_save_has_left_is_removed_or_renamed(tiny, tmp_path, whole):
    saving = whole / ".saving"
    saving.mkdir()
    (whole / "checkpoint-6").rename(saving / "checkpoint-6")  # whole, and not renamed yet
    (saving / "checkpoint-8").mkdir()
    (saving / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    (saving / "old-checkpoint-2").mkdir()
    recover(whole)
    assert names(whole) == ["checkpoint-4", "checkpoint-6"] and not saving.exists()
    (whole / "checkpoint-4").rename(saving.parent / "moved")
    saving.mkdir()
    (whole / "moved").rename(saving / "replaced-checkpoint-4")
    recover(whole)
    assert names(whole) == ["checkpoint-4", "checkpoint-6"]


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        pytest.param(
            RuntimeError("PytorchStreamWriter failed writing file data/0"), marks=pytest.mark.slow
        ),
        pytest.param(ValueError("No space left (os error 28)"), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays(
    tiny, failing_tiny, whole, monkeypatch, error, tmp_path
):
    def fill(path):
        if "checkpoint-4" in str(path):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(durable, "boundary", fill)
        said = failing_tiny("--save_total_limit", 2, name="full")
    assert "the disk is full or takes no writes, and checkpoint-4 was not saved" in said
    assert "continue from checkpoint-2 with --resume_from_checkpoint true" in said
    folder = tmp_path / "full"
    assert names(folder) == ["checkpoint-2"] and not (folder / ".saving").exists()
    tiny("--save_total_limit", 2, "--resume_from_checkpoint", "true", name="full")
    assert same_weights(whole, folder)


def test_another_error_of_a_save_is_not_hidden(tmp_path, monkeypatch):
    def broken(path):
        raise KeyError("a bug")

    monkeypatch.setattr(durable, "boundary", broken)
    with pytest.raises(KeyError, match="a bug"):
        trained(tmp_path / "run")
    assert names(tmp_path / "run") == []


def test_user_errors_pass(tmp_path, monkeypatch):
    def refuse(path):
        raise UserError("not so")

    monkeypatch.setattr(durable, "boundary", refuse)
    with pytest.raises(UserError, match="not so"):
        trained(tmp_path / "run")
