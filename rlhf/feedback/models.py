"""Names the exact weights that wrote an answer, for the events of a store."""

import os
from pathlib import Path

from rlhf.digests import weights_sha256
from rlhf.feedback.events import ModelUsed


def model_used(name: str, path: str | Path) -> ModelUsed:
    """The model of a label. Its revision is the sha256 of the weights, or the commit of a model of the Hub."""
    folder = Path(path)
    if folder.is_dir():
        return ModelUsed(name, str(path), weights_sha256(folder))
    return ModelUsed(name, str(path), hub_commit(str(path)))


def hub_commit(name: str, revision: str = "main") -> str:
    """The commit of a Hub model in the local cache, "" if it is not there.

    revision: a branch, a tag or a commit; main is what from_pretrained takes without one.
    """
    cache = _cache_of(name)
    reference = cache / "refs" / revision
    if reference.is_file():
        return reference.read_text().strip()
    if revision and (cache / "snapshots" / revision).is_dir():
        return revision
    return ""


def hub_snapshot(name: str, revision: str = "main") -> Path | None:
    """The folder of a Hub model in the local cache, None if it is not there. Its name is the commit."""
    commit = hub_commit(name, revision)
    if not commit:
        return None
    folder = _cache_of(name) / "snapshots" / commit
    return folder if folder.is_dir() else None


def _cache_of(name: str) -> Path:
    home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub"))
    return cache / f"models--{name.replace('/', '--')}"
