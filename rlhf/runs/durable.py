"""Files that survive a crash: written under a temporary name, brought to the disk, then renamed in one step."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 4  # that wait for the disk, or compute digests, at the same time


def boundary(path: str | os.PathLike) -> None:
    """Mark that a file of a save is complete. It does nothing: tests replace it, to kill or to raise between two files.

    Callers name it with its module, `durable.boundary(path)`, so that one replacement reaches them all.
    """


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file such that a crash leaves the old content or the new one, and no reader sees half of it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        boundary(temporary)
        temporary.replace(path)
    except OSError:  # a full disk, for instance
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    boundary(path)


def sync(path: str | os.PathLike) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike) -> None:
    """Wait until every file of a folder and of its subfolders is on the disk, and every name."""
    paths = [Path(folder), *Path(folder).rglob("*")]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(sync, paths))


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder that is on the disk, in one step. Nothing may have the new name yet."""
    source.rename(target)
    sync(target.parent)
    if source.parent != target.parent:
        sync(source.parent)
    boundary(target)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that it holds; nothing happens where it is missing."""
    shutil.rmtree(folder, ignore_errors=True)
