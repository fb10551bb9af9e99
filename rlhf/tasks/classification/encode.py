"""Labelled texts: what is to be predicted of them, the names of the labels, and texts -> tokens.

Three tasks: single_label, one of several labels; multi_label, any number of them; regression, a number. Which one it is
the labels tell: a list is several labels, a number with a fraction is to be predicted as a number, the rest is one label.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean, pstdev

import numpy as np

from rlhf.errors import UserError

PROBLEMS = {  # task -> the name that transformers gives it in a model's config
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
LABELS_SHOWN = 10  # labels in a message
TEXTS_PER_CALL = 1000  # texts in the tokenizer at once: what it returns for long ones is large


class LabelForm:
    """A check of the column label, of one form in all rows: that of the task, or of the first row that tells one."""

    def __init__(self, task: str = "auto"):
        if task not in ("auto", *PROBLEMS):
            raise UserError(f"task={task!r}: use one of auto, {', '.join(PROBLEMS)}")
        self.asked, self.task, self.why = task, task, f"task: {task}"

    def __call__(self, value) -> str | None:
        form = form_of(value)
        if self.task == "auto" and form:
            self.task, self.why = form, f"a row before has {value!r:.60}"
        if self.task == "regression":
            fits, expected = number(value) is not None, "a number is"
        elif self.task == "multi_label":
            fits, expected = form == "multi_label", "a list of labels is"
        else:
            fits, expected = form in (None, "single_label"), "one label, a string or an integer, is"
        return None if fits else f"{expected} expected ({self.why}), {value!r:.60} given"


def form_of(value) -> str | None:
    """The task that a label speaks for; None for whole numbers and numbers in a table, which serve for two."""
    if isinstance(value, list | float):
        return "multi_label" if isinstance(value, list) else "regression"
    return None if number(value) is not None else "single_label"


def number(value) -> float | None:
    """A label as a number, if it is one; a table has them as strings."""
    if isinstance(value, bool | list):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if isfinite(found) else None


@dataclass(frozen=True)
class Task:
    """What is predicted: name, a key of PROBLEMS; labels, in the order of the model's outputs.

    mean and spread (standard deviation) of the training rows' numbers: these are learned in units of their own, so that
    no learning rate has to know what they measure.
    """

    name: str
    labels: list[str]
    mean: float = 0.0
    spread: float = 1.0

    def targets(self, rows: Sequence[dict]) -> list:
        """Of each row the number of its label; 0.0 or 1.0 for each label; or its number in units of the spread."""
        if self.name == "regression":
            return [(number(row["label"]) - self.mean) / self.spread for row in rows]
        place = {label: i for i, label in enumerate(self.labels)}
        chosen = [[place[name] for name in names_of(row["label"])] for row in rows]
        if self.name == "single_label":
            return [places[0] for places in chosen]
        targets = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for row, places in zip(targets, chosen):
            row[places] = 1
        return list(targets)


def find_task(train: Sequence[dict], evaluation: Sequence[dict], form: LabelForm) -> Task:
    """The task of rows that `form` has checked; numbers in a table with a fraction somewhere are regression."""
    name = form.task
    if name == "single_label" and form.asked == "auto":
        _refuse_odd_numbers([*train, *evaluation])
    if name == "auto":
        whole = all(number(row["label"]).is_integer() for row in train)
        name = "single_label" if whole else "regression"
    if name != "regression":
        labels = label_names(train)
        check_labels(evaluation, labels)
        return Task(name, labels)
    numbers = [number(row["label"]) for row in train]
    if not (spread := pstdev(numbers)):
        raise UserError(
            f"all {len(train)} training rows have the label {numbers[0]:g}: there is nothing to learn"
        )
    return Task(name, ["score"], fmean(numbers), spread)


def _refuse_odd_numbers(rows: Sequence[dict]) -> None:
    """UserError where a few labels, as "N/A", would turn a column of numbers with fractions into as many classes."""
    numbers = [number(row["label"]) for row in rows]
    odd = [row["label"] for row, value in zip(rows, numbers) if value is None]
    fraction = next(
        (value for value in numbers if value is not None and not value.is_integer()), None
    )
    if odd and fraction is not None and 10 * len(odd) <= len(rows):
        raise UserError(
            f"{len(odd)} of {len(rows)} labels are no numbers, the first {odd[0]!r:.60}, and the others are, as "
            f"{fraction:g}: say what is meant, task: regression (and skip_bad: true to leave these out) or single_label"
        )


def names_of(label) -> list[str]:
    """The names of a row's label or labels."""
    return [str(name) for name in (label if isinstance(label, list) else [label])]


