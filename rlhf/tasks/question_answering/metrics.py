"""Judging answers to questions: exact match and F1 by the rules of SQuAD and of KorQuAD, and the no-answer threshold.

Rules of SQuAD (arXiv 1606.05250, section 6.1; arXiv 1806.03822 for questions without an answer), answer_unit "word":
lower case, no ASCII punctuation, none of the words a, an, the; words are what white space separates. Exact match: the
normalised texts are equal. F1: of the words the two texts share, counted as often as they occur in both. The best of all
gold answers counts. The gold answer of a question without one is ""; where one of the two texts is empty, F1 is 1 if both
are, else 0 (the first SQuAD gave 0 to two texts that are both empty once normalised; nothing else differs).

Rules of KorQuAD 1.0 (arXiv 1909.07005), answer_unit "character": quotation marks and brackets (' " ‘ ’ 《 》 〈 〉 < > and
round ones) become spaces before the rest; articles stay; F1 is of characters, white space left out, as Korean particles
are glued to their nouns. Exact match still minds white space between words. KorQuAD 2 strips HTML too, which is not done.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from rlhf.errors import UserError

UNITS = ("word", "character")
KINDS_SHOWN = 20  # kinds of questions in a report; the rest together

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KOREAN_MARKS = str.maketrans(dict.fromkeys("'\"‘’《》〈〉<>()", " "))


def normalize_answer(text: str, unit: str) -> str:
    """An answer as it is compared, words separated by one space."""
    if unit not in UNITS:
        raise UserError(
            f"answer_unit={unit!r}: use one of {', '.join(UNITS)} (word: SQuAD, character: KorQuAD)"
        )
    if unit == "character":
        return " ".join(text.translate(_KOREAN_MARKS).lower().translate(_NO_PUNCTUATION).split())
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def answer_scores(predicted: str, gold: Sequence[str], unit: str) -> tuple[float, float]:
    """(exact match, F1) of an answer, each the best over the gold answers; no gold answer: "" is right."""
    wanted = [text for text in (normalize_answer(text, unit) for text in gold) if text] or [""]
    given = normalize_answer(predicted, unit)
    return float(given in wanted), max(
        _f1(_parts(given, unit), _parts(text, unit)) for text in wanted
    )


def _parts(text: str, unit: str) -> Counter:
    return Counter(text.split() if unit == "word" else text.replace(" ", ""))


def _f1(given: Counter, wanted: Counter) -> float:
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def best_threshold(
    scores: Sequence[float], answerable: Sequence[bool], no_answer: Sequence[float]
) -> tuple[float, float]:
    """(threshold, mean score) of the best rule "no answer where no_answer > threshold".

    scores: of each answer when it is given; left unanswered, an unanswerable question scores 1, another 0. The threshold
    lies half-way between two values of no_answer, so that rounding moves no answer across it; of equally good ones it is
    the lowest.
    """
    order = sorted(range(len(scores)), key=no_answer.__getitem__)
    values = [0.0, *(no_answer[i] for i in order), 1.0]
    total = float(sum(not has for has in answerable))
    best = (values[1] / 2, total) if values[1] > 0 else (-1.0, total)
    for place, i in enumerate(order, start=1):
        total += scores[i] - (not answerable[i])
        here, following = values[place], values[place + 1]
        last = place == len(order)
        if (here < following or last) and total > best[1]:
            best = ((here + following) / 2, total)
    return best[0], best[1] / len(scores)


def reading_report(
    rows: Sequence[dict], found: Sequence[dict], *, answer_unit: str, with_threshold: bool
) -> dict:
    """How well questions are answered: exact, f1 (means, 0 to 1), rows, and

    answerable, unanswerable: the same of these questions alone, where there are any. kinds: the same by question, or by
    its first two words where there are many, the most frequent first. rows_scored: {exact, f1, predicted} of each row, in
    order.

    found: {answer, no_answer} of each row, the best span. with_threshold: for models that can say "no answer"; exact and
    f1 are then those at no_answer_threshold, which is fitted to these very rows, so that they flatter a little; untuned:
    the two at 0.5. best_exact, best_exact_threshold: of exact match, whose best may lie elsewhere.
    """
    gold = [row["answers"]["text"] for row in rows]
    has_answer = [bool(texts) for texts in gold]
    given = [
        answer_scores(answer["answer"], texts, answer_unit) for answer, texts in zip(found, gold)
    ]
    report: dict = {}
    answered = [True] * len(rows)
    if with_threshold:
        nothing = [answer["no_answer"] for answer in found]
        report["no_answer_threshold"], _ = best_threshold(
            [f1 for _, f1 in given], has_answer, nothing
        )
        report["best_exact_threshold"], report["best_exact"] = best_threshold(
            [exact for exact, _ in given], has_answer, nothing
        )
        report["untuned"] = _means(_decided(given, has_answer, [p <= 0.5 for p in nothing]))
        answered = [p <= report["no_answer_threshold"] for p in nothing]
    scored = _decided(given, has_answer, answered)
    report = _means(scored) | {"answer_unit": answer_unit} | report
    for name, wanted in (("answerable", True), ("unanswerable", False)):
        part = [score for score, has in zip(scored, has_answer) if has == wanted]
        if part and len(part) < len(scored):
            report[name] = _means(part)
    kinds: dict[str, list] = {}
    questions = [row["question"].lower().split() for row in rows]
    words = 2 if len(set(map(tuple, questions))) > KINDS_SHOWN else None
    for question, score in zip(questions, scored):
        kinds.setdefault(" ".join(question[:words]), []).append(score)
    ranked = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    report["kinds"] = [{"question": name, **_means(part)} for name, part in ranked[:KINDS_SHOWN]]
    if rest := [score for _, part in ranked[KINDS_SHOWN:] for score in part]:
        report["kinds"].append({"question": "(others)", **_means(rest)})
    report["rows_scored"] = [
        {"exact": exact, "f1": f1, "predicted": answer["answer"] if said else ""}
        for (exact, f1), answer, said in zip(scored, found, answered)
    ]
    return report


def _decided(given, has_answer, answered) -> list[tuple[float, float]]:
    return [
        pair if said else (float(not has),) * 2
        for pair, has, said in zip(given, has_answer, answered)
    ]


def _means(scores: Sequence[tuple[float, float]]) -> dict:
    exact, f1 = (sum(column) / len(scores) for column in zip(*scores))
    return {"exact": exact, "f1": f1, "rows": len(scores)}
