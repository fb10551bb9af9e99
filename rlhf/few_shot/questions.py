"""Rows -> questions for a language model, and the rows that are shown to it as examples ("shots").

A question has texts for the template, the answers to choose from, and the right one. Shots never repeat a question:
rows of the pool with the same texts as an evaluated row are dropped and counted.

Deviation from GPT-3 (Brown et al. 2020, arXiv 2005.14165, section 2.4): all questions of a draw get the same shots, as in
Zhao et al. (2021). The spread over draws then shows how much the choice of shots matters.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.data.rows import KINDS
from rlhf.errors import UserError

RANKED = ("pair_classification", "classification", "multiple_choice")  # kinds with given answers
GENERATED = ("question_answering",)
KINDS_READ = RANKED + GENERATED
# A template that showed these would give the answer away.
ANSWER_COLUMNS = ("label", "choices", "answers")  # not for the template
LABELS_SHOWN = 5  # in a message


@dataclass(frozen=True)
class Question:
    """One row for a language model.

    texts: column -> text, for the template.
    answers: the texts to choose from; () where the answer is generated.
    gold: the index of the right one in `answers`.
    references: right answers as texts. The first is shown when the question is a shot.
    """

    texts: dict[str, str]
    answers: tuple[str, ...]
    gold: int
    references: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """evaluated: the questions. pool: those that shots are drawn from. labels: of classification, else ().

    duplicates: rows of the pool that repeat an evaluated one. unanswered: rows without an answer. Both were dropped.
    """

    kind: str
    evaluated: list[Question]
    pool: list[Question]
    labels: tuple[str, ...]
    duplicates: int = 0
    unanswered: int = 0

    @property
    def is_ranked(self) -> bool:
        return self.kind in RANKED


# ---- labels ------------------------------------------------------------------------------------------------------


def label_texts(rows: Sequence[dict], names: Sequence[str] | None) -> dict[str, str]:
    """Label as a string -> the text that the model reads, sorted by label. UserError where a text is missing.

    names: texts of the labels 0, 1, ... in order, or "label=text" for any labels.
    """
    labels = sorted({single_label(row) for row in rows}, key=label_order)
    if len(labels) < 2:
        raise UserError(
            f"all rows have the label {labels[0]!r}: give rows of at least two labels, or the other ones as shots with "
            "--shots_dataset_name"
        )
    if names is None:
        # Numbers and truth values say nothing to a language model.
        if any(label_order(label)[0] == 0 or label in ("True", "False") for label in labels):
            raise UserError(
                f"the labels are {shown(labels)}, which are no words for a language model: give their texts with "
                "--label_names, as in --label_names negative positive, or --label_names 0=negative 1=positive"
            )
        return {label: label for label in labels}
    texts = parse_names(names)
    missing = [label for label in labels if label not in texts]
    if missing:
        raise UserError(
            f"--label_names has no text for {shown(missing)}: name every label of the rows ({shown(labels)})"
        )
    repeated = [text for text, count in Counter(texts.values()).items() if count > 1]
    if repeated:
        raise UserError(
            f"--label_names: {repeated[0]!r} is the text of two labels: give each its own"
        )
    return texts


def parse_names(names: Sequence[str]) -> dict[str, str]:
    """The flag's forms: texts in the order of the labels 0, 1, ..., or label=text."""
    if not any("=" in name for name in names):
        return {str(i): name for i, name in enumerate(names)}
    texts = {}
    for name in names:
        label, equals, text = name.partition("=")
        if not equals or not text.strip():
            raise UserError(f"--label_names {name}: write label=text for every label, or for none")
        texts[label] = text
    return texts


def single_label(row: dict) -> str:
    """The label of a row as a string. UserError for several labels, and for numbers to predict."""
    label = row["label"]
    if isinstance(label, list | float):
        raise UserError(
            f"label {label!r:.60}: one label per row is expected here: rows with several labels or with numbers to predict "
            "have no answers to rank"
        )
    return str(label).strip()


def label_order(label: str) -> tuple[int, int, str]:
    """The order of labels: integers by size, before all texts by their letters."""
    if label.removeprefix("-").isdecimal():
        return 0, int(label), label
    return 1, 0, label


def shown(labels: Sequence[str]) -> str:
    """The first labels, and how many there are in all."""
    text = ", ".join(labels[:LABELS_SHOWN])
    if len(labels) > LABELS_SHOWN:
        text += f", ... ({len(labels)} in all)"
    return text


