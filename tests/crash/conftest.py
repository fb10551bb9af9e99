"""Tiny runs of every kind of trainer, to break, resume and compare. Their flags are those of benchmarks/crash/cases.py."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from transformers import Trainer

from rlhf.runs.run import start

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed

from benchmarks.crash.cases import BASES, CASES, Case, write_data  # noqa: E402
from benchmarks.crash.part import load_recipe  # noqa: E402
from benchmarks.crash.run import difference, read_files  # noqa: E402

# Optimiser steps after which a run of two checkpoints is ended, where it is not 10.
CRASH_AT = {"ppo-ema": 40}


class Crash(RuntimeError):
    """Ends a run in the middle."""


class Runs:
    """Runs of the cases in this process, below one folder. Each reference and each crashed run is made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"

    def start(self, name: str, output: Path, *flags: str) -> Path:
        """Run a case as its command line says, with more flags. Returns its folder."""
        case = CASES.get(name) or BASES[name.removeprefix("base-")]
        self.write_inputs(case)
        module = load_recipe(case.recipe)
        try:
            start(module.main, module.__doc__, [*case.command(self.data, output), *flags])
        except SystemExit as left:
            if left.code:
                raise
        return output

    def write_inputs(self, case: Case) -> None:
        """Write the data, and train the models that a case starts from, unless they are there."""
        if not self.data.exists():
            write_data(self.data)
        for base in BASES:
            needed = f"DATA/{base} " in f"{case.flags} " and not (self.data / base).exists()
            if needed:
                self.start(f"base-{base}", self.data / base)

    def reference(self, name: str) -> Path:
        """The folder of a case that ran to its end."""
        folder = self.folder / f"{name}-reference"
        if not folder.exists():
            self.start(name, folder)
        return folder

    def crashed(self, name: str) -> Path:
        """The folder of a case that an error ended after its second checkpoint."""
        folder = self.folder / f"{name}-crashed"
        if not folder.exists():
            self.crash(name, folder, CRASH_AT.get(name, 10), "--save_total_limit", "5")
        return folder

    def crash(self, name: str, folder: Path, step: int, *flags: str) -> None:
        """Run a case until an error after so many optimiser steps."""
        with pytest.MonkeyPatch.context() as patch, pytest.raises((Crash, SystemExit)):
            patch.setattr(Trainer, "training_step", crash_after(step))
            self.start(name, folder, *flags)

    def copy_of_crashed(self, name: str, target: Path) -> Path:
        """A copy of a crashed run, under `target`."""
        folder = target / "run"
        shutil.copytree(self.crashed(name), folder)
        return folder

    def check_equal(self, name: str, folder: Path) -> None:
        """Fail unless a run ended as the reference did: weights, metrics, samples, reports."""
        assert difference(read_files(self.reference(name)), read_files(folder)) == ""


def crash_after(steps: int):
    """Trainer.training_step that raises when the optimiser has made so many steps."""
    step = Trainer.training_step

    def training_step(self, *args, **options):
        if self.state.global_step >= steps:
            raise Crash("a crash in the middle")
        return step(self, *args, **options)

    return training_step


def unverified(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, by its manifest: files that are missing, added or changed."""
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    wrong = []
    for name, facts in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()  # the files of these runs are of one part
        if (len(content), digest) != (facts["size"], "".join(facts["sha256"])):
            wrong.append(f"{name} has changed")
    for path in checkpoint.rglob("*"):
        name = str(path.relative_to(checkpoint))
        if path.is_file() and name not in manifest["files"] and name != "manifest.json":
            wrong.append(f"{name} is not in the manifest")
    return wrong


def fingerprints(folder: Path) -> dict[str, tuple]:
    """Every file of a folder -> its bytes and the time of its last change."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in paths
    }


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="session")
def verified():
    """f(checkpoint): fails unless a checkpoint is whole."""

    def verified(checkpoint: Path) -> None:
        assert unverified(checkpoint) == []

    return verified


@pytest.fixture(scope="session")
def snapshot():
    return fingerprints


@pytest.fixture
def end_of(runs, capfd):
    """f(case, folder, *flags): the exit code of a run that ends with an error, and what it said."""

    def end_of(name: str, folder: Path, *flags: str) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            runs.start(name, folder, *flags)
        said = capfd.readouterr()
        return left.value.code, said.out + said.err

    return end_of
