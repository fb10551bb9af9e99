"""The frame around every recipe: settings, errors, processes, the run folder and its record.

    def main(settings: Settings, args: SFTConfig) -> None:
        with recording("sft", settings, args) as run:
            ...

    if __name__ == "__main__":
        start(main, __doc__)

The dataclasses in the signature of `main` are the keys of the YAML and the flags of the command line.
"""

import json
import os
import sys
import time
import typing
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from rlhf.data.templates import fixed_date
from rlhf.errors import UserError
from rlhf.runs.checkpoints import (
    changed_since,
    check_best_checkpoint,
    check_output_dir,
    checkpoint_to_resume,
)
from rlhf.runs.layouts import check_layout, describe_layout
from rlhf.runs.packages import check_packages
from rlhf.runs.precision import precision_of_resumed
from rlhf.runs.processes import (
    check_world,
    keep_freed_memory,
    peak_gpu_memory_gb,
    peak_memory_gb,
    use_all_cores,
)
from rlhf.runs.record import RECORD, RunRecord, parent_entry, read_object
from rlhf.runs.settings import changed_settings, parse

SAMPLES = 8  # held-out rows that samples.jsonl keeps
LAUNCHER_STOPS = 5  # seconds in which it stops the other processes, once the first has failed


def start(main, description: str, argv: list[str] | None = None) -> None:
    """Parse the settings and call `main`. An error that a user can repair becomes one line and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    try:
        hints = typing.get_type_hints(main)
        hints.pop("return", None)
        main(*parse(list(hints.values()), description, argv))
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print(f"error: {error}", file=sys.stderr)
        else:
            # One line, not one per process. Who is still here has an error that the first process does not.
            time.sleep(LAUNCHER_STOPS)
            print(f"error in process {rank}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    finally:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def recording(recipe: str, settings, args):
    """Open the run folder and keep its record: status, seconds, memory, curves and model card."""
    check_world(args.world_size)
    check_layout(args)
    check_packages(args)
    check_best_checkpoint(args)
    args.resume_from_checkpoint = checkpoint_to_resume(args)
    # Only in the first process: the others could find what it has written meanwhile.
    if args.process_index == 0:
        check_output_dir(args.output_dir, args.resume_from_checkpoint)
    day = _template_date(args)
    run = Run(recipe, settings, args)
    # The record of the run that is resumed is about to be replaced.
    changes = changed_since(args.resume_from_checkpoint, run.record.config)
    run.record.template_date = day.isoformat()
    _hide_progress_bars()
    run.say(f"{recipe}: {_prepare_processes(args)} -> {run.folder}")
    if changes:
        run.say(changes)
    started = time.time()
    run.save()  # "running", for whoever looks meanwhile
    try:
        with fixed_date(day):
            yield run
        run.record.status = "done"
    except BaseException:  # Ctrl-C too
        run.record.status = "failed"
        raise
    finally:
        run.record.seconds = round(time.time() - started, 1)
        run.measure_memory()
        run.save()
    if run.main:
        run.show()


def _template_date(args) -> date:
    """The day that chat templates write as today: that of the run that is resumed, else today's on the main process."""
    import torch.distributed as dist

    day = date.today().isoformat()
    checkpoint = args.resume_from_checkpoint
    if checkpoint:
        day = read_object(Path(checkpoint).parent / RECORD).get("template_date") or day
    if dist.is_available() and dist.is_initialized():
        days = [day]
        dist.broadcast_object_list(days)  # from the main process: midnight may be between two
        day = days[0]
    return date.fromisoformat(day)


