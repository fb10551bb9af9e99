"""Processes, threads, devices and memory of a run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path

T = TypeVar("T")
GB = 2**30
HUGE_PAGE = 2**21  # bytes
# Numbers from glibc's malloc.h and Linux's mman.h
M_TRIM_THRESHOLD, M_MMAP_MAX, MADV_HUGEPAGE = -1, -4, 14

_store = None  # see meet_in_new_store


def requested_processes() -> int | None:
    """Number of processes that `accelerate launch` was started with, read from its command line.

    None when accelerate is not among the parents of this process, or was given no number.
    """
    import psutil

    for process in psutil.Process().parents()[:3]:
        try:
            command = process.cmdline()
        except psutil.Error:  # another user's process, which macOS and Windows do not show
            continue
        if _is_accelerate_launch(command):
            number = _number_of_processes(command)
            if number is not None:
                return number
    return None


def launcher() -> int | None:
    """Process id of the parent if it is `accelerate launch` or torchrun, which this process must not outlive."""
    import psutil

    parent = psutil.Process().parent()
    try:
        command = parent.cmdline() if parent else []
    except psutil.Error:
        return None
    names = [Path(part).name for part in command[:3]]
    is_torchrun = "torchrun" in names or "torch.distributed.run" in command[:3]
    if is_torchrun or _is_accelerate_launch(command):
        return parent.pid
    return None


def meet_in_new_store() -> None:
    """After an elastic restart on one machine, let the processes meet in a TCPStore of process 0, at another MASTER_PORT.

    torchrun's own store outlives the processes (torch 2.13). A restarted one may find the address of a dead one in it, and
    ends with "Gloo connectFullMesh failed". Here it carries only the port of the new store. On several machines each agent
    counts its restarts by itself, so that the count names no round of all.
    """
    global _store
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == 0 or not shares_store or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return
    from torch.distributed import TCPStore

    address = os.environ["MASTER_ADDR"]
    old = TCPStore(address, int(os.environ["MASTER_PORT"]), wait_for_workers=False)
    key = f"rlhf/restart_{attempt}/port"
    if os.environ["RANK"] == "0":
        # It listens as long as it is referred to. Port 0: any free one.
        _store = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        old.set(key, str(_store.port))
    os.environ["MASTER_PORT"] = old.get(key).decode()  # waits for process 0


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the main process, and give all processes its result, or its UserError.

    Only the main process then prints the error: for the others it is marked as said (`said`).
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    answer: list = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    result, message = answer
    if message is not None:
        error = UserError(message)
        error.said = dist.get_rank() != 0
        raise error
    return result


def is_launched() -> bool:
    """True of one of several processes, whose group is set up."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _is_accelerate_launch(command: list[str]) -> bool:
    """True of `accelerate launch ...` and of `python -m accelerate.commands.launch ...`."""
    if "accelerate.commands.launch" in command:
        return True
    if any(part.replace("\\", "/").endswith("accelerate/commands/launch.py") for part in command):
        return True
    return "launch" in command and any("accelerate" in part for part in command)


def _number_of_processes(command: list[str]) -> int | None:
    """The number in the flags of `accelerate launch`, else in its config file, else in that of `accelerate config`."""
    number = _flag_value(command, "--num_processes", "--num-processes")
    if number is not None:
        return int(number)
    from accelerate.commands.config.config_args import default_config_file

    path = _flag_value(command, "--config_file", "--config-file") or default_config_file
    if not Path(path).is_file():
        return None
    import yaml

    number = yaml.safe_load(Path(path).read_text(encoding="utf-8")).get("num_processes")
    return None if number is None else int(number)


def _flag_value(command: list[str], *names: str) -> str | None:
    """The value of a flag of a command line, a word of its own or after "="."""
    for i, part in enumerate(command):
        name, equals, value = part.partition("=")
        if name in names:
            return value if equals else command[i + 1]
    return None


def check_world(world_size: int) -> None:
    """Refuse a run with fewer processes than requested.

    `accelerate launch --cpu --num_processes 2` starts one process and does not say so.
    """
    requested = requested_processes()
    if requested is not None and requested != world_size:
        raise UserError(
            f"accelerate was asked for {requested} processes, {world_size} started: its CPU launcher ignores the number; "
            f"use --config_file {short_path(recipes_folder() / 'accelerate' / 'ddp_cpu.yaml')}"
        )


def available_cores() -> int:
    """CPU cores that this process may use; where the system does not tell (macOS, Windows), all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_all_cores(local_processes: int) -> int:
    """Share the cores evenly among the processes of this machine, and return the threads of each.

    accelerate sets one thread per process on some CPUs.
    """
    import torch

    threads = max(1, available_cores() // max(1, local_processes))
    torch.set_num_threads(threads)
    return threads


def best_device() -> str:
    """The accelerator of this machine ("cuda", "mps", "xpu"), or "cpu"."""
    import torch

    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type
    return "cpu"


def peak_memory_gb() -> float:
    """Most memory this process has had so far, in GB of 2^30 bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / GB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, Linux in units of 1024 bytes.
    unit = 1 if sys.platform == "darwin" else 2**10
    return peak * unit / GB


def peak_gpu_memory_gb(device) -> float | None:
    """Most memory that tensors of this process have had on a CUDA device, in GB of 2^30 bytes; None for other devices."""
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / GB


def gpu_name(device) -> str:
    """The name of a CUDA device as its maker gives it."""
    import torch

    return torch.cuda.get_device_name(device)


def keep_freed_memory() -> None:
    """Let glibc take all tensors from one heap that it never gives back, in pages of 2 MB where the kernel has them.

    By default every large tensor is fetched from the kernel, filled with zeros page by page, and handed back: in an update
    of GPT-2 this costs more than the memory it saves. Only addresses are reserved here, not memory. Measured:
    benchmarks/LOG.md, 2026-11-22. Does nothing where the C library is not glibc (macOS, Windows, musl), or where the
    environment variable KEEP_FREED_MEMORY is 0, for a process that shares its memory with others.
    """
    import ctypes

    import torch

    from rlhf.models.memory import free_memory

    if sys.platform != "linux" or os.environ.get("KEEP_FREED_MEMORY") == "0":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):  # musl
        return
    malloc.restype = ctypes.c_void_p
    malloc.argtypes = [ctypes.c_size_t]
    free.argtypes = [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    mallopt(M_TRIM_THRESHOLD, -1)  # unsigned, this is the largest number: never trim
    mallopt(M_MMAP_MAX, 0)
    size = free_memory(torch.device("cpu")) // 2
    start = malloc(size)  # grows the heap
    if not start:
        return
    first_page = -(-start // HUGE_PAGE) * HUGE_PAGE  # rounded up
    whole_pages = (start + size - first_page) // HUGE_PAGE * HUGE_PAGE
    madvise(first_page, whole_pages, MADV_HUGEPAGE)
    free(start)  # what is freed at once stays in the heap


def join_processes() -> tuple[int, int]:
    """(number of this process, number of all) of a command that `accelerate launch` may have started; (0, 1) without it.

    It joins the group of the processes and takes its GPU.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available())
    check_world(state.num_processes)
    return state.process_index, state.num_processes
