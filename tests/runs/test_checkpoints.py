"""The checkpoint that a run resumes from: whole, of the same run, and not of one that is finished."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.runs import manifest
from rlhf.runs.checkpoints import (
    best_of,
    checkpoint_to_resume,
    newest_verified,
    stop_if_finished,
)
from rlhf.runs.manifest import flaw
from rlhf.runs.output_folder import check_output_dir
from rlhf.runs.record import RunRecord
from rlhf.runs.run import start

from .conftest import DATA, FLAGS, Kill, same_weights, tiny_recipe

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
)


def arguments(folder, resume="true", **others):
    return SimpleNamespace(
        resume_from_checkpoint=resume,
        output_dir=str(folder),
        process_index=0,
        world_size=1,
        **others,
    )


def resumed_from(folder, resume="true") -> tuple[str | None, list[str]]:
    """The checkpoint that is chosen, and the lines that are printed."""
    lines: list[str] = []
    return checkpoint_to_resume(arguments(folder, resume), lines.append), lines


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The folder of a run that was killed at step 5 of 6, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("original") / "run"

    def die(trainer):
        train = trainer.training_step

        def training_step(*args, **kwargs):
            if trainer.state.global_step == 5:
                raise Kill
            return train(*args, **kwargs)

        trainer.training_step = training_step

    with pytest.raises(Kill):
        start(tiny_recipe(hook=die), "", ["--output_dir", str(folder), *FLAGS])
    set_status(folder, "running")
    return folder


def set_status(folder: Path, status: str) -> None:
    path = folder / "run.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": status}))


@pytest.fixture
def interrupted(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


# ---- the newest that is whole ------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_chosen(interrupted):
    assert set(FILES) < {path.name for path in (interrupted / "checkpoint-4").iterdir()}
    assert resumed_from(interrupted) == (str(interrupted / "checkpoint-4"), [])
    assert resumed_from(interrupted, "auto") == (str(interrupted / "checkpoint-4"), [])
    assert resumed_from(interrupted, "false") == (None, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_the_file_and_the_reason(
    interrupted, name, damage
):
    path = interrupted / "checkpoint-4" / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
        reason = f"{name} is missing"
    elif damage == "cut":
        path.write_bytes(content[:-1])
        reason = f"{name} has {len(content) - 1} bytes instead of {len(content)}"
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        reason = f"{name} has another sha256"
    chosen, lines = resumed_from(interrupted)
    assert chosen == str(interrupted / "checkpoint-2") and len(lines) == 1
    assert lines[0].startswith(f"{interrupted / 'checkpoint-4'} is passed over: {reason}")


@pytest.mark.parametrize("content", ["", "{", None, '{"step": 4, "files": {}}'])
def test_a_manifest_that_is_torn_missing_or_changed_is_seen(interrupted, content):
    path = interrupted / "checkpoint-4" / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    chosen, lines = resumed_from(interrupted)
    assert chosen == str(interrupted / "checkpoint-2")
    assert "manifest.json" in lines[0]


def test_each_part_of_a_large_file_is_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PART", 4)
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    digests = manifest.Digests(tmp_path)
    digests.begin()
    digests.sync()
    manifest.write_manifest(digests, {}, step=1, by_time=False)
    digests.close()
    entry = manifest.read_manifest(tmp_path)["files"]["weights"]
    parts = [b"0123", b"4567", b"89"]
    assert entry["sha256"] == [hashlib.sha256(part).hexdigest() for part in parts]
    assert flaw(tmp_path) == ""
    for changed in (b"x123456789", b"0123x56789", b"012345678x"):
        path.write_bytes(changed)
        assert flaw(tmp_path) == "weights has another sha256 than when it was saved"


def test_a_manifest_with_one_sha256_for_each_file_is_read(interrupted):
    folder = interrupted / "checkpoint-4"
    content = manifest.read_manifest(folder)
    del content["part_bytes"]
    for name, entry in content["files"].items():
        entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    content["sha256"] = manifest._digest(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    assert flaw(folder) == ""
    (folder / "optimizer.pt").write_bytes(bytes(content["files"]["optimizer.pt"]["size"]))
    assert flaw(folder) == "optimizer.pt has another sha256 than when it was saved"


def test_an_empty_folder_is_passed_over(interrupted):
    (interrupted / "checkpoint-99").mkdir()
    chosen, lines = resumed_from(interrupted)
    assert chosen == str(interrupted / "checkpoint-4") and "the folder is empty" in lines[0]


def test_a_path_is_refused_with_the_reason_and_the_newest_whole_one(interrupted, refused):
    (interrupted / "checkpoint-4" / "optimizer.pt").unlink()
    args = arguments(interrupted, str(interrupted / "checkpoint-4"))
    message = refused(checkpoint_to_resume, args)
    assert "optimizer.pt is missing" in message and str(interrupted / "checkpoint-2") in message
    args = arguments(interrupted, str(interrupted / "checkpoint-2"))
    assert checkpoint_to_resume(args) == str(interrupted / "checkpoint-2")
    assert "no such folder" in refused(checkpoint_to_resume, arguments(interrupted, "nothing"))
    message = refused(checkpoint_to_resume, arguments(interrupted, str(interrupted)))
    assert f"name a checkpoint in it, such as {interrupted / 'checkpoint-2'}" in message


def test_a_checkpoint_of_an_older_version_is_resumed_by_its_path_alone(interrupted, refused):
    for step in (2, 4):
        (interrupted / f"checkpoint-{step}" / "manifest.json").unlink()
    message = refused(checkpoint_to_resume, arguments(interrupted))
    assert "no checkpoint" in message and "checkpoint-2, checkpoint-4" in message
    path = str(interrupted / "checkpoint-4")
    chosen, lines = resumed_from(interrupted, path)
    assert chosen == path and "it is not verified" in lines[0]
    (interrupted / "checkpoint-4" / "rng_state.pth").unlink()
    assert "rng_state.pth is missing" in refused(checkpoint_to_resume, arguments(interrupted, path))


def test_a_damaged_best_checkpoint_is_seen_before_the_end(tmp_path, tiny, stopped):
    best = "--load_best_model_at_end true --eval_strategy steps --eval_steps 2".split()
    # The rate makes the first evaluation the best.
    folder = stopped(*best, "--learning_rate", 30)
    assert best_of(folder / "checkpoint-4") == str(folder / "checkpoint-2")
    # A folder that was moved:
    moved = folder.rename(tmp_path / "moved")
    assert best_of(moved / "checkpoint-4") == str(moved / "checkpoint-2")
    assert resumed_from(moved) == (str(moved / "checkpoint-4"), [])
    (moved / "checkpoint-2" / "model.safetensors").unlink()
    lines: list[str] = []
    assert newest_verified(moved, lines.append) is None
    assert "of its best checkpoint" in lines[0] and "model.safetensors is missing" in lines[0]


# ---- the run goes on as if it had not stopped --------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one(tiny, interrupted):
    whole = tiny(name="whole")
    resumed = tiny("--resume_from_checkpoint", "true")
    assert same_weights(whole, resumed)
    elsewhere = tiny("--resume_from_checkpoint", resumed / "checkpoint-2", name="elsewhere")
    assert same_weights(whole, elsewhere)


@pytest.mark.slow
def test_missing_random_numbers_make_no_other_run(tiny, interrupted, capsys):
    """They used to be passed over in silence, and the weights were others."""
    whole = tiny(name="whole")
    (interrupted / "checkpoint-4" / "rng_state.pth").unlink()
    resumed = tiny("--resume_from_checkpoint", "true")
    assert "checkpoint-4 is passed over: rng_state.pth is missing" in capsys.readouterr().out
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning_rate", "0.2"], "learning_rate 0.2 (was 0.1)"),
        (["--max_steps", "8"], "max_steps 8 (was 6)"),
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps 2 (was its default)"),
        (["--seed", "1"], "seed 1 (was its default)"),
    ],
)
def test_other_settings_are_refused_and_shown(failing_tiny, interrupted, flags, said):
    message = failing_tiny("--resume_from_checkpoint", "auto", *flags)
    assert said in message and "resume_changed: true" in message


def test_other_data_are_refused_and_shown(tiny, failing_tiny, interrupted, capsys):
    other = [DATA[0] | {"sha256": "cd" * 32}]
    message = failing_tiny("--resume_from_checkpoint", "true", data=other)
    assert "other data: rows.jsonl with 16 rows, sha256 cdcdcdcdcdcd (was" in message
    # The same rows in another file are the same data.
    moved = [DATA[0] | {"name": "moved.jsonl"}]
    tiny("--resume_from_checkpoint", "true", data=moved)
    assert "other data" not in capsys.readouterr().out


def test_a_difference_can_be_accepted(tiny, interrupted, capsys):
    flags = ["--resume_from_checkpoint", "true", "--resume_changed", "true"]
    tiny(*flags, "--learning_rate", "0.2", data=[])
    said = capsys.readouterr().out
    assert "resumed with other settings: learning_rate 0.2 (was 0.1)" in said
    assert "resumed with other data: nothing (was rows.jsonl" in said


def test_settings_that_compute_nothing_may_change(tiny, interrupted):
    tiny(
        *("--resume_from_checkpoint", "true", "--save_steps", "3", "--checkpoint_minutes", "5"),
        *("--logging_steps", "2", "--save_total_limit", "4"),
    )


# ---- a finished run ----------------------------------------------------------------------------------------------


def content_of(folder: Path) -> dict:
    """Every file with its time of change and size, and the folders with theirs."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("resume", ["true", "auto", "checkpoint-2"])
