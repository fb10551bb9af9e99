import random

import pytest

from rlhf.tasks.ner.encode import entities, to_bio
from rlhf.tasks.ner.metrics import (
    entity_scores,
    find_errors,
    plot_entities,
    tagging_report,
    wrong_sentences,
)

TOKENS = ["Ada", "Byron", "King", "of", "Ockham", "met", "Bob", "there"]
TRUTH = ["B-per", "I-per", "I-per", "O", "B-loc", "O", "B-per", "O"]
#        one end wrong: boundary     missed; type wrong on loc; invented on "there"
FOUND = ["B-per", "I-per", "O", "O", "B-per", "O", "O", "B-loc"]


def test_report_by_hand():
    report = tagging_report([TRUTH, ["B-loc"]], [FOUND, ["B-loc"]], [TOKENS, ["Rome"]])
    # 4 entities, 4 marked, only Rome right; 4 of 9 tags wrong
    assert (report["precision"], report["recall"], report["f1"]) == (1 / 4, 1 / 4, 1 / 4)
    assert report["token_accuracy"] == pytest.approx(5 / 9)
    assert (report["entities"], report["sentences"]) == (4, 2)
    assert report["types"] == [
        {
            "type": "loc",
            "precision": 1 / 2,
            "recall": 1 / 2,
            "f1": 1 / 2,
            "entities": 2,
            "marked": 2,
        },
        {"type": "per", "precision": 0.0, "recall": 0.0, "f1": 0.0, "entities": 2, "marked": 2},
    ]
    assert report["errors"] == {
        "missed": 1,
        "invented": 1,
        "boundary": 1,
        "type": 1,
        "type and boundary": 0,
    }
    assert {"error": "boundary", "entity": "per", "marked": "per", "count": 1,
            "example": "Ada Byron King → Ada Byron"} in report["confusions"]  # fmt: skip


def test_kinds_of_errors():
    tokens = "a b c d".split()
    assert find_errors([("x", 0, 1)], [("y", 1, 2)], tokens) == [
        ("type and boundary", "x", "y", "a b → b c")
    ]
    assert find_errors([("x", 0, 1)], [("y", 0, 1)], tokens) == [("type", "x", "y", "a b → a b")]
    # one long mark over two entities: two errors of boundary, none invented
    assert [e[0] for e in find_errors([("x", 0, 0), ("x", 2, 2)], [("x", 0, 2)], tokens)] == [
        "boundary"
    ] * 2
    assert find_errors([("x", 0, 1)], [("x", 0, 1)], tokens) == []


def test_wrong_sentences_stand_in_the_order_of_their_errors():
    rows = [
        {"tokens": ["Rome"], "tags": ["O"]},
        {"tokens": TOKENS, "tags": TRUTH},
        {"tokens": ["a"], "tags": ["O"]},
    ]
    found = wrong_sentences(rows, [["B-loc"], FOUND, ["O"]])
    assert [row["tokens"] for row in found] == [TOKENS, ["Rome"]]
    assert found[1] == {
        "tokens": ["Rome"],
        "tags": ["O"],
        "predicted": ["B-loc"],
        "errors": ["invented: Rome (loc)"],
    }


def test_scores_agree_with_a_count_of_entities():
    generator = random.Random(0)
    sample = [["O", "O", "B-a", "I-a", "B-b", "I-b"][generator.randrange(6)] for _ in range(600)]
    noisy = [tag if generator.random() < 0.8 else "O" for tag in sample]
    for repair in (False, True):  # strict on illegal tags, and on those that were repaired
        truth, found = [to_bio(tags, "BIO")[0] if repair else tags for tags in (sample, noisy)]
        sentences = [(truth[i : i + 10], found[i : i + 10]) for i in range(0, 600, 10)]
        if repair:
            sentences = [tuple(to_bio(tags, "BIO")[0] for tags in pair) for pair in sentences]
        true = sum(len(entities(t)) for t, _ in sentences)
        marked = sum(len(entities(f)) for _, f in sentences)
        right = sum(len(set(entities(t)) & set(entities(f))) for t, f in sentences)
        scores = entity_scores(*zip(*sentences))
        assert 0 < right < marked < true * 1.5
        assert scores["precision"] == pytest.approx(right / marked)
        assert scores["recall"] == pytest.approx(right / true)
        assert scores["f1"] == pytest.approx(2 * right / (true + marked))


@pytest.mark.parametrize("found", [["O", "O"], ["O", "B-x"]])
def test_nothing_marked_and_nothing_to_mark(found):
    assert entity_scores([["B-x", "O"]], [found])["f1"] == 0.0
    assert entity_scores([["O", "O"]], [found])["f1"] == 0.0


@pytest.mark.parametrize("types", [2, 25])
def test_pictures_of_few_and_of_many_types(tmp_path, types):
    truth = [[f"B-type ${i}$ with a very long name indeed", "O"] for i in range(types)]
    report = tagging_report(truth, truth, [["a", "b"]] * types)
    plot_entities(report, tmp_path / "entities.png")
    assert (tmp_path / "entities.png").stat().st_size > 1000
