"""SIGTERM and SIGINT, sent to real processes in each phase: the exit code, the line, the checkpoint, and no orphan."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf.runs.signals import SAME_SIGNAL

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("paused.py")
AUTO = ("--resume_from_checkpoint", "auto")
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
PHASES = ("data", "step", "evaluation", "save", "after")
# The case that runs where a phase needs it; "rollout" is of PPO alone.
PLACES = [("sft", phase) for phase in PHASES] + [("ppo", "rollout"), ("ppo", "step")]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
ACCELERATE += ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")]
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate": ACCELERATE}


class Paused:
    """A recipe that waits in a phase, started with or without a launcher."""

    def __init__(self, runs, name: str, phase: str, folder: Path, launcher=()):
        from benchmarks.crash.cases import CASES

        case = CASES[name]
        runs.write_inputs(case)
        self.file = folder.with_name(f"{folder.name}.pause")
        command = [sys.executable, *launcher, str(SCRIPT), case.recipe]
        command += case.command(runs.data, folder)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PAUSE_AT": phase,
            "PAUSE_FILE": str(self.file),
        }
        self.log = folder.with_name(f"{folder.name}.log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.wait_until(self.file.exists)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def wait_until(self, is_so, seconds: float = 120) -> None:
        """Wait for the pause. Fails where the process ends before it, or takes too long."""
        end = time.monotonic() + seconds
        while not is_so():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)

    def send(self, number: int, *, then_go_on: bool = True) -> None:
        """Send the signal to the process or launcher, and let the recipe go on."""
        self.process.send_signal(number)
        time.sleep(0.3)
        if then_go_on:
            self.file.unlink()

    def end(self, seconds: float = 60) -> int:
        """The exit code. Fails where the process, or one that it started, lives on."""
        code = self.process.wait(timeout=seconds)
        _, alive = psutil.wait_procs(self.family, timeout=seconds)
        for orphan in alive:
            orphan.kill()
        assert not alive, f"orphans: {alive}\n{self.said()}"
        return code

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End whatever is left."""
        for process in [*self.family, self.process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@pytest.fixture
def paused(runs):
    """f(case, phase, folder, launcher) -> Paused, which is ended after the test."""
    started = []

    def paused(*args, **options):
        started.append(Paused(runs, *args, **options))
        return started[-1]

    yield paused
    for each in started:
        each.kill()


def check_stopped(runs, verified, name: str, phase: str, folder: Path, said: str) -> None:
    """Fail unless the run says how to continue, its checkpoints are whole, and it ends as the reference does."""
    assert "Traceback" not in said, said[-3000:]
    if phase == "data":
        assert "nothing was trained" in said
    elif phase == "after":
        assert "rlhf finish" in said
        assert json.loads((folder / "run.json").read_text())["status"] == "trained"
    else:
        assert "--resume_from_checkpoint" in said
        assert list(folder.glob("checkpoint-*"))
        assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    for checkpoint in folder.glob("checkpoint-*"):
        verified(checkpoint)
    runs.start(name, folder, *AUTO)
    runs.check_equal(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize(("name", "phase"), PLACES)
def test_a_signal_ends_the_run_in_order(runs, paused, verified, tmp_path, name, phase, number):
    runs.reference(name)
    folder = tmp_path / "run"
    run = paused(name, phase, folder)
    run.send(number)
    assert run.end() == CODES[number], run.said()
    assert run.said().count(f"stopped by {number.name}") == 1, run.said()
    check_stopped(runs, verified, name, phase, folder, run.said())


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_second_signal_ends_at_once(runs, paused, tmp_path, number):
    runs.reference("sft")
    run = paused("sft", "step", tmp_path / "run")
    run.send(number, then_go_on=False)
    time.sleep(SAME_SIGNAL)  # one that comes sooner is taken for the first, passed on twice
    assert run.process.poll() is None
    run.process.send_signal(number)
    sent = time.monotonic()
    assert run.end() == CODES[number]
    assert time.monotonic() - sent < 2
    runs.start("sft", tmp_path / "run", *AUTO)
    runs.check_equal("sft", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_signal_to_a_launcher_leaves_no_process_and_whole_checkpoints(
    paused, verified, tmp_path, launcher, phase, number
):
    folder = tmp_path / "run"
    run = paused("sft-two", phase, folder, launcher=LAUNCHERS[launcher])
    run.send(number)
    assert run.end() != 0
    for checkpoint in folder.glob("checkpoint-*"):
        verified(checkpoint)
    if phase in ("step", "evaluation", "save"):
        assert list(folder.glob("checkpoint-*")), run.said()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_killed_leaves_no_process(paused, verified, tmp_path, launcher):
    folder = tmp_path / "run"
    run = paused("sft-two", "step", folder, launcher=LAUNCHERS[launcher])
    run.send(signal.SIGKILL)
    run.end()
    checkpoints = list(folder.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        verified(checkpoint)
