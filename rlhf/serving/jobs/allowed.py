"""Names and paths that people may give the app: output folders inside the folder of the runs, and files to read.

Who may use the app of this machine alone may name any file. Where people log in, or the app serves other machines, the
files must be below the folders that were opened for it, and models of the Hub must be on its list.
"""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.keys import DATA_KEYS, MODEL_KEYS, ROLES

NAME_LENGTH = 64  # characters of a part of a name
NAME_BYTES = 192  # of a part; a file system takes 255, and a run adds endings
NAME_PARTS = 4
REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # of the Hub
REPO_LENGTH = 96
PART = re.compile(r"\w[\w.-]*")  # \w of any alphabet
OWN_FILES = re.compile(
    r"(checkpoint-\d+|plots|value_model|runs)"
)  # names that a run gives its own folders
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)  # of Windows
PATH_KEYS = {*DATA_KEYS, *MODEL_KEYS, "resume_from_checkpoint"}
LISTS = ("reward_model_path", "compare_tokenizers")  # of them, those with several values
WORDS = {  # values of PATH_KEYS that are no paths
    "value_model": ROLES,
    "resume_from_checkpoint": ("true", "false", "auto"),
}
NOT_PATHS = ("columns", "document_separator")  # texts that may hold a slash
OUR_FUNCTIONS = "rlhf.recipes.rewards:"  # reward functions that need no trust


@dataclass(frozen=True)
class Allowed:
    """The files that the app reads for people.

    roots: folders with files that anybody may name. hub_ids: models and data sets of the Hub that anybody may name.
    push_to: users and organisations of the Hub to whose repositories anybody may push.
    anything: any file, any id and any repository may be named, as in a terminal.
    """

    roots: tuple[Path, ...] = ()
    hub_ids: tuple[str, ...] = ()
    push_to: tuple[str, ...] = ()
    anything: bool = False

    @property
    def may_push(self) -> bool:
        """True if people may share what is on this server."""
        return self.anything or bool(self.push_to)

    def check_repo(self, repo: str) -> str:
        """The name of a repository to push to. UserError for what is not a name, or not open to all."""
        repo = str(repo).strip()
        if not is_repo(repo):
            raise UserError(
                f"repo={repo[:80]!r}: give a name such as ann/my-model, of letters, digits, -, _ and ., at most "
                f"{REPO_LENGTH} characters"
            )
        owner = repo.rpartition("/")[0]
        if not self.anything and owner not in self.push_to:
            owners = ", ".join(f"{name}/..." for name in self.push_to) or "none"
            raise UserError(f"repo={repo}: is not open here: repositories may be {owners}")
        return repo

    def check_arguments(self, arguments: dict) -> None:
        """UserError for a setting that names a file, an id or a function which is not open to all."""
        if self.anything:
            return
        for key, value in arguments.items():
            values = value if isinstance(value, list) else [value]
            for item in values:
                self._check_argument(key, str(item))

    def _check_argument(self, key: str, value: str) -> None:
        if key == "push_to_hub" or key.startswith("hub_"):
            raise UserError(f"{key}: a run is not pushed from here: share it when it is finished")
        if key == "reward_functions":
            for function in value.split():
                if not function.startswith(OUR_FUNCTIONS):
                    raise UserError(
                        f"{key}={function}: only those of {OUR_FUNCTIONS[:-1]} are open here; others are code of "
                        "this machine"
                    )
            return
        # Other keys may be read as files too, such as the name of an attention kernel.
        looks_like_path = "/" in value or "\\" in value or value.startswith("~")
        is_path = key in PATH_KEYS or (looks_like_path and key not in NOT_PATHS)
        if not is_path or not value or value.lower() in WORDS.get(key, ()):
            return
        for item in value.split() if key in LISTS else [value]:
            self.check_input(item, key)

    def check_input(self, name: str, key: str = "file") -> Path:
        """The path of a file or folder to read. UserError where it is not open to all, whether it exists or not."""
        if "\0" in name or len(name) > 4096 or not is_text(name):
            raise UserError(f"{key}: not a path")
        try:
            path = Path(name).expanduser()
        except RuntimeError as error:  # ~nobody
            raise UserError(f"{key}={name}: {error}") from error
        # An id that is on the list needs no folder.
        if self.anything or name in self.hub_ids:
            return path
        # Links are followed: what counts is where the file really is.
        real = real_path(path)
        if any(real.is_relative_to(root.resolve()) for root in self.roots):
            return path
        folders = ", ".join(str(root) for root in self.roots) or "none"
        raise UserError(f"{key}={name} is not open here: files may be in {folders}")


def is_repo(repo: str) -> bool:
    """True for what may be the name of a repository on the Hub: "name" or "owner/name"."""
    return (
        len(repo) <= REPO_LENGTH
        and REPO.fullmatch(repo) is not None
        and not any(part in repo for part in ("--", ".."))
        and not repo.endswith((".git", ".", "-"))
    )


def check_name(name: str) -> str:
    """The name of a run, as in `demo/ppo`, in one normal form. UserError for what is not a plain name.

    The parts hold letters, digits, `_`, `-` and `.`, and do not begin with a dot or a dash.
    """
    # Two spellings of one name would be two folders that look the same.
    name = unicodedata.normalize("NFC", str(name)).strip()
    parts = name.split("/")
    if not name or len(parts) > NAME_PARTS:
        raise UserError(
            f"name {name[:80]!r}: give a name such as my-run or demo/my-run, with at most {NAME_PARTS - 1} slashes"
        )
    for part in parts:
        is_plain = PART.fullmatch(part) and len(part) <= NAME_LENGTH and not part.endswith(".")
        if not is_plain:
            raise UserError(
                f"name {name[:80]!r}: use letters, digits, _, - and . (first a letter or digit), and {NAME_LENGTH} "
                "characters at most"
            )
        if len(part.encode()) > NAME_BYTES:
            raise UserError(f"name {name[:80]!r}: too long for a file system: use fewer characters")
        # `checkpoint-8` would hide the run from every list.
        if OWN_FILES.fullmatch(part) or RESERVED.fullmatch(part):
            raise UserError(f"name {name!r}: {part} has another meaning in a folder of runs")
    return name


def folder_of(runs: Path, name: str) -> Path:
    """The folder of a new run with this name, inside the folder of the runs, also after all links are followed."""
    folder = runs / check_name(name)
    if not real_path(folder).is_relative_to(runs.resolve()):
        raise UserError(f"name {name!r}: a link leads out of {runs}")
    # Else the run would fail late, when it makes its folder.
    parent = next(path for path in folder.parents if path.exists())
    if not parent.is_dir():
        raise UserError(f"name {name!r}: {parent} is a file")
    return folder


def is_text(name: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no path can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def real_path(path: Path) -> Path:
    """The path after all links are followed. UserError for links that lead to each other."""
    try:
        return path.resolve()
    except (RuntimeError, OSError) as error:
        raise UserError(f"{str(path)[:80]}: cannot be followed: {error!s:.80}") from error


def existing_run(runs: Path, name: str) -> Path:
    """The folder of a run that is there, by its path below the folder of the runs."""
    name = str(name)
    parts = Path(name).parts
    is_plain = bool(parts) and not Path(name).is_absolute() and "\0" not in name and is_text(name)
    if is_plain and ".." not in parts and not any(part.startswith(".") for part in parts):
        folder = runs / name
        try:
            inside = real_path(folder).is_relative_to(runs.resolve())
            if inside and (folder / "run.json").is_file():
                return folder
        except (UserError, OSError):  # links in a ring, or a name that is too long
            pass
    raise UserError(f"no run {name[:80]!r} in {runs}")
