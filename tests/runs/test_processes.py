"""Memory and cores on every platform; a Mac, Windows and a GPU are played."""

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import TCPStore
from transformers import TrainingArguments

from rlhf.runs import processes
from rlhf.runs import run as run_module
from rlhf.runs.record import RunRecord
from rlhf.runs.settings import DataSettings

MIB = 2**20


def test_peak_memory_is_that_of_this_process():
    before = processes.peak_memory_gb()
    block = bytearray(300 * MIB)
    block[::4096] = b"x" * len(block[::4096])  # touch every page
    grown = processes.peak_memory_gb()
    assert 0.01 < before <= grown and grown >= 300 / 1024
    del block
    assert processes.peak_memory_gb() >= grown


@pytest.mark.parametrize(("platform", "expected"), [("linux", 3.0), ("darwin", 3 / 1024)])
def test_units_of_the_resource_module(monkeypatch, platform, expected):
    import resource

    usage = SimpleNamespace(ru_maxrss=3 * MIB)  # KB on Linux, bytes on macOS
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert processes.peak_memory_gb() == expected


def test_windows_has_no_resource_module(monkeypatch):
    import psutil

    info = SimpleNamespace(peak_wset=2 * 2**30)
    process = SimpleNamespace(memory_info=lambda: info)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    monkeypatch.setattr(sys, "platform", "win32")
    assert processes.peak_memory_gb() == 2.0


def test_gpu_memory_is_that_of_cuda_devices_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 2**29)
    assert processes.peak_gpu_memory_gb(torch.device("cuda")) == 2.5
    assert processes.peak_gpu_memory_gb(torch.device("cpu")) is None
    assert processes.peak_gpu_memory_gb(torch.device("mps")) is None
    assert RunRecord("sft").peak_gpu_memory_gb is None


def test_cores_without_an_affinity_are_all(monkeypatch):
    assert 1 <= processes.available_cores() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert processes.available_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processes.available_cores() == 1


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_best_device_is_the_one_that_training_uses(monkeypatch, kind):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    assert processes.best_device() == kind
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert processes.best_device() == "cpu"


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_without_glibc_the_allocator_is_left_alone(monkeypatch, platform):
    def fail(name):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", fail)
    processes.keep_freed_memory()


def test_the_environment_leaves_the_allocator_alone(monkeypatch):
    def fail(name):
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", fail)
    monkeypatch.setenv("KEEP_FREED_MEMORY", "0")
    processes.keep_freed_memory()


def test_musl_leaves_the_allocator_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc=None))
    processes.keep_freed_memory()


def test_a_parent_that_may_not_be_read_is_passed_over(monkeypatch):
    import psutil

    def refuse():
        raise psutil.AccessDenied(1)

    launcher = ["python", "/usr/bin/accelerate", "launch", "--num_processes", "3", "x.py"]
    parents = [SimpleNamespace(cmdline=refuse), SimpleNamespace(cmdline=lambda: launcher)]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    assert processes.requested_processes() == 3


@pytest.mark.parametrize(("peak", "said"), [(None, False), (1.25, True)], ids=["cpu", "gpu"])
def test_the_gpus_peak_is_recorded_and_printed(monkeypatch, tmp_path, capsys, peak, said):
    monkeypatch.setattr(run_module, "peak_gpu_memory_gb", lambda device: peak)
    monkeypatch.setattr(run_module, "gpu_name", lambda device: "a GPU")
    args = TrainingArguments(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True)
    with run_module.recording("sft", DataSettings(dataset_name="rows"), args) as run:
        run.metrics({"eval_loss": 0.5, "rows": 3, "report": {}})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("sft: ") and last.endswith("; eval_loss 0.5, rows 3")
    assert ("1.25 GB on the GPU" in last) == said
    record = RunRecord.load(tmp_path / "run")
    assert record.status == "done" and record.peak_gpu_memory_gb == peak
    assert record.peak_memory_gb > 0.01


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        (["--num_processes=5"], 5),
        (["--config_file", "FILE"], 7),
        (["--config_file=FILE"], 7),
        ([], 7),  # the file of `accelerate config`
        (["--config_file", "EMPTY"], None),  # accelerate counts the GPUs
    ],
)
def test_the_number_of_processes_is_that_of_the_launcher(monkeypatch, tmp_path, flags, number):
    from accelerate.commands.config import config_args

    (tmp_path / "file.yaml").write_text("num_processes: 7\n")
    (tmp_path / "empty.yaml").write_text("distributed_type: MULTI_GPU\n")
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "file.yaml"))
    paths = {"FILE": f"{tmp_path}/file.yaml", "EMPTY": f"{tmp_path}/empty.yaml"}
    words = []
    for flag in flags:
        for name, path in paths.items():
            flag = flag.replace(name, path)
        words.append(flag)
    command = ["python", "/usr/bin/accelerate", "launch", *words, "recipe.py"]
    assert processes._number_of_processes(command) == number


def test_after_an_elastic_restart_all_meet_in_a_new_store(monkeypatch):
    agent = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ports = []
    for attempt, rank, machines in (("0", "0", "1"), ("1", "0", "2"), ("1", "0", "1"), ("1", "1", "1")):
        variables = {
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GROUP_WORLD_SIZE": machines,
            "TORCHELASTIC_RESTART_COUNT": attempt,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(agent.port),
            "RANK": rank,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        processes.meet_in_new_store()
        ports.append(int(os.environ["MASTER_PORT"]))
    first, of_two_machines, *restarted = ports
    assert first == of_two_machines == agent.port
    assert restarted[0] == restarted[1] != agent.port
    agent.set("address of a dead process", "")
    new = TCPStore("localhost", restarted[0], wait_for_workers=False)
    assert not new.check(["address of a dead process"])
