"""Shares a run: which of its files go to the Hub, with a card that names the repository, and links to shared parents.

    share_run("runs/ppo", "me/ppo", parents="push")

Checkpoints, optimizer states, logs and all files that no run writes stay here. A folder of LoRA matrices is pushed as an
adapter of its base model, or merged into it.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rlhf.errors import UserError
from rlhf.hub.push import Pushed, files_of, push_folder
from rlhf.runs.card import card_text
from rlhf.runs.durable import write_text
from rlhf.runs.public_names import write_public
from rlhf.runs.record import DONE, EVALUATION_FAILED, RECORD, TRAINED, RunRecord, read_object

CARD = "README.md"
ADAPTER = "adapter_config.json"
BASE = "base_model_name_or_path"  # key of ADAPTER
SHARED = "hub.json"  # where a run was shared, for the cards of its children; itself not shared
PARENTS = ("link", "push")
# What a run shares, as paths below its folder.
FILES = (
    "*.safetensors",
    "*.json",
    "*.jsonl",
    "*.jinja",
    "*.model",
    "vocab.txt",
    "merges.txt",
    "plots/*.png",
)
FOLDERS = ("value_model", "adapter")  # of further models, with the same endings
NOT_SHARED = (SHARED, "trainer_state.json")


@dataclass(frozen=True)
class Preview:
    """Files and card that a push of a run would bring. files: (path, bytes), in order. card: README.md."""

    files: list[tuple[str, int]]
    card: str


def share_run(
    run: str | os.PathLike,
    repo: str,
    *,
    private: bool = False,
    merge: bool = False,
    pr: bool = False,
    parents: str = "link",
    revision: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Push a finished run to the Hub as one commit.

    repo: "name" or "owner/name". private, pr, revision, token: as in `push.push_folder`.
    merge: push a LoRA adapter as a whole model.
    parents: "link" names the repositories of parents that were shared before; "push" shares the others first, under the
        name of the repository and their role (me/ppo-reward).
    """
    run = Path(run)
    check_run(run)
    if parents not in PARENTS:
        raise UserError(f"parents={parents!r}: use {' or '.join(PARENTS)}")
    if parents == "push":
        for role, folder in local_parents(run).items():
            if not shared_as(folder):
                # Parents of parents, too. A run never comes from itself: its weights were read before it was written.
                share_run(folder, f"{repo}-{role}", private=private, parents=parents, token=token)
    with staged(run, repo, merge=merge) as folder:
        message = f"Share a run of {RunRecord.load(run).recipe}"
        pushed = push_folder(
            folder, repo, private=private, pr=pr, message=message, token=token, revision=revision
        )
    # A pull request may never be merged.
    if not pr:
        note_shared(run, pushed)
    return pushed


def preview(run: str | os.PathLike, repo: str, *, merge: bool = False) -> Preview:
    """The files and the card that `share_run` would push. Nothing is sent."""
    run = Path(run)
    check_run(run)
    with staged(run, repo, merge=merge) as folder:
        return Preview(sizes_of(folder), (folder / CARD).read_text(encoding="utf-8"))


def sizes_of(folder: Path) -> list[tuple[str, int]]:
    """(path, bytes) of every file below a folder, in order."""
    sizes = []
    for path in files_of(folder):
        sizes.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    return sizes


def check_run(run: Path) -> None:
    """UserError for a folder that is not the finished run of a recipe."""
    record = read_object(run / RECORD)
    if not record.get("recipe"):
        raise UserError(f"{run}: no readable {RECORD}: give the output_dir of a finished run")
    if record.get("status") not in (DONE, TRAINED, EVALUATION_FAILED):
        raise UserError(
            f"{run}: its status is {record.get('status')!r}, so there is no trained model to share: finish the run first"
        )


# ---- the files ---------------------------------------------------------------------------------------------------


def shared_files(run: Path) -> list[Path]:
    """The files of a run that are shared, as paths below its folder, in order. The card is written again."""
    files = []
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if path.is_file() and is_shared(name):
            files.append(path.relative_to(run))
    return sorted(files)


