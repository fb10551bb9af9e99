"""Labelled texts: the kind of label, the names of the labels, and texts -> tokens.

There are three tasks: single_label (one of several labels), multi_label (any number of them) and regression (a number).
The labels decide which one it is: a list is several labels, a number with a fraction is regression, the rest is one label.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from statistics import fmean, pstdev

import numpy as np

from rlhf.data.encodings import EncodedRows, encode_once, input_columns
from rlhf.errors import UserError

PROBLEMS = {  # task -> the name that transformers gives it in a model's config
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
LABELS_SHOWN = 10  # unknown or rare labels in a message
KNOWN_LABELS_SHOWN = 20  # labels of the training rows in a message
ROWS_SHOWN = 5  # row numbers for each label in a message
MAX_ODD_SHARE = 0.1  # share of labels that are not numbers, up to which they are probably mistakes
LONG_TEXT = 100_000  # characters: the tokenizer reads such a text in a fraction of a second
TEXTS_PER_CALL = 1000  # texts in the tokenizer at once: what it returns for long ones is large


# ---- the task ----------------------------------------------------------------------------------------------------


class LabelForm:
    """A check of the column label: all rows must have labels of one task.

    task: a key of PROBLEMS, or "auto" for the task of the first row whose label decides it.
    """

    def __init__(self, task: str = "auto"):
        if task not in ("auto", *PROBLEMS):
            raise UserError(f"task={task!r}: use one of auto, {', '.join(PROBLEMS)}")
        self.asked = task
        self.task = task
        self.why = f"task: {task}"

    @property
    def fingerprint(self) -> str:
        """The state that decides its answers, by which checked rows are cached."""
        return repr((self.asked, self.task, self.why))

    def state(self) -> list[str]:
        """The task that the rows decided, for `restore`."""
        return [self.task, self.why]

    def restore(self, state: list[str]) -> None:
        """Be as after the rows that gave this state."""
        self.task, self.why = state

    def __call__(self, value) -> str | None:
        """The reason why a label does not fit, None if it does."""
        form = form_of(value)
        if self.task == "auto" and form:
            self.task = form
            self.why = f"a row before has {value!r:.60}"
        if self.task == "regression":
            fits, expected = number(value) is not None, "a number is"
        elif self.task == "multi_label":
            fits, expected = form == "multi_label", "a list of labels is"
        else:
            fits, expected = form in (None, "single_label"), "one label, a string or an integer, is"
        if fits:
            return None
        return f"{expected} expected ({self.why}), {value!r:.60} given"


def form_of(value) -> str | None:
    """The task that a label is for; None for integers and for numbers in a table, which fit two tasks."""
    if isinstance(value, list):
        return "multi_label"
    if isinstance(value, float):
        return "regression"
    if number(value) is None:
        return "single_label"
    return None


def number(value) -> float | None:
    """A label as a number, None if it is not one. A table has numbers as strings."""
    if isinstance(value, bool | list):
        return None
    try:
        converted = float(value)
    except ValueError:
        return None
    if not isfinite(converted):
        return None
    return converted


@dataclass(frozen=True)
class LabelTask:
    """The thing to predict.

    name: a key of PROBLEMS.
    labels: their names, in the order of the model's outputs.
    mean, spread: mean and standard deviation of the training rows' numbers, for regression. The model learns numbers in
    units of the spread, so that the learning rate does not depend on what they measure.
    """

    name: str
    labels: list[str]
    mean: float = 0.0
    spread: float = 1.0

    def targets(self, rows: Sequence[dict]) -> list:
        """The target of each row: the index of its label; 0.0 or 1.0 for each label; or its number in units of spread."""
        if self.name == "regression":
            return [(number(row["label"]) - self.mean) / self.spread for row in rows]
        index_of = {label: i for i, label in enumerate(self.labels)}
        if self.name == "single_label":
            return [index_of[str(row["label"])] for row in rows]
        targets = np.zeros((len(rows), len(self.labels)), dtype=np.float32)
        for target, row in zip(targets, rows):
            for name in names_of(row["label"]):
                target[index_of[name]] = 1
        return list(targets)


def find_task(
    train: Sequence[dict],
    evaluation: Sequence[dict],
    form: LabelForm,
) -> LabelTask:
    """The task of rows that `form` has checked.

    Numbers in a table are regression where at least one has a fraction.
    """
    name = form.task
    if name == "single_label" and form.asked == "auto":
        _refuse_odd_labels([*train, *evaluation])
    if name == "auto":
        is_whole = all(number(row["label"]).is_integer() for row in train)
        name = "single_label" if is_whole else "regression"
    if name != "regression":
        labels = label_names(train)
        check_labels(evaluation, labels)
        return LabelTask(name, labels)
    numbers = [number(row["label"]) for row in train]
    spread = pstdev(numbers)
    if not spread:
        raise UserError(
            f"all {len(train)} training rows have the label {numbers[0]:g}: there is nothing to learn"
        )
    return LabelTask(name, ["score"], fmean(numbers), spread)


def _refuse_odd_labels(rows: Sequence[dict]) -> None:
    """UserError where a few labels like "N/A" would turn a column of numbers with fractions into as many classes."""
    odd, fractions = [], []
    for row in rows:
        value = number(row["label"])
        if value is None:
            odd.append(row["label"])
        elif not value.is_integer():
            fractions.append(value)
    if odd and fractions and len(odd) <= MAX_ODD_SHARE * len(rows):
        raise UserError(
            f"{len(odd)} of {len(rows)} labels are not numbers, the first {odd[0]!r:.60}, and the others are, as "
            f"{fractions[0]:g}: set task: regression (and skip_bad: true to drop these rows) or task: single_label"
        )


# ---- names of labels ---------------------------------------------------------------------------------------------


def names_of(label) -> list[str]:
    """The names of a row's label or labels."""
    if isinstance(label, list):
        return [str(name) for name in label]
    return [str(label)]


