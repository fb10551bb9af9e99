"""The finished models that can be tried, by kind: what the app and the service list."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf.errors import UserError
from rlhf.models.snapshots import is_local_model, model_folder
from rlhf.runs.record import RECORD, RunRecord, find_runs, model_kind
from rlhf.task_table import TASKS

CHAT, REWARD = "causal", "reward"
SERVED = (CHAT, REWARD, *TASKS)
# The picker shows the latest stage of training first. An algorithm that is not named here ranks with ppo.
STAGES = {"ppo": 0, "dpo": 0, "kto": 0, "ilql": 0, "sft": 1, "base": 2}
# Models that cannot be tried, by kind.
NOT_SERVED = {
    "masked": "a masked language model",
    "seq2seq": "an encoder-decoder (`python -m rlhf predict` runs it)",
}

Models = dict[str, dict[str, str]]  # kind -> label -> folder


def find_models(root: str | os.PathLike) -> Models:
    """Every finished run below `root` that can be tried. Chat models come as PPO, SFT, base, each newest first."""
    folders = [folder for folder in find_runs(root) if model_kind(folder) in SERVED]
    folders.sort(key=lambda folder: STAGES.get(stage(folder), 0))  # stable: newest stays first
    return label_models(folders, root)


def label_models(
    folders: Sequence[str | os.PathLike], root: str | os.PathLike | None = None
) -> Models:
    """The label of root/demo/ppo is `ppo · demo`; the order stays. A folder that cannot be tried is an error.

    folders: or names of the Hub, which are downloaded.
    """
    models: Models = {kind: {} for kind in SERVED}
    for name in map(str, folders):
        folder = Path(model_folder(name))
        kind = model_kind(folder)
        if kind not in SERVED:
            recipes = ", ".join(
                ["pretrain (causal)", "sft", "ppo", "dpo", "kto", "ilql", REWARD, *TASKS]
            )
            raise UserError(
                f"{name} holds {NOT_SERVED.get(kind, 'no model')}, which cannot be tried here: "
                f"give the folder of a run of one of these recipes: {recipes}"
            )
        label = f"{stage(folder)} · {name}"
        if is_local_model(name):
            label = _label(folder, root)
        # Two folders of one name, given from different places, are told apart by their paths.
        if label in models[kind]:
            label = f"{stage(folder)} · {folder}"
        models[kind][label] = str(folder)
    return {kind: named for kind, named in models.items() if named}


def _label(folder: Path, root: str | os.PathLike | None) -> str:
    """The stage, and the path below root without the parts that only repeat the stage."""
    made_by = stage(folder)
    if root is None:
        path = folder.resolve().name
    else:
        path = folder.relative_to(root).as_posix()
    repeated = [made_by]
    if made_by == "base":
        repeated.append("pretrain")
    # runs/demo/ppo: `ppo · demo` says it all
    parts = [part for part in path.split("/") if part not in repeated]
    short = "/".join(parts)
    if short in ("", "."):
        return made_by
    return f"{made_by} · {short}"


def stage(folder: Path) -> str:
    """Name of the stage that produced a model: its algorithm or recipe, "base" for a plain language model."""
    if not (folder / RECORD).is_file():
        kind = model_kind(folder)
        return "base" if kind == CHAT else kind
    record = RunRecord.load(folder)
    recipe = "base" if record.recipe == "pretrain" else record.recipe
    return record.config.get("algorithm") or recipe


def model_ids(labels: Iterable[str]) -> dict[str, str]:
    """label -> a name that is easy to type and to put into a URL: `ppo · demo` is demo/ppo, `ppo` stays ppo.

    Other characters than A-Z, a-z, 0-9 and ._/- become "-". Such a name ends in digits of the label's hash, so that two
    labels never share one, and a new run never changes the name of another.
    """
    ids = {}
    for label in labels:
        made_by, separator, path = label.partition(" · ")
        plain = f"{path}/{made_by}" if separator else label
        name = re.sub(r"[^A-Za-z0-9._/-]+", "-", plain)
        if name != plain:
            digits = hashlib.sha256(label.encode(errors="replace")).hexdigest()[:6]
            name = f"{name.strip('/-') or 'run'}-{digits}"
        ids[label] = name
    return ids
