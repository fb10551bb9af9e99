"""Models of the Hub, as folders of the local cache.

A name is `id` or `id@revision`. It is looked up once per process, and is one commit from then on: config, tokenizer and
weights belong together, whatever is pushed meanwhile. Without the network the last commit that was downloaded is taken.
Refused are repositories whose weights are pickles only, since a pickle can run code, and those that need code of their own.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlhf.digests import file_sha256
from rlhf.errors import UserError
from rlhf.online import (
    cache_of,
    cached_commit,
    explain,
    is_connection_error,
    is_refused_write,
    retrying,
    status_of,
)

# What is downloaded: the files of a model in the Hub's own form, those of a run, and no code.
SMALL_FILES = ["*.json", "*.jsonl", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*"]
WEIGHTS = ["*.safetensors"]
# Other forms of the same model, which nothing here reads.
NOT_READ = ["onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*", "runs/*", "logs/*"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_FORMATS = (".h5", ".msgpack", ".onnx", ".gguf")
CONVERT = "https://huggingface.co/spaces/safetensors/convert"

_commits: dict[tuple[str, str | None], "Commit"] = {}
_folders: dict[tuple["Commit", bool], str] = {}  # of this process, by what was downloaded


@dataclass(frozen=True)
class Commit:
    """A commit of a repository. files: its names; None where the Hub was not asked."""

    repo: str
    sha: str
    files: tuple[str, ...] | None


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """(id, revision) of `id` or `id@revision`. UserError where a different revision is given, too."""
    repo, _, own = name.partition("@")
    if own and revision and own != revision:
        raise UserError(f"{name}: the revision is also given as {revision}: drop one")
    return repo, own or revision


def is_local_model(name: str) -> bool:
    """True for a folder, and for a name that can only mean one."""
    return os.path.isdir(name) or not is_hub_name(name)


def is_hub_name(name: str) -> bool:
    """True for what may be the name of a repository: `name` or `owner/name`, where no folder `owner` is here."""
    repo, _ = split_revision(name)
    parent = os.path.dirname(repo)
    return (
        repo.count("/") <= 1 and not repo.startswith((".", "/", "~")) and not os.path.isdir(parent)
    )


def model_folder(
    name: str | os.PathLike, revision: str | None = None, *, weights: bool = True
) -> str:
    """The folder of a model: the folder itself, or the files of a repository in the cache.

    revision: branch, tag or commit on the Hub.
    weights: False to download a tokenizer or config only.

    UserError: no such repository, no permission, no network, pickles only, or code of its own.
    """
    name = str(name)
    if is_local_model(name):
        return name
    repo, revision = split_revision(name, revision)
    try:
        commit = _commit_of(repo, revision)
        # A folder that was removed meanwhile is downloaded again.
        if os.path.isdir(_folders.get((commit, weights), "")):
            return _folders[commit, weights]
        if commit.files is not None and weights:
            _check_formats(name, commit.files)
        if commit.files is None or "config.json" in commit.files:
            _check_code(name, commit)
        folder = _download(commit, weights)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_reason(error, name)) from error
    # Without the network the files of the repository are not known before.
    if weights and not list(Path(folder).glob("*.safetensors")):
        raise UserError(f"{name}: the repository holds no weights as safetensors")
    _note_reference(commit, revision or "main", replace=weights)
    _folders[commit, weights] = folder
    return folder


def hub_commit(name: str | os.PathLike, revision: str | None = None) -> str:
    """The commit that a name of the Hub means in this process; "" for a folder, and for what was not looked up."""
    if is_local_model(str(name)):
        return ""
    known = _commits.get(split_revision(str(name), revision))
    return known.sha if known else ""


def forget_commits() -> None:
    """Look names up again."""
    _commits.clear()
    _folders.clear()


# ---- looking up --------------------------------------------------------------------------------------------------


def _commit_of(repo: str, revision: str | None) -> Commit:
    """The commit of a name, from the Hub or else from the cache."""
    from huggingface_hub import HfApi

    key = (repo, revision)
    if key not in _commits:
        try:
            info = retrying(lambda: HfApi().model_info(repo, revision=revision))
            files = tuple(file.rfilename for file in info.siblings)
            _commits[key] = Commit(repo, info.sha, files)
        except Exception as error:
            sha = cached_commit(repo, revision)
            if not sha or not _is_unreachable(error):
                raise
            _commits[key] = Commit(repo, sha, None)
    return _commits[key]


def _note_reference(commit: Commit, revision: str, *, replace: bool) -> None:
    """Remember which commit a branch is, where huggingface_hub looks for it without the network."""
    reference = cache_of(commit.repo).resolve() / "refs" / revision
    if commit.files is None or revision == commit.sha or (reference.is_file() and not replace):
        return
    with suppress(OSError):  # a cache that is read only
        reference.parent.mkdir(parents=True, exist_ok=True)
        part = reference.with_name(f"{reference.name}.{os.getpid()}")
        part.write_text(commit.sha)
        os.replace(part, reference)


def _is_unreachable(error: Exception) -> bool:
    """True where the Hub gave no answer about the repository."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    is_off = isinstance(error, OfflineModeIsEnabled) or is_connection_error(error)
    return is_off or (status_of(error) or 0) >= 429


