"""What do the settings of the small instruct models take: seconds and memory of each stage, beside the estimate?

    python benchmarks/instruct/run.py [--models qwen3_0.6b ...] [--bits 4] [--stages sft ...] [--folder FOLDER] [--record]

Each model has its published sizes and random weights, so that time and memory are real and what it learns means nothing.
The stages are those of recipes/configs/{sft,reward,ppo,dpo}/NAME.yaml, with a few short rows and one update: the flags
are in the record. --bits 4: with load_in_4bit. Memory is the most that the process has had, with the copy that merges LoRA
when the model is saved, and the most up to the last update. The estimate is the table that PPO prints.
"""

import argparse
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.instruct.make_models import MODELS, make_model  # noqa: E402
from benchmarks.record import check_clean_tree, rounded, write_record  # noqa: E402
from rlhf.runs.record import RunRecord, read_jsonl  # noqa: E402

GB = 2**30
LOOK_EVERY = 0.2  # seconds between two looks at the memory
ESTIMATE = re.compile(r"largest at one time\s+([\d.]+)")
# Flags of each stage over its YAML. Rows have about 120 tokens (Llama: 300, as its template says the date), and each stage
# makes one update.
FLAGS = {
    "sft": {"logging_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
            "eval_strategy": "no", "eval_fraction": 0, "save_strategy": "no"},
    "reward": {"logging_steps": 1, "max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
               "eval_strategy": "no"},
    "ppo": {"total_episodes": 4, "rollout_batch_size": 4, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "epochs_per_rollout": 1, "max_prompt_length": 512,
            "max_completion_length": 32, "eval_fraction": 0, "save_every": 100},
    "dpo": {"logging_steps": 1, "max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
            "eval_limit": 1, "max_completion_length": 16},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--bits", type=int, choices=[4, 8])
    parser.add_argument("--stages", nargs="+", default=list(FLAGS), choices=list(FLAGS))
    parser.add_argument("--folder", type=Path, default=Path("runs/instruct"))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    for name in arguments.models:
        content = measure(name, arguments.folder / name, arguments.bits, arguments.stages)
        print(json.dumps(content, indent=1))
        if arguments.record:
            bits = f"-{arguments.bits}bit" if arguments.bits else ""
            write_record(HERE, __doc__, rounded(content), commit=commit, name=f"{name}{bits}")


def measure(name: str, folder: Path, bits: int | None, chosen: list[str]) -> dict:
    """Run the chosen stages of a model in their order; the folders are removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    write_data(folder / "data")
    base = make_model(name, folder / "base")
    stages = {
        stage: run_stage(stage, name, folder, base, bits) for stage in FLAGS if stage in chosen
    }
    # Two bytes each, and the tied output layer is not written.
    parameters = sum(weight.numel() for weight in load_file(base / "model.safetensors").values())
    shutil.rmtree(folder)
    return {
        "model": name,
        "parameters": parameters,
        "bits": bits,
        "flags": FLAGS,
        "stages": stages,
    }


def write_data(folder: Path) -> None:
    """Rows of about 120 tokens, with one token per byte."""
    folder.mkdir(parents=True)
    rows = {"demonstrations": [], "rankings": [], "prompts": []}
    for i in range(12):
        prompt = f"Question {i}: how many legs have {i} horses?"
        answers = [f"They have {4 * i} legs.", f"Nobody has counted the {i} horses."]
        rows["demonstrations"].append({"prompt": prompt, "completion": answers[0]})
        rows["rankings"].append({"prompt": prompt, "completions": answers, "ranks": [0, 1]})
        rows["prompts"].append({"prompt": prompt})
    for kind, items in rows.items():
        lines = [json.dumps(row) + "\n" for row in items]
        (folder / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


def run_stage(stage: str, name: str, folder: Path, base: Path, bits: int | None) -> dict:
    """Seconds, memory and the estimate of one stage."""
    data = {"sft": "demonstrations", "ppo": "prompts"}.get(stage, "rankings")
    flags = FLAGS[stage] | {
        "dataset_name": folder / "data" / f"{data}.jsonl",
        "model_name_or_path": base if stage == "sft" else folder / "sft",
        "output_dir": folder / stage,
    }
    if stage == "ppo":
        flags["reward_model_path"] = folder / "reward"
    if bits:
        flags[f"load_in_{bits}bit"] = "true"
    command = [sys.executable, f"recipes/{stage}.py"]
    command += ["--config", f"recipes/configs/{stage}/{name}.yaml"]
    for key, value in flags.items():
        command += [f"--{key}", str(value)]
    said, in_training = watch(command, folder / stage / "metrics.jsonl")
    record = RunRecord.load(folder / stage)
    result = {
        "seconds": record.seconds,
        "peak_memory_gb": record.peak_memory_gb,
        "peak_memory_in_training_gb": in_training,
        "precision": record.precision["name"],
        "losses": losses(folder / stage / "metrics.jsonl"),
    }
    if record.peak_gpu_memory_gb is not None:
        result["peak_gpu_memory_gb"] = record.peak_gpu_memory_gb
    if estimate := ESTIMATE.search(said):
        result["estimate_gb"] = float(estimate[1])
    return result


def losses(path: Path) -> list[float]:
    """The losses of the updates so far."""
    return [row["loss"] for row in read_jsonl(path) if "loss" in row]


def watch(command: list[str], metrics: Path) -> tuple[str, float]:
    """Run a recipe. Returns what it printed, and the most memory in GB that it had up to its last update."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, text=True)
        memory, peak, in_training, updates = psutil.Process(process.pid), 0.0, 0.0, 0
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, memory.memory_info().rss / GB)
            # The model is merged and saved after the last update.
            if len(losses(metrics)) > updates:
                updates, in_training = len(losses(metrics)), peak
            time.sleep(LOOK_EVERY)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} has failed:\n{said[-3000:]}")
    return said, round(in_training, 3)


if __name__ == "__main__":
    main()
