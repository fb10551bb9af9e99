"""Weights of an earlier save in the folder of a model: removed by the next save, and never shared.

A model that once had several files (shards with an index) and now has one, or the other way round, would leave files that
are read with the new weights, or instead of them. An adapter's config would make its base the model of the folder.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
# All that save_pretrained may write weights into, or read them by.
WRITTEN = (ONE_FILE, INDEX, SHARDS, "pytorch_model*", "adapter_model.*", "adapter_config.json")


@contextmanager
def replacing_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Remove the weights that are in a folder before the block and were not written again in it."""
    before = _states(Path(folder))
    yield
    # At the end: after an error the old model is whole.
    for path, state in _states(Path(folder)).items():
        if before.get(path) == state:
            path.unlink()


def _states(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """path -> numbers that change when the file is written."""
    states = {}
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            status = path.stat()
            states[path] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return states


def unread_weights(folder: str | os.PathLike) -> set[str]:
    """Names of the files of weights in a folder that from_pretrained passes over: another save has left them."""
    folder = Path(folder)
    shards = {path.name for path in folder.glob(SHARDS)}
    index = folder / INDEX
    # from_pretrained takes the one file first.
    if (folder / ONE_FILE).is_file():
        return shards | ({INDEX} if index.is_file() else set())
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or a torn one
        return set()
    return shards - set(named)
