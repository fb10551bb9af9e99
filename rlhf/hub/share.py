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
from rlhf.hub.push import Pushed, files_of, full_name, push_folder
from rlhf.models.snapshots import split_revision
from rlhf.models.stale_weights import unread_weights
from rlhf.online import explain, retrying
from rlhf.runs.card import card_text
from rlhf.runs.durable import write_text
from rlhf.runs.output_folder import PUSH_PLAN
from rlhf.runs.parents import home_of, hub_id_of, is_replaced, load_record
from rlhf.runs.public_names import write_public
from rlhf.runs.record import DONE, EVALUATION_FAILED, RECORD, TRAINED, RunRecord, read_object

CARD = "README.md"
ADAPTER = "adapter_config.json"
BASE = "base_model_name_or_path"  # key of ADAPTER
SHARED = "hub.json"  # where a run was shared, for the cards of its children; itself not shared
PARENTS = ("link", "push")
LONGEST_NAME = 96  # characters of a name on the Hub, without its owner
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
NOT_SHARED = (SHARED, PUSH_PLAN, "trainer_state.json")


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
    repo = full_name(repo, token)  # for the snippets of the card
    if parents == "push":
        share_parents(run, repo, private=private, token=token)
    with staged(run, repo, merge=merge) as folder:
        base = read_object(folder / ADAPTER).get(BASE)
        if base and not is_on_hub(base, token):
            raise UserError(
                f"{run}: the base of its adapter, {base}, is not on the Hub: share that first, or use --merge"
            )
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
    with staged(run, full_name(repo), merge=merge) as folder:
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
    unread = {run / name for name in unread_weights(run)}
    for folder in FOLDERS:
        unread |= {run / folder / name for name in unread_weights(run / folder)}
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if path.is_file() and is_shared(name) and path not in unread:
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

    check_base(run, str(read_object(run / ADAPTER).get(BASE) or ""))
    save(load_policy(str(run)), load_tokenizer(str(run)), folder)


def name_base(run: Path, folder: Path) -> None:
    """Write the adapter's config with the Hub id and commit of its base. UserError where the base is only here."""
    config = read_object(run / ADAPTER)
    base, revision = str(config.get(BASE) or ""), config.get("revision")
    if not base:
        raise UserError(f"{run}: {ADAPTER} names no base model: write it under {BASE}")
    if os.path.isdir(base):
        check_base(run, base)
        repo = hub_id_of(Path(base))
        if not repo:
            raise UserError(
                f"{run}: the base of its adapter, {base}, is not on the Hub: share that first, or use --merge"
            )
        # The matrices fit these weights only, whatever the repository holds later.
        base, revision = repo, read_object(Path(base) / SHARED).get("commit")
    else:
        base, revision = split_revision(base, revision)
    (folder / ADAPTER).unlink()
    config |= {BASE: base, "revision": revision}
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER).write_text(f"{text}\n", encoding="utf-8")


def check_base(run: Path, base: str) -> None:
    """UserError where the folder of an adapter's base now holds another model than the adapter was trained on."""
    record = load_record(Path(base)) if os.path.isdir(base) else None
    for entry in RunRecord.load(run).parents.values():
        if record is not None and entry.get("name") == base and is_replaced(entry, record):
            raise UserError(
                f"{run}: the base of its adapter, {base}, was trained again since, and the matrices fit the weights of "
                "before only: put those back, or train the adapter again"
            )


# ---- parents -----------------------------------------------------------------------------------------------------


def share_parents(
    run: Path, repo: str, *, private: bool, token: str | None, children: tuple[Path, ...] = ()
) -> None:
    """Share the parents of a run that are not on the Hub, and theirs before them.

    children: the runs that this is done for. Folders that were trained from each other in turn could go on for ever.
    """
    children = (*children, run.resolve())
    for role, folder in local_parents(run).items():
        if folder.resolve() in children or is_on_hub(hub_id_of(folder), token):
            continue
        name = f"{repo}-{role}"
        if len(name.rpartition("/")[2]) > LONGEST_NAME:
            raise UserError(
                f"{folder}: {name[:60]}... is too long a name for the Hub: share the oldest parents first, under names of "
                "their own, and their children are linked to them"
            )
        share_parents(folder, name, private=private, token=token, children=children)
        share_run(folder, name, private=private, token=token)


def local_parents(run: Path) -> dict[str, Path]:
    """role -> folder, of the parents of a run that are finished runs in folders here, with the weights it has read."""
    folders = {}
    for role, entry in RunRecord.load(run).parents.items():
        folder = home_of(entry.get("name", ""), run)
        if folder is None:
            continue
        record = load_record(folder)
        if record is not None and record.recipe and not is_replaced(entry, record):
            folders[role] = folder
    return folders


def note_shared(run: Path, pushed: Pushed) -> None:
    """Remember where a run was shared."""
    repo = pushed.url.rstrip("/").split("/")[-2:]
    content = {"repo": "/".join(repo), "commit": pushed.commit, "url": pushed.url}
    content["started"] = read_object(run / RECORD).get("started", "")
    with suppress(OSError):  # a folder that is read only: its children's cards have no link
        write_text(run / SHARED, json.dumps(content, indent=1) + "\n")


def is_on_hub(repo: str, token: str | None = None) -> bool:
    """True for a repository that is there. One that a folder was shared as may be removed by now. "" is none."""
    from huggingface_hub import HfApi

    try:
        return bool(repo) and retrying(lambda: HfApi(token=token).repo_exists(repo))
    except Exception as error:
        raise UserError(explain(error, repo)) from error


def with_parents(card: str, run: Path) -> str:
    """The card, with links to the repositories of its parents."""
    links = []
    for role, folder in local_parents(run).items():
        repo = hub_id_of(folder)
        if repo:
            links.append(f"- {role}: [{repo}](https://huggingface.co/{repo})")
    if not links:
        return card
    return card.rstrip("\n") + "\n\n## Parents on the Hub\n\n" + "\n".join(links) + "\n"
