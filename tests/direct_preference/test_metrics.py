"""The area under the curve of implicit rewards, by hand."""

import pytest
import torch

from rlhf.direct_preference.metrics import area_under_curve, thumb_report


def rows(labels):
    return [{"label": label, "row": {"prompt": f"p{i // 2}"}} for i, label in enumerate(labels)]


def test_the_report_by_hand():
    """Good 3 and 1, bad 2 and 1: of four pairs two are right, one is wrong, one a tie."""
    report = thumb_report([3.0, 2.0, 1.0, 1.0], rows([True, False, True, False]))
    assert report["auc"] == pytest.approx(2.5 / 4)
    assert report["auc_low"] <= report["auc"] <= report["auc_high"]
    assert (report["answers"], report["good_answers"], report["prompts"]) == (4, 2, 2)
    assert report["margin"] == pytest.approx(2.0 - 1.5)


def test_weights_count_as_copies():
    values, good = torch.tensor([3.0, 2.0, 1.0, 1.0]), torch.tensor([True, False, True, False])
    weighted = area_under_curve(
        values, good, torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    )
    # Good 3 once and 1 three times against bad 2 twice; good 3 against bad 2 and 1.
    assert weighted.tolist() == pytest.approx([2 / 8, 1.0])


def test_equal_rewards_say_nothing():
    report = thumb_report([0.0] * 4, rows([True, False, True, False]))
    assert report["auc"] == report["auc_low"] == report["auc_high"] == 0.5
