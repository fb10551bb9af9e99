"""Krippendorff's alpha over pairs of answers, against the definition, and what is and is not counted."""

import random

import numpy as np
import pytest

from rlhf.feedback.agreement import agreement, alpha_of, same_share

ANN, BOB, EVE = "a" * 16, "b" * 16, "e" * 16


def ordinal_alpha(units: list[list[int]]) -> float:
    """Krippendorff 2004, chapter 11: 1 - (n - 1) * sum of o_ck d_ck / sum of n_c n_k d_ck, written out."""
    coincidences = np.zeros((3, 3))
    for values in units:
        for i, first in enumerate(values):
            for j, second in enumerate(values):
                if i != j:
                    coincidences[first, second] += 1 / (len(values) - 1)
    totals = coincidences.sum(axis=1)
    observed = expected = 0.0
    for c in range(3):
        for k in range(3):
            low, high = min(c, k), max(c, k)
            distance = (totals[low : high + 1].sum() - (totals[c] + totals[k]) / 2) ** 2
            observed += coincidences[c, k] * distance
            expected += totals[c] * totals[k] * distance
    return 1 - (totals.sum() - 1) * observed / expected


def test_alpha_is_that_of_the_definition(make):
    rng = random.Random(3)
    events, units = [], []
    for number in range(6):
        rankings = [[rng.randrange(3) for _ in range(3)] for _ in range(3)]
        for annotator, ranks in zip((ANN, BOB, EVE), rankings, strict=True):
            events.append(make.ranking(ranks, f"prompt {number}", annotator=annotator))
        for i in range(3):
            for j in range(3):
                if i != j:  # both directions
                    units.append([int(np.sign(r[i] - r[j])) + 1 for r in rankings])
    result = agreement(events)
    assert result.alpha == pytest.approx(ordinal_alpha(units))
    assert (result.prompts, result.pairs, result.annotators, result.low) == (6, 18, 3, None)


def test_two_who_agree_and_two_who_never_do(make):
    same = [make.ranking([0, 1, 1], annotator=who) for who in (ANN, BOB)]
    result = agreement(same)
    assert result.alpha == 1 and result.same == 1
    opposite = [same[0], make.ranking([1, 0, 0], annotator=BOB)]
    result = agreement(opposite)
    assert result.alpha < 0 and result.same == pytest.approx(1 / 3)


def test_chance_is_near_zero_and_its_interval_holds_zero(make):
    rng = random.Random(0)
    events = []
    for number in range(200):
        for who in (ANN, BOB):
            events.append(
                make.ranking([rng.randrange(2), rng.randrange(2)], str(number), annotator=who)
            )
    result = agreement(events)
    assert abs(result.alpha) < 0.15 and result.low < 0 < result.high


def test_the_last_judgement_of_a_person_counts_and_nobody_agrees_with_themselves(make):
    events = [make.ranking([0, 1], annotator=ANN), make.ranking([1, 0], annotator=ANN)]
    assert agreement(events).alpha is None
    assert agreement([*events, make.ranking([1, 0], annotator=BOB)]).alpha == 1
    unnamed = [make.ranking([0, 1]), make.ranking([0, 1])]
    assert agreement(unnamed).pairs == 0


def test_comparisons_and_rankings_of_the_same_answers_are_counted_together(make):
    events = [
        make.ranking([0, 1], annotator=ANN),
        make.comparison("right", shown=[1, 0], annotator=BOB),  # the right one is answer 0
    ]
    assert agreement(events).alpha == 1
    assert agreement([make.rating(annotator=ANN), make.rating(annotator=BOB)]).pairs == 0


def test_the_direction_of_a_pair_does_not_matter(make):
    def of(flip: bool):
        texts = ["b", "a"] if flip else ["a", "b"]
        events = []
        for number, (ann, bob) in enumerate([(0, 0), (0, 1), (0, 0)]):
            for who, better in ((ANN, ann), (BOB, bob)):
                ranks = [better, 1 - better]
                events.append(make.ranking(ranks, str(number), texts, annotator=who))
        return agreement(events).alpha

    assert of(False) == pytest.approx(of(True))


def test_only_ties_have_no_alpha():
    assert alpha_of(np.array([[0, 2, 0], [0, 2, 0]])) is None
    assert same_share(np.array([[2, 1, 0]])) == pytest.approx(1 / 3)


def test_of_equal_texts_the_best_rank_counts_as_in_training(make):
    first = make.ranking([0, 1, 2], texts=["x", "y", "x"], annotator="a" * 16)
    second = make.ranking([0, 1], texts=["x", "y"], annotator="b" * 16)
    result = agreement([first, second])
    assert (result.alpha, result.pairs, result.same) == (1.0, 1, 1.0)