def is_shared(name: str) -> bool:
    """True for the path of a file that is shared."""
    folder, _, rest = name.partition("/")
    if folder in FOLDERS:
        name = rest
    is_picture = folder == "plots"
    if name in NOT_SHARED or ("/" in name and not is_picture):
        return False
    # fnmatch lets * match a slash: each pattern is of one folder only.
    return any(fnmatchcase(name, pattern) for pattern in FILES if ("/" in pattern) == is_picture)


@contextmanager
def staged(run: Path, repo: str, *, merge: bool = False) -> Iterator[Path]:
    """A folder with exactly the files to push, large ones as links, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="rlhf-share-") as temporary:
        folder = Path(temporary)
        is_adapter = (run / ADAPTER).is_file()
        if merge:
            if not is_adapter:
                raise UserError(
                    f"{run} holds no LoRA adapter: its model is whole already; drop --merge"
                )
            merge_adapter(run, folder)
        for path in shared_files(run):
            # A merged model has written its own, and needs no adapter any more.
            if (folder / path).exists() or (merge and path.name.startswith("adapter_")):
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to((run / path).resolve())
        if is_adapter and not merge:
            name_base(run, folder)
        for name in (RECORD, "samples.jsonl"):
            (folder / name).unlink(missing_ok=True)  # a link to the file with private folders in it
        write_public(run, folder)
        card = card_text(run, model_id=repo, adapter=is_adapter and not merge)
        write_text(folder / CARD, with_parents(card, run))
        yield folder


def merge_adapter(run: Path, folder: Path) -> None:
    """Write the model of a LoRA adapter, merged into its base, with its tokenizer."""
    from rlhf.models.load import load_policy, load_tokenizer, save

    save(load_policy(str(run)), load_tokenizer(str(run)), folder)


def name_base(run: Path, folder: Path) -> None:
    """Write the adapter's config with the Hub id of its base. UserError where the base is only here."""
    config = read_object(run / ADAPTER)
    base = str(config.get(BASE) or "")
    if os.path.isdir(base):
        base = shared_as(Path(base))
        if not base:
            raise UserError(
                f"{run}: the base of its adapter, {config[BASE]}, is not on the Hub: share that first, or use --merge"
            )
    (folder / ADAPTER).unlink()
    config[BASE] = base
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER).write_text(f"{text}\n", encoding="utf-8")


# ---- parents -----------------------------------------------------------------------------------------------------


def local_parents(run: Path) -> dict[str, Path]:
    """role -> folder, of the parents of a run that are finished runs in folders here."""
    folders = {}
    for role, entry in RunRecord.load(run).parents.items():
        folder = home_of(entry.get("name", ""), run)
        is_run = folder is not None and read_object(folder / RECORD).get("recipe")
        if is_run and folder.resolve() != run.resolve():
            folders[role] = folder
    return folders


def home_of(name: str, run: Path) -> Path | None:
    """The folder of a parent: where it was, or moved together with its child."""
    for folder in (Path(name), run.parent / Path(name).name):
        if name and folder.is_dir():
            return folder
    return None


def note_shared(run: Path, pushed: Pushed) -> None:
    """Remember where a run was shared."""
    repo = pushed.url.rstrip("/").split("/")[-2:]
    content = {"repo": "/".join(repo), "commit": pushed.commit, "url": pushed.url}
    content["started"] = read_object(run / RECORD).get("started", "")
    with suppress(OSError):  # a folder that is read only: its children's cards have no link
        write_text(run / SHARED, json.dumps(content, indent=1) + "\n")


def shared_as(run: Path) -> str:
    """The repository to which a run was shared; "" for none, and where the folder holds another run since."""
    shared, record = read_object(run / SHARED), read_object(run / RECORD)
    if shared.get("started") != record.get("started"):
        return ""
    return str(shared.get("repo") or "")


def with_parents(card: str, run: Path) -> str:
    """The card, with links to the repositories of its parents."""
    links = []
    for role, folder in local_parents(run).items():
        repo = shared_as(folder)
        if repo:
            links.append(f"- {role}: [{repo}](https://huggingface.co/{repo})")
    if not links:
        return card
    return card.rstrip("\n") + "\n\n## Parents on the Hub\n\n" + "\n".join(links) + "\n"
