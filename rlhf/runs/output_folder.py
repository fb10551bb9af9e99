"""The output folder of a run: its lock, and whether the run may write there."""

import os
import uuid
from contextlib import ExitStack
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.durable import remove_folder
from rlhf.runs.failures import PREFIX, forget_failures
from rlhf.runs.lock import LOCK, locked
from rlhf.runs.record import DONE, FAILED, INTERRUPTED, RECORD, RUNNING, read_object
from rlhf.runs.replacement import TEMPORARY
from rlhf.runs.verified_save import SAVING, checkpoints_of

# The repository that the run is to be pushed to (`hub.recording`), until it is.
PUSH_PLAN = "push.json"
# Files of a run before its first checkpoint. None holds weights.
WRITTEN_EARLY = (
    RECORD,
    f"{RECORD}.tmp",
    "metrics.jsonl",
    "samples.jsonl",
    "alarms.jsonl",
    "metrics.jsonl.tmp",
    "samples.jsonl.tmp",
    "alarms.jsonl.tmp",
    "README.md",
    PUSH_PLAN,
    SAVING,
    TEMPORARY,
)
TENSORBOARD = "runs"  # the folder of report_to: tensorboard
WEIGHTS_BEING_WRITTEN = ".tmp??????"  # a name that safetensors draws
NOT_FINISHED = (RUNNING, FAILED, INTERRUPTED)


def claim(stack: ExitStack, output_dir: str) -> None:
    """Lock the output folder until the run ends, and remove the notes of its last failure.

    stack: frees the folder as it closes, and removes it where the run was refused and left nothing.
    """
    folder = Path(output_dir)
    is_new = not folder.exists()
    make_writable_folder(folder)
    if is_new:
        stack.callback(_remove_empty, folder)
    stack.enter_context(locked(folder))
    forget_failures(folder)
    remove_unfinished(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove the weights that a killed run was writing: safetensors gives a file its name when it is complete."""
    if (folder / RECORD).exists():
        for path in folder.rglob(WEIGHTS_BEING_WRITTEN):
            path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    """Remove the folder that a run made which was refused."""
    if not any(folder.iterdir()):
        folder.rmdir()


def check_output_dir(folder: str, checkpoint: str | None) -> None:
    """Refuse a folder that holds a run, so that none is overwritten, and one that cannot be written.

    A failed run that has left no weights is removed.
    checkpoint: that the run resumes from, if it does. Only a run of this very folder goes on in it.
    """
    path = Path(folder)
    make_writable_folder(path)
    names = names_in(path)
    if not names:
        return
    if checkpoint and Path(checkpoint).resolve().parent == path.resolve():
        return
    if status_of(path) == FAILED and has_only_early_files(path):
        remove_early_files(path)
        return
    remedy = "choose another output_dir, or remove the folder"
    if checkpoint:
        remedy = f"{checkpoint} is of another folder: {remedy}"
    elif checkpoints_of(path) and status_of(path) != DONE:
        remedy += ", or continue the run with --resume_from_checkpoint true"
    elif has_only_early_files(path) and status_of(path) in NOT_FINISHED:
        remedy += ", or start the run again with --resume_from_checkpoint auto"
    raise UserError(f"output_dir {folder} already holds a run ({', '.join(names[:5])}): {remedy}")


def make_writable_folder(path: Path) -> None:
    """Make the folder unless it is there. UserError where it cannot be written."""
    if path.exists() and not path.is_dir():
        raise UserError(f"output_dir {path} is a file: name a folder that is not there yet")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir {path} cannot be made ({error.strerror}): choose another"
        ) from error
    if not os.access(path, os.W_OK):
        raise UserError(f"output_dir {path} cannot be written: choose another, or its permissions")


def names_in(folder: Path) -> list[str]:
    """The names in a folder but for the lock; [] where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def status_of(folder: Path) -> str:
    """The status in the record of a folder; "" where there is none."""
    return read_object(folder / RECORD).get("status", "")


def has_only_early_files(folder: Path) -> bool:
    """True if a run has left neither a checkpoint nor weights in the folder."""
    names = set(names_in(folder))
    if not names & {RECORD, f"{RECORD}.tmp"}:
        return False  # files of somebody else: a run writes its record first
    names -= {path.name for path in folder.glob(f"{PREFIX}*.txt")}
    if _has_only_events(folder / TENSORBOARD):
        names.discard(TENSORBOARD)
    return names <= set(WRITTEN_EARLY)


def _has_only_events(folder: Path) -> bool:
    """True of a folder in which only TensorBoard has written."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return all(path.name.startswith("events.out.tfevents") for path in files)


def remove_early_files(folder: Path) -> None:
    """Empty a folder that has only early files."""
    for name in names_in(folder):
        path = folder / name
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()


def check_shared_folder(args) -> None:
    """Refuse several machines that do not share the output folder: each would have a part of every checkpoint.

    The main process writes a token there, and all look for it.
    """
    machines_share = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)) >= args.world_size
    if args.world_size == 1 or machines_share:
        return
    import torch.distributed as dist

    names = [f".shared-{uuid.uuid4().hex}"]
    dist.broadcast_object_list(names)  # from the main process
    token = Path(args.output_dir) / names[0]
    if args.process_index == 0:
        token.touch()
    dist.barrier()
    # A network file system may remember for a while which files a folder has. This asks it again.
    sees = os.path.isdir(args.output_dir) and names[0] in os.listdir(args.output_dir)
    seen: list = [None] * args.world_size
    dist.all_gather_object(seen, sees)
    if args.process_index == 0:
        token.unlink()
    blind = [str(rank) for rank in range(args.world_size) if not seen[rank]]
    if blind:
        raise UserError(
            f"output_dir {args.output_dir} is not the same folder on all machines: processes {', '.join(blind)} do not see "
            "the files of process 0. Choose a folder that all share, or switch checkpoints off: save_strategy: no"
        )
