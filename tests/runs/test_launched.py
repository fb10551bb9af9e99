"""Signals and errors under real launchers: no orphan, one cause, a record that tells it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf.runs.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ROOT / "recipes" / "accelerate"
# A slow recipe of 1000 steps: at step 3 it tells so by a file.
SCRIPT = """
import os, pathlib, sys, time
sys.path.insert(0, {root!r})
from tests.runs.toy_recipe import At, ToyRecipe
from rlhf.errors import UserError

folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ.get("RANK", 0))
toy = ToyRecipe()

def third_step():
    (folder.parent / f"step-3-{{rank}}").touch()
    if kind == "raises" and rank == 1:
        raise ValueError("boom")
    if kind == "user error" and rank == 1:
        raise UserError("a bad row")
    if kind == "user error of all":
        raise UserError("a bad row")
    if kind == "sys.exit" and rank == 1:
        sys.exit(0)
    if kind == "os._exit" and rank == 1:
        os._exit(0)

def evaluate(run):
    (folder.parent / f"evaluation-{{rank}}").touch()
    if kind == "evaluation raises" and rank == 1:
        raise ValueError("boom")
    if kind == "evaluation sleeps" and rank == 0:
        for _ in range(600):
            time.sleep(0.1)

steps = 1000
if kind.startswith("evaluation"):
    steps = 6
