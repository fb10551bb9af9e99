"""Processes, threads, devices and memory of a run."""

import os
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path


def asked_processes() -> int | None:
    """How many processes `accelerate launch` was asked for, read from its command line; None when it is not the parent."""
    import psutil

    for process in psutil.Process().parents()[:3]:
        command = process.cmdline()
        if any("accelerate" in part for part in command) and "launch" in command:
            for name in ("--num_processes", "--num-processes"):
                for place, part in enumerate(command):
                    if part == name:
                        return int(command[place + 1])
                    if part.startswith(name + "="):
                        return int(part.split("=")[1])
            for place, part in enumerate(command):
                if part in ("--config_file", "--config-file"):
                    import yaml

                    return int(
                        yaml.safe_load(Path(command[place + 1]).read_text()).get("num_processes", 1)
                    )
    return None


def check_world(world_size: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; we do."""
    asked = asked_processes()
    if asked is not None and asked != world_size:
        raise UserError(
            f"accelerate was asked for {asked} processes, {world_size} started: its CPU launcher ignores the number; "
            f"use --config_file {short_path(recipes_folder() / 'accelerate' / 'ddp_cpu.yaml')}"
        )


def use_all_cores(local_processes: int) -> int:
    """accelerate sets one thread per process on some CPUs; share the cores evenly instead. Returns threads per process."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, cores // max(1, local_processes))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Let glibc take all tensors from one heap that it never gives back, in pages of 2 MB where the kernel has them.

    By default every large tensor is fetched from the kernel, filled with zeros page by page, and handed back: in an update
    of GPT-2 this costs more than the memory it saves. Only addresses are reserved here, not memory. Measured:
    benchmarks/LOG.md, 2026-11-22.
    """
    import ctypes

    import psutil

    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):  # not glibc
        return
    trim_threshold, mmap_max, hugepage = -1, -4, 14  # malloc.h, mman.h
    mallopt(trim_threshold, -1)  # as an unsigned number the largest there is: never
    mallopt(mmap_max, 0)
    size = psutil.virtual_memory().available // 2
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes, madvise.argtypes = (
        [ctypes.c_void_p],
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int],
    )
    if start := malloc(size):  # grows the heap; what is freed at once stays in it
        page = 2**21
        first = -(-start // page) * page
        madvise(first, (start + size - first) // page * page, hugepage)
        free(start)


def best_device() -> str:
    """The accelerator of this machine ("cuda", "mps", "xpu"), or "cpu"."""
    import torch

    return (
        torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"
    )