# ---- questions ---------------------------------------------------------------------------------------------------


def make_questions(
    rows: Sequence[dict],
    pool_rows: Sequence[dict] | None,
    kind: str,
    *,
    num_rows: int,
    label_names: Sequence[str] | None,
    seed: int,
) -> Questions:
    """Choose the rows to evaluate and the pool of shots.

    pool_rows: rows to draw shots from; None: those of `rows` that are not evaluated.
    num_rows: at most so many rows are evaluated, drawn by the seed.
    """
    texts = {}
    if "classification" in kind:
        texts = label_texts([*rows, *(pool_rows or [])], label_names)
    elif label_names is not None:
        raise UserError(f"--label_names is for classification, and these are {kind} rows")
    answered = [row for row in rows if has_answer(row, kind)]
    if not answered:
        raise UserError("no row has an answer: give at least one row with an answer in its context")
    order = list(range(len(answered)))
    random.Random(seed).shuffle(order)
    chosen = set(order[:num_rows])
    evaluated, rest = [], []
    for i, row in enumerate(answered):
        if i in chosen:
            evaluated.append(question_of(row, kind, texts))
        else:
            rest.append(row)
    if pool_rows is None:
        pool_rows = rest
    pool = [question_of(row, kind, texts) for row in pool_rows if has_answer(row, kind)]
    kept = without_repeats(pool, evaluated)
    return Questions(
        kind,
        evaluated,
        kept,
        tuple(texts.values()),
        duplicates=len(pool) - len(kept),
        unanswered=len(rows) - len(answered),
    )


def has_answer(row: dict, kind: str) -> bool:
    """False for a SQuAD v2 question whose context holds no answer."""
    return kind not in GENERATED or bool(row["answers"]["text"])


def question_of(row: dict, kind: str, texts: dict[str, str]) -> Question:
    """The question of a checked row. texts: label -> text, for classification."""
    fields = {}
    for column in KINDS[kind].columns:
        if column not in ANSWER_COLUMNS:
            fields[column] = row[column].strip()
    if kind in GENERATED:
        return Question(fields, (), -1, tuple(row["answers"]["text"]))
    if kind == "multiple_choice":
        answers = tuple(choice.strip() for choice in row["choices"])
        gold = int(row["label"])
    else:
        answers = tuple(texts.values())
        gold = list(texts).index(single_label(row))
    return Question(fields, answers, gold, (answers[gold],))


def without_repeats(pool: Sequence[Question], evaluated: Sequence[Question]) -> list[Question]:
    """The questions of the pool whose texts no evaluated question has, up to white space and case."""
    taken = {same_text(question) for question in evaluated}
    return [question for question in pool if same_text(question) not in taken]


def same_text(question: Question) -> tuple[str, ...]:
    """Equal for two questions with the same texts. Their answers do not matter."""
    return tuple(" ".join(text.lower().split()) for text in question.texts.values())


def draw_shots(pool: Sequence[Question], count: int, *, seed: int, draw: int) -> list[Question]:
    """`count` questions of the pool. The shots of a smaller count are the last ones of a larger, for the same draw."""
    if count > len(pool):
        raise UserError(
            f"--shots {count} needs {count} rows that are not evaluated, and there are {len(pool)}: give more rows with "
            "--shots_dataset_name, a smaller --num_rows, or fewer shots"
        )
    order = list(range(len(pool)))
    random.Random(f"{seed} {draw}").shuffle(order)
    # The nearest shots stay the same, and more are put in front of them.
    return [pool[i] for i in reversed(order[:count])]


# ---- what needs no model -----------------------------------------------------------------------------------------


def random_baseline(questions: Sequence[Question]) -> float:
    """The expected accuracy of drawing an answer: the mean of 1 / number of answers."""
    return sum(1 / len(question.answers) for question in questions) / len(questions)


def majority_baseline(questions: Questions) -> float:
    """The accuracy of always giving the most frequent answer of the pool, or of the questions where the pool is empty.

    Of multiple choice it is the most frequent position.
    """
    counts = Counter(question.gold for question in questions.pool or questions.evaluated)
    [(most_frequent, _)] = counts.most_common(1)
    right = sum(question.gold == most_frequent for question in questions.evaluated)
    return right / len(questions.evaluated)
