"""Choice of the output folder, and of the checkpoint that a run resumes from."""

import os
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import RECORD, read_object

WRITTEN_EARLY = (
    RECORD,
    "metrics.jsonl",
    "samples.jsonl",
)  # files of a run before its first checkpoint


def check_output_dir(folder: str, resume: bool) -> None:
    """Refuse a folder that holds a run, so that none is overwritten. A failed run without a checkpoint is removed."""
    path = Path(folder)
    # A resumed run writes into its old folder.
    if resume or not path.is_dir() or not any(path.iterdir()):
        return
    if _failed(path) and not list(path.glob("checkpoint-*")):
        for name in WRITTEN_EARLY:
            (path / name).unlink(missing_ok=True)
        return
    names = sorted(p.name for p in path.iterdir())[:5]
    raise UserError(
        f"output_dir {folder} already holds a run ({', '.join(names)}): choose another output_dir, remove the folder, "
        "or continue the run with --resume_from_checkpoint true"
    )


def _failed(folder: Path) -> bool:
    return read_object(folder / RECORD).get("status") == "failed"


def checkpoint_to_resume(args) -> str | None:
    """The folder that `resume_from_checkpoint` means: a path, or `true` for the newest checkpoint of output_dir."""
    from transformers.trainer_utils import get_last_checkpoint

    setting = str(args.resume_from_checkpoint or "false")
    if setting.lower() == "false":
        return None
    if setting.lower() != "true":
        if not Path(setting).is_dir():
            raise UserError(
                f"resume_from_checkpoint={setting}: no such folder; `true` takes the newest of output_dir"
            )
        return setting
    newest = None
    if os.path.isdir(args.output_dir):
        newest = get_last_checkpoint(args.output_dir)
    if newest is None:
        raise UserError(
            f"resume_from_checkpoint: {args.output_dir} holds no checkpoint-N: start the run without it, "
            "in another output_dir or after removing this one"
        )
    return newest
