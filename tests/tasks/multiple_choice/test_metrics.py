import numpy as np
import pytest

from rlhf.statistics import wilson_interval
from rlhf.tasks.multiple_choice.encode import IGNORED
from rlhf.tasks.multiple_choice.metrics import (
    choice_probabilities,
    multiple_choice_report,
    right_choices,
    wrong_choices,
)

LABELS = np.array([[0, 1, 0], [1, 0, IGNORED], [0, 1, IGNORED]])
LOGITS = np.array([[0, np.log(2), 0], [0, 0, 9], [np.log(3), 0, -100]])


def test_probabilities_are_of_the_choices_of_a_row_alone():
    found = choice_probabilities(LOGITS, LABELS)
    expected = [[0.25, 0.5, 0.25], [0.5, 0.5], [0.75, 0.25]]
    assert [row.tolist() for row in found] == [pytest.approx(row) for row in expected]
    assert right_choices(LABELS) == [1, 0, 1]


def test_accuracy_has_its_interval_and_its_chance():
    report = multiple_choice_report([1, 0, 1], choice_probabilities(LOGITS, LABELS))
    assert report["accuracy"] == pytest.approx(2 / 3) and report["rows"] == 3
    assert (report["accuracy_low"], report["accuracy_high"]) == wilson_interval(2 / 3, 3)
    assert report["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert report["choices"] == [
        {"choices": 2, "rows": 2, "accuracy": 0.5, "chance": 0.5},
        {"choices": 3, "rows": 1, "accuracy": 1.0, "chance": pytest.approx(1 / 3)},
    ]


def test_wrong_rows_come_with_the_surest_first():
    rows = [{"text": f"t{i}", "choices": ["a", "b", "c"][: 3 - (i > 0)]} for i in range(3)]
    probabilities = choice_probabilities(LOGITS, LABELS)
    found = wrong_choices(rows, [0, 0, 1], probabilities)
    assert [(row["text"], row["right"], row["predicted"]) for row in found] == [
        ("t2", "b", "a"),
        ("t0", "a", "b"),
    ]
    assert found[0]["probability"] == pytest.approx(0.75)
