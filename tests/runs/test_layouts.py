"""Layouts are named, and those that accelerate would start as another are refused."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import DistributedType

from rlhf.errors import Interrupted
from rlhf.runs import layouts
from rlhf.runs.layouts import check_layout, describe_layout, layout_name
from rlhf.runs.signals import SIGNALS

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def arguments(
    *, processes=2, kind=DistributedType.MULTI_GPU, stage=None, whole=True, device="cuda"
):
    plugin = None
    if stage is not None:
        splitting = {"stage3_gather_16bit_weights_on_model_save": whole}
        plugin = SimpleNamespace(
            zero_stage=stage, deepspeed_config={"zero_optimization": splitting}
        )
    return SimpleNamespace(
        world_size=processes, deepspeed_plugin=plugin, device=torch.device(device), ddp_timeout=1800,
        distributed_state=SimpleNamespace(distributed_type=kind),
    )  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    def launched(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launched


def test_names(launched):
    assert layout_name(arguments(processes=1)) == "one process"
    assert layout_name(arguments()) == "DDP"
    assert layout_name(arguments(stage=3)) == "ZeRO-3"
    assert describe_layout(arguments(processes=1, device="cpu")) == "1 process on cpu"
    assert describe_layout(arguments(processes=4, stage=2)) == "4 processes on cuda (ZeRO-2)"
    launched(**FSDP)
    assert layout_name(arguments()) == "FSDP2"


def test_the_backend_is_named(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    assert describe_layout(arguments(device="cpu")) == "2 processes on cpu (DDP over gloo)"


@pytest.mark.parametrize("kind", [DistributedType.MULTI_CPU, DistributedType.NO])
def test_fsdp_on_cpus_is_refused(launched, refused, kind):
    """accelerate starts DDP, and does not say so."""
    launched(**FSDP)
    assert refused(check_layout, arguments(kind=kind)).startswith("FSDP was requested, but on CPUs")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "fsdp_state_dict_type: SHARDED_STATE_DICT"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: true"),
    ],
)
def test_settings_of_fsdp_that_lose_the_model_are_refused(launched, refused, variable, value, said):
    launched(**FSDP | {variable: value})
    message = refused(check_layout, arguments())
    assert message.startswith(f"fsdp_config has {said}, ") and "fsdp2.yaml" in message


def test_zero3_that_would_save_no_model_is_refused(launched, refused):
    assert "zero3_save_16bit_model: true" in refused(check_layout, arguments(stage=3, whole=False))
    check_layout(arguments(stage=2, whole=False))  # whose weights are whole
    check_layout(arguments(stage=3))


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed, which did not start"),
    ],
)
def test_layouts_that_no_recipe_knows_are_refused(launched, refused, variable, said):
    launched(**{variable: "true"})
    message = refused(check_layout, arguments())
    assert message.startswith(f"accelerate was asked for {said}") and "accelerate" in message


def test_processes_on_cpus_wait_as_long_as_the_setting_says(monkeypatch):
    waits = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist.distributed_c10d, "_set_pg_timeout", waits.append)
    check_layout(arguments(device="cpu"))
    check_layout(arguments(device="cuda"))  # there TrainingArguments hand it on
    assert waits == [timedelta(seconds=1800)]


class Arrival:
    """A barrier that is complete after two looks."""

    looks = 0

    def is_completed(self):
        self.looks += 1
        return self.looks > 2

    def wait(self):
        return None


@pytest.fixture
def two_processes(monkeypatch):
    """The groups that are made, and what is waited for."""
    made, done = [], []

    def new_group(*, backend, timeout):
        made.append((backend, timeout))
        return "everyone"

    def barrier(group, *, async_op):
        assert async_op
        done.append(group)
        return Arrival()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist, "barrier", barrier)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("closed"))
    monkeypatch.setattr(layouts, "_groups", {})
    return made, done


def test_the_others_wait_for_the_main_process_longer_than_for_a_step(two_processes):
    made, done = two_processes
    layouts.leave_together()
    assert done == ["everyone", "closed"]
    assert made == [("gloo", layouts.EVALUATION_AT_MOST)]
    assert layouts.EVALUATION_AT_MOST > timedelta(days=1)


def test_a_signal_ends_the_waiting_for_others(two_processes, monkeypatch):
    monkeypatch.setattr(Arrival, "is_completed", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with SIGNALS.listening(), pytest.raises(Interrupted):
        layouts.wait_for_all()
