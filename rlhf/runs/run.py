"""What every recipe does around its own hundred lines: settings, errors, processes, the run folder and its record.

    def main(settings: Settings, args: SFTConfig) -> None: ...

    if __name__ == "__main__":
        start(main, __doc__)

The dataclasses in the signature of `main` are the keys of the YAML and the flags of the command line.
"""

import json
import os
import resource
import sys
import time
import typing
import warnings
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.checkpoints import check_output_dir, checkpoint_to_resume
from rlhf.runs.processes import check_world, keep_freed_memory, use_all_cores
from rlhf.runs.record import RunRecord, parent
from rlhf.runs.settings import changed_settings, parse

SAMPLES = 8  # held-out rows that are kept to look at


# ---- settings ----------------------------------------------------------------------------------------------------


# ---- processes ---------------------------------------------------------------------------------------------------


# ---- the run folder ----------------------------------------------------------------------------------------------


class Run:
    """The record of the run under way; only the main process writes."""

    def __init__(self, recipe: str, settings, args):
        self.args, self.folder, self.main = args, Path(args.output_dir), args.process_index == 0
        self.record = RunRecord.begin(
            recipe, config=changed_settings(settings, args), seed=args.seed
        )

    def data(self, splits) -> None:
        """Note what was read (`data.splits.Splits`) and pass its warnings on."""
        self.record.data += splits.sources
        for warning in splits.warnings:
            self.say(warning)

    def parent(self, role: str, path: str | None) -> None:
        if path:
            self.record.parents[role] = parent(path)

    def metrics(self, metrics: dict) -> None:
        self.record.metrics |= {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in metrics.items()
        }

    def samples(self, rows: list[dict]) -> None:
        """samples.jsonl: a few of the held-out rows with what was said of them, for the card and to try in the app."""
        self.write("samples.jsonl", rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES])

    def write(self, name: str, content) -> None:
        """A file of the run folder: rows where the name ends in .jsonl, any JSON otherwise."""
        if self.main:
            parts, indent = (content, None) if name.endswith(".jsonl") else ([content], 1)
            text = "".join(
                json.dumps(part, indent=indent, ensure_ascii=False) + "\n" for part in parts
            )
            (self.folder / name).write_text(text, encoding="utf-8")

    def say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)


@contextmanager
def recording(recipe: str, settings, args):
    """Opens the run folder and keeps its record: status, seconds, memory, curves and model card."""
    check_world(args.world_size)
    args.resume_from_checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:  # the others would meet what the first has written meanwhile
        check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))
    run = Run(recipe, settings, args)
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the training has the one bar
    datasets.disable_progress_bars()
    threads = 0
    if args.device.type == "cpu":
        keep_freed_memory()
        threads = use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)))
    where = f"{args.world_size} process{'es' if args.world_size > 1 else ''} on {args.device.type}"
    run.say(f"{recipe}: {where}{f', {threads} threads each' if threads else ''} -> {run.folder}")
    started = time.time()
    if run.main:
        run.record.save(run.folder)
    try:
        yield run
        run.record.status = "done"
    except BaseException:
        run.record.status = "failed"
        raise
    finally:
        run.record.seconds = round(time.time() - started, 1)
        run.record.peak_memory_gb = round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
        )
        if run.main:
            run.record.save(run.folder)
    if run.main:
        from rlhf.runs.card import write_card
        from rlhf.runs.progress import plot_curves

        plot_curves(run.folder)
        write_card(run.folder)
        numbers = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in run.record.metrics.items()
            if isinstance(v, int | float)
        )
        run.say(
            f"{recipe}: {run.record.seconds:.0f} s, {run.record.peak_memory_gb:.2f} GB; {numbers}"
        )


def start(main, description: str, argv: list[str] | None = None) -> None:
    """Parse, call `main`, and turn what a user can repair into one line and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    try:
        hints = typing.get_type_hints(main)
        main(*parse([hints[name] for name in hints if name != "return"], description, argv))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
