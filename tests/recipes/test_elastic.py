"""A process dies by SIGKILL: torchrun starts all again, and the run continues from its newest checkpoint by itself."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc-per-node 2 --max-restarts 2 --master-port PORT",
    "standalone": "torch.distributed.run --nproc-per-node 2 --max-restarts 2 --standalone",
    "accelerate": "accelerate.commands.launch --config_file LAYOUT --main_process_port 0 --max_restarts 2",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_policy, tokenizer):
    folder = tmp_path_factory.mktemp("elastic")
    rows = [{"prompt": f"{a} {b}", "completion": a} for a in "abcd" for b in "efgh"]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_policy(tokenizer).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return folder


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(launcher: str, folder: Path, output: str) -> subprocess.Popen:
    layout = str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")
    words = LAUNCHERS[launcher].replace("LAYOUT", layout).replace("PORT", str(free_port())).split()
    flags = f"--dataset_name {folder}/sft.jsonl --model_name_or_path {folder}/policy --max_steps {STEPS} --save_steps 2"
    flags += " --logging_steps 1 --per_device_train_batch_size 2 --precision fp32 --report_to none --use_cpu true"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words, "-m", "rlhf", "sft", *flags.split(), "--output_dir", f"{folder}/{output}"],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def worker(launcher: subprocess.Popen, rank: str) -> psutil.Process:
    for process in psutil.Process(launcher.pid).children():
        if process.environ().get("RANK") == rank:
            return process
    raise AssertionError(f"no process {rank}")


def end(process: subprocess.Popen) -> None:
    """Wait until the launcher ends without error."""
    try:
        printed = process.communicate(timeout=180)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # its processes end with it
        raise
    assert process.returncode == 0, printed[-3000:]


def wait_for(path: Path, launcher: subprocess.Popen) -> None:
    while not path.exists():
        assert launcher.poll() is None, launcher.stdout.read()[-3000:]
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(folder):
    process = start("torchrun", folder, "whole")
    end(process)
    return load_file(folder / "whole" / "model.safetensors")


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_a_killed_process_costs_the_steps_since_the_checkpoint(
    folder, uninterrupted, launcher, rank
):
    output = f"{launcher}-{rank}"
    process = start(launcher, folder, output)
    wait_for(folder / output / "checkpoint-4" / "manifest.json", process)
    worker(process, rank).kill()
    end(process)
    record = RunRecord.load(folder / output)
    assert record.status == "done"
    assert len(record.parts) == 2 and record.parts[1]["from_step"] >= 4
    saved = load_file(folder / output / "model.safetensors")
    for name, tensor in uninterrupted.items():
        assert torch.equal(saved[name], tensor), name
