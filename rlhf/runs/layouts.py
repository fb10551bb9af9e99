"""Layouts of a run over processes: their names, and those that are refused before anything is loaded.

accelerate starts some layouts as another than was asked for and does not say so. Everything here is read from what its
launcher hands on in the environment, so that the answer is known before a Trainer is made.
"""

import os
import time
from datetime import timedelta

from accelerate import DistributedType

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path
from rlhf.runs.sharding import disable_sharded_loading

EVALUATION_AT_MOST = timedelta(days=30)  # by the first process, while the others wait
LOOK_EVERY = 0.05  # seconds between two looks whether they have come
# Layouts of accelerate that no recipe has been run with: what its launcher sets -> the name to print.
UNKNOWN = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
# Key of fsdp_config -> (what accelerate sets for it, the value that the recipes need, what happens with another).
FSDP_KEYS = {
    "fsdp_version": ("FSDP_VERSION", "2", "its first version flattens the weights"),
    "fsdp_state_dict_type": (
        "FSDP_STATE_DICT_TYPE",
        "FULL_STATE_DICT",
        "a checkpoint would hold slices, and no model",
    ),
    "fsdp_cpu_ram_efficient_loading": (
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
        "false",
        "other models than the trained one would be empty on all processes but the first",
    ),
}


def layout_name(args) -> str:
    """ "one process", "DDP", "ZeRO-2", "ZeRO-3" or "FSDP2"; args: TrainingArguments."""
    plugin = args.deepspeed_plugin
    if plugin is not None:
        return f"ZeRO-{plugin.zero_stage}"
    if _is_set("ACCELERATE_USE_FSDP"):
        return "FSDP2"
    return "DDP" if args.world_size > 1 else "one process"


def describe_layout(args) -> str:
    """The processes of a run in words: "1 process on cpu", "2 processes on cpu (DDP over gloo)"."""
    import torch.distributed as dist

    noun = "process" if args.world_size == 1 else "processes"
    description = f"{args.world_size} {noun} on {args.device.type}"
    name = layout_name(args)
    if name == "one process":
        return description
    if not dist.is_initialized():
        return f"{description} ({name})"
    return f"{description} ({name} over {dist.get_backend()})"


def check_layout(args) -> None:
    """Refuse a layout that is not the one that was asked for, or with which no whole model would be saved.

    Then let models be loaded whole, whatever the layout, and make `ddp_timeout` hold on CPUs too.
    """
    for variable, name in UNKNOWN.items():
        if _is_set(variable):
            raise UserError(f"accelerate was asked for {name}, which no recipe knows: {_remedy()}")
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args.deepspeed_plugin)
        disable_sharded_loading()
    elif _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(f"accelerate was asked for DeepSpeed, which did not start: {_remedy()}")
    if _is_set("ACCELERATE_USE_FSDP"):
        _check_fsdp(args)
    _limit_waiting(args)


def leave_together() -> None:
    """Wait until all processes are done, and close their group.

    A process that ends early and breaks down as it does would take the others with it: the launcher stops them.
    """
    import torch.distributed as dist

    wait_for_all()
    dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process has come here, however long the first one evaluates by itself.

    A signal ends the waiting, and so does the death of another process: a RuntimeError.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    arrival = dist.barrier(patient_group(), async_op=True)
    # In code of C no handler of a signal would run.
    while not arrival.is_completed():
        time.sleep(LOOK_EVERY)
    arrival.wait()


_groups: dict = {}  # of the default group of processes -> the one that waits for long


def patient_group():
    """The gloo group of all processes that waits for an evaluation. All must call it together the first time."""
    import torch.distributed as dist

    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()
        # On a GPU, too, over gloo: NCCL has a watchdog for those who wait for long.
        _groups[world] = dist.new_group(backend="gloo", timeout=EVALUATION_AT_MOST)
    return _groups[world]


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _remedy() -> str:
    return f"use a layout of {short_path(recipes_folder() / 'accelerate')}"


def _check_deepspeed(plugin) -> None:
    splitting = plugin.deepspeed_config.get("zero_optimization", {})
    if plugin.zero_stage == 3 and not splitting.get("stage3_gather_16bit_weights_on_model_save"):
        raise UserError(
            "ZeRO-3 without zero3_save_16bit_model: true in its deepspeed_config saves checkpoints without a model: "
            "set it, as zero3.yaml does"
        )


def _check_fsdp(args) -> None:
    on_cpu = (DistributedType.NO, DistributedType.MULTI_CPU)
    if args.distributed_state.distributed_type in on_cpu:
        raise UserError(
            "FSDP was requested, but on CPUs accelerate runs plain DDP: use ddp_cpu.yaml or zero3_cpu.yaml"
        )
    for key, (variable, needed, reason) in FSDP_KEYS.items():
        value = os.environ.get(variable, needed)
        if value.upper() != needed.upper():
            raise UserError(
                f"fsdp_config has {key}: {value}, with which {reason}: set it to {needed}, as fsdp2.yaml does"
            )


def _limit_waiting(args) -> None:
    """Let processes on CPUs wait `ddp_timeout` seconds for each other; TrainingArguments drops it with use_cpu."""
    import torch.distributed as dist

    if args.device.type == "cpu" and dist.is_available() and dist.is_initialized():
        timeout = timedelta(seconds=args.ddp_timeout)
        dist.distributed_c10d._set_pg_timeout(timeout)