def label_counts(rows: Sequence[dict]) -> Counter[str]:
    """The number of rows with each label."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(names_of(row["label"]))
    return counts


def label_names(rows: Sequence[dict]) -> list[str]:
    """The labels of the training rows as strings: integers by size, everything else in alphabetical order."""
    names = sorted(label_counts(rows))
    if not names:
        raise UserError(
            f"none of the {len(rows)} training rows has a label: there is nothing to learn"
        )
    if len(names) == 1 and isinstance(rows[0]["label"], list):
        raise UserError(
            f"{names[0]!r} is the only label of all lists: use true or false instead of lists"
        )
    if len(names) == 1:
        raise UserError(
            f"all {len(rows)} training rows have the label {names[0]!r}: a classifier needs two or more"
        )
    are_integers = all(name.removeprefix("-").isdecimal() for name in names)
    if are_integers:
        names.sort(key=int)  # stable: 1 and 01 stay in alphabetical order
    return names


def check_labels(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a label that no training row has."""
    numbers_of: dict[str, list[int]] = defaultdict(list)  # row numbers of each unknown label
    for row_number, row in enumerate(rows, start=1):
        for name in names_of(row["label"]):
            if name not in labels:
                numbers_of[name].append(row_number)
    if not numbers_of:
        return
    described = []
    for label in sorted(numbers_of)[:LABELS_SHOWN]:
        numbers = numbers_of[label]
        noun = "row" if len(numbers) == 1 else "rows"
        shown = ", ".join(map(str, numbers[:ROWS_SHOWN]))
        described.append(f"{label!r} in evaluation {noun} {shown}{_more(numbers, ROWS_SHOWN)}")
    others = ""
    if len(numbers_of) > LABELS_SHOWN:
        others = f", and {len(numbers_of) - LABELS_SHOWN} labels more"
    known = ", ".join(labels[:KNOWN_LABELS_SHOWN])
    if len(labels) > KNOWN_LABELS_SHOWN:
        known += ", ..."
    raise UserError(
        f"no training row has the label {'; '.join(described)}{others}. Labels of the training rows: {known}. Add "
        "training rows with it, remove the evaluation rows, or, where one file is split, use another seed or "
        "eval_fraction"
    )


