"""The frame around every recipe, with the push of the finished run: `rlhf.runs.run.recording`, and push_to_hub.

The repository is checked before the first step, and nothing is made on the Hub then. The push comes last, when all files
of the run are on the disk, so that one that fails costs nothing but itself. Until then the folder of the run keeps the plan
of it, for `rlhf finish`, since a run is the same, pushed or not, and so is its record.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.hub.push import check_target
from rlhf.hub.share import share_run
from rlhf.runs import run as runs
from rlhf.runs.durable import write_text
from rlhf.runs.keys import PUSH, default_values
from rlhf.runs.output_folder import PUSH_PLAN
from rlhf.runs.record import EVALUATION_FAILED, RunRecord, read_object


@dataclass(frozen=True)
class PushSettings:
    """Repository that a finished run is pushed to. branch: None is main."""

    repo: str
    private: bool
    branch: str | None


@contextmanager
def recording(recipe: str, settings, args) -> Iterator[runs.Run]:
    """Open the run folder and keep its record, and push the run at its end if push_to_hub is set."""
    push = take_push_settings(args)
    is_main = args.process_index == 0
    # A wrong name or token is met now, and not after hours of training.
    if push is not None and is_main:
        check_target(push.repo, private=push.private)
    has_begun = False
    try:
        with runs.recording(recipe, settings, args) as run:
            has_begun = True
            if is_main:
                keep_plan(run.folder, push)
            yield run
    except SystemExit as left:
        # The run was finished before: its push may have failed, or was not asked for then.
        if push is not None and is_main and not has_begun and not left.code:
            push_finished(Path(args.output_dir), push)
        raise
    except Exception as error:
        is_trained = has_begun and run.record.status == EVALUATION_FAILED
        if push is not None and is_main and is_trained:
            error.notes = [*getattr(error, "notes", ()), after_no_push(run.folder, push)]
        raise
    if push is not None and is_main:
        push_finished(run.folder, push)


def take_push_settings(args) -> PushSettings | None:
    """Take the keys of the push out of TrainingArguments; None where there is none.

    The Trainer would make an empty repository and push by itself. A run is the same, pushed or not, and so is its record.
    """
    push = None
    if args.push_to_hub:
        repo = args.hub_model_id or Path(args.output_dir).resolve().name
        push = PushSettings(repo, bool(args.hub_private_repo), args.hub_revision)
    # Also where there is no push, so that both kinds of run have the same record.
    defaults = default_values(args)
    for key in PUSH:
        setattr(args, key, defaults[key])
    return push


def keep_plan(folder: Path, push: PushSettings | None) -> None:
    """Write the plan of a push into the folder of a run, or remove that of an earlier command."""
    path = folder / PUSH_PLAN
    if push is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, json.dumps(asdict(push)) + "\n")


def plan_of(folder: Path) -> PushSettings | None:
    """The push that the last command of a run has asked for, and that was not done; None where there is none."""
    plan = read_object(folder / PUSH_PLAN)
    if not isinstance(plan.get("repo"), str):
        return None
    return PushSettings(plan["repo"], bool(plan.get("private")), plan.get("branch"))


def push_flags(push: PushSettings) -> list[str]:
    """The flags of a recipe that ask for a push."""
    flags = ["--push_to_hub", "true", "--hub_model_id", push.repo]
    if push.private:
        flags += ["--hub_private_repo", "true"]
    if push.branch:
        flags += ["--hub_revision", push.branch]
    return flags


def share_command(folder: Path, push: PushSettings) -> str:
    """The command that pushes a run by itself."""
    command = ["rlhf", "share", str(folder), "--repo", push.repo]
    if push.private:
        command.append("--private")
    if push.branch:
        command += ["--revision", push.branch]
    return shlex.join(command)


def after_no_push(folder: Path, push: PushSettings) -> str:
    """The line after an error of the evaluation, in a run that was to be pushed."""
    command = share_command(folder, push)
    return f"it was not pushed to {push.repo}: `rlhf finish` will do that too, or push it as it is with: {command}"


def push_finished(folder: Path, push: PushSettings) -> None:
    """Push a finished run, and print where it is. UserError with the command to try again, where that fails."""
    try:
        pushed = share_run(folder, push.repo, private=push.private, revision=push.branch)
    except UserError as error:
        command = share_command(folder, push)
        raise UserError(
            f"the run is finished and kept in {folder}, and was not pushed: {error}\n  push it with: {command}"
        ) from error
    keep_plan(folder, None)
    state = "pushed to" if pushed.changed else "unchanged at"
    print(
        f"{RunRecord.load(folder).recipe}: {state} {pushed.url} (commit {pushed.commit[:8]})",
        flush=True,
    )
