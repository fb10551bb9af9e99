"""Files that are whole on the disk or not there: written next to their place, flushed to the disk, renamed."""

import os
from pathlib import Path


def boundary(path: str | os.PathLike) -> None:
    """Mark the moment after a file of a save was written. Does nothing: tests kill or raise here."""


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a file in one step. A failure leaves the file as it was, and nothing next to it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        boundary(temporary)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    boundary(path)


def sync(folder: str | os.PathLike) -> None:
    """Flush the names in a folder to the disk, where the system can (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
