"""Bradley-Terry strengths: the fit against its own equations, intervals, ties, groups that never met."""

import math
import random

import numpy as np
import pytest

from rlhf.feedback.events import ModelUsed
from rlhf.feedback.strengths import strengths, win_rate, wins_of, with_prior

A, B, C, D = (ModelUsed(name, name) for name in "abcd")


def duels(make, first, second, wins, losses, ties=0):
    events = [make.comparison("left", models=(first, second)) for _ in range(wins)]
    events += [make.comparison("right", models=(first, second)) for _ in range(losses)]
    return events + [make.comparison("tie", models=(first, second)) for _ in range(ties)]


def test_two_models_have_the_log_odds_of_their_wins(make):
    rows = strengths(duels(make, A, B, 30, 10, 4))
    assert [row.model for row in rows] == ["a", "b"] and rows[0].comparisons == 44
    odds = math.log((32 + 0.5) / (12 + 0.5))  # ties are half, and one tie is imagined
    assert rows[0].strength - rows[1].strength == pytest.approx(odds, abs=1e-6)
    chance = 32.5 / 45
    error = 1 / math.sqrt(45 * chance * (1 - chance))
    assert rows[0].high - rows[0].low == pytest.approx(2 * 1.96 * error / 2, rel=1e-3)
    assert rows[0].win_rate == pytest.approx(32 / 44)


def test_the_fit_expects_as_many_wins_as_there_were(make):
    events = duels(make, A, B, 7, 5, 1) + duels(make, B, C, 8, 2) + duels(make, A, C, 3, 4, 2)
    names, wins = wins_of(events)
    by_name = {row.model: row.strength for row in strengths(events)}
    fitted = np.array([by_name[name] for name in names])
    games = with_prior(wins) + with_prior(wins).T
    chance = 1 / (1 + np.exp(fitted[None, :] - fitted[:, None]))
    assert (games * chance).sum(axis=1) == pytest.approx(with_prior(wins).sum(axis=1), abs=1e-5)
    assert fitted.mean() == pytest.approx(0)


def test_a_model_that_never_lost_has_a_finite_strength(make):
    rows = strengths(duels(make, A, B, 20, 0))
    assert 2 < rows[0].strength - rows[1].strength < 5 and math.isfinite(rows[0].high)


def test_models_that_never_met_are_in_groups_of_their_own(make):
    rows = strengths(duels(make, A, B, 3, 1) + duels(make, C, D, 1, 3))
    assert [(row.model, row.group) for row in rows] == [("a", 0), ("b", 0), ("d", 1), ("c", 1)]


def test_of_three_answers_the_winner_beat_both_and_the_others_stay_open(make):
    event = make.comparison(1, models=(A, B, C), shown=[2, 0, 1])  # the middle one is a
    names, wins = wins_of([event])
    assert names == ["a", "b", "c"]
    assert wins.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    tie = make.comparison("both bad", models=(A, B, C))
    assert wins_of([tie])[1].sum() == 3


def test_the_side_on_the_screen_is_not_the_model(make):
    events = [make.comparison("left", models=(A, B), shown=[1, 0]) for _ in range(5)]
    assert [row.model for row in strengths(events)] == ["b", "a"]


def test_one_model_against_itself_and_written_answers_are_not_counted(make):
    assert strengths([make.comparison("left", models=(A, A))]) == []
    assert strengths([make.comparison("left", models=(A, None))]) == []
    assert strengths([make.rating(), make.ranking([0, 1])]) == []


def test_two_revisions_of_a_name_are_two_models(make):
    old, new = ModelUsed("ppo", "p", "1" * 64), ModelUsed("ppo", "p", "2" * 64)
    names, _ = wins_of(duels(make, old, new, 2, 1))
    assert names == ["ppo (11111111)", "ppo (22222222)"]


def test_the_interval_holds_the_truth_about_as_often_as_it_says(make):
    rng = random.Random(1)
    truth, held = 0.8, 0
    for _ in range(60):
        wins = sum(rng.random() < 1 / (1 + math.exp(-truth)) for _ in range(40))
        first = next(
            row for row in strengths(duels(make, A, B, wins, 40 - wins)) if row.model == "a"
        )
        held += first.low <= truth / 2 <= first.high
    assert 51 <= held <= 60


def test_the_win_rate_counts_ties_as_half(make):
    events = duels(make, A, B, 6, 2, 2) + duels(make, B, A, 1, 1)
    rate = win_rate(events, "a", "b")
    assert (rate.wins, rate.losses, rate.ties) == (7, 3, 2) and rate.share == pytest.approx(8 / 12)
    assert rate.low < rate.share < rate.high and win_rate(events, "a", "c") is None
