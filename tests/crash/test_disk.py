"""A full disk and one that cannot be written: one clear line, nothing corrupt, and the run goes on once there is room."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.crash.part import holders
from rlhf.runs import durable
from rlhf.runs.record import RunRecord

SIZE_MB = 24
AUTO = ("--resume_from_checkpoint", "auto")
CHECKPOINTS = ("--save_total_limit", "5")


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Write a file until the disk is full."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def replace_boundary(monkeypatch, boundary) -> None:
    """Let every module that marks file boundaries call another function."""
    for module in holders(durable.boundary):
        monkeypatch.setattr(module, "boundary", boundary)


def fill_at_boundary(monkeypatch, disk: Path, number: int) -> None:
    """Fill the disk at a file boundary of a save, counted from 1."""
    passed = []

    def boundary(path) -> None:
        passed.append(path)
        if len(passed) == number:
            fill(disk)

    replace_boundary(monkeypatch, boundary)


def boundaries_of(runs, name: str, folder: Path) -> list[str]:
    """The names of the files at the boundaries of a whole run, in their order."""
    names = []
    with pytest.MonkeyPatch.context() as patch:
        replace_boundary(patch, lambda path: names.append(str(path)))
        runs.start(name, folder, *CHECKPOINTS)
    return names


def check_goes_on(runs, name: str, disk: Path, folder: Path) -> None:
    """Make room, resume, and fail unless the end is that of the reference."""
    (disk / "filler").unlink()
    runs.start(name, folder, *AUTO, *CHECKPOINTS)
    runs.check_equal(name, folder)


def check_records(folder: Path) -> None:
    """Fail unless the record can be read, says that the run did not end, and no temporary file is left."""
    record = RunRecord.load(folder)
    assert record.status in ("failed", "running", "trained")  # no room for a later status
    check_no_rest(folder)


def check_no_rest(folder: Path) -> None:
    """Fail if a temporary file is left."""
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "ppo-ema"])
def test_a_disk_that_is_full_at_any_boundary_loses_nothing(
    runs, end_of, verified, disk, monkeypatch, tmp_path, name
):
    passed = boundaries_of(runs, name, tmp_path / "whole")
    numbers = sorted({1, len(passed) // 4, len(passed) // 2, 3 * len(passed) // 4})
    for number in numbers:
        folder = disk / f"run-{number}"
        with monkeypatch.context() as patch:
            fill_at_boundary(patch, disk, number)
            code, said = end_of(name, folder, *CHECKPOINTS)
        assert code in (1, 2) and ("No space left" in said or "the disk is full" in said), said[
            -2000:
        ]
        assert "Traceback" not in said, said[-3000:]
        if number == 1:  # the first write of all is that of the record
            assert not list(folder.glob("*.json")) and not list(folder.glob("checkpoint-*"))
            check_no_rest(folder)
        else:
            check_records(folder)
        for checkpoint in folder.glob("checkpoint-*"):
            verified(checkpoint)
        check_goes_on(runs, name, disk, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "classification", "ppo-ema"])
def test_a_disk_that_is_full_at_a_log_leaves_whole_lines(runs, end_of, disk, monkeypatch, name):
    from rlhf.runs.progress import RunProgress

    folder = disk / "run"
    log = RunProgress.on_log

    def full_from_step_six(self, args, state, control, **options):
        if state.global_step >= 6:  # PPO logs at the end of a rollout only
            fill(disk)
        return log(self, args, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "on_log", full_from_step_six)
        code, said = end_of(name, folder, *CHECKPOINTS)
    assert code in (1, 2) and "No space left" in said and "Traceback" not in said, said[-3000:]
    check_records(folder)
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(row) for row in rows[:-1])
    check_goes_on(runs, name, disk, folder)


def test_an_output_folder_that_cannot_be_written_is_refused(end_of, disk):
    remount = ["mount", "-o", "remount,ro", str(disk)]
    subprocess.run(remount, check=True)
    code, said = end_of("sft", disk / "run")
    assert code == 2 and "Traceback" not in said
    assert "output_dir" in said and "ead-only" in said
    assert os.listdir(disk) == []
