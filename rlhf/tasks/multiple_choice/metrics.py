"""Evaluation of multiple choice: accuracy with its interval, by number of choices, and the rows that are wrong."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from rlhf.statistics import wilson_interval
from rlhf.tasks.classification.metrics import calibration
from rlhf.tasks.multiple_choice.encode import IGNORED, RIGHT

METRICS = ("accuracy", "calibration_error")  # of a run record; the first picks the checkpoint


def choice_probabilities(logits: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Softmax over the choices of each row. logits, labels: (N, K), as `PadChoices` pads them; row i -> (K_i,)."""
    probabilities = []
    for row, marks in zip(logits, labels):
        # Repetitions come last, so the positions of the choices stay.
        scores = row[marks != IGNORED].astype(np.float64)
        weights = np.exp(scores - scores.max())  # the largest is 1: no overflow
        probabilities.append(weights / weights.sum())
    return probabilities


def right_choices(labels: np.ndarray) -> list[int]:
    """Index of the right choice of each row of (N, K) labels."""
    return (labels == RIGHT).argmax(1).tolist()


def choice_accuracy(truth: Sequence[int], predicted: Sequence[int]) -> dict:
    """accuracy with its 95 % Wilson interval, and rows."""
    right = [true == guess for true, guess in zip(truth, predicted, strict=True)]
    accuracy = fmean(right)
    low, high = wilson_interval(accuracy, len(right))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "rows": len(right),
    }


def multiple_choice_report(truth: Sequence[int], probabilities: Sequence[np.ndarray]) -> dict:
    """Accuracy with its interval, chance (the expected accuracy of guessing), calibration, and

    choices: rows, accuracy and chance by number of choices, the fewest first.
    """
    predicted = [int(row.argmax()) for row in probabilities]
    counts = [len(row) for row in probabilities]
    report = choice_accuracy(truth, predicted)
    # Rows with fewer choices are easier: accuracy says little without this number.
    report["chance"] = fmean(1 / count for count in counts)
    right = [true == guess for true, guess in zip(truth, predicted)]
    # Is a choice that is picked with probability p right in a fraction p of the rows?
    certainty = [float(row.max()) for row in probabilities]
    report |= calibration(certainty, right)
    report["choices"] = by_number_of_choices(truth, predicted, counts)
    return report


def by_number_of_choices(
    truth: Sequence[int], predicted: Sequence[int], counts: Sequence[int]
) -> list[dict]:
    """{choices, rows, accuracy, chance} for each K that occurs, the smallest first."""
    right_by_count: dict[int, list[bool]] = {}
    for true, guess, count in zip(truth, predicted, counts, strict=True):
        right_by_count.setdefault(count, []).append(true == guess)
    rows = []
    for count, right in sorted(right_by_count.items()):
        row = {"choices": count, "rows": len(right), "accuracy": fmean(right), "chance": 1 / count}
        rows.append(row)
    return rows


def wrong_choices(
    rows: Sequence[dict], truth: Sequence[int], probabilities: Sequence[np.ndarray]
) -> list[dict]:
    """Rows with a wrong prediction, the surest first: text, the right choice, the predicted one, its probability."""
    wrong = []
    for row, true, chances in zip(rows, truth, probabilities, strict=True):
        guess = int(chances.argmax())
        if guess == true:
            continue
        wrong.append(
            {
                "text": row["text"],
                "right": row["choices"][true],
                "predicted": row["choices"][guess],
                "probability": float(chances[guess]),
            }
        )
    return sorted(wrong, key=lambda entry: -entry["probability"])
