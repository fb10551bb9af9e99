"""Which output folder may be used, and which checkpoint is resumed."""

import os
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import RECORD, RunRecord


def check_output_dir(folder: str, resume: bool) -> None:
    """A folder that holds a run is never written over."""
    path = Path(folder)
    if resume or not path.is_dir() or not any(path.iterdir()):
        return
    if (
        (path / RECORD).is_file()
        and RunRecord.load(path).status == "failed"
        and not list(path.glob("checkpoint-*"))
    ):
        for leftover in (RECORD, "metrics.jsonl", "samples.jsonl"):
            (path / leftover).unlink(missing_ok=True)
        return
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise UserError(
        f"output_dir {folder} already holds a run ({holds}): choose another output_dir, remove the folder, "
        "or continue the run with --resume_from_checkpoint true"
    )


def checkpoint_to_resume(args) -> str | None:
    """The folder that `resume_from_checkpoint` means: a path, or `true` for the newest checkpoint of output_dir."""
    from transformers.trainer_utils import get_last_checkpoint

    asked = str(args.resume_from_checkpoint or "false")
    if asked.lower() == "false":
        return None
    if asked.lower() != "true":
        if not Path(asked).is_dir():
            raise UserError(
                f"resume_from_checkpoint={asked}: no such folder; `true` takes the newest of output_dir"
            )
        return asked
    newest = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    if newest is None:
        raise UserError(
            f"resume_from_checkpoint: {args.output_dir} holds no checkpoint-N: begin the run without it"
        )
    return newest
