"""`rlhf share RUN --repo NAME`: push a finished run, a feedback folder or a Space with chosen models to the Hub.

    rlhf share runs/ppo --repo me/ppo --parents push
    rlhf share feedback/ --repo me/feedback --type dataset
    rlhf share runs/ppo runs/reward --repo me/chat --space

The token is that of HF_TOKEN or `hf auth login`. A flag could be read by others on this machine.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import UserError
from rlhf.hub.push import Pushed, full_name, push_folder
from rlhf.hub.share import CARD, PARENTS, preview, share_run, sizes_of
from rlhf.hub.space import HUB_ID

TYPES = ("model", "dataset", "space")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", nargs="+", metavar="RUN", help="the folder of a run, or of a feedback store")
    add("--repo", required=True, metavar="NAME", help="owner/name on the Hub; it is made if needed")
    add("--private", action="store_true", help="make a private repository")
    add("--pr", action="store_true", help="open a pull request instead of a commit")
    add("--revision", metavar="BRANCH", help="the branch to push to [main]")
    add("--merge", action="store_true", help="push a LoRA adapter merged into its base model")
    add(
        "--parents",
        choices=PARENTS,
        default=PARENTS[0],
        help="link parents that were shared before, or push the others too, as NAME-role [%(default)s]",
    )
    add("--type", choices=TYPES, default=TYPES[0], help="dataset for feedback [%(default)s]")
    add("--space", action="store_true", help="a Space in which the runs can be tried")
    add("--dry_run", action="store_true", help="print the files and the card, and send nothing")


def main(args: argparse.Namespace) -> int:
    kind = "space" if args.space else args.type
    check_arguments(args, kind)
    if kind == "model":
        if args.dry_run:
            show(args.repo, *shown_run(args))
        else:
            say(args.repo, push_run(args))
        return 0
    with built(args, kind) as folder:
        if args.dry_run:
            show(args.repo, sizes_of(folder), card_of(folder))
        else:
            say(args.repo, push_built(args, folder, kind))
    return 0


def check_arguments(args: argparse.Namespace, kind: str) -> None:
    """UserError for folders that are not there, and for flags that do not fit each other."""
    for folder in args.folder:
        # A Space may load models of the Hub.
        if not os.path.isdir(folder) and not (kind == "space" and HUB_ID.fullmatch(folder)):
            raise UserError(f"{folder}: no such folder: give that of a run, or of a feedback store")
    if kind != "space" and len(args.folder) > 1:
        raise UserError(
            f"{len(args.folder)} folders: only --space takes several; share them one by one"
        )
    if args.space and args.type == "dataset":
        raise UserError("--space and --type dataset are two things: give one")
    if kind != "model" and (args.merge or args.parents != PARENTS[0]):
        raise UserError("--merge and --parents are for runs: drop them")


def push_run(args: argparse.Namespace) -> Pushed:
    return share_run(
        args.folder[0],
        args.repo,
        private=args.private,
        merge=args.merge,
        pr=args.pr,
        parents=args.parents,
        revision=args.revision,
    )


def shown_run(args: argparse.Namespace) -> tuple[list[tuple[str, int]], str]:
    shown = preview(args.folder[0], args.repo, merge=args.merge)
    return shown.files, shown.card


@contextmanager
def built(args: argparse.Namespace, kind: str) -> Iterator[Path]:
    """The folder of a data set or a Space, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="rlhf-share-") as temporary:
        target = Path(temporary)
        if kind == "dataset":
            from rlhf.hub.feedback_data import feedback_folder

            shared = feedback_folder(Path(args.folder[0]), target, repo=full_name(args.repo))
            for note in shared.notes():
                print(note)
        else:
            from rlhf.hub.space import space_folder

            space_folder(args.folder, target, link=True)
        yield target


def push_built(args: argparse.Namespace, folder: Path, kind: str) -> Pushed:
    message = {"dataset": "Share feedback", "space": "Share a Space"}[kind]
    return push_folder(
        folder,
        args.repo,
        kind=kind,
        private=args.private,
        pr=args.pr,
        message=message,
        revision=args.revision,
    )


def card_of(folder: Path) -> str:
    return (folder / CARD).read_text(encoding="utf-8")


def show(repo: str, files: list[tuple[str, int]], card: str) -> None:
    """Print what a push would send."""
    print(card)
    print(f"{repo} would hold:")
    for name, size in files:
        print(f"  {size:>12,} bytes  {name}")


def say(repo: str, pushed: Pushed) -> None:
    """Print what a push did."""
    if pushed.changed:
        print(f"{pushed.url} (commit {pushed.commit[:8]})")
    else:
        print(f"{pushed.url} holds the same already (commit {pushed.commit[:8]}): nothing was sent")
