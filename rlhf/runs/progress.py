"""What a run tells while it trains: metrics.jsonl, samples.jsonl, one progress bar, a table of samples, curves."""

import json
import os
import sys
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

HEADLINES = (
    "loss", "score", "kl", "eval_loss", "eval_score", "eval_accuracy", "eval_f1", "eval_r2", "entropy",
    "completion_length", "eos_rate",
)  # fmt: skip


def append_jsonl(path: str | os.PathLike, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")


class RunProgress(TrainerCallback):
    """Writes every log to metrics.jsonl, and keeps one bar with the headline numbers instead of printed dicts."""

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / "metrics.jsonl"
        self.bar = None
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            from tqdm import tqdm

            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 10,
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        append_jsonl(self.path, {"step": state.global_step, **logs})
        self.latest.update({name: logs[name] for name in HEADLINES if name in logs})
        if self.bar is not None:
            self.bar.set_postfix(
                {name: f"{value:.3g}" for name, value in self.latest.items()}, refresh=False
            )

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def use_run_progress(trainer, folder: str | os.PathLike) -> None:
    """Put RunProgress in the place of the Trainer's own bar and printer."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunProgress(folder))


def sample_table(samples: list[dict], *, columns: list[str], limit: int) -> str:
    """A table for the terminal, one sample per row; long cells are cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=False, expand=False)
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=False, justify="left")
    for sample in samples[:limit]:
        cells = [sample.get(column, "") for column in columns]
        table.add_row(*(f"{c:.3f}" if isinstance(c, float) else str(c)[:160] for c in cells))
    console = Console(width=min(140, Console().width))
    with console.capture() as capture:
        console.print(table, markup=False)
    return capture.get()


def plot_curves(folder: str | os.PathLike) -> list[Path]:
    """plots/*.png from metrics.jsonl: one picture per metric over the steps, training and evaluation together."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from rlhf.runs.record import read_jsonl

    rows = read_jsonl(Path(folder) / "metrics.jsonl")
    skipped = (
        "step",
        "epoch",
        "total_flos",
        "seconds",
        "episodes",
        "runtime",
        "per_second",
        "num_tokens",
        "train_loss",
        "num_input_tokens_seen",
    )
    names = sorted(
        {n.removeprefix("eval_") for row in rows for n in row if not any(s in n for s in skipped)}
    )
    curves = {}
    for name in names:
        for label, key in (("training", name), ("evaluation", f"eval_{name}")):
            points = [
                (row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)
            ]
            if len(points) > 1:
                curves.setdefault(name, {})[label] = points
    if not curves:
        return []
    plots = Path(folder) / "plots"
    plots.mkdir(exist_ok=True)
    width = min(4, len(curves))
    height = -(-len(curves) // width)
    figure, axes = plt.subplots(
        height, width, figsize=(4 * width, 2.8 * height), squeeze=False, layout="constrained"
    )
    for axis, (name, lines) in zip(axes.flat, curves.items(), strict=False):
        for label, points in lines.items():
            axis.plot(
                *zip(*points, strict=True),
                label=label,
                marker="o" if len(points) < 12 else None,
                markersize=3,
            )
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend()
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    path = plots / "curves.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return [path]