class Run:
    """The run under way. Only its main process writes and prints."""

    def __init__(self, recipe: str, settings, args):
        self.args = args
        self.folder = Path(args.output_dir)
        self.main = args.process_index == 0
        config = changed_settings(settings, args)
        self.record = RunRecord.begin(recipe, config=config, seed=args.seed)
        # Read now: the record of a resumed run is about to be replaced.
        self.record.precision = precision_of_resumed(args.resume_from_checkpoint)

    def data(self, splits) -> None:
        """Record the files that were read (`data.splits.Splits`) and print their warnings."""
        self.record.data += splits.sources
        for warning in splits.warnings:
            self.say(warning)

    def parent(self, role: str, path: str | None, *, revision: str | None = None) -> None:
        """Record a model that the run starts from; revision: of the Hub."""
        if path:
            self.record.parents[role] = parent_entry(path, revision=revision)

    def facts(self) -> dict:
        """The facts by which a checkpoint knows its run, so that no other run resumes from it."""
        return {
            "recipe": self.record.recipe,
            "config": self.record.config,
            "data": self.record.data,
            "processes": self.args.world_size,
        }

    def train(self, trainer, save: Callable[[], None]) -> None:
        """Train, from the checkpoint that the run resumes from if it does, and save the model.

        The model is saved before it is evaluated, so that no later error can lose it.

        save: writes the trained model into the run folder. Called in every process.
        """
        trainer.facts = self.facts()
        trainer.train(resume_from_checkpoint=self.args.resume_from_checkpoint)
        save()

    def save_model(self, trainer, tokenizer) -> None:
        """Write the model of a trainer into the run folder, from the main process."""
        from rlhf.models.load import save

        if self.main:
            save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, self.folder)

    def best_checkpoint(self, trainer) -> None:
        """Record and print which checkpoint the trained model is, after a run with load_best_model_at_end."""
        args, state = trainer.args, trainer.state
        if not args.load_best_model_at_end:
            return
        if state.best_model_checkpoint is None:
            self.say(
                f"no checkpoint has a finite {args.metric_for_best_model}: the last weights are kept"
            )
            return
        step = int(state.best_model_checkpoint.rpartition("-")[2])
        self.metrics({"best_step": step})
        self.say(
            f"best of the checkpoints by {args.metric_for_best_model}: step {step}, {state.best_metric:.4g}"
        )

    def metrics(self, metrics: dict) -> None:
        """Record final numbers; floats are rounded to six digits."""
        for name, value in metrics.items():
            if isinstance(value, float):
                value = round(value, 6)
            self.record.metrics[name] = value

    def samples(self, rows: list[dict]) -> None:
        """Write samples.jsonl: a few held-out rows with their predictions, for the card and to try in the app."""
        step = max(1, len(rows) // SAMPLES)
        self.write("samples.jsonl", rows[::step][:SAMPLES])

    def write(self, name: str, content) -> None:
        """Write a file of the run folder: one row per line if the name ends in .jsonl, else any JSON."""
        if not self.main:
            return
        if name.endswith(".jsonl"):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
            text = "".join(lines)
        else:
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self.folder / name).write_text(text, encoding="utf-8")

    def say(self, text: str) -> None:
        """Print a line."""
        if self.main:
            print(text, flush=True)

    def save(self) -> None:
        """Write run.json."""
        if self.main:
            self.record.save(self.folder)

    def measure_memory(self) -> None:
        """Record the most memory that this process has had, and on a GPU its tensors."""
        self.record.peak_memory_gb = round(peak_memory_gb(), 3)
        on_gpu = peak_gpu_memory_gb(self.args.device)
        if on_gpu is not None:
            self.record.peak_gpu_memory_gb = round(on_gpu, 3)

    def show(self) -> None:
        """Draw the curves, write the model card, and print the last line of the run."""
        from rlhf.runs.card import write_card
        from rlhf.runs.progress import plot_curves

        plot_curves(self.folder)
        write_card(self.folder)  # shows the curves, so it comes second
        record = self.record
        memory = f"{record.peak_memory_gb:.2f} GB"
        if record.peak_gpu_memory_gb is not None:
            memory += f", {record.peak_gpu_memory_gb:.2f} GB on the GPU"
        numbers = []
        for name, value in record.metrics.items():
            if isinstance(value, float):
                numbers.append(f"{name} {value:.4g}")
            elif isinstance(value, int):  # reports and names are not for one line
                numbers.append(f"{name} {value}")
        self.say(f"{record.recipe}: {record.seconds:.0f} s, {memory}; {', '.join(numbers)}")


def _hide_progress_bars() -> None:
    """Switch off the bars of other libraries: the training has the only one."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    datasets.disable_progress_bars()


def _prepare_processes(args) -> str:
    """Set threads and memory for training on a CPU. Returns a description of the processes."""
    description = describe_layout(args)
    if args.device.type != "cpu":
        return description
    keep_freed_memory()
    # Set by the launcher where there are several machines.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    threads = use_all_cores(local_processes)
    return f"{description}, {threads} threads each"
