"""Running a finished encoder on rows of token ids; what classifier, tagger and reader share."""

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf.data.rows import CHECKS
from rlhf.errors import UserError
from rlhf.models.load import load_encoder, load_tokenizer
from rlhf.models.parts import freeze


def load_finished(folder: str | os.PathLike, task: str, device: str = "cpu"):
    """(model, tokenizer) of a run folder or Hub id, ready to predict; task: a key of models.load.HEADS."""
    model = load_encoder(str(folder), task).to(device)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.padding_side = "right"  # as in training; a token stays at its place
    return freeze(model), tokenizer


@torch.inference_mode()
def run_batches(
    model, tokenizer, features: Sequence[dict], *, batch_size: int = 32
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(place, outputs) of each feature, in the order of their lengths, so that little padding is computed.

    features: rows with input_ids and what else the tokenizer gives (other keys are left out). outputs: the model's, fp32,
    on the CPU, without the batch; those per token have the feature's own length.
    """
    names = tokenizer.model_input_names
    order = sorted(range(len(features)), key=lambda place: len(features[place]["input_ids"]))
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        rows = [
            {name: features[place][name] for name in names if name in features[place]}
            for place in places
        ]
        batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        outputs = {
            name: value.float().cpu()
            for name, value in model(**batch).items()
            if torch.is_tensor(value)
        }
        for i, place in enumerate(places):
            length = len(features[place]["input_ids"])
            # logits are (B, K) of a classifier, (B, L, K) of a tagger; a reader's start and end (B, L)
            whole = {
                name for name, value in outputs.items() if name == "logits" and value.dim() == 2
            }
            yield (
                place,
                {name: v[i] if name in whole else v[i, :length] for name, v in outputs.items()},
            )


def check_texts(row: dict, columns: Sequence[str], place: int) -> None:
    """UserError that names the row's place and the column where a text is missing or none."""
    for column in columns:
        reason = CHECKS[column](row[column]) if row.get(column) is not None else "missing"
        if reason:
            raise UserError(f"row {place}: {column}: {reason}")
