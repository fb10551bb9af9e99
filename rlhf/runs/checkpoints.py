"""Choice of the output folder, and of the checkpoint that a run resumes from."""

import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.durable import remove_folder
from rlhf.runs.lock import LOCK
from rlhf.runs.manifest import MANIFEST, TRAINER_STATE, flaw, flaw_without_manifest, read_manifest
from rlhf.runs.record import RECORD, read_object
from rlhf.runs.replacement import TEMPORARY
from rlhf.runs.verified_save import SAVING, checkpoints_of, recover

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
    SAVING,
    TEMPORARY,
)
ERROR_OF_A_PROCESS = "error-*.txt"
TENSORBOARD = "runs"  # the folder of report_to: tensorboard
# Values of resume_from_checkpoint that are not a path.
TRUE, FALSE, AUTO = "true", "false", "auto"
NOT_FINISHED = ("running", "failed", "interrupted")


# ---- the output folder -------------------------------------------------------------------------------------------


def check_output_dir(folder: str, checkpoint: str | None) -> None:
    """Refuse a folder that holds a run, so that none is overwritten, and one that cannot be written.

    A failed run that has left no weights is removed.
    checkpoint: that the run resumes from, if it does. Only a run of this very folder goes on in it.
    """
    path = Path(folder)
    make_writable_folder(path)
    names = _names_in(path)
    if not names:
        return
    if checkpoint and Path(checkpoint).resolve().parent == path.resolve():
        return
    if _status(path) == "failed" and has_only_early_files(path):
        remove_early_files(path)
        return
    remedy = "choose another output_dir, or remove the folder"
    if checkpoint:
        remedy = f"{checkpoint} is of another folder: {remedy}"
    elif checkpoints_of(path):
        remedy += ", or continue the run with --resume_from_checkpoint true"
    elif has_only_early_files(path) and _status(path) in NOT_FINISHED:
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


def _names_in(folder: Path) -> list[str]:
    """The names in a folder but for the lock; [] where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def _status(folder: Path) -> str:
    return read_object(folder / RECORD).get("status", "")


def has_only_early_files(folder: Path) -> bool:
    """True if a run has left neither a checkpoint nor weights in the folder."""
    names = set(_names_in(folder))
    if not names & {RECORD, f"{RECORD}.tmp"}:
        return False  # files of somebody else: a run writes its record first
    names -= {path.name for path in folder.glob(ERROR_OF_A_PROCESS)}
    if _has_only_events(folder / TENSORBOARD):
        names.discard(TENSORBOARD)
    return names <= set(WRITTEN_EARLY)


def _has_only_events(folder: Path) -> bool:
    """True of a folder in which only TensorBoard has written."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return all(path.name.startswith("events.out.tfevents") for path in files)


def remove_early_files(folder: Path) -> None:
    """Empty a folder that has only early files."""
    for name in _names_in(folder):
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


# ---- the best checkpoint -----------------------------------------------------------------------------------------


def check_best_checkpoint(args) -> None:
    """Refuse load_best_model_at_end where the best evaluation may have no checkpoint: an older one would be loaded.

    transformers allows save_steps to be any multiple of eval_steps.
    """
    if not args.load_best_model_at_end or args.save_strategy != "steps":
        return
    if args.save_steps != args.eval_steps:
        raise UserError(
            f"load_best_model_at_end: the best of the evaluations, one in {args.eval_steps} steps, has a checkpoint only "
            f"if save_steps={args.save_steps} is the same: set save_steps to {args.eval_steps}, or save_strategy: best"
        )


def check_is_measured(metric: str | None, metrics: Iterable[str]) -> None:
    """Refuse a metric_for_best_model that an evaluation does not give. metrics: names of those it gives, `eval_...`."""
    if metric is None or f"eval_{metric.removeprefix('eval_')}" in metrics:
        return
    names = [name.removeprefix("eval_") for name in metrics]
    raise UserError(f"metric_for_best_model={metric}: use one of {', '.join(names)}")


# ---- the checkpoint to resume from -------------------------------------------------------------------------------


def stop_if_finished(args) -> None:
    """Say that the run is finished and leave with exit code 0, where one that is shall be resumed. Nothing is written."""
    if _meaning_of(args) == FALSE or _status(Path(args.output_dir)) != "done":
        return
    if args.process_index == 0:
        print(
            f"the run in {args.output_dir} is finished: nothing to resume. To train on from it, give its model to "
            "model_name_or_path, and another output_dir",
            flush=True,
        )
    raise SystemExit(0)


