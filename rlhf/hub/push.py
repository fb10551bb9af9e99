"""Pushes a folder to the Hub as one commit, which is made whole or not at all.

The folder is compared with the repository first: a push of the same files makes no commit. The commit names its parent, so
that one of somebody else in between is seen (412) and compared with, too. Afterwards the repository is read back.
"""

import fnmatch
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rlhf.digests import BLOCK, file_sha256
from rlhf.errors import UserError
from rlhf.online import LOGIN, explain, retrying, status_of

KINDS = ("model", "dataset", "space")
# Files of a repository that go with a push, where the folder has none of the name. An old shard would be read with the
# new weights, or instead of them, and old samples would be taken for those of the new model. Other files are the user's
# own and stay.
REPLACED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "adapter_*",
    "adapter/*",
    "config.json",
    "generation_config.json",
    "metrics.jsonl",
    "samples.jsonl",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer*",
    "vocab.*",
    "words.json",
    "merges.txt",
    "chat_template.jinja",
    "plots/*",
    "value_model/*",
)
# The same of the other kinds: what somebody took back must not stay, and a Space runs the code and models that it is given.
REPLACED_OF = {
    "model": REPLACED,
    "dataset": ("train.jsonl", "ratings.jsonl"),
    "space": ("rlhf/*", "models/*"),
}
RACES = 3  # commits of others in between, after which a push gives up
TEXT = (".md", ".json", ".jsonl", ".txt", ".py", ".yaml", ".yml", ".csv", ".tsv", ".jinja")
SECRET = re.compile(r"hf_[A-Za-z0-9]{30,}")  # in JSON and YAML a line break before it is a letter
PATHS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    url: of the repository, or of the pull request. commit: that holds the files now.
    changed: False where the repository had the same files already.
    """

    url: str
    commit: str
    changed: bool


@dataclass(frozen=True)
class Target:
    """A repository to push to. repo: with its owner. exists: False where it is made by the push."""

    repo: str
    kind: str
    exists: bool
    token: str


def push_folder(
    folder: str | os.PathLike,
    repo: str,
    *,
    kind: str = "model",
    private: bool = False,
    pr: bool = False,
    message: str = "Upload",
    token: str | None = None,
    revision: str | None = None,
) -> Pushed:
    """Make a repository on the Hub hold the files of a folder. Nothing happens where it does already.

    repo: "name" or "owner/name". It is made where there is none.
    kind: one of KINDS.
    private: of a new repository. An existing one must be private, too.
    pr: open a pull request instead of a commit to the branch.
    token: default: HF_TOKEN, or that of `hf auth login`.
    revision: the branch; it is made where there is none.

    UserError: no or an unknown token, no permission, a name that others have, no network, or a token in a file.
    """
    folder = Path(folder)
    # All that can be known before anything is sent.
    target = check_target(repo, kind=kind, private=private, pr=pr, token=token)
    check_secrets(folder, target.token)
    try:
        return _push(folder, target, private=private, pr=pr, message=message, branch=revision)
    except UserError:
        raise
    except Exception as error:  # of the Hub, the network, or the card's metadata
        raise UserError(explain(error, target.repo)) from error


def check_target(
    repo: str,
    *,
    kind: str = "model",
    private: bool = False,
    pr: bool = False,
    token: str | None = None,
) -> Target:
    """UserError where a push would fail: the token, the name, the permission. Nothing is made on the Hub."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if kind not in KINDS:
        raise UserError(f"kind={kind!r}: use one of {', '.join(KINDS)}")
    token = token or get_token()
    if not token:
        raise UserError(f"{repo}: there is no token to push with: {LOGIN}")
    api = HfApi(token=token)
    try:
        validate_repo_id(repo)
        user = retrying(lambda: api.whoami())
        # The Hub takes a name without an owner for one of its oldest models, such as gpt2.
        if "/" not in repo:
            repo = f"{user['name']}/{repo}"
        _check_owner(repo, user, pr)
        try:
            info = retrying(lambda: api.repo_info(repo, repo_type=kind))
        except RepositoryNotFoundError:
            info = None
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error, repo)) from error
    if info is None and pr:
        raise UserError(f"{repo}: no such {kind} on the Hub to open a pull request for: drop --pr")
    if info is not None and private and not info.private:
        raise UserError(
            f"{repo} exists and is public, and a private one was asked for: choose another name, or make it private in its "
            "settings first"
        )
    return Target(repo, kind, info is not None, token)


def full_name(repo: str, token: str | None = None) -> str:
    """A name with its owner, who is the user of the token where none is named. As it is where nobody is logged in."""
    from huggingface_hub import HfApi, get_token

    if "/" in repo or not (token or get_token()):
        return repo
    try:
        return f"{retrying(lambda: HfApi(token=token).whoami())['name']}/{repo}"
    except Exception:  # noqa: BLE001  the push itself says what is wrong, and a preview needs no network
        return repo


