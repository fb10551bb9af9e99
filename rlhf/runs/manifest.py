"""The manifest of a checkpoint: which files it has, with their sizes and sha256, and of which run it is.

It is written last. So a checkpoint with a manifest was saved to its end, and one whose files equal it is whole. A large
file has one sha256 for each part of `part_bytes`, so that all cores can hash it, when it is saved and when it is read.
"""

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from rlhf.digests import PART, file_sha256, parts_of
from rlhf.runs import durable
from rlhf.runs.durable import THREADS, sync, sync_tree, write_text
from rlhf.runs.record import read_object

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer_state.json"
VERSIONS = ("torch", "transformers")  # packages that write and read the files


class Digests:
    """Digests of the files of a folder, computed in threads, while other files are written and go to the disk."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pool = ThreadPoolExecutor(THREADS)
        self.disk = ThreadPoolExecutor(
            1
        )  # waits for the disk, so that it has little left to do at the end
        self.parts: dict[Path, list[Future]] = {}  # of each file: the futures of its parts' sha256
        self.synced: list[Future] = []

    def begin(self) -> None:
        """Start on the files that are new. None may change any more."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path not in self.parts:
                self.restart(path)

    def restart(self, path: Path) -> None:
        """Start on a file, or start again on one that has changed."""
        self.synced.append(self.disk.submit(sync, path))
        parts = parts_of(path.stat().st_size, PART)
        self.parts[path] = [self.pool.submit(file_sha256, path, *part) for part in parts]

    def sync(self) -> None:
        """Wait until all files and names are on the disk. The digests go on meanwhile."""
        for future in self.synced:
            future.result()
        sync_tree(self.folder)
        for path in self.parts:
            durable.boundary(path)

    def files(self) -> dict[str, dict]:
        """Relative path -> the sha256 of each part, and the size in bytes."""
        files = {}
        for path, futures in self.parts.items():
            name = path.relative_to(self.folder).as_posix()
            digests = [future.result() for future in futures]
            files[name] = {"sha256": digests, "size": path.stat().st_size}
        return files

    def close(self) -> None:
        """End the threads."""
        self.disk.shutdown(wait=True, cancel_futures=True)
        self.pool.shutdown(wait=True, cancel_futures=True)


def write_manifest(digests: Digests, facts: dict, *, step: int, by_time: bool) -> None:
    """Write the manifest of a checkpoint whose other files are all on the disk.

    facts: of the run (`Run.facts`).
    by_time: the checkpoint was made because minutes had passed, and its turn ends with the next two of this kind.
    """
    content = {
        "step": step,
        **facts,
        "by_time": by_time,
        "versions": {name: version(name) for name in VERSIONS},
        "part_bytes": PART,
        "files": digests.files(),
    }
    # As read back from JSON, in which tuples are lists.
    content = json.loads(json.dumps(content, default=str))
    content["sha256"] = _digest(content)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    write_text(digests.folder / MANIFEST, f"{text}\n")


def _digest(content: dict) -> str:
    """sha256 of a manifest without its own digest."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(checkpoint: str | Path) -> dict:
    """The content of the manifest; {} where it is missing or torn."""
    return read_object(Path(checkpoint) / MANIFEST)


def flaw(checkpoint: str | Path) -> str:
    """The first reason why a checkpoint cannot be resumed from: a file and what is wrong with it; "" if it is whole."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "no such folder"
    if not any(folder.iterdir()):
        return "the folder is empty"
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing: it was not saved to the end, or by an older version"
    manifest = read_manifest(folder)
    if not manifest or manifest.get("sha256") != _digest(manifest):
        return f"{MANIFEST} is damaged"
    files, config = manifest.get("files"), manifest.get("config", {})
    if not isinstance(files, dict) or not isinstance(config, dict):
        return f"{MANIFEST} is of another version, which this one cannot read"
    if config.get("save_only_model"):
        return "it holds the model only (save_only_model)"
    return _first_bad_file(folder, files, manifest.get("part_bytes"))


def _first_bad_file(folder: Path, files: dict[str, dict], part: int | None) -> str:
    """The first file that is not as the manifest says. All sizes are compared before any file is read.

    part: bytes of a part of a file; None where a file has one sha256, as in older versions.
    """
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{name} has {size} bytes instead of {entry['size']}"
    with ThreadPoolExecutor(THREADS) as pool:
        parts: dict[str, list[Future]] = {}
        for name, entry in files.items():
            spans = parts_of(entry["size"], part or max(entry["size"], 1))
            parts[name] = [pool.submit(file_sha256, folder / name, *span) for span in spans]
        for name, futures in parts.items():
            expected = files[name]["sha256"]
            digests = [future.result() for future in futures]
            if digests != (expected if isinstance(expected, list) else [expected]):
                return f"{name} has another sha256 than when it was saved"
    return ""


def flaw_without_manifest(checkpoint: str | Path) -> str:
    """The first file that every resume reads and a checkpoint of an older version lacks; "" if it has all of them."""
    folder = Path(checkpoint)
    # More than one name: as DeepSpeed and FSDP call it, and on several processes.
    needed = {
        TRAINER_STATE: (TRAINER_STATE,),
        "optimizer.pt": ("optimizer*", "global_step*"),
        "rng_state.pth": ("rng_state*.pth",),
    }
    for name, patterns in needed.items():
        present = [path for pattern in patterns for path in folder.glob(pattern)]
        if not present:
            return f"{name} is missing"
    return ""
