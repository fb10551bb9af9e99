"""The lattice against all cuts written out, and what pruning must keep."""

from itertools import combinations
from math import log, prod

import numpy as np
import pytest

from rlhf.tokenizers.unigram import _Lattice, _saved_log_probs, train_unigram


def cuts(word):
    """Every way to cut a word, by where it is cut."""
    for number in range(len(word)):
        for places in combinations(range(1, len(word)), number):
            ends = (0, *places, len(word))
            yield [word[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def test_expected_counts_are_a_mean_over_all_cuts():
    words = {"abab": 3, "ba": 2, "b": 1}
    chance = {"a": 0.3, "b": 0.2, "ab": 0.25, "ba": 0.15, "bab": 0.1}
    expected = dict.fromkeys(chance, 0.0)
    for word, count in words.items():
        possible = [cut for cut in cuts(word) if set(cut) <= set(chance)]
        chances = [prod(chance[piece] for piece in cut) for cut in possible]
        for cut, probability in zip(possible, chances, strict=True):
            for piece in cut:
                expected[piece] += count * probability / sum(chances)
    found = _Lattice(words, list(chance)).expected_counts(np.array(list(chance.values())))
    assert found.tolist() == pytest.approx(list(expected.values()))


def test_a_piece_saves_what_its_best_cut_costs():
    chance = {"a": 0.5, "b": 0.2, "ab": 0.2, "aba": 0.1}
    saved = _saved_log_probs(list(chance), np.array(list(chance.values())))
    assert np.isinf(saved[:2]).all()
    assert saved[2:].tolist() == pytest.approx(
        [log(0.2 / (0.5 * 0.2)), log(0.1 / (0.2 * 0.5))]
    )  # ab|a beats a|b|a


def test_forgotten_pieces_are_in_no_cut():
    lattice = _Lattice({"ab": 4}, ["a", "b", "ab"])
    lattice.keep(np.array([True, True, False]))
    assert lattice.expected_counts(np.array([0.5, 0.5])).tolist() == [4, 4]


def test_frequent_words_become_pieces_and_letters_stay():
    pieces = dict(train_unigram({"the": 50, "cat": 40, "q": 1, "them": 1}, 8))
    assert set("thecaqm") | {"the"} == set(pieces)
    assert sum(np.exp(list(pieces.values()))) == pytest.approx(1)
    pieces = dict(train_unigram({"the": 50, "cat": 40, "q": 1, "them": 1}, 9))
    assert {"the", "cat"} <= set(pieces)


def test_words_longer_than_a_piece_are_learned_from_in_parts():
    pieces = dict(train_unigram({"ab" * 100: 2}, 6))
    assert {"a", "b"} < set(pieces) and max(map(len, pieces)) <= 16
