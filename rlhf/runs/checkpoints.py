"""Choice of the output folder, and of the checkpoint that a run resumes from."""

import os
from collections.abc import Iterable
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.lock import LOCK
from rlhf.runs.record import RECORD, read_object

# Settings with which the optimizer's state of a checkpoint goes.
OF_THE_OPTIMIZER = ("optim", "use_peft", "lora_r")
# Settings that say nothing about what is computed.
OF_THE_START = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "report_to")
# files of a run before its first checkpoint
WRITTEN_EARLY = (RECORD, f"{RECORD}.tmp", "metrics.jsonl", "samples.jsonl", "alarms.jsonl")


def check_output_dir(folder: str, checkpoint: str | None) -> None:
    """Refuse a folder that holds a run, so that none is overwritten, and one that cannot be written.

    A failed run that has left no weights is removed.
    checkpoint: that the run resumes from, if it does. Only a run of this very folder goes on in it.
    """
    path = Path(folder)
    make_writable_folder(path)
    names = sorted(p.name for p in path.iterdir() if p.name != LOCK)
    if not names:
        return
    if checkpoint and Path(checkpoint).resolve().parent == path.resolve():
        return
    if _failed(path) and set(names) <= set(WRITTEN_EARLY):
        for name in names:
            (path / name).unlink()
        return
    remedy = "choose another output_dir, or remove the folder"
    if checkpoint:
        remedy = f"{checkpoint} is of another folder: {remedy}"
    elif list(path.glob("checkpoint-*")):
        remedy += ", or continue the run with --resume_from_checkpoint true"
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


def _failed(folder: Path) -> bool:
    return read_object(folder / RECORD).get("status") == "failed"


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


def changed_since(checkpoint: str | None, config: dict) -> str:
    """The settings that differ from those of the run that is resumed, in a line; "" where none does.

    config: the settings of this run that are not their defaults, as in a record. UserError for a setting with which the
    checkpoint cannot be read.
    """
    if checkpoint is None:
        return ""
    before = read_object(Path(checkpoint).parent / RECORD).get("config")
    if before is None:  # the folder has lost its record
        return ""
    changes = []
    for name in sorted(before.keys() | config.keys()):
        old, new = before.get(name, "its default"), config.get(name, "its default")
        if old == new or name in OF_THE_START:
            continue
        if name in OF_THE_OPTIMIZER:
            raise UserError(
                f"{checkpoint} was trained with {name}: {old}, and this run has {new}: resume with the same"
            )
        changes.append(f"{name} {new} (was {old})")
    if not changes:
        return ""
    return f"resumed with other settings: {', '.join(changes)}"


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
