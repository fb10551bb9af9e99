"""metrics.jsonl, samples.jsonl, alarms.jsonl and run.json across kills, resumes and full disks."""

import errno
import json
import os
import subprocess
import time
from itertools import count

import pytest

from rlhf.errors import UserError
from rlhf.runs import progress
from rlhf.runs.card import write_card
from rlhf.runs.progress import append_jsonl, plot_curves
from rlhf.runs.record import RunRecord, cut_rows, read_jsonl, read_rows, resuming_command

STEPS = 12


def logged(folder) -> list[tuple]:
    """(step, name, value) of every number that is no time."""
    numbers = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        for name, value in row.items():
            if not any(part in name for part in ("runtime", "per_second")):
                numbers.append((row["step"], name, value))
    return numbers


# ---- torn lines ----


def test_a_torn_line_hides_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n{"step": 2, "lo{"step": 3}\n{"step": 4}\n{"step": 5, "text": "\xed\x95'
    )
    assert read_rows(path) == ([{"step": 1}, {"step": 4}], 2)
    assert read_jsonl(path) == [{"step": 1}, {"step": 4}]


def test_a_row_follows_a_torn_one_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    append_jsonl(path, {"step": 3})
    append_jsonl(path, {"step": 4})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n{"step": 4}\n'
    assert read_rows(path) == ([{"step": 1}, {"step": 3}, {"step": 4}], 1)


def test_other_line_breaks_are_text(tmp_path):
    path = tmp_path / "samples.jsonl"
    row = {"step": 1, "completion": "one\u2028two\x85three"}
    append_jsonl(path, row)
    assert read_rows(path) == ([row], 0)


def test_rows_are_cut_back_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 0}', '{"step": 4, "a": 1}', '{"st', '{"note": "of no step"}', '{"step": 5}']
    path.write_text("\n".join(lines) + "\n")
    assert cut_rows(path, 4) == 1
    assert path.read_text() == '{"step": 0}\n{"step": 4, "a": 1}\n{"note": "of no step"}\n'
    assert cut_rows(tmp_path / "none.jsonl", 4) == 0 and not (tmp_path / "none.jsonl").exists()


def test_rows_of_the_same_step_that_came_after_the_checkpoint_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "loss": 1}\n')
    size = path.stat().st_size
    append_jsonl(path, {"step": 4, "train_runtime": 1})
    cut_rows(path, 4, size=size)
    assert path.read_text() == '{"step": 4, "loss": 1}\n'


# ---- a run that was killed ----


class Killed(BaseException):
    """Stands for kill -9: nothing of the run is told."""


@pytest.mark.slow
def test_a_killed_run_that_goes_on_has_the_rows_of_the_uninterrupted_one(
    toy, tmp_path, monkeypatch, capsys
):
    flags = ("--max_steps", STEPS, "--eval_strategy", "steps", "--eval_steps", 4)
    assert toy.run(tmp_path / "whole", *flags) == 0
    folder = tmp_path / "run"

    def kill():
        raise Killed

    toy.at = {11: kill}
    with pytest.raises(Killed):
        toy.run(folder, *flags)
    # In the middle of a row.
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    assert [step for step, name, _ in logged(folder) if name == "loss"] == list(range(1, 11))
    capsys.readouterr()
    toy.at = {}
    assert toy.run(folder, *flags, "--resume_from_checkpoint", "true") == 0
    assert "metrics.jsonl: 1 torn line dropped" in capsys.readouterr().out
    assert read_rows(folder / "metrics.jsonl")[1] == 0
    ours, whole = logged(folder), logged(tmp_path / "whole")
    assert ours == whole


