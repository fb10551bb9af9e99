"""The files and folders that settings name, checked before a run reads, loads or writes anything."""

from pathlib import Path

from rlhf.data.files import check_file
from rlhf.data.load import is_local
from rlhf.data.splits import check_is_set
from rlhf.models.load import check_folder

DATA_KEYS = (
    "dataset_name",
    "eval_dataset_name",
    "pretraining_dataset",
    "ptx_dataset_name",
    "demonstrations",
)
MODEL_KEYS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "reward_model_path",
    "watch_reward_model_path",
    "value_model",
    "compare_tokenizers",
)
ROLES = ("reward_model", "shared")  # values of value_model that are not paths


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


def _names(settings, key: str) -> list[str]:
    """What the settings name under a key that they may not have, as a list."""
    value = getattr(settings, key, None)
    # A model from scratch takes its tokenizer from there, unless another one is named.
    is_idle = key == "model_name_or_path" and getattr(settings, "from_scratch", False)
    if not value or (is_idle and settings.tokenizer_name_or_path):
        return []
    return value if isinstance(value, list) else [value]