def _meaning_of(args) -> str:
    """The value of resume_from_checkpoint: true, false, auto, or a path. A restart of torchrun's means auto."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        return AUTO
    setting = str(args.resume_from_checkpoint or FALSE)
    if setting.lower() in (TRUE, FALSE, AUTO):
        return setting.lower()
    return setting


def checkpoint_to_resume(args, say: Callable[[str], None] | None = None) -> str | None:
    """The folder that `resume_from_checkpoint` means, verified; None to start from the beginning.

    true: the newest checkpoint of output_dir that verifies. auto: the same; where a run was killed before its first, its
    other files are removed. A path: that one. The main process chooses for all. Call it with the folder locked.

    say: prints a line for each checkpoint that is passed over.
    """
    import torch.distributed as dist

    meaning = _meaning_of(args)
    if meaning == FALSE:
        return None
    choice: list = [None, None]  # the checkpoint, the message of an error
    if args.process_index == 0:
        try:
            choice[0] = _choose(meaning, args, say or _print)
        except UserError as error:
            choice[1] = str(error)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(choice)
    checkpoint, message = choice
    if message is not None:
        raise UserError(message)
    return checkpoint


def _print(text: str) -> None:
    print(text, flush=True)


def _choose(meaning: str, args, say: Callable[[str], None]) -> str | None:
    """The checkpoint that `meaning` names. UserError where there is none."""
    root = Path(args.output_dir)
    recover(root)
    if meaning not in (TRUE, AUTO):
        return _verified_path(meaning, root, say)
    newest = newest_verified(root, say)
    if newest is not None:
        return str(newest)
    passed_over = [path.name for path in checkpoints_of(root)]
    if passed_over:
        raise UserError(
            f"resume_from_checkpoint: no checkpoint of {root} is whole ({', '.join(passed_over)}): start the run in another "
            "output_dir, or after removing this one"
        )
    if meaning == AUTO:
        return _beginning(args, root, say)
    remedy = "start the run without it, in another output_dir or after removing this one"
    if _names_in(root) and has_only_early_files(root):
        remedy = (
            "the run stopped before its first: start it again with --resume_from_checkpoint auto"
        )
    raise UserError(f"resume_from_checkpoint: {root} holds no checkpoint-N: {remedy}")


def _beginning(args, root: Path, say: Callable[[str], None]) -> str | None:
    """Begin without a checkpoint in output_dir, for `auto`: from the path that the command names, else from the start.

    Files that a killed run has left are removed, unless there are weights among them.
    """
    if _names_in(root) and has_only_early_files(root) and _status(root) in (*NOT_FINISHED, ""):
        say(f"{root} holds a run that stopped before its first checkpoint: it starts again")
        remove_early_files(root)
    setting = str(args.resume_from_checkpoint or FALSE)
    if setting.lower() in (TRUE, FALSE, AUTO):  # a restart of torchrun's
        return None
    return _verified_path(setting, root, say)


def newest_verified(root: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that is whole. say: gets a line for each that is passed over."""
    for path in reversed(checkpoints_of(root)):
        reason = flaw(path) or _flaw_of_best(path)
        if not reason:
            return path
        say(f"{path} is passed over: {reason}")
    return None


def best_of(checkpoint: str | Path) -> str | None:
    """The best checkpoint as of another one: next to that one, as in a copied run, else where it was; None if gone."""
    recorded = read_object(Path(checkpoint) / TRAINER_STATE).get("best_model_checkpoint")
    if recorded is None:
        return None
    for path in (Path(checkpoint).parent / Path(recorded).name, Path(recorded)):
        if path.is_dir():
            return str(path)
    return None


def _flaw_of_best(checkpoint: Path) -> str:
    """The reason why the best checkpoint so far, which the run may load at its end, is not whole; "" if it is."""
    manifest = read_manifest(checkpoint)
    if not manifest.get("config", {}).get("load_best_model_at_end"):
        return ""
    recorded = read_object(checkpoint / TRAINER_STATE).get("best_model_checkpoint")
    best = best_of(checkpoint)
    if best is None:
        return f"its best checkpoint, {recorded}, is gone" if recorded else ""
    if Path(best).resolve() == checkpoint.resolve():
        return ""
    reason = flaw(best)
    return f"of its best checkpoint, {best}, {reason}" if reason else ""


def _verified_path(setting: str, root: Path, say: Callable[[str], None]) -> str:
    """The checkpoint of a path, if it is whole. One of an older version is not verified, and this is said."""
    folder = Path(setting)
    if not folder.is_dir():
        raise UserError(
            f"resume_from_checkpoint={setting}: no such folder; `true` takes the newest of output_dir"
        )
    has_manifest = (folder / MANIFEST).is_file()
    reason = (
        (flaw(folder) or _flaw_of_best(folder)) if has_manifest else flaw_without_manifest(folder)
    )
    if not reason:
        if not has_manifest:
            say(f"{folder} has no {MANIFEST}, as of an older version: it is not verified")
        return setting
    remedy = "name another checkpoint"
    newest = newest_verified(folder.parent, lambda text: None)
    if newest is not None:
        remedy = f"the newest checkpoint next to it that is whole is {newest}"
    raise UserError(f"{setting} cannot be resumed from: {reason}; {remedy}")


def stop_where_the_run_has_ended(trainer) -> None:
    """Let a Trainer that resumes from the last checkpoint of its run make no step: it would make one more."""
    run_epoch = trainer._run_epoch

    def run_epoch_unless_ended(*args, **options):
        state, control = trainer.state, trainer.control
        # An early stop is told as the training begins.
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_training_stop = True
            return
        run_epoch(*args, **options)

    trainer._run_epoch = run_epoch_unless_ended