def label_names(rows: Sequence[dict]) -> list[str]:
    """The labels of the training rows as strings: whole numbers by size, everything else by the alphabet."""
    names = {name for row in rows for name in names_of(row["label"])}
    if not names:
        raise UserError(
            f"none of the {len(rows)} training rows has a label: there is nothing to learn"
        )
    if len(names) < 2 and isinstance(rows[0]["label"], list):
        raise UserError(
            f"{names.pop()!r} is the only label of all lists: give true or false in place of lists"
        )
    if len(names) < 2:
        raise UserError(
            f"all {len(rows)} training rows have the label {names.pop()!r}: a classifier needs two or more"
        )
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else name)


def check_labels(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a label that no training row has."""
    unknown: dict[str, list[int]] = {}
    for place, row in enumerate(rows, start=1):
        for name in names_of(row["label"]):
            if name not in labels:
                unknown.setdefault(name, []).append(place)
    if not unknown:
        return
    shown = []
    for label, places in sorted(unknown.items())[:LABELS_SHOWN]:
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        shown.append(
            f"{label!r} in evaluation row{'s' * (len(places) > 1)} {', '.join(map(str, places[:5]))}{more}"
        )
    others = (
        f", and {len(unknown) - LABELS_SHOWN} labels more" if len(unknown) > LABELS_SHOWN else ""
    )
    known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise UserError(
        f"no training row has the label {'; '.join(shown)}{others}. Labels of the training rows: {known}. Give them "
        "rows with it, remove the evaluation rows, or, where one file is split, take another seed or eval_fraction"
    )


def rare_labels(train: Sequence[dict], evaluation: Sequence[dict]) -> list[str]:
    """Warnings: labels that one training row has, and labels that no evaluation row has."""
    counts, judged = (
        Counter(name for row in rows for name in names_of(row["label"]))
        for rows in (train, evaluation)
    )
    once = sorted(name for name, count in counts.items() if count == 1)
    unseen = sorted(set(counts) - set(judged))

    def listed(names: list[str], text: str) -> list[str]:
        more = f" and {len(names) - LABELS_SHOWN} more" if len(names) > LABELS_SHOWN else ""
        return (
            [
                f"{len(names)} of {len(counts)} labels {text}: {', '.join(names[:LABELS_SHOWN])}{more}"
            ]
            if names
            else []
        )

    return listed(once, "stand in one training row only") + listed(
        unseen, "stand in no held-out row, and are not judged"
    )


def encode_texts(
    tokenizer, rows: Sequence[dict], *, pairs: bool, max_length: int
) -> tuple[list[dict], int]:
    """Rows of token ids, and how many were cut. No text can spell a special token."""
    if max_length <= tokenizer.num_special_tokens_to_add(pair=pairs) + pairs:
        raise UserError(
            f"max_length={max_length} leaves no room for a text: raise it, up to the model's context"
        )
    encoded, cut = [], 0
    for first in range(0, len(rows), TEXTS_PER_CALL):
        part = rows[first : first + TEXTS_PER_CALL]
        texts = [[row[column] for row in part] for column in ("text", "text_pair")[: 1 + pairs]]
        columns = tokenizer(*texts, split_special_tokens=True, verbose=False)
        for own, values in zip(zip(*texts), zip(*columns.values())):
            row = dict(zip(columns, values))
            if len(row["input_ids"]) > max_length:
                row = dict(
                    tokenizer(
                        *own, split_special_tokens=True, truncation=True, max_length=max_length
                    )
                )
                cut += 1
            encoded.append(row)
    return encoded, cut
