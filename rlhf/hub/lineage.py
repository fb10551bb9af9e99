"""The lineage of a run in the terminal, and its verification: every hash is computed again and compared with the record.

The tree itself comes from the record alone, see `runs.ancestry`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.digests import file_sha256, known_sha256, weights_sha256
from rlhf.errors import UserError
from rlhf.feedback.store import NAME as EVENTS
from rlhf.models.snapshots import split_revision
from rlhf.runs.ancestry import (
    THIS_RUN,
    Line,
    Node,
    is_hub_data,
    is_hub_id,
    lineage,
    lines,
    mermaid,
)
from rlhf.runs.record import RECORD

__all__ = ["Check", "lineage", "mermaid", "run_folder", "tree", "verify"]

# What a check finds. The first two are as recorded, the last three are not.
SAME, GROWN, MOVED, UNKNOWN, MISSING, DIFFERS = (
    "same",
    "grown",
    "moved",
    "not checked",
    "missing",
    "differs",
)
BAD = (MISSING, DIFFERS)
NEARBY = 2  # folders above a run that are searched for what was moved
SHORT = 12  # digits of a commit in the terminal


@dataclass(frozen=True)
class Check:
    """The result for one file, or for a folder as a whole.

    name: the model, store or source of rows, as recorded. file: "" for the whole. state: SAME, GROWN, ...
    note: more about it, as where it is now.
    """

    stage: str
    name: str
    file: str
    state: str
    note: str = ""

    @property
    def is_bad(self) -> bool:
        """True where something is not as the record says, and is lost or changed."""
        return self.state in BAD

    def __str__(self) -> str:
        what = f"{self.stage} {self.name}"
        if self.file:
            what += f": {self.file}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.state:<11} {what}{note}"


def run_folder(name: str) -> Path:
    """The folder of a run, or of the record of a Hub id (id or id@revision), which is downloaded. UserError for neither."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    repo, revision = split_revision(name)
    if not is_hub_id(repo):
        raise UserError(f"{name}: no such folder, and not a Hub id: give the output_dir of a run")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, RECORD, revision=revision)).parent
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: no such folder, and no {RECORD} could be read from the Hub ({reason}): check the name, the network "
            "and your login"
        ) from error


# ---- the tree ----------------------------------------------------------------------------------------------------


def tree(root: Node):
    """The lineage as a tree of rich, to be printed."""
    from rich.text import Text
    from rich.tree import Tree

    # The last branch of each depth: the next line is attached to the one above it.
    branches: dict[int, Tree] = {}
    for line in lines(root):
        text = Text(_label(line))  # names may hold the marks of rich
        if line.depth:
            branches[line.depth] = branches[line.depth - 1].add(text)
        else:
            branches[0] = Tree(text)
    return branches[0]


def _label(line: Line) -> str:
    parts = [f"{line.stage}: {line.name}"]
    if line.again:
        return f"{parts[0]}, as above"
    if line.made_by:
        parts.append(line.made_by)
    if line.revision:
        parts.append(f"revision {line.revision[:SHORT]}")
    if line.code:
        parts.append(f"code {line.code}")
    parts.append(f"sha256 {line.sha256}" if line.sha256 else "no hash was recorded")
    return ", ".join(parts)


# ---- verification ------------------------------------------------------------------------------------------------


def verify(run: str | Path) -> list[Check]:
    """Compute every hash of a lineage again. Each file is checked once, however often it is in the tree.

    run: a folder, or a Hub id.
    """
    root = lineage(run_folder(str(run)))
    checks: list[Check] = []
    seen: set[tuple] = set()
    for _, node in root.walk():
        if (node.name, node.sha256) in seen:
            continue
        seen.add((node.name, node.sha256))
        if node.is_feedback:
            own = list(_check_feedback(node, root))
        else:
            own = list(_check_model(node, root, str(run)))
        of_data = []
        for entry in node.data:
            key = (entry.get("name"), entry.get("sha256"))
            if key not in seen:
                seen.add(key)
                of_data += _check_data(entry, node, root)
        if not Path(run).is_dir():  # the folders are of another machine
            of_data = [_not_shared(check) for check in of_data]
            if node.stage != THIS_RUN and not node.is_on_hub:
                own = [_not_shared(check) for check in own]
        checks += own + of_data
    return checks


def _not_shared(check: Check) -> Check:
    """The check of a folder that another machine has. One of the same name here says nothing about it."""
    if check.state == SAME:
        return check
    return replace(check, state=UNKNOWN, note="not shared with the run")


def _check_model(node: Node, root: Node, given: str) -> Iterator[Check]:
    """The files of a model or tokenizer. given: the name of the run, which may be of the Hub."""
    name = node.name if node.stage != THIS_RUN else given
    if not node.files and not node.sha256:
        yield Check(node.stage, name, "", UNKNOWN, "no hash was recorded")
        return
    if node.entry.get("hashed_now"):
        yield Check(node.stage, name, "", UNKNOWN, "an older version did not record its weights")
        return
    is_of_hub = node.is_on_hub or (node.stage == THIS_RUN and not Path(given).is_dir())
    if is_of_hub:
        yield from _check_hub(node, name)
        return
    folder, is_moved = node.folder, False
    if folder is not None and _differs(node, folder):
        # Another run may be there by now, and the weights elsewhere.
        elsewhere = _find_weights(node, root)
        folder, is_moved = elsewhere or folder, elsewhere is not None
    elif folder is None:
        folder, is_moved = _find_weights(node, root), True
    if folder is None:
        yield Check(node.stage, name, "", MISSING, "the folder is gone, and not near the run")
        return
    if is_moved or folder.resolve() != Path(node.name).resolve():
        yield Check(node.stage, name, "", MOVED, f"now in {folder}")
    if not node.files:  # a record of an older version
        state = SAME if weights_sha256(folder) == node.sha256 else DIFFERS
        yield Check(node.stage, name, "all weights", state)
    for file, recorded in sorted(node.files.items()):
        yield Check(node.stage, name, file, _state(folder / file, recorded))


