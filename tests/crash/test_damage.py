"""The newest checkpoint is damaged: the run says which file and why, and goes on from the one before."""

import shutil
from pathlib import Path

import pytest

# One of each class of trainer.
CASES = ("sft", "reward", "classification", "pretrain-causal", "ppo-ema")
AUTO = ("--resume_from_checkpoint", "auto")
NEWEST, OLDER = "checkpoint-8", "checkpoint-4"


def largest_file(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_size, path.name))


def truncate(folder: Path) -> str:
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-10])
    return path.name


def flip_a_byte(folder: Path) -> str:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def empty(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "manifest.json"


def tear_the_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    return path.name


DAMAGES = (truncate, flip_a_byte, empty, tear_the_manifest)


def check_falls_back(runs, capfd, name: str, folder: Path, damaged_file: str) -> None:
    """Resume, and fail unless the older checkpoint was taken, with a line that names the damaged file, to the same end."""
    capfd.readouterr()
    runs.start(name, folder, *AUTO)
    said = capfd.readouterr().out
    lines = [line for line in said.splitlines() if f"{NEWEST}" in line and damaged_file in line]
    assert lines, f"no line names {NEWEST} and {damaged_file}:\n{said[-2000:]}"
    runs.check_equal(name, folder)


@pytest.mark.parametrize("damage", [flip_a_byte])
def test_a_damaged_newest_checkpoint_is_passed_over(runs, capfd, tmp_path, damage):
    folder = runs.copy_of_crashed("sft", tmp_path)
    check_falls_back(runs, capfd, "sft", folder, damage(folder / NEWEST))


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", CASES)
def test_every_trainer_passes_over_a_damaged_newest_checkpoint(runs, capfd, tmp_path, name, damage):
    folder = runs.copy_of_crashed(name, tmp_path)
    check_falls_back(runs, capfd, name, folder, damage(folder / NEWEST))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_file_of_a_checkpoint_is_missed(runs, capfd, tmp_path, name):
    crashed = runs.crashed(name)
    names = [path.relative_to(crashed / NEWEST) for path in (crashed / NEWEST).rglob("*")]
    files = [name for name in names if (crashed / NEWEST / name).is_file()]
    assert (
        len(files) >= 6
    )  # weights, optimizer, scheduler, random state, state of the trainer, manifest
    for i, file in enumerate(sorted(files)):
        folder = runs.copy_of_crashed(name, tmp_path / str(i))
        (folder / NEWEST / file).unlink()
        check_falls_back(runs, capfd, name, folder, file.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_where_no_checkpoint_is_whole_true_refuses_and_says_why(end_of, runs, tmp_path, name):
    folder = runs.copy_of_crashed(name, tmp_path)
    damaged = {step: truncate(folder / step) for step in (NEWEST, OLDER)}
    code, said = end_of(name, folder, "--resume_from_checkpoint", "true")
    assert code == 2 and "auto" in said
    for step, file in damaged.items():
        assert any(step in line and file in line for line in said.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_checkpoint_is_refused_by_its_path(end_of, runs, tmp_path, name):
    folder = runs.copy_of_crashed(name, tmp_path)
    file = flip_a_byte(folder / NEWEST)
    code, said = end_of(name, folder, "--resume_from_checkpoint", str(folder / NEWEST))
    assert code == 2 and file in said and OLDER in said
