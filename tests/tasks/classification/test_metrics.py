"""Numbers worked by hand, and agreement with scikit-learn where it has the same number."""

import numpy as np
import pytest

from rlhf.statistics import ranks, wilson_interval
from rlhf.tasks.classification.metrics import (
    calibration,
    classification_report,
    errors,
    evaluate,
    multi_label_report,
    plot_calibration,
    plot_confusion,
    plot_scatter,
    proper_scores,
    regression_report,
)


def test_report_by_hand():
    # a: 2 of 3 right; b: 1 of 2 right; c: never there, never predicted; d: predicted once, never there
    found = classification_report([0, 0, 0, 1, 1], [0, 0, 1, 1, 3], ["a", "b", "c", "d"])
    assert found["accuracy"] == pytest.approx(3 / 5) and found["rows"] == 5
    # F1 of a: precision 1, recall 2/3 -> 4/5; of b: 1/2, 1/2 -> 1/2; of d: 0; c does not occur
    assert found["f1"] == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert found["f1_weighted"] == pytest.approx((3 * 4 / 5 + 2 * 1 / 2) / 5)
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    a = {
        "label": "a",
        "precision": 1.0,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 5),
        "rows": 3,
    }
    assert found["classes"][0] == a
    assert found["classes"][2] == {
        "label": "c",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "rows": 0,
    }
    assert found["confusions"] == [
        {"label": "a", "predicted": "b", "rows": 1},
        {"label": "b", "predicted": "d", "rows": 1},
    ]


def test_matthews_correlation_of_two_classes_by_hand():
    truth, predicted = [1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0]  # TP 2, FN 1, FP 1, TN 3
    found = classification_report(truth, predicted, ["no", "yes"])
    assert found["mcc"] == pytest.approx((2 * 3 - 1 * 1) / (3 * 3 * 4 * 4) ** 0.5)
    assert classification_report([0, 1], [0, 0], ["no", "yes"])["mcc"] == 0.0


def test_wilson_interval_of_9_of_10_and_at_the_ends():
    # centre (0.9 + 3.8416 / 20) / 1.38416, half 1.96 * sqrt(0.009 + 3.8416 / 400) / 1.38416
    assert wilson_interval(0.9, 10) == pytest.approx((0.5959, 0.9822), abs=1e-3)
    assert wilson_interval(1.0, 10) == (pytest.approx(0.7225, abs=1e-3), 1.0)
    assert wilson_interval(0.0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))


def test_calibration_by_hand():
    # bins of 1/15: 0.5 lies in (7/15, 8/15], 0.9 in (13/15, 14/15]
    found = calibration([0.5, 0.5, 0.9, 0.9, 0.9], [True, False, True, True, False])
    assert found["bins"] == [
        {"probability": 0.5, "share": 0.5, "rows": 2},
        {"probability": pytest.approx(0.9), "share": pytest.approx(2 / 3), "rows": 3},
    ]
    assert found["calibration_error"] == pytest.approx(3 / 5 * (0.9 - 2 / 3))
    assert calibration([0.0, 1.0], [False, True])["calibration_error"] == 0.0
    assert calibration([1.0, 1.0], [False, False])["calibration_error"] == 1.0


def test_a_bin_holds_its_upper_edge():
    assert [b["rows"] for b in calibration([1 / 3, 0.34], [True, True])["bins"]] == [1, 1]


def test_proper_scores_by_hand_and_as_scikit_learn():
    from sklearn.metrics import log_loss

    p, truth = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]), [0, 2]
    found = proper_scores(truth, p)
    assert (
        found["nll"]
        == pytest.approx((np.log(2) + np.log(10)) / 2)
        == log_loss(truth, p, labels=[0, 1, 2])
    )
    # (0.25 + 0.0625 + 0.0625) and (0.01 + 0.64 + 0.81)
    assert found["brier"] == pytest.approx((0.375 + 1.46) / 2)


def test_several_labels_by_hand():
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    said = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    found = multi_label_report(truth, said, ["a", "b", "c", "d"])
    assert (found["accuracy"], found["rows"]) == (3 / 4, 4)
    assert found["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))  # TP 3, 4 true, 4 said
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0 + 0) / 4)  # d never occurs
    assert [(c["rows"], c["missed"], c["invented"]) for c in found["classes"]] == [
        (2, 0, 0),
        (2, 1, 0),
        (0, 0, 1),
        (0, 0, 0),
    ]