def _differs(node: Node, folder: Path) -> bool:
    """True where the weights of a folder are not those that were recorded."""
    return bool(node.sha256) and _digest_of(folder) not in ("", node.sha256)


def _digest_of(folder: Path) -> str:
    """The digest of the weights of a folder, or of its tokenizer where it has none."""
    from rlhf.runs.parents import model_digests

    return model_digests(folder).get("sha256", "")


def _state(path: Path, recorded: str) -> str:
    if not path.is_file():
        return MISSING
    return SAME if known_sha256(path) == recorded else DIFFERS


def _find_weights(node: Node, root: Node) -> Path | None:
    """The folder near the run that holds the weights of a node, which has another name or place by now."""
    if not node.sha256 or root.folder is None:
        return None
    home = root.folder.resolve().parent
    for _ in range(NEARBY):
        # Folders of runs only: others would have to be hashed for nothing.
        for record in sorted(home.glob(f"*/{RECORD}")):
            if record.parent != node.folder and _digest_of(record.parent) == node.sha256:
                return record.parent
        home = home.parent
    return None


def _check_hub(node: Node, name: str) -> Iterator[Check]:
    """The files of a Hub model: those in the cache, and of the others what the Hub itself says about them."""
    repo, revision = split_revision(name, node.revision or None)
    large = None
    for file, recorded in sorted(node.files.items()):
        path = node.folder / file if node.folder else None
        if path is not None and path.is_file():
            yield Check(node.stage, name, file, _state(path, recorded), "in the cache")
            continue
        # Asked once, and only if a file is not here.
        if large is None:
            large = _hub_hashes(repo, revision)
        if isinstance(large, str):  # the reason why there is no answer
            yield Check(node.stage, name, file, UNKNOWN, large)
        elif file not in large:
            yield Check(node.stage, name, file, MISSING, "on the Hub")
        elif not large[file]:
            yield Check(node.stage, name, file, UNKNOWN, "the Hub has no sha256 of small files")
        else:
            state = SAME if large[file] == recorded else DIFFERS
            yield Check(node.stage, name, file, state, "on the Hub")


def _hub_hashes(repo: str, revision: str | None) -> dict[str, str] | str:
    """file -> sha256 of the files of a repository, "" for small ones; a reason where the Hub gives no answer."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # noqa: BLE001  no network, no permission, no repository: nothing was checked
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Small files have a sha1 of git alone.
    hashes = {}
    for file in info.siblings or []:
        hashes[file.rfilename] = file.lfs.sha256 if file.lfs else ""
    return hashes


# ---- data and feedback -------------------------------------------------------------------------------------------


def _check_feedback(node: Node, root: Node) -> Iterator[Check]:
    """The events of a store, which only grows: those that the run has read must be the same still."""
    path = Path(node.name)
    if not path.exists():
        path = node.folder or _relocated(node.name, node, root) or path
        if path.exists():
            yield Check(node.stage, node.name, "", MOVED, f"now {path}")
    if path.is_dir():
        path = path / EVENTS
    if not path.is_file():
        yield Check(node.stage, node.name, EVENTS, MISSING)
        return
    recorded, size = node.entry.get("sha256", ""), node.entry.get("bytes", 0)
    if file_sha256(path, 0, size) != recorded:
        yield Check(node.stage, node.name, path.name, DIFFERS, "events were changed or removed")
    elif path.stat().st_size > size:
        note = f"the {node.entry['events']} events of the run are the same, others were added"
        yield Check(node.stage, node.name, path.name, GROWN, note)
    else:
        yield Check(node.stage, node.name, path.name, SAME)


def _check_data(entry: dict, node: Node, root: Node) -> Iterator[Check]:
    """The files of a source of rows."""
    name = str(entry.get("name", ""))
    if is_hub_data(entry):
        revision = entry.get("revision")
        note = f"of the Hub, revision {revision}" if revision else "of the Hub"
        yield Check("data", name, "", UNKNOWN, note)
        return
    files = entry.get("files") or {}
    if not files:
        note = "an older version recorded the hash of the rows, and none of the file"
        yield Check("data", name, "", UNKNOWN, note)
        return
    path = Path(name)
    if not path.exists():
        path = _relocated(name, node, root) or path
        if path.exists():
            yield Check("data", name, "", MOVED, f"now {path}")
    for file, recorded in sorted(files.items()):
        location = path / file if path.is_dir() else path
        yield Check("data", name, file, _state(location, recorded))


def _relocated(name: str, node: Node, root: Node) -> Path | None:
    """A file or folder near the run that ends as a recorded path does, as after a move of the whole project."""
    parts = Path(name).parts
    for near in (node.folder, root.folder):
        home = near.resolve() if near is not None else None
        for _ in range(NEARBY if home else 0):
            home = home.parent
            # The longest ending first, such as data/sft.jsonl before sft.jsonl.
            for start in range(max(1, len(parts) - 3), len(parts)):
                candidate = home.joinpath(*parts[start:])
                if candidate.exists():
                    return candidate
    return None
