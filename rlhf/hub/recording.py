"""The frame around every recipe, with the push of the finished run: `rlhf.runs.run.recording`, and push_to_hub.

The repository is checked before the first step, and nothing is made on the Hub then. The push comes last, when all files
of the run are on the disk, so that one that fails costs nothing but itself.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.hub.push import check_target
from rlhf.hub.share import share_run
from rlhf.runs import run as runs
from rlhf.runs.keys import PUSH, default_values
from rlhf.runs.record import RunRecord


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
            yield run
    except SystemExit as left:
        # The run was finished before: its push may have failed, or was not asked for then.
        if push is not None and is_main and not has_begun and not left.code:
            push_finished(Path(args.output_dir), push)
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


def push_finished(folder: Path, push: PushSettings) -> None:
    """Push a finished run, and print where it is. UserError with the command to try again, where that fails."""
    try:
        pushed = share_run(folder, push.repo, private=push.private, revision=push.branch)
    except UserError as error:
        command = ["rlhf", "share", str(folder), "--repo", push.repo]
        if push.private:
            command.append("--private")
        if push.branch:
            command += ["--revision", push.branch]
        raise UserError(
            f"the run is finished and kept in {folder}, and was not pushed: {error}\n  push it with: {shlex.join(command)}"
        ) from error
    state = "pushed to" if pushed.changed else "unchanged at"
    print(
        f"{RunRecord.load(folder).recipe}: {state} {pushed.url} (commit {pushed.commit[:8]})",
        flush=True,
    )