def _check_owner(repo: str, user: dict, pr: bool) -> None:
    """UserError where the user of a token may not write to repositories of this owner."""
    owners = [user["name"], *(org["name"] for org in user.get("orgs") or [])]
    # "read", "write", or "fineGrained", whose rights only the push itself shows.
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise UserError(
            f"{repo}: the token of {user['name']} may only read: make one that may write at "
            f"https://huggingface.co/settings/tokens, then {LOGIN}"
        )
    owner = repo.split("/")[0]
    if owner not in owners and not pr:
        raise UserError(
            f"{repo}: no permission: {user['name']} is not a member of {owner}; use one of {', '.join(owners)} as the "
            "owner, or --pr for a pull request"
        )


def check_secrets(folder: Path, token: str) -> None:
    """UserError where a file of text holds a token of the Hub."""
    for path in files_of(folder):
        if path.suffix not in TEXT:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        # A token of another form, such as that of a private Hub, is known only if it is the one in use.
        if SECRET.search(text) or (token and token in text):
            raise UserError(
                f"{path.relative_to(folder)} holds a token of the Hub: remove it before you share the folder, and make a "
                "new token"
            )


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


# ---- the commit --------------------------------------------------------------------------------------------------


def _push(folder: Path, target: Target, *, private: bool, pr: bool, message: str, branch) -> Pushed:
    from huggingface_hub import HfApi

    api = HfApi(token=target.token)
    where = {"repo_id": target.repo, "repo_type": target.kind}
    if not target.exists:
        sdk = "gradio" if target.kind == "space" else None
        retrying(lambda: api.create_repo(**where, private=private, exist_ok=True, space_sdk=sdk))
    if branch not in (None, "main"):
        retrying(lambda: api.create_branch(**where, branch=branch, exist_ok=True))
    url = f"{api.endpoint}/{PATHS[target.kind]}{target.repo}"
    if pr and branch in (None, "main"):
        waiting = _same_request(api, folder, target, url)
        if waiting is not None:
            return waiting
    tried = False  # a commit may have been made although its answer was an error
    for _ in range(RACES):
        operations, head = changes(api, folder, target, branch)
        if not operations:
            return Pushed(url, head, changed=tried)
        tried = True
        try:
            commit = _commit(api, where, operations, head, (message, branch, pr))
        except Exception as error:
            if (
                status_of(error) == 412
            ):  # compare with what is there now, which may be this very commit
                continue
            raise
        revision = commit.pr_revision if pr else commit.oid
        # Read back: nothing may be left to send.
        left, _ = changes(api, folder, target, revision)
        if left:
            raise UserError(f"{target.repo}: the commit {commit.oid[:8]} lacks files: push again")
        return Pushed(commit.pr_url or url, commit.oid, changed=True)
    raise UserError(f"{target.repo}: others commit all the time (412): try again later")


def _same_request(api, folder: Path, target: Target, url: str) -> Pushed | None:
    """The user's own open pull request with the same files; None where there is none."""
    filters = {"discussion_type": "pull_request", "discussion_status": "open"}

    def requests():
        author = api.whoami()["name"]
        where = {"repo_id": target.repo, "repo_type": target.kind}
        return list(api.get_repo_discussions(**where, author=author, **filters))

    for request in retrying(requests):
        operations, head = changes(api, folder, target, request.git_reference)
        if not operations:
            return Pushed(f"{url}/discussions/{request.num}", head, changed=False)
    return None


def _commit(api, where: dict, operations: list, head: str, how: tuple):
    message, branch, pr = how

    def send():
        return api.create_commit(
            **where,
            operations=operations,
            commit_message=message,
            parent_commit=head,
            revision=branch,
            create_pr=pr,
        )

    # A second try of a pull request might open a second one.
    return retrying(send, waits=() if pr else None)


def changes(api, folder: Path, target: Target, revision: str | None) -> tuple[list, str]:
    """(the operations of a commit that makes a repository hold the files of a folder, its commit now)."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

    where = {"repo_id": target.repo, "repo_type": target.kind}
    head = retrying(lambda: api.repo_info(**where, revision=revision)).sha

    def listing():
        tree = api.list_repo_tree(**where, revision=head, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    remote = retrying(listing)
    operations, names = [], set()
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        names.add(name)
        if name not in remote or not is_same(path, remote[name]):
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path))
    for name in remote:
        if name not in names and _is_replaced(name, target.kind):
            operations.append(CommitOperationDelete(path_in_repo=name))
    return operations, head


def is_same(path: Path, remote) -> bool:
    """True if a file has the content of an entry of a repository's tree."""
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return file_sha256(path) == remote.lfs.sha256
    return git_sha1(path) == remote.blob_id


def git_sha1(path: Path) -> str:
    """The name that git gives the content of a file."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _is_replaced(name: str, kind: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in REPLACED_OF[kind])
