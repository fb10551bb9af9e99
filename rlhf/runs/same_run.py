"""Comparison of a run with the one that made a checkpoint: only the same settings, data and processes go on as one run."""

import json
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.manifest import read_manifest
from rlhf.runs.record import RECORD, read_object

# Settings with which the optimizer's state of a checkpoint goes: with others it cannot be read.
OF_THE_OPTIMIZER = ("optim", "use_peft", "lora_r")
# Settings that say nothing about what is computed. Evaluations are not among them: each draws a random number.
NOT_COMPUTED = {
    *("output_dir", "resume_from_checkpoint", "resume_changed", "run_name", "project", "report_to"),
    *("dataset_name", "eval_dataset_name"),  # their rows are compared, by content
    *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_dir"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_completions"),
    *("save_strategy", "save_steps", "save_every", "save_total_limit", "checkpoint_minutes"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("per_device_sampling_batch_size", "skip_memory_metrics", "local_rank", "ddp_timeout"),
}
# Of a finished run no rows are compared, as they are not read.
NAMES_OF_DATA = {"dataset_name", "eval_dataset_name"}
DEFAULT = "its default"


def facts_of(checkpoint: str) -> dict:
    """The facts of the run that made a checkpoint: of its manifest, else of the record next to it."""
    manifest = read_manifest(checkpoint)
    if "config" in manifest:
        return manifest
    return read_object(Path(checkpoint).parent / RECORD)


def check_same_run(checkpoint: str | None, facts: dict, *, accept: bool = False) -> str:
    """Refuse to resume with another recipe, other settings or another number of processes.

    facts: of this run (`Run.facts`), without its data, which are not read yet.
    accept: resume_changed. Returns the differences in a line then; "" where there is none.
    """
    if checkpoint is None:
        return ""
    before = facts_of(checkpoint)
    recipe = before.get("recipe", facts["recipe"])
    if recipe != facts["recipe"]:
        raise UserError(
            f"{checkpoint} is of a run of {recipe}, and this is {facts['recipe']}: name a checkpoint of the same recipe"
        )
    if "config" not in before:  # the folder has lost its record
        return ""
    differences = []
    for name, old, new in _changed(before["config"], facts["config"]):
        if name in NOT_COMPUTED:
            continue
        if name in OF_THE_OPTIMIZER:
            raise UserError(
                f"{checkpoint} was trained with {name}: {old}, and this run has {new}: resume with the same"
            )
        differences.append(f"{name} {new} (was {old})")
    processes = before.get("processes", facts["processes"])
    if processes != facts["processes"]:
        differences.append(f"processes {facts['processes']} (was {processes})")
    return _accepted("settings", checkpoint, differences, accept=accept)


def _changed(before: dict, config: dict) -> list[tuple]:
    """(name, old value, new value) of the settings that differ from those of an earlier run, which JSON has held."""
    config = json.loads(json.dumps(config, default=str))
    changed = []
    for name in sorted(before.keys() | config.keys()):
        old, new = before.get(name, DEFAULT), config.get(name, DEFAULT)
        if old != new:
            changed.append((name, old, new))
    return changed


def check_is_the_finished_run(folder: Path, facts: dict) -> None:
    """UserError where the finished run of a folder is of another recipe, or has other settings than this one.

    facts: recipe and config of this run.
    """
    record = read_object(folder / RECORD)
    remedy = "choose another output_dir, or remove the folder"
    recipe = record.get("recipe", facts["recipe"])
    if recipe != facts["recipe"]:
        raise UserError(
            f"output_dir {folder} holds a finished run of {recipe}, and this is {facts['recipe']}: {remedy}"
        )
    differences = []
    for name, old, new in _changed(record.get("config", {}), facts["config"]):
        if name in NAMES_OF_DATA or name not in NOT_COMPUTED:
            differences.append(f"{name} {new} (was {old})")
    if differences:
        listed = ", ".join(differences)
        raise UserError(
            f"output_dir {folder} holds a finished run with other settings: {listed}: {remedy}"
        )


def check_same_data(checkpoint: str | None, data: list[dict], *, accept: bool = False) -> str:
    """Refuse to resume with other data. data: name, rows and sha256 of each file, as in a record. As `check_same_run`."""
    if checkpoint is None:
        return ""
    before = facts_of(checkpoint).get("data")
    if before is None:
        return ""
    differences = []
    for i in range(max(len(before), len(data))):
        if _content(before, i) != _content(data, i):
            differences.append(f"{_described(data, i)} (was {_described(before, i)})")
    return _accepted("data", checkpoint, differences, accept=accept)


def check_same_models(
    checkpoint: str | None, models: dict[str, str], *, accept: bool = False
) -> str:
    """Refuse to resume with other models: a folder, as that of the reference, may hold another one by now.

    models: role -> sha256 of its weights (`Run.facts`). As `check_same_run`.
    """
    if checkpoint is None:
        return ""
    before = facts_of(checkpoint).get("models", {})  # older versions wrote none
    differences = []
    for role, digest in models.items():
        if before.get(role, digest) != digest:
            differences.append(f"{role}, sha256 {digest[:12]} (was {before[role][:12]})")
    return _accepted("models", checkpoint, differences, accept=accept)


def _content(data: list[dict], index: int):
    """The digest of the rows of a source, which has the same under another name; without one its name and rows."""
    if index >= len(data):
        return None
    entry = data[index]
    return entry.get("sha256") or (entry.get("name"), entry.get("rows"))


def _described(data: list[dict], index: int) -> str:
    """The name, rows and content of a source of data, in a few words."""
    if index >= len(data):
        return "nothing"
    entry = data[index]
    text = f"{entry.get('name')} with {entry.get('rows')} rows"
    digest = entry.get("sha256")
    if digest:
        text += f", sha256 {digest[:12]}"
    return text


def _accepted(kind: str, checkpoint: str, differences: list[str], *, accept: bool) -> str:
    if not differences:
        return ""
    listed = ", ".join(differences)
    if not accept:
        raise UserError(
            f"{checkpoint} is of a run with other {kind}: {listed}: resume with the same, or accept the difference with "
            "resume_changed: true"
        )
    return f"resumed with other {kind}: {listed}"
