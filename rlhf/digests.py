"""The sha256 of a file, as a whole and in parts, and the one digest of a model's weights."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

BLOCK = 1 << 20  # bytes that are read at once
PART = 64 * BLOCK  # bytes of a part of a large file, so that several threads can hash it
# Files of weights, preferred ones first: a folder may hold the same weights in both forms.
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
THREADS = 4  # that hash files at once


def file_sha256(path: str | os.PathLike, start: int = 0, end: int | None = None) -> str:
    """The sha256 of a file, as 64 hexadecimal digits.

    start, end: hash the bytes from start up to end only; None is the end of the file.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        left = BLOCK if end is None else end - start
        while block := file.read(min(BLOCK, left)):
            digest.update(block)
            if end is not None:
                left -= len(block)
    return digest.hexdigest()


def parts_of(size: int, part: int) -> list[tuple[int, int]]:
    """The start and end in bytes of each part of a file of `size` bytes. An empty file has one part."""
    starts = range(0, max(size, 1), part)
    return [(start, min(start + part, size)) for start in starts]


def known_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file, which is read once as long as it does not change."""
    status = os.stat(path)
    change = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return _sha256_of(os.fspath(path), change)


@lru_cache(maxsize=256)
def _sha256_of(path: str, change: tuple) -> str:
    """change: numbers that differ after the file was written to or replaced."""
    return file_sha256(path)


def files_sha256(paths: Sequence[Path]) -> dict[str, str]:
    """name -> sha256 of each file. Several are hashed at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(known_sha256, paths))
    names = [path.name for path in paths]
    return dict(zip(names, digests, strict=True))


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files with the weights of a model folder, all shards, by name. [] where there are none."""
    for pattern in WEIGHTS:
        paths = sorted(Path(folder).glob(pattern))
        if paths:
            return paths
    return []


def weights_sha256(folder: str | os.PathLike) -> str:
    """The digest of all weights of a model folder; "" where there are none.

    Every record, event and lineage names weights by it.
    """
    return joined_sha256(files_sha256(weight_files(folder)))


def joined_sha256(digests: dict[str, str]) -> str:
    """The digest of one file as it is. Of several, the sha256 of their digests as bytes, in the order of their names.

    digests: name -> sha256 in hexadecimal digits. {} gives "".
    """
    if len(digests) < 2:
        return "".join(digests.values())
    joined = hashlib.sha256()
    for _, digest in sorted(digests.items()):
        joined.update(bytes.fromhex(digest))
    return joined.hexdigest()
