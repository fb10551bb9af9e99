"""Replacing the files of a run folder by newer ones, such that a crash leaves whole files, old or new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.runs import durable
from rlhf.runs.durable import remove_folder, sync, sync_tree

TEMPORARY = ".replacement"


@contextmanager
def replacement(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder. What is written there replaces the files of `folder` at the end, each in one step.

    After an error inside nothing is replaced. Old and new files must go with each other, because a crash between two
    steps leaves some of both. A folder there replaces the one of its name, which is removed before.
    """
    folder = Path(folder)
    temporary = folder / TEMPORARY
    remove_folder(temporary)  # of a run that was killed
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        for path in sorted(temporary.iterdir()):
            target = folder / path.name
            if target.is_dir():
                remove_folder(target)
            path.replace(target)
            durable.boundary(target)
        sync(folder)
    finally:
        remove_folder(temporary)