def test_a_finished_run_is_left_as_it_is(tiny, interrupted, capsys, resume):
    set_status(interrupted, "done")
    before = content_of(interrupted)
    if resume.startswith("checkpoint"):
        resume = str(interrupted / resume)
    with pytest.raises(SystemExit) as left:
        tiny("--resume_from_checkpoint", resume)
    assert left.value.code == 0
    assert "is finished: nothing to resume" in capsys.readouterr().out
    assert content_of(interrupted) == before


@pytest.mark.parametrize("resume", ["true", "auto"])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"max_steps": 9}, "with other settings: max_steps 9 (was 6): choose another output_dir"),
        (
            {"dataset_name": "b.jsonl"},
            "with other settings: dataset_name b.jsonl (was its default)",
        ),
        ({"recipe": "ppo"}, "of ppo, and this is tiny: choose another output_dir"),
    ],
)
def test_a_finished_run_of_other_settings_or_another_recipe_is_named(
    interrupted, resume, change, difference
):
    set_status(interrupted, "done")
    path = interrupted / "run.json"
    content = json.loads(path.read_text())
    facts = {"recipe": "tiny", "config": dict(content["config"])}
    if "recipe" in change:
        path.write_text(json.dumps(content | change))
    else:
        facts["config"] |= change
    before = content_of(interrupted)
    with pytest.raises(UserError) as refused:
        stop_if_finished(arguments(interrupted, resume), facts)
    assert f"output_dir {interrupted} holds a finished run {difference}" in str(refused.value)
    assert content_of(interrupted) == before