def rare_labels(train: Sequence[dict], evaluation: Sequence[dict]) -> list[str]:
    """Warnings: labels that only one training row has, and labels that no evaluation row has."""
    counts = label_counts(train)
    evaluated = label_counts(evaluation)
    once = sorted(name for name, count in counts.items() if count == 1)
    not_evaluated = sorted(counts.keys() - evaluated.keys())
    warnings = []
    for names, text in (
        (once, "are in one training row only"),
        (not_evaluated, "are in no held-out row, and are not evaluated"),
    ):
        if names:
            shown = ", ".join(names[:LABELS_SHOWN])
            more = _more(names, LABELS_SHOWN)
            warnings.append(f"{len(names)} of {len(counts)} labels {text}: {shown}{more}")
    return warnings


def _more(items: Sequence, shown: int) -> str:
    """The end of a list in a message of which only the first `shown` items are written out."""
    if len(items) <= shown:
        return ""
    return f" and {len(items) - shown} more"


# ---- texts -> tokens ---------------------------------------------------------------------------------------------


def start_of(tokenizer, text: str, max_length: int) -> str:
    """The start of a very long text, with more tokens than are kept of it; the text itself where it is not that long.

    A tokenizer reads ten million characters for half a minute, and all but max_length tokens are then cut.
    """
    if len(text) <= LONG_TEXT or tokenizer.truncation_side != "right":
        return text
    end = text.rfind(" ", 0, LONG_TEXT)  # between two words, as tokens of the last word may differ
    if end < 0:
        end = LONG_TEXT
    start = text[:end]
    tokens = tokenizer(start, split_special_tokens=True, verbose=False)["input_ids"]
    if len(tokens) < 2 * max_length:
        return text  # a run of white space or letters may be few tokens
    return start


def encode_texts(
    tokenizer,
    rows: Sequence[dict],
    *,
    pairs: bool,
    max_length: int,
) -> tuple[list[dict], int]:
    """Rows of token ids, and how many were cut. No text can spell a special token."""
    counts: Counter[str] = Counter()
    encoded = list(text_inputs(tokenizer, rows, counts, pairs=pairs, max_length=max_length))
    return encoded, counts["cut"]


def stored_texts(
    tokenizer,
    rows: Sequence[dict],
    *,
    pairs: bool,
    max_length: int,
) -> tuple[EncodedRows, int]:
    """The same, encoded once for all processes and runs, and mapped from the cache."""
    columns = input_columns(tokenizer)
    encoded = encode_once(text_inputs, tokenizer, rows, columns, pairs=pairs, max_length=max_length)
    return encoded, encoded.counts["cut"]


def text_inputs(
    tokenizer,
    rows: Iterable[dict],
    counts: Counter[str],
    *,
    pairs: bool,
    max_length: int,
) -> Iterator[dict]:
    """Yields the inputs of each row. Counts those that were cut."""
    # A pair needs room for at least a token of each text.
    least = tokenizer.num_special_tokens_to_add(pair=pairs) + (2 if pairs else 1)
    if max_length < least:
        raise UserError(
            f"max_length={max_length} leaves no room for a text: raise it, up to the model's context"
        )
    columns = ("text", "text_pair") if pairs else ("text",)
    options = {"split_special_tokens": True, "verbose": False}
    rows = iter(rows)
    while chunk := list(islice(rows, TEXTS_PER_CALL)):
        texts = []
        for column in columns:
            texts.append([start_of(tokenizer, row[column], max_length) for row in chunk])
        batch = tokenizer(*texts, **options)
        for i in range(len(chunk)):
            feature = {name: values[i] for name, values in batch.items()}
            if len(feature["input_ids"]) > max_length:
                row_texts = [column_texts[i] for column_texts in texts]
                # Only the tokenizer knows how to share max_length between two texts.
                shorter = tokenizer(
                    *row_texts,
                    truncation=True,
                    max_length=max_length,
                    **options,
                )
                feature = dict(shorter)
                counts["cut"] += 1
            yield feature
