"""The sha256 of a file."""

import hashlib
import os

BLOCK = 1 << 20  # bytes that are read at once


def file_sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
