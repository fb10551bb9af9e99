"""Names the exact weights that wrote an answer, for the events of a store."""

from pathlib import Path

from rlhf.digests import weights_sha256
from rlhf.feedback.events import ModelUsed
from rlhf.online import cached_commit


def model_used(name: str, path: str | Path) -> ModelUsed:
    """The model of a label. Its revision is the sha256 of the weights, or the commit of a model of the Hub."""
    folder = Path(path)
    if folder.is_dir():
        return ModelUsed(name, str(path), weights_sha256(folder))
    return ModelUsed(name, str(path), hub_commit(str(path)))


def hub_commit(name: str) -> str:
    """The commit of a Hub model, `id` or `id@revision`, in the local cache; "" if it is not there."""
    repo, _, revision = name.partition("@")
    return cached_commit(repo, revision)
