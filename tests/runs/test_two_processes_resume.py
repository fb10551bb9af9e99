"""Two processes save one checkpoint, choose the same one, and go on only as two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.runs.manifest import flaw, read_manifest

from .conftest import FLAGS, same_weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from tests.runs.conftest import tiny_recipe
from rlhf.runs.run import Run, start

Run.show = lambda run: None
start(tiny_recipe(), "", sys.argv[1:])
"""


def launch(tmp_path, folder, *flags, processes=2) -> subprocess.CompletedProcess:
    script = tmp_path / "tiny.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(script), "--output_dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *FLAGS, *flags], capture_output=True, text=True, env=environment, cwd=ROOT
    )


@pytest.mark.slow
def test_two_processes_go_on_as_two(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    minutes = ["--checkpoint_minutes", "0.000001"]
    done = launch(tmp_path, whole, *minutes)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(whole / "checkpoint-4")
    assert manifest["processes"] == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} < set(manifest["files"])
    assert (whole / "checkpoint-5").is_dir()  # by the clock
    whole.rename(folder)
    done = launch(tmp_path, folder, "--resume_from_checkpoint", "true")
    assert done.returncode == 0 and done.stdout.count("is finished") == 1

    # As after a kill in step 5, with a damaged checkpoint-5.
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | {"status": "running"}))
    for path in folder.glob("checkpoint-6/*"):
        path.unlink()
    (folder / "checkpoint-5" / "rng_state_1.pth").unlink()
    alone = launch(tmp_path, folder, "--resume_from_checkpoint", "true", processes=1)
    assert "processes 1 (was 2)" in alone.stderr
    done = launch(tmp_path, folder, "--resume_from_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    assert "checkpoint-6 is passed over: the folder is empty" in done.stdout
    assert done.stdout.count("rng_state_1.pth is missing") == 1
    assert same_weights(tmp_path, folder)
    assert flaw(folder / "checkpoint-6") == ""