def test_rows_are_cut_only_once_the_run_is_accepted(toy, tmp_path):
    folder = tmp_path / "run"

    def kill():
        raise Killed

    toy.at = {7: kill}
    with pytest.raises(Killed):
        toy.run(folder, "--max_steps", STEPS)
    before = (folder / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 6

    def refuse(run):
        raise UserError("no")

    toy.prepare = refuse
    assert toy.run(folder, "--max_steps", STEPS, "--resume_from_checkpoint", "true") == 2
    assert (folder / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_the_record_of_a_resumed_run_keeps_what_the_first_part_knew(toy, tmp_path, terminate):
    folder = tmp_path / "run"
    toy.prepare = lambda run: run.metrics({"score_before": 1.5, "rows": 3})
    toy.at = {6: terminate}
    assert toy.run(folder, "--max_steps", STEPS) == 143
    first = json.loads((folder / "run.json").read_text())
    first |= {
        "seconds": 100.0,
        "cpu_seconds": 50.0,
        "peak_memory_gb": 9000.0,
        "started": "2026-01-01T00:00:00Z",
        "command": "first",
    }
    (folder / "run.json").write_text(json.dumps(first))
    toy.at, toy.prepare = {}, lambda run: None
    assert toy.run(folder, "--max_steps", STEPS, "--resume_from_checkpoint", "true") == 0
    record = RunRecord.load(folder)
    assert (record.status, record.error, record.steps) == ("done", "", STEPS)
    assert record.started == "2026-01-01T00:00:00Z" and record.command == "first"
    assert record.peak_memory_gb == 9000.0
    assert record.metrics["score_before"] == 1.5 and "rows" not in record.metrics
    assert [part["from_step"] for part in record.parts] == [0, 6]
    assert record.parts[0] == {
        "started": "2026-01-01T00:00:00Z", "seconds": 100.0, "command": "first", "from_step": 0
    }  # fmt: skip
    assert 100.0 < record.seconds == round(100.0 + record.parts[1]["seconds"], 1) < 200
    assert 50.0 < record.cpu_seconds < 100


@pytest.mark.slow
def test_a_run_that_is_killed_has_its_time_up_to_the_last_checkpoint(toy, tmp_path):
    seen = []

    def look():
        seen.append(RunRecord.load(tmp_path / "run"))

    toy.at = {3: look, 5: look}
    assert toy.run(tmp_path / "run", "--max_steps", 6) == 0
    assert [record.steps for record in seen] == [0, 4]
    assert seen[1].status == "running" and seen[1].peak_memory_gb > 0


def test_the_processor_time_is_that_of_the_run_alone(toy, tmp_path, monkeypatch):
    seconds = count(1000)  # a second passes with each look at the clock
    monkeypatch.setattr(time, "process_time", lambda: next(seconds))
    assert toy.run(tmp_path / "run", "--max_steps", 1) == 0
    assert 0 < RunRecord.load(tmp_path / "run").cpu_seconds < 1000


def test_the_command_that_continues(monkeypatch):
    argv = [
        "recipes/sft.py",
        "--config",
        "a b.yaml",
        "--resume_from_checkpoint",
        "x",
        "--seed",
        "1",
    ]
    monkeypatch.setattr("sys.argv", argv)
    assert resuming_command().endswith("--config 'a b.yaml' --seed 1 --resume_from_checkpoint true")
    monkeypatch.setattr("sys.argv", [argv[0], "--resume_from_checkpoint=auto"])
    assert resuming_command().endswith("recipes/sft.py --resume_from_checkpoint true")


# ---- disks ----


def test_metrics_on_a_full_disk_cost_rows_and_no_run(toy, tmp_path, monkeypatch, capsys):
    append = progress._append

    def refuse(file, content, size):
        if b'"step": 5' in content:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, content, size)

    monkeypatch.setattr(progress, "_append", refuse)
    assert toy.run(tmp_path / "run", "--max_steps", 6) == 0
    assert sorted({step for step, _, _ in logged(tmp_path / "run")}) == [1, 2, 3, 4, 6]
    assert capsys.readouterr().err.count("cannot be written (No space left on device)") == 1


class AlmostFull:
    """A file to which a disk writes five bytes."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        return self.file.write(content[:5])

    def fileno(self):
        return self.file.fileno()


def test_half_a_row_is_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with open(path, "ab", buffering=0) as file, pytest.raises(OSError) as full:
        progress._append(AlmostFull(file), b'{"step": 1}\n', 3)
    assert full.value.errno == errno.ENOSPC and path.read_text() == "{}\n"


def test_a_record_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    record = RunRecord("sft")
    record.save(tmp_path)
    before = (tmp_path / "run.json").read_text()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    record.status = "done"
    with pytest.raises(OSError):
        record.save(tmp_path)
    assert os.listdir(tmp_path) == ["run.json"] and (tmp_path / "run.json").read_text() == before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


SOME_ROOM = [pytest.param(room, marks=pytest.mark.slow) for room in range(0, 64, 8)]


@pytest.mark.parametrize("kilobytes", [20, *SOME_ROOM])
def test_a_full_disk_is_one_line(toy, small_disk, capsys, kilobytes):
    """At any moment of the run, as the disk has more room from case to case."""
    (small_disk / "filler").write_bytes(bytes(1024 * (64 - kilobytes)))
    code = toy.run(small_disk / "run", "--max_steps", STEPS, "--save_total_limit", 1)
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("error: "), error
    assert list(small_disk.rglob("*.tmp")) == []
    record = small_disk / "run" / "run.json"
    if record.exists():
        assert json.loads(record.read_text())["status"] in (
            "running",
            "failed",
            "evaluation failed",
        )


def test_curves_are_drawn_from_a_torn_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"st\n{"step": 2, "loss": 0.5}\n')
    assert plot_curves(tmp_path)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("done", ""),
        ("trained", "not evaluated: `rlhf finish`"),
        ("evaluation failed", "not evaluated: `rlhf finish`"),
        ("interrupted", "not complete: its status is `interrupted`"),
    ],
)
def test_the_card_says_what_is_missing(tmp_path, status, said):
    RunRecord("sft", status=status).save(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"st\n')
    write_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert said in card and ("finish" in card) == ("finish" in said)
    assert "Lines of metrics.jsonl that could not be read: 1." in card
