"""Questions with known answers that measure word vectors: analogies, and pairs of words whose similarity people rated.

Files, as word2vec and gensim have them:
- analogies: a line "athens greece oslo norway" is a question (the fourth word is the answer), ": capitals" opens a section.
- pairs: word, word and a number per line, between tabs, commas or spaces. A first line whose number is none is a heading.
Blank lines and lines with # are passed over in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf.errors import UserError
from rlhf.statistics import correlation, ranks, spearman_interval, wilson_interval
from rlhf.word_vectors.vectors import WordVectors

QUESTIONS_AT_ONCE = 256  # whose cosines with all words are in memory together
LEAST_PAIRS = 4  # below that, a correlation has no interval


@dataclass(frozen=True)
class Analogy:
    """a is to b as c is to d. section: of the file, "" before the first."""

    words: tuple[str, ...]
    section: str


@dataclass(frozen=True)
class RatedPair:
    """Two words and their similarity on any scale, higher is more alike."""

    words: tuple[str, ...]
    rating: float


def read_analogies(path: str) -> list[Analogy]:
    """The questions of a file. UserError with the line where one has not four words."""
    questions, section = [], ""
    for number, line in _lines(path, "analogies"):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        words = line.split()
        if len(words) != 4:
            raise UserError(f"{path}:{number}: {len(words)} words, and an analogy has 4: a b c d")
        questions.append(Analogy(tuple(words), section))
    if not questions:
        raise UserError(
            f"{path}: it holds no analogy: a line has 4 words, as in athens greece oslo norway"
        )
    return questions


def read_pairs(path: str) -> list[RatedPair]:
    """The rated pairs of a file. UserError with the line that is not one."""
    pairs = []
    for number, line in _lines(path, "similarity_pairs"):
        cells = _cells(line)
        try:
            first, second, rating = cells[0], cells[1], float(cells[2])
            # "nan" is a number for float, and would make the correlation one too
            if not math.isfinite(rating):
                raise ValueError(rating)
        except (IndexError, ValueError) as error:
            if not pairs and number == 1 and len(cells) > 2:
                continue  # the heading
            raise UserError(
                f"{path}:{number}: a line has two words and a number, as in cat<tab>dog<tab>7.5"
            ) from error
        pairs.append(RatedPair((first, second), rating))
    if not pairs:
        raise UserError(f"{path}: it holds no pair: a line has two words and a number")
    return pairs


def _lines(path: str, key: str):
    """(number, line) of each line that is neither blank nor a comment."""
    try:
        # -sig: files from spreadsheets begin with a byte order mark, which would become a part of the first word
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: no such text file in UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, line


def _cells(line: str) -> list[str]:
    # the first of the two that occurs: with tabs, a comma belongs to a word
    for separator in ("\t", ","):
        if separator in line:
            return [cell.strip() for cell in line.split(separator)]
    return line.split()


def rows_of(vectors: WordVectors, words: Sequence[str]) -> list[int] | None:
    """The rows of the words; None if one is unknown."""
    rows = [vectors.find(word) for word in words]
    return None if None in rows else rows


def check_answerable(vectors: WordVectors, questions: Sequence, key: str) -> None:
    """UserError where every question has a word without a vector."""
    if all(rows_of(vectors, question.words) is None for question in questions):
        raise UserError(
            f"{key}: each of the {len(questions)} lines has a word without a vector: lower min_count, give text with these "
            "words, or drop the key"
        )


def analogy_report(vectors: WordVectors, questions: Sequence[Analogy]) -> dict:
    """Share of questions whose answer is nearest to b - a + c (3CosAdd: Mikolov, Yih and Zweig 2013).

    d* = argmax over all words but a, b and c of cos(d, b - a + c), of unit vectors. Returns accuracy with its interval, n,
    `unknown`: questions with a word without a vector, which are not in n, and the same by section.
    """
    known, sections, unknown = [], [], 0
    for question in questions:
        rows = rows_of(vectors, question.words)
        if rows is None:
            unknown += 1
            continue
        known.append(rows)
        sections.append(question.section)
    right = []
    # In parts: all questions with all words would be gigabytes.
    for start in range(0, len(known), QUESTIONS_AT_ONCE):
        right += _right_answers(vectors, torch.tensor(known[start : start + QUESTIONS_AT_ONCE]))
    report = _share(right) | {"unknown": unknown}
    names = list(dict.fromkeys(sections))
    # A file without sections has one, without a name.
    if names != [""]:
        by_section = {}
        for name in names:
            own = [
                answer for answer, section in zip(right, sections, strict=True) if section == name
            ]
            by_section[name] = _share(own)
        report["sections"] = by_section
    return report


def _right_answers(vectors: WordVectors, rows: torch.Tensor) -> list[bool]:
    """True for each question (Q, 4) of rows whose answer is its fourth word."""
    units = vectors.units()
    a, b, c, d = rows.unbind(1)
    cosines = (units[b] - units[a] + units[c]) @ units.T  # (Q, V), each row times a constant
    # The words of the question are nearest to it, nearly always.
    cosines.scatter_(1, rows[:, :3], -torch.inf)
    return (cosines.argmax(1) == d).tolist()


def _share(right: Sequence[bool]) -> dict:
    n = len(right)
    share = sum(right) / n
    low, high = wilson_interval(share, n)
    return {"accuracy": share, "accuracy_low": low, "accuracy_high": high, "n": n}


def pair_report(vectors: WordVectors, pairs: Sequence[RatedPair]) -> dict:
    """Spearman's correlation of cosines and ratings, with its interval, n, and `unknown`: pairs that are not in n.

    Fewer than LEAST_PAIRS known pairs give no correlation.
    """
    units = vectors.units()  # once, not per pair
    cosines, ratings = [], []
    for pair in pairs:
        rows = rows_of(vectors, pair.words)
        if rows is not None:
            cosines.append((units[rows[0]] @ units[rows[1]]).item())
            ratings.append(pair.rating)
    report = {"n": len(cosines), "unknown": len(pairs) - len(cosines)}
    if len(cosines) < LEAST_PAIRS:
        return report
    rho = correlation(ranks(cosines), ranks(ratings))
    low, high = spearman_interval(rho, len(cosines))
    return {"spearman": rho, "spearman_low": low, "spearman_high": high} | report