def test_macro_f1_of_several_labels_agrees_with_scikit_learn():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    truth, said = (
        generator.integers(0, 2, (40, 5)) * [1, 1, 1, 1, 0] for _ in range(2)
    )  # one that never occurs
    found = multi_label_report(truth, said, list("abcde"))
    assert found["f1"] == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))


def test_regression_by_hand():
    found = regression_report([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0])
    assert (found["mse"], found["mae"], found["rows"]) == (0.5, 0.5, 4)
    assert found["r2"] == pytest.approx(1 - 0.5 / 1.25)
    assert found["pearson"] == found["spearman"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    same = regression_report([1.0, 2.0], [5.0, 5.0])
    assert (same["pearson"], same["spearman"]) == (0.0, 0.0)
    assert regression_report([2.0, 2.0], [1.0, 3.0])["r2"] == 0.0


def test_correlations_agree_with_scipy_and_ties_share_their_rank():
    from scipy.stats import pearsonr, spearmanr

    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    generator = np.random.default_rng(1)
    x = generator.integers(0, 9, 50).astype(float)
    y = x + generator.normal(size=50)
    found = regression_report(x, y)
    assert found["pearson"] == pytest.approx(pearsonr(x, y)[0])
    assert found["spearman"] == pytest.approx(spearmanr(x, y)[0])


ROWS = [
    {"text": t, "label": label, "id": 1}
    for t, label in (("one", "a"), ("two", "b"), ("three", "b"))
]


def test_errors_of_one_label_stand_by_how_sure_they_are():
    p = np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    found = errors("single_label", ROWS, np.array([0, 1, 1]), p, ["a", "b"])
    assert found == [
        {"text": "two", "label": "b", "predicted": "a", "probability": 0.9},
        {"text": "one", "label": "a", "predicted": "b", "probability": 0.6},
    ]


def test_errors_of_several_labels_name_the_label_that_is_farthest_off():
    rows = [{"text": "one", "label": ["a"]}, {"text": "two", "label": []}]
    truth, p = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[0.1, 0.7], [0.2, 0.4]])
    assert errors("multi_label", rows, truth, p, ["a", "b"]) == [
        {"text": "one", "label": ["a"], "predicted": ["b"], "about": "a", "probability": 0.1}
    ]


def test_errors_of_numbers_are_differences():
    rows = [
        {"text": "one", "text_pair": "x", "label": 1.0},
        {"text": "two", "text_pair": "y", "label": 2.0},
    ]
    found = errors("regression", rows, np.array([1.0, 2.0]), np.array([1.5, 0.0]), ["score"])
    assert found[0] == {
        "text": "two",
        "text_pair": "y",
        "label": 2.0,
        "predicted": 0.0,
        "difference": -2.0,
    }
    assert found[1]["difference"] == 0.5


def test_evaluate_has_what_its_task_has():
    p = np.array([[0.4, 0.6], [0.9, 0.1]])
    one = evaluate("single_label", np.array([0, 0]), p, ["a", "b"])
    assert one["accuracy"] == 0.5 and one["nll"] == pytest.approx(-(np.log(0.4) + np.log(0.9)) / 2)
    assert sum(b["rows"] for b in one["bins"]) == 2  # the probability of the predicted label
    several = evaluate("multi_label", np.array([[1.0, 0.0], [1.0, 0.0]]), p, ["a", "b"])
    assert (
        several["accuracy"] == 0.5 and sum(b["rows"] for b in several["bins"]) == 4
    )  # of every label
    assert evaluate("regression", np.array([1.0, 2.0]), np.array([1.0, 2.0]), ["score"])["mse"] == 0


@pytest.mark.parametrize("classes", [2, 21])
def test_pictures_of_few_and_of_many_classes(tmp_path, classes):
    names = [f"class ${i}$ with a very long name indeed" for i in range(classes)]
    truth = list(range(classes)) * 2
    plot_confusion(classification_report(truth, sorted(truth), names), tmp_path / "some.png")
    plot_confusion(classification_report(truth, truth, names), tmp_path / "none.png")
    plot_calibration(calibration([0.2, 1.0], [True, True]), tmp_path / "calibration.png")
    plot_scatter(
        regression_report([1.0, 2.0], [1.0, 2.0]), [1.0, 2.0], [1.0, 2.0], tmp_path / "scatter.png"
    )
    assert (
        all(path.stat().st_size > 1000 for path in tmp_path.glob("*.png"))
        and len([*tmp_path.glob("*.png")]) == 4
    )
