"""Running a trained encoder on rows of token ids: the forward pass that the predictors of all tasks share."""

import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf.data.rows import CHECKS
from rlhf.errors import UserError
from rlhf.models.load import load_encoder, load_tokenizer
from rlhf.models.parts import freeze
from rlhf.task_table import TASKS


def load_trained(folder: str | os.PathLike, task: str, device: str = "cpu"):
    """(model, tokenizer) of a run folder or Hub id, ready to predict. task: a key of TASKS."""
    model = load_encoder(str(folder), TASKS[task].head).to(device)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.padding_side = "right"  # as in training: padding must not move the tokens
    return freeze(model), tokenizer


@torch.inference_mode()
def run_batches(
    model, tokenizer, features: Sequence[dict], *, batch_size: int = 32
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(index, outputs) of each feature, shortest first, so that little padding is computed.

    features: rows with input_ids and the tokenizer's other inputs; other keys are dropped.
    outputs: the model's, in fp32, on the CPU, without the batch dimension. Those per token have the feature's own length.
    """
    # The tokenizer was fitted to the model: these are the inputs that its forward takes.
    names = tokenizer.model_input_names
    lengths = [len(feature["input_ids"]) for feature in features]
    order = sorted(range(len(features)), key=lengths.__getitem__)
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        rows = [_inputs(features[i], names) for i in indices]
        batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        outputs = {}
        # A model may also return tuples, such as hidden states: these are not asked for.
        for name, value in model(**batch).items():
            if torch.is_tensor(value):
                outputs[name] = value.float().cpu()
        for row, i in enumerate(indices):
            yield i, _outputs_of_row(outputs, row, lengths[i])


def _inputs(feature: dict, names: Sequence[str]) -> dict:
    return {name: feature[name] for name in names if name in feature}


def _outputs_of_row(outputs: dict[str, Tensor], row: int, length: int) -> dict[str, Tensor]:
    """One row of each output, cut to the row's own length where the output has a value per token."""
    selected = {}
    for name, value in outputs.items():
        # Logits are (B, K) in classification, (B, L, K) in NER; start and end logits are (B, L).
        if name == "logits" and value.dim() == 2:
            selected[name] = value[row]  # (K,)
        else:
            selected[name] = value[row, :length]  # without the padding of the batch
    return selected


def check_texts(row: dict, columns: Sequence[str], index: int) -> None:
    """UserError with the row's index and the column where a text is missing or is not a text."""
    for column in columns:
        value = row.get(column)
        if value is None:
            reason = "missing"
        else:
            reason = CHECKS[column](value)
        if reason:
            raise UserError(f"row {index}: {column}: {reason}")
