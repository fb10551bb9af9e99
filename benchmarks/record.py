"""Benchmark records: one JSON per question, written only from a clean tree.

Every benchmark calls `check_clean_tree` before it measures and `write_record` when it is done. A record names the commit,
package versions, machine and date, so that a number in the README can be traced to the code that made it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from rlhf.runs.record import RunRecord, code_version, package_versions

# Linux's names of the instructions that decide how fast matrix products are
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
ROOT = Path(__file__).resolve().parent.parent


def check_clean_tree() -> str:
    """Return the commit of this checkout. Exit with 2 if files differ from it, or if there is no commit."""
    commit = code_version()
    if not is_clean(commit):
        print(
            f"error: a record needs a clean git checkout, and this one is {commit!r}: commit first",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return commit


def clean_commits(versions: Iterable[dict[str, str]]) -> list[str]:
    """Return the commits that made some runs, given the `versions` of each. Exit with 2 if a tree was not clean.

    A run that was found finished may be older than the commit of the benchmark.
    """
    commits = sorted({entry.get("code", "unknown") for entry in versions})
    unclean = [commit for commit in commits if not is_clean(commit)]
    if unclean:
        print(
            f"error: runs of {', '.join(unclean)} cannot be recorded: delete their folders and run them again",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return commits


def is_clean(commit: str) -> bool:
    """False for "unknown" (no git checkout) and for "0123abc+" (files differ from that commit)."""
    return commit != "unknown" and not commit.endswith("+")


def write_record(
    folder: Path, question: str, content: dict, *, commit: str, name: str = ""
) -> Path:
    """Write `content` under a common header to <folder>/results/<name-><date>.json and return its path.

    folder: the benchmark's own; question: its docstring, of which the first line is kept; commit: from `check_clean_tree`,
    asked before the measurement, so that a commit made meanwhile cannot claim it.
    """
    date = time.strftime("%Y-%m-%d")
    header = {
        "question": question.strip().splitlines()[0],
        "date": date,
        "commit": commit,
        "versions": package_versions() | {"code": commit},
        "machine": machine(),
    }
    path = folder / "results" / f"{name + '-' if name else ''}{date}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(as_json(portable(header | content)) + "\n", encoding="utf-8")
    print(f"wrote {os.path.relpath(path)}")
    return path


def machine() -> dict:
    """Processor, its instructions for matrix products, cores this process may use, and accelerator."""
    from rlhf.runs.processes import best_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = cpu_entry("flags").split()
    return {
        "cpu": cpu_entry("model name") or platform.machine(),
        "cpu_flags": [flag for flag in MATRIX_FLAGS if flag in flags],
        "cores": cores,
        "device": best_device(),
    }


def cpu_entry(name: str) -> str:
    """An entry of the first processor in Linux's list; "" elsewhere."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(name):
                return line.split(":")[1].strip()
    return ""


def run_recipe(recipe: str, folder: Path, *, launch: bool = False, **keys) -> RunRecord:
    """Run a recipe with these keys unless `folder` holds a finished run. Return the run's record.

    launch: start it with `accelerate launch` on one process, as a user would. A list gives a flag several values.
    """
    finished = (folder / "run.json").is_file() and RunRecord.load(folder).status == "done"
    if not finished:
        flags = ["--output_dir", str(folder)]
        for key, value in keys.items():
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *map(str, values)]
        layout = "recipes/accelerate/one_process.yaml"
        command = [sys.executable]
        if launch:
            command += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", layout]
        subprocess.run([*command, f"recipes/{recipe}.py", *flags], check=True, cwd=ROOT)
    return RunRecord.load(folder)


def spread(values: list[float]) -> dict:
    """Mean, standard deviation (None of a single value) and the values, one per seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": deviation, "values": values}


def rounded(value, digits: int = 4):
    """The same content with floats of `digits` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def portable(value):
    """The same content with absolute paths cut to their last name."""
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, Path) or (
        isinstance(value, str) and value.startswith("/") and "\n" not in value
    ):
        return Path(value).name
    return value


def as_json(value, indent: int = 0) -> str:
    """JSON with each list of plain values on one line, so that a curve does not take a page."""
    space = " " * (indent + 1)
    if isinstance(value, dict) and value:
        items = [
            f"{space}{json.dumps(str(key))}: {as_json(item, indent + 1)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        items = [space + as_json(item, indent + 1) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)