def test_a_finished_run_may_be_logged_in_another_way(interrupted):
    set_status(interrupted, "done")
    config = json.loads((interrupted / "run.json").read_text())["config"]
    facts = {"recipe": "tiny", "config": config | {"logging_steps": 99}}
    with pytest.raises(SystemExit):
        stop_if_finished(arguments(interrupted, "auto"), facts)


def test_without_the_key_a_finished_run_is_not_finished_again(interrupted):
    set_status(interrupted, "done")
    stop_if_finished(arguments(interrupted, None), {"recipe": "tiny", "config": {}})


# ---- a run that was killed before its first checkpoint -----------------------------------------------------------


def early(folder: Path, status: str = "running") -> Path:
    record = RunRecord.begin("tiny", config={}, seed=0)
    record.status = status
    record.save(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / ".lock").touch()
    (folder / "error-1.txt").write_text("boom")
    saving = folder / ".saving" / "checkpoint-2"
    saving.mkdir(parents=True)
    (saving / "model.safetensors").write_bytes(b"half")
    return folder


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_auto_starts_a_killed_run_again(tmp_path, refused, status):
    folder = early(tmp_path / "run", status)
    message = refused(checkpoint_to_resume, arguments(folder, "true"))
    assert "--resume_from_checkpoint auto" in message
    assert (folder / "metrics.jsonl").exists()
    chosen, lines = resumed_from(folder, "auto")
    assert chosen is None and "it starts again" in lines[0]
    assert [path.name for path in folder.iterdir()] == [".lock"]
    check_output_dir(str(folder), None)


