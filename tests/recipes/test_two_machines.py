"""Two network namespaces, joined by a pair of virtual cables, are two machines: they train as two processes of one do.

Needs root and the `ip` command.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("rlhf-first", "rlhf-second")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
QUICK = "--report_to none --use_cpu true --per_device_train_batch_size 2 --precision fp32"
SFT = (
    f"{QUICK} --dataset_name FOLDER/sft.jsonl --model_name_or_path FOLDER/policy --max_steps 4 "
    "--logging_steps 1 --save_steps 2"
)
PPO = (
    f"{QUICK} --dataset_name FOLDER/prompts.jsonl --model_name_or_path FOLDER/policy "
    "--reward_model_path FOLDER/reward --total_episodes 16 --rollout_batch_size 8 --epochs_per_rollout 1 "
    "--max_completion_length 6"
)
CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
STAGES = {"sft": SFT, "ppo": PPO}

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines():
    """The first words of a command that runs on the first, and on the second machine."""
    if shutil.which("ip") is None or os.geteuid() != 0 or len(CORES) < 2:
        pytest.skip("network namespaces need root and the ip command, and this test two cores")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "veth-a", "netns", NAMES[0], "type", "veth", "peer", "veth-b", "netns", NAMES[1])  # fmt: skip
        for name, link, address in zip(NAMES, ("veth-a", "veth-b"), ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"no network namespaces here: {error.stderr.decode()}")
    # With a core of its own each, as the two processes of one machine: other numbers of threads round otherwise.
    yield [
        ["ip", "netns", "exec", name, "taskset", "--cpu-list", core]
        for name, core in zip(NAMES, map(str, CORES), strict=True)
    ]
    remove()


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_policy, make_reward_model, tokenizer):
    """Rows and models for both stages."""
    folder = tmp_path_factory.mktemp("shared")
    prompts = [f"{first} {second}" for first in "abcd" for second in "efgh"]
    sft = [{"prompt": prompt, "completion": prompt[0]} for prompt in prompts]
    for name, rows in (("sft", sft), ("prompts", [{"prompt": prompt} for prompt in prompts])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, model in (
        ("policy", make_policy(tokenizer)),
        ("reward", make_reward_model(tokenizer)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def command(layout: str, stage: str, folder: Path, output: str, *extra: str) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "recipes" / "accelerate" / f"{layout}.yaml"), *extra]
    flags = STAGES[stage].replace("FOLDER", str(folder)).split()
    return [*launch, "-m", "rlhf", stage, *flags, "--output_dir", f"{folder}/{output}"]


def environment(interface: str | None = None) -> dict[str, str]:
    found = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if interface is not None:
        found["GLOO_SOCKET_IFNAME"] = interface
    return found


def start_on_both(machines, stage: str, folder: Path, output: str, *, before=((), ())) -> list:
    """(exit code, what was printed) of each machine. before: words before the command, of each."""
    processes = []
    for rank, (machine, interface) in enumerate(zip(machines, ("veth-a", "veth-b"), strict=True)):
        extra = ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0]]
        words = command("two_machines_cpu", stage, folder, output, *extra)
        process = subprocess.Popen(
            [*machine, *before[rank], *words], cwd=ROOT, env=environment(interface), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        processes.append(process)
    printed = [process.communicate(timeout=600)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


@pytest.mark.parametrize("stage", list(STAGES))
def test_two_machines_train_as_two_processes_of_one(machines, folder, stage):
    words = command("ddp_cpu", stage, folder, f"{stage}-one", "--main_process_port", "0")
    both = ["taskset", "--cpu-list", ",".join(map(str, CORES))]
    done = subprocess.run(
        [*both, *words], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = start_on_both(machines, stage, folder, f"{stage}-two")
    for code, printed in results:
        assert code == 0, printed[-3000:]
    assert f"{stage}: 2 processes on cpu (DDP over gloo)" in results[0][1]
    assert f"{stage}: " not in results[1][1]  # the first machine alone prints and writes
    assert RunRecord.load(folder / f"{stage}-two").status == "done"
    one, two = (load_file(folder / f"{stage}-{n}" / "model.safetensors") for n in ("one", "two"))
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name


def test_a_folder_that_is_not_shared_is_refused(machines, folder):
    """The second machine has a disk of its own there."""
    (folder / "split").mkdir()
    mount = f'mount -t tmpfs none {folder}/split && exec "$@"'
    before = ((), ("unshare", "--mount", "sh", "-c", mount, "sh"))
    results = start_on_both(machines, "sft", folder, "split/run", before=before)
    assert [code != 0 for code, _ in results] == [True, True]
    assert "is not the same folder on all machines" in "".join(printed for _, printed in results)