toy.evaluate = evaluate
toy.at = {{3: third_step, **{{step: lambda: time.sleep(0.05) for step in range(4, 1000)}}}}
sys.exit(toy.run(folder, "--max_steps", steps, "--save_steps", 10000, *sys.argv[3:]))
"""


class Launched:
    """A run under a launcher, in a session of its own."""

    def __init__(self, folder: Path, command: list[str]):
        self.folder = folder
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with open(folder / "out.txt", "w") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        self.children: list[psutil.Process] = []

    def wait_for(self, pattern: str) -> None:
        """Wait for a file, and note the processes that run by then."""
        end = time.monotonic() + 120
        while not list(self.folder.glob(pattern)):
            assert self.process.poll() is None and time.monotonic() < end, self.output()
            time.sleep(0.1)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def output(self) -> str:
        return (self.folder / "out.txt").read_text()

    def wait(self) -> int:
        return self.process.wait(60)

    def children_end(self) -> bool:
        _, alive = psutil.wait_procs(self.children, timeout=60)
        return not alive

    def kill(self) -> None:
        for process in [self.process, *self.children]:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        self.process.wait()


@pytest.fixture
def launched(tmp_path):
    runs = []

    def launched(launcher: str, kind: str = "", *flags) -> Launched:
        script = tmp_path / "toy_recipe.py"
        script.write_text(SCRIPT.format(root=str(ROOT)))
        programs = Path(sys.executable).parent
        start = {
            "python": [sys.executable],
            "accelerate": [programs / "accelerate", "launch", "--config_file", LAYOUTS / "one_process.yaml"],
            "two": [programs / "accelerate", "launch", "--config_file", LAYOUTS / "ddp_cpu.yaml"],
            "torchrun": [programs / "torchrun", "--standalone", "--nproc_per_node", "2"],
        }[launcher]  # fmt: skip
        command = [*start, script, tmp_path / "run", kind, *flags]
        runs.append(Launched(tmp_path, [str(part) for part in command]))
        return runs[-1]

    yield launched
    for run in runs:
        run.kill()


def check_interrupted(run: Launched) -> None:
    """A checkpoint of the step at which the run stopped, one line that says so, and a record."""
    record = RunRecord.load(run.folder / "run")
    assert record.status == "interrupted" and record.steps >= 3, run.output()
    assert (run.folder / "run" / f"checkpoint-{record.steps}" / "trainer_state.json").is_file()
    said = re.findall(r"^stopped by (SIG\w+): at step (\d+): continue with", run.output(), re.M)
    assert len(said) == 1 and int(said[0][1]) == record.steps, run.output()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_ends_with_the_code_of_its_signal(launched, number, code):
    run = launched("python")
    run.wait_for("step-3-0")
    run.process.send_signal(number)
    assert run.wait() == code
    check_interrupted(run)


@pytest.mark.slow
def test_a_signal_to_the_workers_of_the_data_loader_too(launched):
    """Ctrl+C reaches all of them. The step still needs their rows."""
    run = launched("python", "", "--dataloader_num_workers", "2")
    run.wait_for("step-3-0")
    assert len(run.children) >= 2
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 130
    assert run.children_end()
    check_interrupted(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "to"),
    [
        ("accelerate", signal.SIGTERM, "launcher"),
        ("accelerate", signal.SIGTERM, "group"),
        ("accelerate", signal.SIGINT, "group"),  # Ctrl+C
        ("accelerate", signal.SIGKILL, "launcher"),
        ("two", signal.SIGTERM, "launcher"),
        ("two", signal.SIGKILL, "launcher"),
        ("torchrun", signal.SIGTERM, "group"),
        ("torchrun", signal.SIGINT, "launcher"),
    ],
)
def test_launcher_and_children_end_together(launched, launcher, number, to):
    """A kill of the launcher alone leaves the others time for their checkpoint."""
    run = launched(launcher)
    for rank in range(1 if launcher == "accelerate" else 2):
        run.wait_for(f"step-3-{rank}")
    assert run.children
    if to == "launcher":
        run.process.send_signal(number)
    else:
        os.killpg(run.process.pid, number)
    assert run.wait() != 0
    assert run.children_end(), run.output()
    check_interrupted(run)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["two", "torchrun"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raises", "error in process 1: ValueError: boom"),
        ("user error", "error in process 1: a bad row"),
        ("sys.exit", "was left by sys.exit(0)"),
    ],
)
def test_the_error_of_one_process_is_seen_and_ends_all(launched, launcher, kind, said):
    run = launched(launcher, kind)
    run.wait_for("step-3-1")
    started = time.monotonic()
    assert run.wait() != 0 and run.children_end()
    assert time.monotonic() - started < 30
    output = run.output()
    assert output.count(said) >= 1, output
    own_traceback = "ValueError: boom\n" in output
    assert own_traceback == (kind == "raises")
    assert "Connection closed by peer" not in output and "Gloo" not in output, output
    record = RunRecord.load(run.folder / "run")
    assert record.status == "failed"
    assert record.error.startswith("process 1 failed: ")


@pytest.mark.slow
def test_the_same_error_of_all_processes_is_one_line(launched):
    run = launched("two", "user error of all")
    run.wait_for("step-3-0")
    assert run.wait() != 0 and run.children_end()
    assert run.output().count("a bad row") == 1, run.output()
    assert RunRecord.load(run.folder / "run").error == "process 0: a bad row"


@pytest.mark.slow
def test_an_error_of_another_process_after_the_training_is_recorded(launched):
    """The main process is not done while another may fail."""
    run = launched("two", "evaluation raises")
    run.wait_for("evaluation-1")
    assert run.wait() != 0 and run.children_end()
    record = RunRecord.load(run.folder / "run")
    assert record.status == "evaluation failed", run.output()
    assert record.error == "process 1 failed: ValueError: boom"
    assert "Gloo" not in run.output() and "rlhf finish" in run.output()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["group", "launcher", "main"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_evaluation_of_the_main_process_ends_all(launched, number, to):
    """The others wait for it, and end at once too, without an error of their own."""
    run = launched("two", "evaluation sleeps")
    run.wait_for("evaluation-0")
    run.wait_for("evaluation-1")
    time.sleep(0.5)
    sent = time.monotonic()
    if to == "group":
        os.killpg(run.process.pid, number)
    elif to == "launcher":
        run.process.send_signal(number)
    else:
        main = [child for child in run.children if child.environ().get("RANK") == "0"]
        main[0].send_signal(number)
    assert run.wait() != 0 and run.children_end()
    assert time.monotonic() - sent < 15
    output = run.output()
    assert output.count(f"stopped by {number.name}: the model is trained") == 1, output
    assert "closed by peer" not in output and "reset by peer" not in output, output
    record = RunRecord.load(run.folder / "run")
    assert record.status == "trained" and record.error.startswith("process 0: stopped by")


@pytest.mark.slow
def test_a_process_that_leaves_without_a_word_is_said_to_have(launched):
    run = launched("two", "os._exit")
    run.wait_for("step-3-1")
    assert run.wait() != 0 and run.children_end()
    assert "error: another process has ended without a word" in run.output()
    record = RunRecord.load(run.folder / "run")
    assert record.status == "failed" and "without a word" in record.error
