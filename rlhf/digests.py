"""The sha256 of a file, as a whole and in parts."""

import hashlib
import os

BLOCK = 1 << 20  # bytes that are read at once
PART = 64 * BLOCK  # bytes of a part of a large file, so that several threads can hash it


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
