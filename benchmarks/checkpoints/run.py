"""What does a verified checkpoint cost, next to the Trainer's own writing of the same files?

    python benchmarks/checkpoints/run.py [--million 124] [--repeats 5] [--folder FOLDER] [--record]

--million: weights of the model, in millions; 124 is GPT-2. --folder: where the checkpoints go, on the disk that is measured.
Each repeat saves three times, in turn: `plain`, the Trainer's own writes into the final folder; `plain, on the disk`, the
same with fsync of every file, without which a power cut may lose what was just saved; `verified`, with fsync, sha256, a
manifest and a rename. `resume` is the time to verify one. --record writes results/<date>.json: the medians and their ratios.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, write_record  # noqa: E402
from rlhf.runs.durable import sync  # noqa: E402
from rlhf.runs.manifest import flaw  # noqa: E402
from rlhf.runs.trainer import RunTrainer  # noqa: E402

MILLION = 10**6
WIDTH = 1000  # of the layers, each with a million weights


class VerifiedTrainer(RunTrainer, Trainer):
    """The Trainer with verified checkpoints."""


class Layers(torch.nn.Module):
    """Square layers; only their weights matter here."""

    def __init__(self, millions: int):
        super().__init__()
        layers = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(millions)]
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x, labels):
        for layer in self.layers:
            x = x + layer(x) / WIDTH  # (B, WIDTH)
        return {"loss": ((x - labels) ** 2).mean()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--million", type=int, default=124)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/checkpoints"))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        content = measure(Path(folder), arguments.million, arguments.repeats)
    for name, value in content.items():
        print(f"{name:>40} {value}")
    if arguments.record:
        write_record(HERE, __doc__, content, commit=commit)


def measure(folder: Path, millions: int, repeats: int) -> dict:
    """Seconds of each way to save (median, least and most), ratios of medians, and the size of the checkpoint."""
    plain = trained(Trainer, folder / "plain", millions)
    verified = trained(VerifiedTrainer, folder / "verified", millions)
    seconds: dict[str, list[float]] = {
        "plain": [],
        "plain, on the disk": [],
        "verified": [],
        "resume": [],
    }
    for _ in range(repeats + 1):  # the first fills caches, and does not count
        seconds["plain"].append(timed(save, plain))
        seconds["plain, on the disk"].append(timed(save_on_disk, plain))
        seconds["verified"].append(timed(save, verified))
        started = time.perf_counter()
        assert flaw(folder / "verified" / "checkpoint-1") == ""
        seconds["resume"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    size = sum(path.stat().st_size for path in (folder / "verified" / "checkpoint-1").iterdir())
    return {
        "megabytes": round(size / MILLION, 1),
        "repeats": repeats,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "least and most": {
            name: [round(min(values[1:]), 3), round(max(values[1:]), 3)]
            for name, values in seconds.items()
        },
        "verified / plain": round(medians["verified"] / medians["plain"], 3),
        "verified / plain, on the disk": round(
            medians["verified"] / medians["plain, on the disk"], 3
        ),
    }


def trained(kind: type, folder: Path, millions: int) -> Trainer:
    """A trainer after one step, so that the optimizer has its state."""
    row = torch.randn(WIDTH)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = kind(model=Layers(millions), args=args, train_dataset=[{"x": row, "labels": row}] * 8)
    trainer.train()
    return trainer


def save(trainer: Trainer) -> None:
    trainer._save_checkpoint(trainer.model, trial=None)


def save_on_disk(trainer: Trainer) -> None:
    """Save as the Trainer does, and wait until every file is on the disk."""
    save(trainer)
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def timed(action, trainer: Trainer) -> float:
    """Seconds of a save of checkpoint-1, which is not there. The disk has nothing left to write from before."""
    shutil.rmtree(Path(trainer.args.output_dir) / "checkpoint-1", ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    action(trainer)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
