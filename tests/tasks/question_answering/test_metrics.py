import random
import re
import string

import pytest

from rlhf.tasks.question_answering.metrics import (
    answer_scores,
    best_threshold,
    normalize_answer,
    reading_report,
)


def test_what_is_compared():
    assert normalize_answer("The  Quick, brown Fox's!", "word") == "quick brown foxs"
    assert normalize_answer("An apple a day; theatre.", "word") == "apple day theatre"
    assert normalize_answer("a-b", "word") == "ab"  # the signs go first, so that no article is left
    assert normalize_answer("the", "word") == ""
    assert normalize_answer("《The 책》(제1권)", "character") == "the 책 제1권"
    assert normalize_answer("1,234‘명’ABC", "character") == "1234 명 abc"


def test_an_unknown_unit(refused):
    assert "answer_unit='token': use one of word, character" in refused(
        normalize_answer, "x", "token"
    )


CASES = [
    # predicted, gold, unit, exact, F1
    ("The Beatles", ["Beatles"], "word", 1, 1),
    ("John Lennon", ["Lennon"], "word", 0, 2 * (1 / 2) * 1 / (1 / 2 + 1)),
    ("one two two", ["two two three"], "word", 0, 2 / 3),  # two of three words on both sides
    ("x", ["a b", "x y"], "word", 0, 2 / 3),  # the best gold answer
    ("x", ["y"], "word", 0, 0),
    ("", [], "word", 1, 1),
    ("x", [], "word", 0, 0),
    ("", ["x"], "word", 0, 0),
    ("a", ["the"], "word", 1, 1),  # gold is empty once normalised
    ("서울에서", ["서울"], "word", 0, 0),
    ("서울에서", ["서울"], "character", 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
    ("1989년 2월", ["1989년2월"], "character", 0, 1),  # exact match minds the space, F1 does not
    ("《토지》", ["토지"], "character", 1, 1),
    ("토토지", ["토지지"], "character", 0, 2 / 3),
]


@pytest.mark.parametrize(("predicted", "gold", "unit", "exact", "f1"), CASES)
def test_scores_worked_by_hand(predicted, gold, unit, exact, f1):
    assert answer_scores(predicted, gold, unit) == pytest.approx((exact, f1))


def slow_f1(predicted, gold, unit):
    """By precision and recall, one item taken out after the other."""

    def items(text):
        if unit == "character":
            text = re.sub("['\"‘’《》〈〉<>()]", " ", text)
        kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
        words = [
            word for word in kept.split() if unit == "character" or word not in ("a", "an", "the")
        ]
        return words if unit == "word" else list("".join(words))

    given, wanted = items(predicted), items(gold)
    left, same = list(wanted), 0
    for item in given:
        if item in left:
            left.remove(item)
            same += 1
    if not given or not wanted:
        return float(given == wanted)
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall) if same else 0.0


@pytest.mark.parametrize("unit", ["word", "character"])
def test_f1_agrees_with_precision_and_recall_counted_one_by_one(unit):
    draw = random.Random(1)
    pieces = ["the", "a", "An", "cat,", "(dog)", "dog", "cat", "책은", "책", "'x'", "."]
    for _ in range(300):
        predicted, gold = (" ".join(draw.choices(pieces, k=draw.randint(1, 5))) for _ in range(2))
        assert answer_scores(predicted, [gold], unit)[1] == pytest.approx(
            slow_f1(predicted, gold, unit)
        )


def test_threshold_by_hand():
    # sorted by no_answer: 0.1 scores 1 if answered; 0.3 is unanswerable; 0.4 scores 0.5; 0.9 is unanswerable
    scores, has, nothing = [1.0, 0.0, 0.5, 0.0], [True, False, True, False], [0.1, 0.3, 0.4, 0.9]
    # answered 0: 2; answered 1: 3; 2: 2; 3: 2.5; 4: 1.5
    assert best_threshold(scores, has, nothing) == (pytest.approx(0.2), 3 / 4)
    assert best_threshold([1.0, 1.0], [True, True], [0.2, 0.6]) == (pytest.approx(0.8), 1.0)
    assert best_threshold([0.0, 0.0], [False, False], [0.2, 0.6]) == (pytest.approx(0.1), 1.0)
    assert best_threshold([0.0], [False], [0.0])[0] < 0  # below every probability: never answered


def test_threshold_is_the_best_of_all_and_ties_stay_together():
    draw = random.Random(2)
    for _ in range(100):
        rows = [
            (draw.random() < 0.5, draw.choice([0.0, 0.2, 0.5, 0.7, 1.0]))
            for _ in range(draw.randint(1, 12))
        ]
        rows = [
            (draw.choice([0.0, 0.5, 1.0]) if has else 0.0, has, nothing) for has, nothing in rows
        ]
        threshold, value = best_threshold(*zip(*rows))
        assert value == pytest.approx(mean_score(rows, threshold))
        assert value == pytest.approx(
            max(mean_score(rows, t) for t in (-1, 0.0, 0.1, 0.3, 0.6, 0.8, 1.0))
        )


def mean_score(rows, threshold):
    return sum(score if nothing <= threshold else not has for score, has, nothing in rows) / len(
        rows
    )


def row(question, *gold):
    return {"question": question, "answers": {"text": list(gold)}}


def test_report_of_questions_that_all_have_an_answer():
    rows = [row("Who is it?", "Ada Lovelace"), row("who is  it?", "Ada"), row("What?", "x")]
    found = [{"answer": text, "no_answer": 0.9} for text in ("Ada", "Ada", "y")]
    report = reading_report(rows, found, answer_unit="word", with_threshold=False)
    assert (report["exact"], report["f1"], report["rows"]) == pytest.approx(
        (1 / 3, (2 / 3 + 1) / 3, 3)
    )
    assert report["kinds"] == [
        {"question": "who is it?", "exact": 0.5, "f1": pytest.approx(5 / 6), "rows": 2},
        {"question": "what?", "exact": 0.0, "f1": 0.0, "rows": 1},
    ]
    assert not {"answerable", "no_answer_threshold", "untuned"} & set(report)


def test_report_with_questions_that_have_none():
    rows = [row("Who?", "Ada"), row("Who?"), row("Who?", "Bob"), row("Who?")]
    found = [
        {"answer": a, "no_answer": p}
        for a, p in (("Ada", 0.55), ("x", 0.7), ("Bob", 0.2), ("y", 0.6))
    ]
    report = reading_report(rows, found, answer_unit="word", with_threshold=True)
    assert report["f1"] == report["exact"] == report["best_exact"] == 1.0
    assert report["no_answer_threshold"] == report["best_exact_threshold"] == pytest.approx(0.575)
    assert report["untuned"] == {"exact": 0.75, "f1": 0.75, "rows": 4}  # Ada is withheld at 0.5
    assert report["answerable"] == report["unanswerable"] == {"exact": 1.0, "f1": 1.0, "rows": 2}
    assert [score["predicted"] for score in report["rows_scored"]] == ["Ada", "", "Bob", ""]


def test_rare_kinds_of_questions_are_reported_together():
    rows = [row(f"word{n // 2} x {n}", "y") for n in range(44)] + [row("rare x", "z")]
    found = [{"answer": "y", "no_answer": 0.0}] * 45
    kinds = reading_report(rows, found, answer_unit="word", with_threshold=False)["kinds"]
    assert len(kinds) == 21 and kinds[-1] == {
        "question": "(others)",
        "exact": 0.8,
        "f1": 0.8,
        "rows": 5,
    }
