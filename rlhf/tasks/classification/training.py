"""Training a classifier: its labels and losses, the head that it keeps, and numbers in units of their spread."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rlhf.algorithms.losses import (
    balanced_weights,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)
from rlhf.data.encodings import EncodedRows
from rlhf.data.stored_rows import take
from rlhf.errors import UserError
from rlhf.models.load import trained_labels
from rlhf.models.scores import scale_scores, score_centre, shift_scores
from rlhf.runs.run import Run
from rlhf.tasks.classification.encode import PROBLEMS, LabelTask, stored_texts
from rlhf.tasks.classification.predictor import softmax_or_sigmoid
from rlhf.tasks.model import start_encoder

LABELS_SHOWN = 8  # labels in a message


def check_class_weights(value: str) -> None:
    """UserError for a value of class_weights that does not exist."""
    if value not in ("none", "balanced"):
        raise UserError(f"class_weights={value!r}: use none or balanced")


def check_options(settings, task: LabelTask) -> None:
    """UserError where an option does not fit the labels."""
    if task.name == "regression" and settings.class_weights != "none":
        raise UserError("class_weights is for labels, and these rows have numbers: set it to none")
    if task.name != "single_label" and settings.consistency_coef:
        raise UserError(
            f"consistency_coef is for rows of one label, and the task is {task.name}: set it to 0"
        )


def keep_head(run: Run, settings, task: LabelTask) -> tuple[LabelTask, bool]:
    """(task, True if the checkpoint's own head is trained on), which needs all labels of the rows; it keeps their order."""
    if settings.from_scratch:
        return task, False
    path = settings.model_name_or_path
    known = trained_labels(path, revision=settings.model_revision)
    # More labels than the rows have do no harm: their outputs stay as they are.
    keeps = set(task.labels) <= set(known)
    if known:
        shown = ", ".join(known[:LABELS_SHOWN])
        if len(known) > LABELS_SHOWN:
            shown += ", ..."
        fate = "it is trained on" if keeps else "the head is new, for the labels of these rows"
        run.say(f"{path} has a head for {shown}: {fate}")
    if keeps:
        task = replace(task, labels=known)
    return task, keeps


def start_classifier(
    run: Run,
    settings,
    tokenizer,
    task: LabelTask,
    *,
    pairs: bool,
):
    """(the model, the task with the labels in the order of the model's outputs)."""
    task, keeps_head = keep_head(run, settings, task)
    options = {"labels": task.labels, "problem_type": PROBLEMS[task.name]}
    model = start_encoder(run, settings, tokenizer, "classification", pairs=pairs, **options)
    if task.name == "regression" and keeps_head:
        task = to_units_of_spread(model, task)
    return model, task


class LabelledRows(Sequence):
    """Rows of token ids with their labels.

    targets: labels as the loss reads them.
    order: indices of the features and targets in the order of these rows.
    lengths: tokens of each row.
    """

    def __init__(self, features: EncodedRows, targets: Sequence, order: Sequence[int]):
        self.features = features
        self.targets = targets
        self.order = order
        self.lengths = [features.lengths[i] for i in order]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        index = self.order[index]
        return self.features[index] | {"labels": self.targets[index]}


def encode_rows(
    tokenizer, rows: Sequence[dict], *, task: LabelTask, pairs: bool, max_length: int
) -> tuple[LabelledRows, int]:
    """(rows of token ids with their labels, the number of rows that were cut)."""
    features, cut = stored_texts(tokenizer, rows, pairs=pairs, max_length=max_length)
    return LabelledRows(features, task.targets(rows), range(len(features))), cut


def by_length(features: LabelledRows, rows: Sequence[dict]) -> tuple[LabelledRows, Sequence[dict]]:
    """Both, the shortest row first, so that batches have little padding."""
    # stable: rows of one length stay in the order of the file
    order = sorted(range(len(features)), key=features.lengths.__getitem__)
    indices = [features.order[i] for i in order]
    ordered = LabelledRows(features.features, features.targets, indices)
    return ordered, take(rows, np.array(order, dtype=np.int64))


def to_units_of_spread(model, task: LabelTask) -> LabelTask:
    """Make a saved regression model, which gives the numbers themselves, give them as it is trained; the task for it.

    number = spread * output + mean. Where no weight can hold the shift to the mean of the rows (heads without a bias), the
    mean becomes the one that the head was trained with, and the targets follow.
    """
    shift_scores(model, -task.mean)
    scale_scores(model, 1 / task.spread)
    centre = score_centre(model)  # the number is spread * (output - centre) + mean
    if not centre:
        return task
    model.config.score_centre = None  # training reads the output
    return replace(task, mean=task.mean - task.spread * centre)


def to_numbers(model, task: LabelTask):
    """The model, which after a regression gives the numbers themselves again."""
    if task.name == "regression":
        model.float()  # bf16 has three digits, a year four
        scale_scores(model, task.spread)
        shift_scores(model, task.mean)
    return model


def balanced_loss(truth: list, task: LabelTask):
    """The loss in which every label (of several: its presence and its absence) weighs the same over the training rows."""
    labels = torch.from_numpy(np.array(truth))  # (N,), or (N, K) of several labels
    if task.name == "multi_label":
        counts = torch.stack([(1 - labels).sum(0), labels.sum(0)])  # (2, K)
        formula = weighted_binary_cross_entropy
    else:
        counts = torch.bincount(labels, minlength=len(task.labels))
        formula = weighted_cross_entropy
    weights = balanced_weights(counts)
    return lambda logits, labels: formula(logits, labels, weights.to(logits.device))


def outcome(task: LabelTask, output) -> tuple[np.ndarray, np.ndarray]:
    """(truth, predicted probabilities or numbers) of the trainer's output."""
    if task.name == "regression":
        truth, predicted = output.label_ids.reshape(-1), output.predictions.reshape(-1)
        return truth * task.spread + task.mean, predicted * task.spread + task.mean
    logits = torch.from_numpy(output.predictions)
    return output.label_ids, softmax_or_sigmoid(logits, PROBLEMS[task.name]).numpy()