def test_auto_starts_where_nothing_is(tmp_path):
    assert resumed_from(tmp_path / "new", "auto") == (None, [])
    (tmp_path / "run").mkdir()
    assert resumed_from(tmp_path / "run", "auto") == (None, [])


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "trained", "done"])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_no_folder_with_weights_counts_as_empty(tmp_path, refused, status, resume):
    folder = early(tmp_path / "run", status)
    (folder / "model.safetensors").write_bytes(b"weights")
    chosen, _ = resumed_from(folder, resume)
    assert "already holds a run" in refused(check_output_dir, str(folder), chosen)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "run.json"} <= names


def test_a_killed_run_names_auto(tmp_path, refused):
    message = refused(check_output_dir, str(early(tmp_path / "run")), None)
    assert "--resume_from_checkpoint auto" in message


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, refused):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    chosen, _ = resumed_from(tmp_path, "auto")
    assert "already holds" in refused(check_output_dir, str(tmp_path), chosen)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["README.md", "metrics.jsonl", "samples.jsonl"])
def test_a_file_of_a_run_alone_is_somebody_elses(tmp_path, refused, name):
    """A run writes its record first, so a folder without one is of no run."""
    (tmp_path / name).write_text("mine")
    chosen, lines = resumed_from(tmp_path, "auto")
    assert "already holds" in refused(check_output_dir, str(tmp_path), chosen)
    assert (tmp_path / name).read_text() == "mine" and lines == []


def test_auto_starts_again_over_events_of_tensorboard_and_a_half_saved_model(tmp_path, refused):
    folder = early(tmp_path / "run")
    (folder / ".replacement").mkdir()
    (folder / ".replacement" / "model.safetensors").write_bytes(b"half")
    events = folder / "runs" / "Jan01" / "events.out.tfevents.1.host.2.0"
    events.parent.mkdir(parents=True)
    events.touch()
    chosen, lines = resumed_from(folder, "auto")
    assert chosen is None and "it starts again" in lines[0]
    assert [path.name for path in folder.iterdir()] == [".lock"]
    # Runs of somebody else in a folder of this name stay.
    folder = early(tmp_path / "second")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "model.safetensors").touch()
    chosen, _ = resumed_from(folder, "auto")
    assert "already holds" in refused(check_output_dir, str(folder), chosen)
    assert (folder / "runs" / "first" / "model.safetensors").exists()


def test_the_best_checkpoint_of_a_copied_run_is_that_of_the_copy(tmp_path, stopped):
    best = "--load_best_model_at_end true --eval_strategy steps --eval_steps 2".split()
    folder = stopped(*best, "--learning_rate", 30)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert best_of(copy / "checkpoint-4") == str(copy / "checkpoint-2")
    # One from which a run goes on in another folder stays where it is.
    (tmp_path / "other").mkdir()
    shutil.copytree(folder / "checkpoint-4", tmp_path / "other" / "checkpoint-4")
    assert best_of(tmp_path / "other" / "checkpoint-4") == str(folder / "checkpoint-2")


@pytest.mark.parametrize("change", [{"files": []}, {"config": None}])
def test_a_manifest_of_another_shape_is_passed_over(interrupted, change):
    path = interrupted / "checkpoint-4" / "manifest.json"
    content = json.loads(path.read_text()) | change
    content["sha256"] = manifest._digest(content)
    path.write_text(json.dumps(content))
    chosen, lines = resumed_from(interrupted)
    assert chosen == str(interrupted / "checkpoint-2") and "another version" in lines[0]


def test_a_restart_of_torchrun_means_auto(interrupted, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resumed_from(interrupted, None)[0] == str(interrupted / "checkpoint-4")
    assert resumed_from(tmp_path / "new", None)[0] is None
    # The run began from a checkpoint of another folder, and was killed before its own first.
    path = str(interrupted / "checkpoint-2")
    assert resumed_from(early(tmp_path / "second"), path)[0] == path
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert resumed_from(interrupted, None)[0] is None


def test_a_checkpoint_of_another_recipe_is_refused(failing_tiny, interrupted):
    path = interrupted / "checkpoint-4"
    said = failing_tiny("--resume_from_checkpoint", path, name="other", recipe="ppo")
    assert "is of a run of tiny, and this is ppo" in said


# ---- several machines --------------------------------------------------------------------------------------------


def test_a_whole_checkpoint_has_no_flaw(interrupted):
    assert flaw(interrupted / "checkpoint-4") == ""
    assert flaw(interrupted / "no-folder") == "no such folder"
