"""Which finished models there are, by kind: what the app and the service list."""

import os
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import RECORD, RunRecord, find_runs, model_kind

SERVED = ("causal", "classifier", "tagger", "reader")
# The picker shows the latest stage of training first; an algorithm that is not named here ranks with ppo.
STAGES = {"ppo": 0, "dpo": 1, "sft": 2, "base": 3}

Models = dict[str, dict[str, str]]  # kind -> label -> folder


def find_models(root: str | os.PathLike) -> Models:
    """Every finished run below `root` that can be tried; those that chat as PPO, DPO, SFT, base; then newest first."""
    folders = [folder for folder in find_runs(root) if model_kind(folder) in SERVED]
    folders.sort(key=lambda folder: STAGES.get(stage(folder), 0))  # stable: newest first stays
    return label_models(folders, root)


def label_models(
    folders: Sequence[str | os.PathLike], root: str | os.PathLike | None = None
) -> Models:
    """The label of root/demo/ppo is `ppo · demo`; the order stays. A folder that cannot be tried is an error."""
    models: Models = {kind: {} for kind in SERVED}
    for folder in map(Path, folders):
        if (kind := model_kind(folder)) not in SERVED:
            what = {"reward": "a reward model", "masked": "a masked language model"}.get(
                kind, "no model"
            )
            raise UserError(
                f"{folder} holds {what}, which cannot be tried here: give the folder of a pretrain (causal), sft, ppo, "
                "classification, ner or question_answering run"
            )
        made_by = stage(folder)
        whole = folder.relative_to(root).as_posix() if root is not None else folder.resolve().name
        short = "/".join(
            part
            for part in whole.split("/")
            if part not in (made_by, {"base": "pretrain"}.get(made_by))
        )
        label = f"{made_by} · {short}" if short not in ("", ".") else made_by
        models[kind][label if label not in models[kind] else f"{made_by} · {folder}"] = str(folder)
    return {kind: named for kind, named in models.items() if named}


def stage(folder: Path) -> str:
    """What made a model: its algorithm or recipe; of a plain checkpoint what it is, "base" for a language model."""
    if not (folder / RECORD).is_file():
        return {"causal": "base"}.get(model_kind(folder), model_kind(folder))
    record = RunRecord.load(folder)
    return record.config.get("algorithm") or {"pretrain": "base"}.get(record.recipe, record.recipe)
