"""Output of a run while it trains: metrics.jsonl, samples.jsonl, one progress bar, a table of samples, curves."""

import errno
import json
import os
import sys
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from rlhf.errors import UserError
from rlhf.runs.checkpoints import stop_where_the_run_has_ended
from rlhf.runs.plots import saved_figure
from rlhf.runs.record import cut_rows, read_jsonl

# Metrics that the progress bar shows, where a trainer logs them.
HEADLINES = (
    "loss",
    "score",
    "kl",
    "eval_loss",
    "eval_score",
    "rewards/margins",
    "rewards/accuracies",
    "eval_accuracy",
    "eval_f1",
    "eval_r2",
    "entropy",
    "completion_length",
    "eos_rate",
)
# Parts of the names of numbers that have no curve: positions, times and totals.
NOT_PLOTTED = (
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
FEW_POINTS = 12  # below this a curve has a marker at each point
ROWS = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl")  # files to which a run adds rows
CELL_WIDTH = 160  # characters of a table cell, at most


_not_written: set[str] = set()  # files that the disk has refused, and that was said


def append_jsonl(path: str | os.PathLike, row: dict) -> None:
    """Add a row to a file of JSON lines. Tensors and numpy numbers become floats.

    A line that a killed run has torn is ended first. Where the disk takes no more, that is said once, and the training goes
    on: the rows are not worth a model.
    """
    line = json.dumps(row, ensure_ascii=False, default=float) + "\n"
    try:
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = "\n" + line
            _append(file, line.encode(), size)
    except OSError as error:
        if str(path) in _not_written:
            return
        _not_written.add(str(path))
        print(
            f"{path} cannot be written ({error.strerror}): rows are missing there", file=sys.stderr
        )


def _append(file, content: bytes, size: int) -> None:
    """Write all of it or nothing. size: of the file before."""
    try:
        if file.write(content) < len(content):  # as a disk does that is almost full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


class RunProgress(TrainerCallback, ExportableState):
    """Writes every log to metrics.jsonl, and keeps one bar with the headline numbers instead of printed dicts.

    A checkpoint holds the sizes of the files of rows (ROWS), to which a resumed run cuts them back.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder) / "metrics.jsonl"
        self.bar = None
        self.latest: dict[str, float] = {}

    def state(self) -> dict:
        """The sizes, in the form that the Trainer wants."""
        sizes = {}
        for name in ROWS:
            path = self.path.with_name(name)
            sizes[name] = path.stat().st_size if path.exists() else 0
        return {"args": {"folder": str(self.path.parent)}, "attributes": {"sizes": sizes}}

    def on_train_begin(self, args, state, control, **kwargs):
        # A checkpoint of an older version holds no sizes.
        saved = state.stateful_callbacks.setdefault("RunProgress", self.state())
        if state.is_world_process_zero:
            from tqdm import tqdm

            self.path.parent.mkdir(parents=True, exist_ok=True)
            # By now the checkpoint has been read, and the run accepted.
            if state.global_step:
                cut_back(self.path.parent, state.global_step, saved["attributes"]["sizes"])
            # A log file gets a line each time, a terminal redraws one.
            interval = 0.5 if sys.stderr.isatty() else 10
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=interval,
                disable=args.disable_tqdm,
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        append_jsonl(self.path, {"step": state.global_step, **logs})
        for name in HEADLINES:
            if name in logs:
                self.latest[name] = logs[name]
        if self.bar is not None:
            # The next update draws them.
            shown = {name: f"{value:.3g}" for name, value in self.latest.items()}
            self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def cut_back(folder: Path, step: int, sizes: dict[str, int]) -> None:
    """Drop the rows that came after a checkpoint, and say how many lines were torn.

    sizes: bytes of the files at the checkpoint.
    """
    for name in ROWS:
        path = folder / name
        size = sizes.get(name)
        if size is not None and path.exists() and path.stat().st_size < size:
            size = None  # a file of another run, or one that has lost its end
        torn = cut_rows(path, step, size=size)
        if torn:
            lines = "line" if torn == 1 else "lines"
            print(f"{name}: {torn} torn {lines} dropped", flush=True)


def use_run_progress(trainer, folder: str | os.PathLike) -> None:
    """Replace the Trainer's own bar and printer by RunProgress. A run that has ended already makes no step."""
    check_makes_steps(trainer)
    stop_where_the_run_has_ended(trainer)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunProgress(folder))


