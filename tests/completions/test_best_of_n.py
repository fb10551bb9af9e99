"""The best of n: its order, the rows that are made of it, the estimate for fewer answers, and the bound of its KL."""

import math
from itertools import combinations, product

import pytest
import torch

from rlhf.commands.sampled_files import write_results
from rlhf.completions.best_of_n import (
    Answer,
    Answers,
    best_of_means,
    demonstrations,
    kl_bound,
    means_of_the_last,
    ranking,
    usable,
)
from rlhf.data.load import load_rows


def answers(*entries):
    """Answers of (completion, score) or (completion, score, ended), as they are given."""
    made = []
    for text, score, *ended in entries:
        made.append(Answer(text, score, ended[0] if ended else True, {}))
    return Answers(0, "p", made)


def test_the_best_of_k_by_hand():
    # Of 1, 2, 3: the pairs have the maxima 2, 3, 3.
    means = best_of_means(torch.tensor([[2.0, 3.0, 1.0], [5.0, 5.0, 5.0]]))
    expected = torch.tensor([[2.0, 8 / 3, 3.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(means, expected)


def test_the_best_of_k_is_the_mean_over_all_subsets():
    scores = torch.randn(2, 7)
    means = best_of_means(scores)
    for k in range(1, 8):
        for row, mean in zip(scores.tolist(), means[:, k - 1].tolist()):
            subsets = [max(subset) for subset in combinations(row, k)]
            assert mean == pytest.approx(sum(subsets) / len(subsets))


def test_another_value_of_the_best_of_k_by_hand():
    # The best of 1 is the mean; of the pairs the last is 30 once and 20 twice; of all three it is 20.
    means = means_of_the_last(torch.tensor([[10.0, 30.0, 20.0]]))
    assert means.tolist() == [pytest.approx([20.0, 70 / 3, 20.0])]


def test_the_best_of_k_of_very_many_answers():
    n = 3000
    means = best_of_means(torch.arange(1.0, n + 1)[None])[0]
    # The highest of k numbers from 1 to n, drawn without replacement, is k (n + 1) / (k + 1) on average.
    for k in (1, 2, n // 2, n - 1, n):
        assert float(means[k - 1]) == pytest.approx(k * (n + 1) / (k + 1), rel=1e-9)


def test_the_kl_of_the_best_of_n_is_within_its_bound():
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)  # in the order of the score
    for n in (2, 4):
        best = torch.zeros(4, dtype=torch.float64)
        for draw in product(range(4), repeat=n):
            best[max(draw)] += policy[list(draw)].prod()
        kl = float((best * (best / policy).log()).sum())
        assert 0 < kl < kl_bound(n)
    # Where no answer is likely the bound is the KL: 2,000 equally likely answers, n = 2.
    count = 2000
    best = (2 * torch.arange(1, count + 1, dtype=torch.float64) - 1) / count**2
    kl = float((best * (best * count).log()).sum())
    assert kl == pytest.approx(kl_bound(2), abs=1e-3)


def test_only_whole_and_different_answers_are_taught():
    sampled = answers(("cut", 9.0, False), ("b", 3.0), ("b", 3.0), ("", 2.5), ("c", 1.0))
    assert [item.completion for item in usable(sampled, keep_unended=False)] == ["b", "c"]
    assert [item.completion for item in usable(sampled, keep_unended=True)] == ["cut", "b", "c"]


def test_no_row_holds_a_text_that_recipes_refuse(tmp_path):
    sampled = answers((" ", 5.0), ("\n", 4.0), ("a\0b", 3.0), ("c\u2028d", 2.0), ("e ", 1.0))
    rows = {"keep": 5, "min_score": None, "min_margin": 0.0, "keep_unended": False}
    record = write_results(tmp_path, {}, [sampled], rows=rows)
    assert record["counts"]["empty"] == 3
    best = load_rows(str(tmp_path / "best.jsonl"), kinds=("prompt_completion",))
    assert [row["completion"] for row in best.rows] == ["c\u2028d", "e "]
    ranked = load_rows(str(tmp_path / "ranked.jsonl"), kinds=("ranking",))
    assert [row["completions"] for row in ranked.rows] == [["c\u2028d", "e "]]


def test_demonstrations_are_the_best_that_score_enough():
    best = usable(answers(("a", 3.0), ("b", 2.0), ("c", 1.0)), keep_unended=False)
    rows = demonstrations("p", best, keep=2, min_score=None)
    assert rows == [
        {"prompt": "p", "completion": "a", "score": 3.0},
        {"prompt": "p", "completion": "b", "score": 2.0},
    ]
    assert [row["completion"] for row in demonstrations("p", best, keep=3, min_score=2.0)] == [
        "a",
        "b",
    ]


def test_equal_scores_share_a_rank_and_a_ranking_needs_two_of_them():
    best = usable(answers(("a", 3.0), ("b", 3.0), ("c", 1.0)), keep_unended=False)
    row = ranking("p", best, min_margin=0.0)
    assert row["completions"] == ["a", "b", "c"] and row["ranks"] == [0, 0, 1]
    assert row["scores"] == [3.0, 3.0, 1.0]
    assert ranking("p", best, min_margin=2.0) is not None
    assert ranking("p", best, min_margin=2.5) is None
    assert ranking("p", best[:2], min_margin=0.0) is None
    assert ranking("p", [], min_margin=0.0) is None
