"""What a run does with an output folder that it must not touch: finished, in use, a file, or not writable."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ("sft", "reward", "classification", "pretrain-causal", "ppo-ema")


@pytest.mark.parametrize(
    "name", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES[1:])]
)
def test_a_finished_run_stays_as_it_is(runs, snapshot, capfd, name):
    folder = runs.reference(name)
    before = snapshot(folder)
    for setting in ("auto", "true"):
        capfd.readouterr()
        runs.start(name, folder, "--resume_from_checkpoint", setting)
        said = capfd.readouterr().out
        assert "finished" in said or "done" in said
        after = snapshot(folder)
        changed = [
            file for file in before.keys() | after.keys() if before.get(file) != after.get(file)
        ]
        assert changed in ([], [".lock"])


def test_an_output_path_that_is_a_file_is_refused(end_of, tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    code, said = end_of("sft", path)
    assert code == 2 and "is a file" in said and "Traceback" not in said
    assert path.read_text() == "mine"


def recipe_process(runs, name: str, folder: Path) -> subprocess.Popen:
    """A recipe that was started as a user starts it."""
    from benchmarks.crash.cases import CASES as COMMANDS

    case = COMMANDS[name]
    command = [sys.executable, f"recipes/{case.recipe}.py", *case.command(runs.data, folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


@pytest.mark.slow
def test_of_two_launches_on_one_folder_one_trains(runs, tmp_path):
    runs.reference("sft")
    folder = tmp_path / "run"
    first = recipe_process(runs, "sft", folder)
    while not (folder / "run.json").exists() and first.poll() is None:
        time.sleep(0.01)
    second = recipe_process(runs, "sft", folder)
    refused, _ = second.communicate(timeout=120)
    trained, _ = first.communicate(timeout=120)
    assert first.returncode == 0, trained
    assert second.returncode == 2 and "Traceback" not in refused, refused
    runs.check_equal("sft", folder)


@pytest.mark.slow
def test_of_two_launches_at_the_same_moment_one_trains(runs, tmp_path):
    runs.reference("sft")
    folder = tmp_path / "run"
    processes = [recipe_process(runs, "sft", folder) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], said
    assert "Traceback" not in "".join(said)
    runs.check_equal("sft", folder)
