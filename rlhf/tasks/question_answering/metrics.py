"""Scores of answers to questions: exact match and F1 by the rules of SQuAD and of KorQuAD, and the no-answer threshold.

Rules of SQuAD (arXiv 1606.05250, section 6.1; arXiv 1806.03822 for questions without an answer), answer_unit "word":
- An answer is compared in lower case, without ASCII punctuation and the words a, an, the. White space separates words.
- Exact match: the normalized texts are equal.
- F1: of the words that the two texts share, each counted as often as it occurs in both.
- The best score over all gold answers counts. A question without an answer has the gold answer "".
- Where one of the two texts is empty, F1 is 1 if both are, else 0. The first SQuAD gave 0 to two texts that are both
  empty once normalized. Nothing else differs.

Rules of KorQuAD 1.0 (arXiv 1909.07005), answer_unit "character":
- Quotation marks and brackets (' " ‘ ’ 《 》 〈 〉 < > and round ones) become spaces first. Articles stay.
- F1 is of characters without white space, because Korean particles are glued to their nouns. Exact match still compares
  the white space between words.
- KorQuAD 2 strips HTML too, which is not done here.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from rlhf.errors import UserError

UNITS = ("word", "character")
KINDS_SHOWN = 20  # kinds of questions in a report; the rest are one row

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KOREAN_MARKS = str.maketrans(dict.fromkeys("'\"‘’《》〈〉<>()", " "))


class Score(NamedTuple):
    """Of one answer, or the mean of several; 0 to 1."""

    exact: float
    f1: float


# ---- one answer --------------------------------------------------------------------------------------------------


def check_unit(unit: str) -> None:
    """UserError where answer_unit is not one of UNITS."""
    if unit not in UNITS:
        raise UserError(
            f"answer_unit={unit!r}: use one of {', '.join(UNITS)} (word: SQuAD, character: KorQuAD)"
        )


def normalize_answer(text: str, unit: str) -> str:
    """An answer in the form in which it is compared, words separated by one space."""
    check_unit(unit)
    if unit == "character":
        text = text.translate(_KOREAN_MARKS)
    text = text.lower().translate(_NO_PUNCTUATION)
    if unit == "word":
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def answer_scores(predicted: str, gold: Sequence[str], unit: str) -> Score:
    """Exact match and F1 of an answer, each the best over the gold answers. No gold answer: "" is right."""
    answer = normalize_answer(predicted, unit)
    normalized_gold = [normalize_answer(text, unit) for text in gold]
    # A gold answer of punctuation only does not count.
    gold_answers = [text for text in normalized_gold if text] or [""]
    answer_parts = _parts(answer, unit)
    best_f1 = max(_f1(answer_parts, _parts(text, unit)) for text in gold_answers)
    return Score(float(answer in gold_answers), best_f1)


def _parts(text: str, unit: str) -> Counter[str]:
    """Counts of each word or character in a normalized text."""
    if unit == "word":
        return Counter(text.split())
    return Counter(text.replace(" ", ""))


def _f1(answer: Counter[str], gold: Counter[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = answer & gold  # the smaller count of each
    return 2 * shared.total() / (answer.total() + gold.total())


# ---- no answer ---------------------------------------------------------------------------------------------------


def best_threshold(
    scores: Sequence[float], answerable: Sequence[bool], no_answer: Sequence[float]
) -> tuple[float, float]:
    """(threshold, mean score) of the best rule "no answer where no_answer > threshold".

    scores: of each answer when it is given. Without an answer an unanswerable question scores 1, any other 0.

    The threshold is half-way between two values of no_answer, so that rounding moves no answer across it. Of equally good
    thresholds it is the lowest.
    """
    order = sorted(range(len(scores)), key=no_answer.__getitem__)
    # sorted values of no_answer, between the ends of their range
    values = [0.0, *(no_answer[i] for i in order), 1.0]

    # Begin with a threshold below all values: no question is answered.
    total = float(sum(not has for has in answerable))
    best_total = total
    threshold = values[1] / 2
    if values[1] <= 0:
        threshold = -1.0
    # Then answer one question more at a time.
    for count, i in enumerate(order, start=1):
        total += scores[i] - (not answerable[i])
        value, following = values[count], values[count + 1]
        # No threshold separates two equal values.
        is_border = value < following or count == len(order)
        if is_border and total > best_total:
            best_total = total
            threshold = (value + following) / 2
    return threshold, best_total / len(scores)


# ---- report ------------------------------------------------------------------------------------------------------


def reading_report(
    rows: Sequence[dict],
    answers: Sequence[dict],
    *,
    answer_unit: str,
    with_threshold: bool,
) -> dict:
    """Scores of the answers to all questions: exact, f1 (means, 0 to 1), rows, and

    answerable, unanswerable: the same for these questions alone, where there are both.
    kinds: the same by question, or by its first two words where there are many; the most frequent first.
    rows_scored: {exact, f1, predicted} of each row, in order.

    answers: {answer, no_answer} of each row, its best span.
    with_threshold: for models that can say "no answer". exact and f1 are then those at no_answer_threshold. It is fitted to
    these very rows, which flatters a little. untuned: the two at a threshold of 0.5. best_exact, best_exact_threshold: of
    the threshold that is best for exact match.
    """
    gold = [row["answers"]["text"] for row in rows]
    has_answer = [bool(texts) for texts in gold]
    scores = []  # if every question is answered
    for answer, texts in zip(answers, gold):
        scores.append(answer_scores(answer["answer"], texts, answer_unit))
    thresholds = {}
    answered = [True] * len(rows)
    if with_threshold:
        no_answer = [answer["no_answer"] for answer in answers]
        thresholds = _thresholds(scores, has_answer, no_answer)
        answered = [p <= thresholds["no_answer_threshold"] for p in no_answer]

    decided = _decided(scores, has_answer, answered)
    rows_scored = []
    for score, answer, is_answered in zip(decided, answers, answered):
        predicted = answer["answer"] if is_answered else ""
        rows_scored.append(
            {
                "exact": score.exact,
                "f1": score.f1,
                "predicted": predicted,
            }
        )
    return {
        **_means(decided),
        "answer_unit": answer_unit,
        **thresholds,
        **_by_answerability(decided, has_answer),
        "kinds": _by_kind([row["question"] for row in rows], decided),
        "rows_scored": rows_scored,
    }


def _thresholds(
    scores: Sequence[Score], has_answer: Sequence[bool], no_answer: Sequence[float]
) -> dict:
    """The best thresholds for F1 and for exact match, and the scores at 0.5."""
    f1s = [score.f1 for score in scores]
    exacts = [score.exact for score in scores]
    threshold, _ = best_threshold(f1s, has_answer, no_answer)
    exact_threshold, best_exact = best_threshold(exacts, has_answer, no_answer)
    untuned = _decided(scores, has_answer, [p <= 0.5 for p in no_answer])
    return {
        "no_answer_threshold": threshold,
        "best_exact_threshold": exact_threshold,
        "best_exact": best_exact,
        "untuned": _means(untuned),
    }


def _decided(
    scores: Sequence[Score], has_answer: Sequence[bool], answered: Sequence[bool]
) -> list[Score]:
    """The score of each row; a row that is not answered scores 1 if it has no answer, else 0."""
    decided = []
    for score, has, is_answered in zip(scores, has_answer, answered):
        if not is_answered:
            score = Score(float(not has), float(not has))
        decided.append(score)
    return decided


def _by_answerability(scores: Sequence[Score], has_answer: Sequence[bool]) -> dict[str, dict]:
    """Means of the questions with and of those without an answer; {} where all are of one kind."""
    answerable = [score for score, has in zip(scores, has_answer) if has]
    unanswerable = [score for score, has in zip(scores, has_answer) if not has]
    if not answerable or not unanswerable:
        return {}
    return {"answerable": _means(answerable), "unanswerable": _means(unanswerable)}


def _by_kind(questions: Sequence[str], scores: Sequence[Score]) -> list[dict]:
    """Means by question, or by its first two words where there are more than KINDS_SHOWN questions."""
    questions_words = [tuple(question.lower().split()) for question in questions]
    if len(set(questions_words)) > KINDS_SHOWN:
        questions_words = [words[:2] for words in questions_words]
    scores_of: dict[str, list[Score]] = defaultdict(list)
    for words, score in zip(questions_words, scores):
        scores_of[" ".join(words)].append(score)
    ranked = sorted(scores_of, key=lambda kind: (-len(scores_of[kind]), kind))
    kinds = [{"question": kind, **_means(scores_of[kind])} for kind in ranked[:KINDS_SHOWN]]
    others: list[Score] = []
    for kind in ranked[KINDS_SHOWN:]:
        others += scores_of[kind]
    if others:
        kinds.append({"question": "(others)", **_means(others)})
    return kinds


def _means(scores: Sequence[Score]) -> dict:
    exact, f1 = (sum(column) / len(scores) for column in zip(*scores))
    return {"exact": exact, "f1": f1, "rows": len(scores)}


def wrong_answers(rows: Sequence[dict], ids: Sequence[str], scores: Sequence[dict]) -> list[dict]:
    """Rows that are not answered exactly: id, question, the different gold answers, prediction and scores."""
    mistakes = []
    for name, row, score in zip(ids, rows, scores):
        if not score["exact"]:
            gold = " | ".join(dict.fromkeys(row["answers"]["text"]))
            mistakes.append({"id": name, "question": row["question"], "gold": gold, **score})
    return mistakes
