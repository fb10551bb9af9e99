"""chrF and BLEU: sacrebleu's scores, and intervals also where nearly nothing is right."""

import pytest

from rlhf.tasks.seq2seq.metrics import corpus_scores, scores_by_length

pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")


def test_scores_are_by_hand_for_texts_that_are_all_right_or_all_wrong():
    """BLEU needs four words, and chrF counts characters without spaces."""
    right = corpus_scores(["a b c d"] * 3, ["a b c d"] * 3, "13a")
    assert (right["chrf"], right["bleu"]) == pytest.approx((100, 100))
    wrong = corpus_scores(["x"] * 3, ["y"] * 3, "13a")
    assert wrong["chrf"] == wrong["chrf_high"] == wrong["bleu"] == 0


def test_an_interval_where_some_resamples_score_zero():
    """One of ten rows is right: resamples without it score 0, for which sacrebleu's own intervals raise an error."""
    scores = corpus_scores(["a"] + [""] * 9, ["a"] + ["b"] * 9, "13a")
    assert scores["chrf_low"] == 0 < scores["chrf"] < scores["chrf_high"] < 100


def test_groups_by_length_hold_each_row_once_and_equal_lengths_together():
    written = ["a b", "a b", "x", "x", "x", "x"]
    groups = scores_by_length(written, ["a b"] * 6, [2, 2, 2, 5, 7, 9])
    assert sum(group["rows"] for group in groups) == 6
    assert groups[0]["source_tokens"].startswith("2") and groups[0]["rows"] >= 3
    assert groups[0]["chrf"] > 0 == groups[-1]["chrf"]
