"""Choice of the checkpoint that a run resumes from, or loads as its best."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.manifest import MANIFEST, TRAINER_STATE, flaw, flaw_without_manifest, read_manifest
from rlhf.runs.output_folder import (
    NOT_FINISHED,
    has_only_early_files,
    names_in,
    remove_early_files,
    status_of,
)
from rlhf.runs.processes import on_main
from rlhf.runs.record import DONE, read_object
from rlhf.runs.same_run import check_is_the_finished_run
from rlhf.runs.verified_save import checkpoints_of, recover

# Values of resume_from_checkpoint that are not a path.
TRUE, FALSE, AUTO = "true", "false", "auto"


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


def stop_if_finished(args, facts: dict) -> None:
    """Say that the run is finished and leave with exit code 0, where one that is shall be resumed. Nothing is written.

    facts: recipe and config of this run. UserError where the finished run is another one.
    """
    folder = Path(args.output_dir)
    if _meaning_of(args) == FALSE or status_of(folder) != DONE:
        return
    check_is_the_finished_run(folder, facts)
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
    meaning = _meaning_of(args)
    if meaning == FALSE:
        return None
    return on_main(partial(_choose, meaning, args, say or _print))


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
    if not names_in(root):
        remedy = "it is empty: check output_dir, or start a run with --resume_from_checkpoint auto"
    elif has_only_early_files(root):
        remedy = (
            "the run stopped before its first: start it again with --resume_from_checkpoint auto"
        )
    raise UserError(f"resume_from_checkpoint: {root} holds no checkpoint-N: {remedy}")


def _beginning(args, root: Path, say: Callable[[str], None]) -> str | None:
    """Begin without a checkpoint in output_dir, for `auto`: from the path that the command names, else from the start.

    Files that a killed run has left are removed, unless there are weights among them.
    """
    if names_in(root) and has_only_early_files(root) and status_of(root) in (*NOT_FINISHED, ""):
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
    inside = newest_verified(folder, lambda text: None)
    if inside is not None:
        raise UserError(
            f"resume_from_checkpoint={setting} is the folder of a run: name a checkpoint in it, such as {inside}"
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
