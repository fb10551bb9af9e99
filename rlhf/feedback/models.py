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


def hub_commit(name: str) -> str:
    """The commit of a Hub model, `id` or `id@revision`, in the local cache; "" if it is not there."""
    name, _, revision = name.partition("@")
    home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub"))
    storage = cache / f"models--{name.replace('/', '--')}"
    # The branch that from_pretrained takes without a revision.
    reference = storage / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip()
    if revision and (storage / "snapshots" / revision).is_dir():
        return revision
    return ""
