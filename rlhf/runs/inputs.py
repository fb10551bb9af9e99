"""The files and folders that settings name, checked before a run reads, loads or writes anything."""

from pathlib import Path

from rlhf.data.files import check_file
from rlhf.data.load import is_local
from rlhf.data.splits import check_is_set
from rlhf.errors import UserError
from rlhf.models.load import check_folder
from rlhf.runs.keys import DATA_KEYS, MODEL_KEYS, ROLES
from rlhf.runs.processes import is_launched


def check_inputs(settings) -> None:
    """UserError where settings name no data, or a file or folder that is missing. Names on the Hub are not looked up."""
    if hasattr(settings, "dataset_name"):
        check_is_set(settings)
    for key in DATA_KEYS:
        for name in _names(settings, key):
            if is_local(name) and not Path(name).is_dir():
                check_file(Path(name))
    for key in MODEL_KEYS:
        for name in _names(settings, key):
            if name not in ROLES:
                check_folder(name)


def check_same_rows(sources: list[dict]) -> None:
    """UserError in all processes where one has read other rows than the main process.

    Machines may have different files of one name, and a file may change while the processes start.

    sources: names, counts and hashes of what this process has read, as in the run's record.
    """
    import torch.distributed as dist

    if not is_launched() or dist.get_world_size() == 1:
        return
    of_all: list = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, sources)
    others = [str(rank) for rank, read in enumerate(of_all) if read != of_all[0]]
    if others:
        names = ", ".join(source["name"] for source in sources)
        raise UserError(
            f"{names}: the processes {', '.join(others)} have read other rows than the main process: give each machine the "
            "same files, and do not change them while a run starts"
        )


def _names(settings, key: str) -> list[str]:
    """The names that the settings have under a key, if they have that key."""
    value = getattr(settings, key, None)
    # A model from scratch takes its tokenizer from there, unless another one is named.
    is_idle = key == "model_name_or_path" and getattr(settings, "from_scratch", False)
    if not value or (is_idle and settings.tokenizer_name_or_path):
        return []
    return value if isinstance(value, list) else [value]