def _reason(error: Exception, name: str) -> str:
    """One line for the user."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    # Why a file that is not in the cache could not be downloaded.
    is_missing = isinstance(error, LocalEntryNotFoundError)
    if is_missing and error.__cause__ is not None and not is_connection_error(error.__cause__):
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            f"{name}: neither a local folder nor downloaded before, and the Hub is not reachable: check the name, the "
            "network, and HF_HUB_OFFLINE"
        )
    if is_refused_write(error):
        return explain(error, name)
    return f"{explain(error, name)}, and no local folder has this name"


# ---- what is refused ---------------------------------------------------------------------------------------------


def _check_formats(name: str, files: tuple[str, ...]) -> None:
    """UserError where the only weights of a repository are pickles, or of another library."""
    # Files of subfolders are other models, or other forms of this one.
    if any(file.endswith(".safetensors") and "/" not in file for file in files):
        return
    pickles = [file for file in files if file.endswith(PICKLES) and "/" not in file]
    if pickles:
        raise UserError(
            f"{name}: its weights are pickles only ({pickles[0]}), and a pickle can run code when it is read: take a "
            f"repository with safetensors, or have it converted at {CONVERT} and give {name}@refs/pr/N"
        )
    others = [file for file in files if file.endswith(OTHER_FORMATS)]
    if others:
        raise UserError(
            f"{name}: its weights have another format ({others[0]}): take one with safetensors"
        )


def _check_code(name: str, commit: Commit) -> None:
    """UserError where the model needs Python code of the repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import CONFIG_MAPPING

    try:
        path = retrying(lambda: hf_hub_download(commit.repo, "config.json", revision=commit.sha))
    except LocalEntryNotFoundError:
        if commit.files is None:  # a tokenizer alone, from the cache
            return
        raise
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return  # loading it says what is wrong
    # Many repositories name code for older versions of transformers, which has the architecture by now.
    needs_code = isinstance(config, dict) and config.get("auto_map")
    if needs_code and config.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{name}: the model needs Python code of its own repository, and code of the Hub is never run here: take a "
            "model of an architecture that transformers has"
        )


# ---- downloading -------------------------------------------------------------------------------------------------


def _download(commit: Commit, weights: bool) -> str:
    """The folder of the files in the cache. Those that are new are compared with their hashes on the Hub."""
    patterns = SMALL_FILES + WEIGHTS if weights else SMALL_FILES
    before = set(cache_of(commit.repo).resolve().rglob("*"))

    def fetch() -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(
            commit.repo, revision=commit.sha, allow_patterns=patterns, ignore_patterns=NOT_READ
        )

    folder = retrying(fetch)
    damaged = _damaged(commit, folder, before)
    if damaged:  # a proxy between, or a cut connection: once more
        folder = retrying(fetch)
        damaged = _damaged(commit, folder, before)
    if damaged:
        raise UserError(
            f"{commit.repo}: {damaged} arrived with another content than the Hub names (sha256): try again later, or "
            "without the proxy between"
        )
    return folder


def _damaged(commit: Commit, folder: str, before: set[Path]) -> str:
    """The name of a large file that was just downloaded, and is not what the Hub says; "" if all is well.

    Such a file is removed from the cache. before: what the cache held.
    """
    from huggingface_hub import HfApi

    new = []
    for path in Path(folder).rglob("*.safetensors"):
        if path.resolve() not in before:
            new.append(path)
    if not new:
        return ""
    names = [path.relative_to(folder).as_posix() for path in new]
    entries = retrying(lambda: HfApi().get_paths_info(commit.repo, names, revision=commit.sha))
    hashes = {entry.path: entry.lfs.sha256 for entry in entries if entry.lfs}
    for path, name in zip(new, names, strict=True):
        if name in hashes and file_sha256(path) != hashes[name]:
            # Both: the link would make the file look complete.
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            return name
    return ""
