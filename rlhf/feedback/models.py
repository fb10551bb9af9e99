"""Names the exact weights that wrote an answer, for the events of a store."""

import os
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from rlhf.digests import file_sha256
from rlhf.feedback.events import ModelUsed

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def model_used(name: str, path: str | Path) -> ModelUsed:
    """The model of a label. Its revision is the sha256 of the weights, or the commit of a model of the Hub."""
    folder = Path(path)
    if folder.is_dir():
        return ModelUsed(name, str(path), weights_digest(folder))
    return ModelUsed(name, str(path), hub_commit(str(path)))


def weights_digest(folder: Path) -> str:
    """sha256 of the weights' file; of several files, of the list of their names and digests. "" without weights."""
    # The first pattern that matches: a folder may hold the same weights in both forms.
    files: list[Path] = []
    for pattern in WEIGHTS:
        files = files or sorted(folder.glob(pattern))
    digests = []
    for file in files:
        status = file.stat()
        digests.append(_digest(str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    # One file, or none.
    if len(digests) < 2:
        return "".join(digests)
    lines = [f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True)]
    return sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=256)
def _digest(path: str, *change) -> str:
    """change: numbers that differ after the file was replaced."""
    return file_sha256(path)


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