def publish_evaluation(trainer, metrics: dict, prefix: str, samples=()) -> dict[str, float]:
    """End a Trainer's evaluation: append the samples to samples.jsonl, log the metrics, and go back to training mode.

    Returns the metrics under their logged names, which begin with `prefix`.
    """
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / "samples.jsonl"
        for sample in samples:
            append_jsonl(path, {"step": trainer.state.global_step, **sample})
    metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics
    )
    trainer.model.train()
    return metrics


def check_makes_steps(trainer) -> None:
    """UserError where a Trainer would make no step, and save an untrained model."""
    args, rows = trainer.args, trainer.train_dataset
    if not args.dataloader_drop_last or rows is None:
        return
    batch = args.train_batch_size * args.world_size
    if len(rows) < batch:
        raise UserError(
            f"no step would be made: the {len(rows)} training rows are fewer than a batch of {batch}, and "
            "dataloader_drop_last: true drops them; drop it, or lower per_device_train_batch_size"
        )


def sample_table(samples: list[dict], *, columns: list[str], limit: int) -> str:
    """A table for the terminal, one sample per row; long cells are cut."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=False, expand=False)
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=False, justify="left")
    for sample in samples[:limit]:
        cells = [_cell(sample.get(column, "")) for column in columns]
        table.add_row(*cells)
    console = Console(width=min(140, Console().width))
    with console.capture() as capture:
        console.print(table, markup=False)  # brackets in a text are not markup
    return capture.get()


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)[:CELL_WIDTH]


def plot_curves(folder: str | os.PathLike) -> list[Path]:
    """Draw plots/curves.png from metrics.jsonl: one plot per metric, training and evaluation together."""
    curves = curves_of(read_jsonl(Path(folder) / "metrics.jsonl"))
    if not curves:
        return []
    path = Path(folder) / "plots" / "curves.png"
    path.parent.mkdir(exist_ok=True)
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)  # rounded up
    figsize = (4 * columns, 2.8 * rows)
    with saved_figure(path, rows, columns, figsize=figsize, squeeze=False) as (_, axes):
        for axis, (name, lines) in zip(axes.flat, curves.items(), strict=False):
            _plot_metric(axis, name, lines)
        for axis in axes.flat[len(curves) :]:  # unused places of the last row
            axis.axis("off")
    return [path]


def curves_of(rows: list[dict]) -> dict[str, dict[str, list[tuple]]]:
    """(step, value) pairs: metric -> "training" or "evaluation" -> points. A curve needs two of them."""
    names = set()
    for row in rows:
        for name in row:
            if not any(part in name for part in NOT_PLOTTED):
                names.add(name.removeprefix("eval_"))
    curves: dict[str, dict[str, list[tuple]]] = {}
    for name in sorted(names):
        lines = {
            "training": _points(rows, name),
            "evaluation": _points(rows, f"eval_{name}"),
        }
        lines = {label: points for label, points in lines.items() if len(points) > 1}
        if lines:
            curves[name] = lines
    return curves


def _points(rows: list[dict], key: str) -> list[tuple]:
    """(step, value) of the rows that have a number under `key`."""
    points = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float):
            points.append((row["step"], value))
    return points


def _plot_metric(axis, name: str, lines: dict[str, list[tuple]]) -> None:
    for label, points in lines.items():
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < FEW_POINTS else None
        axis.plot(steps, values, label=label, marker=marker, markersize=3)
    axis.set_title(name)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend()
