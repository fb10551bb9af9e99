"""Tells which files of a folder are its training rows, which are its evaluation rows, and which are neither.

A folder is one data set in several files of one type: `train.jsonl`, the shards `train-00000-of-00002.parquet`, or parts
of any name, as a feedback store has. A file whose name means held-out rows is never read as training rows. Where it is
not clear what belongs to the data set, the folder is refused with the names of its files.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError

SHARD = re.compile(r"-\d+-of-\d+$")  # the end of the name of a shard, as on the Hub
HELD_OUT = re.compile(
    r"(^|[^a-z])(test|testing|validation|valid|val|dev|eval|evaluation|held[^a-z]?out|holdout)([^a-z]|$)"
)
ABOUT = {"readme.txt", "license.txt", "licence.txt", "notice.txt", "citation.txt"}  # not rows
# Forms of data files that are not read: to pass over one could lose a part of the rows.
PACKED = (".zst", ".bz2", ".xz", ".zip", ".7z", ".tar", ".arrow")
NAMES_SHOWN = 8


@dataclass(frozen=True)
class Folder:
    """The files of a folder that hold rows.

    files: those of a split, or the parts of a data set without files for its splits.
    unread: names of the other files with rows.
    """

    files: list[Path]
    unread: list[str]


def read_folder(path: Path, split: str | None, endings: tuple[str, ...]) -> Folder:
    """The files of `split` if there are any, else all files but those whose names mean held-out rows.

    split: None means train. endings: types of files that can be read, without .gz.
    """
    files = _data_files(path, endings)
    wanted = [file for file in files if _is_of(file, split or "train")]
    held_out = [file.name for file in files if is_held_out(file)]
    if not wanted and held_out and split not in (None, "train"):
        # The other files are what is trained on, so they are no evaluation rows.
        raise UserError(
            f"{path}: no file of the split {split!r}, but {_shown(held_out)}: name that split (dataset_test_split), or give "
            "the file by its path"
        )
    if not wanted:
        wanted = [file for file in files if not is_held_out(file)]
    unread = [file.name for file in files if file not in wanted]
    unread += _folders_with_files(path, endings)
    if not wanted:
        raise UserError(_nothing(path, split, unread))
    _refuse_mixture(path, wanted)
    return Folder(wanted, unread)


def has_split(path: Path, split: str, endings: tuple[str, ...]) -> bool:
    """True if a folder has files that are named after a split."""
    return path.is_dir() and any(_is_of(file, split) for file in _data_files(path, endings))


def is_dead_link(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def dead_link(path: Path) -> str:
    """The reason why a link cannot be read."""
    return f"a link to {path.readlink()}, where no such file is: fix the link, or remove it"


def is_held_out(file: Path) -> bool:
    """True if the name of a file means that nothing is trained on it: dev.jsonl, my_test_set.csv, held-out.txt."""
    return HELD_OUT.search(_stem(file).lower()) is not None


def _data_files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files with rows, in the order of their names.

    UserError for one that is packed in a form that is not read, and for a link to a file that is gone.
    """
    files, packed = [], []
    for file in sorted(path.iterdir()):
        name = file.name.lower()
        if name.startswith(".") or name in ABOUT:
            continue
        if _type(file) in endings and is_dead_link(file):
            raise UserError(f"{file}: {dead_link(file)}")
        if not file.is_file():
            continue
        if _type(file) in endings:
            files.append(file)
        elif name.endswith(PACKED):
            packed.append(file.name)
    if packed:
        raise UserError(
            f"{path}: {_shown(packed)} cannot be read, and may be a part of the rows: unpack or move it; allowed: "
            f"{', '.join(endings)}, each also with .gz"
        )
    return files


def _is_of(file: Path, split: str) -> bool:
    return SHARD.sub("", _stem(file)) == split


def _stem(file: Path) -> str:
    """The name without the ending of its type and without .gz."""
    return Path(_unpacked(file)).stem


def _unpacked(file: Path) -> str:
    if file.name.lower().endswith(".gz"):
        return file.name[:-3]
    return file.name


def _type(file: Path) -> str:
    return Path(_unpacked(file)).suffix.lower()


def _refuse_mixture(path: Path, files: list[Path]) -> None:
    """UserError where files are of several types, or one is there twice, packed and not."""
    names = defaultdict(list)  # by type
    for file in files:
        names[_type(file)].append(file.name)
    if len(names) > 1:
        groups = [_shown(group) for group in names.values()]
        raise UserError(
            f"{path}: files of several types, and it is not clear which are the rows: {'; '.join(groups)}; give one file, "
            "or a folder with files of one type"
        )
    packed = {_unpacked(file) for file in files if _unpacked(file) != file.name}
    twice = [file.name for file in files if file.name in packed]
    if twice:
        raise UserError(
            f"{path}: {_shown(twice)} is there with and without .gz: remove one of them"
        )


def _folders_with_files(path: Path, endings: tuple[str, ...]) -> list[str]:
    names = []
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            if any(_type(file) in endings for file in folder.iterdir()):
                names.append(f"{folder.name}/")
    return names


def _nothing(path: Path, split: str | None, unread: list[str]) -> str:
    if not unread:
        return f"{path}: the folder holds no .jsonl file or other file with rows: give a file, or a folder of .jsonl files"
    return (
        f"{path}: the folder has no file of the split {split or 'train'!r}, and its other files are held out or in folders: "
        f"{_shown(unread)}; give one of them by its path"
    )


def _shown(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        shown += f" and {len(names) - NAMES_SHOWN} more"
    return shown
