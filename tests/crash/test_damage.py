"""The newest checkpoint is damaged: the run says which file and why, and goes on from the one before."""

import shutil
from pathlib import Path

import pytest

# One of each class of trainer.
CASES = ("sft", "reward", "classification", "pretrain-causal", "ppo-ema")
AUTO = ("--resume_from_checkpoint", "auto")


def checkpoints(folder: Path) -> list[Path]:
    """The two checkpoints of a crashed run, the newest first."""
    paths = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]), reverse=True)
    assert len(paths) == 2
    return paths


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
    return "empty"


def tear_the_manifest(folder: Path) -> str:
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    return path.name


DAMAGES = (truncate, flip_a_byte, empty, tear_the_manifest)


def check_falls_back(said: str, checkpoint: Path, file: str) -> None:
    """Fail unless one line names the checkpoint that was passed over and the file that is damaged."""
    lines = [line for line in said.splitlines() if checkpoint.name in line and file in line]
    assert lines, f"no line names {checkpoint.name} and {file}:\n{said[-2000:]}"


@pytest.mark.parametrize(
    "damage",
    [*(pytest.param(damage, marks=pytest.mark.slow) for damage in DAMAGES[:2]), *DAMAGES[2:]],
)
@pytest.mark.parametrize(
    "name", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES[1:])]
)
def test_a_damaged_newest_checkpoint_is_passed_over(runs, capfd, tmp_path, name, damage):
    folder = runs.copy_of_crashed(name, tmp_path)
    newest, _ = checkpoints(folder)
    file = damage(newest)
    if damage is not flip_a_byte:
        runs.crash(name, folder, 0, *AUTO)  # ended before its first step
    else:
        runs.start(name, folder, *AUTO)
        runs.check_equal(name, folder)
    check_falls_back(capfd.readouterr().out, newest, file)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_file_of_a_checkpoint_is_missed(runs, capfd, tmp_path, name):
    newest, _ = checkpoints(runs.crashed(name))
    paths = [path for path in newest.rglob("*") if path.is_file()]
    # At least weights, optimizer, scheduler, random state, state of the trainer, manifest.
    assert len(paths) >= 6
    for i, path in enumerate(sorted(paths)):
        folder = runs.copy_of_crashed(name, tmp_path / str(i))
        (folder / newest.name / path.relative_to(newest)).unlink()
        runs.crash(name, folder, 0, *AUTO)
        check_falls_back(capfd.readouterr().out, newest, path.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_where_no_checkpoint_is_whole_the_run_refuses_and_says_why(end_of, runs, tmp_path, name):
    folder = runs.copy_of_crashed(name, tmp_path)
    damaged = {checkpoint: truncate(checkpoint) for checkpoint in checkpoints(folder)}
    for setting in ("true", "auto"):
        code, said = end_of(name, folder, "--resume_from_checkpoint", setting)
        assert code == 2 and "output_dir" in said
        for checkpoint, file in damaged.items():
            check_falls_back(said, checkpoint, file)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_checkpoint_is_refused_by_its_path(end_of, runs, tmp_path, name):
    folder = runs.copy_of_crashed(name, tmp_path)
    newest, older = checkpoints(folder)
    file = flip_a_byte(newest)
    code, said = end_of(name, folder, "--resume_from_checkpoint", str(newest))
    assert code == 2 and file in said and older.name in said
