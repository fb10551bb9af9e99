"""Data sets of the Hub, as `id` or `id@revision`: pinned to a commit, and read row by row.

A name is looked up once per process and is one commit from then on, which the record of the run names. The rows are on the
disk as Arrow files and are read from there one at a time, so that later runs need no network. Where only the first rows
are wanted (dataset_limit), they are streamed, and the rest is never downloaded.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rlhf.errors import UserError
from rlhf.online import explain, is_connection_error, is_refused_write, retrying, status_of

FIRST_SPLIT = "train"  # the Hub's usual name

_commits: dict[str, str] = {}


def dataset_id(name: str) -> str:
    """The id of `id` or `id@revision`."""
    return name.partition("@")[0]


def dataset_commit(name: str) -> str:
    """The commit that a name means in this process: from the Hub, else that of the last download; "" if unknown."""
    if name not in _commits:
        _commits[name] = _look_up(name)
    return _commits[name]


def forget_commits() -> None:
    """Look names up again."""
    _commits.clear()


def _look_up(name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    repo, _, revision = name.partition("@")
    reference = _reference(repo, revision or "main")
    try:
        commit = retrying(lambda: HfApi().dataset_info(repo, revision=revision or None)).sha
    except Exception as error:
        is_off = isinstance(error, OfflineModeIsEnabled) or is_connection_error(error)
        # An answer, such as "no such repository", counts more than what the cache holds.
        if not is_off and (status_of(error) or 0) < 429:
            raise unreachable(name, explain(error, repo)) from error
        return reference.read_text().strip() if reference.is_file() else revision
    with suppress(OSError):  # a cache that is read only
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
    return commit


def _reference(repo: str, revision: str) -> Path:
    """The file in which huggingface_hub notes which commit a branch is."""
    from huggingface_hub import constants

    folder = f"datasets--{repo.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE, folder, "refs", revision)


def unreachable(name: str, reason: str) -> UserError:
    """The error for a data set that cannot be read."""
    return UserError(
        f"{name!r} is neither a local file or folder nor a data set reachable on the Hub "
        f"({reason}): check the spelling, dataset_config, your connection and login"
    )


def load_hub_splits(name: str, config: str | None, *, streaming: bool = False) -> dict:
    """{split name: data set} of a Hub data set. streaming: nothing is downloaded before it is read."""
    import datasets

    options: dict = {}
    commit = dataset_commit(name)
    # Unknown without the network: then the last download is read.
    if commit:
        options["revision"] = commit
    if streaming:
        options["streaming"] = True
    try:
        return datasets.load_dataset(dataset_id(name), config, **options)
    except Exception as error:  # noqa: BLE001
        if is_refused_write(error):
            raise UserError(explain(error, name)) from error
        # No network, an unknown id, a gated data set, a bad config: all are for the user to fix.
        # The rest is a trace for developers. The second line may name the configs to choose from.
        lines = str(error).splitlines()
        reason = " ".join(lines[: 2 if "Config name is missing" in str(error) else 1])
        raise unreachable(name, f"{type(error).__name__}: {reason}") from error


def hub_rows(
    name: str, config: str | None, split: str | None, *, streaming: bool = False
) -> Iterator[tuple[str, dict]]:
    """Yields (location for messages, row) of a split. Numbers of classes become their names."""
    splits = load_hub_splits(name, config, streaming=streaming)
    split = split or FIRST_SPLIT
    if split not in splits:
        raise UserError(
            f"{name}: no split {split!r}; it has {', '.join(splits)}: set dataset_train_split or dataset_test_split"
        )
    class_names = {}  # of the columns that hold numbers of classes
    for column, feature in (splits[split].features or {}).items():
        item = getattr(feature, "feature", feature)  # the feature of a list's items
        if hasattr(item, "names"):
            class_names[column] = item.names
    for index, row in enumerate(splits[split]):
        for column, names in class_names.items():
            row[column] = _class_name(row[column], names)
        yield f"{name}[{split}]:{index}", row


def _class_name(value, names: list[str]):
    """The name of a class, which says more than its number. None for -1, which means unlabelled."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if value in (None, -1):
        return None
    return names[value]
