"""Question answering by marking a span: rows -> windows of token ids with the places of the answer, and logits -> answers.

A context that is too long is read in windows that overlap, as BERT reads SQuAD (arXiv 1810.04805, sections 4.2 and 4.3).
An answer that a window does not hold is labelled with its first token, [CLS], whose score therefore says "not here".
Deviations: `stride` is the overlap in tokens, as in transformers, where BERT's own code moves each window by `doc_stride`;
all spans are searched, not those of the 20 best starts and ends; an answer is cut out of the context by characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.errors import UserError

QUESTION = 64  # tokens of a question; BERT's max_query_length
CANDIDATES = 20  # spans of a context among which the score is shared out; BERT's n_best_size
N_BEST = 5  # of them in an answer
ROWS_PER_CALL = 1000  # rows tokenized at once


@dataclass(frozen=True)
class QuestionWindow:
    """One reading of a context. feature: what the model takes; row: whose context it is.

    offsets: (tokens, 2) characters of the row's context that each token of it covers; first: the place of the first of
    them in input_ids. The tokens of the context follow one another.
    """

    feature: dict
    row: int
    first: int
    offsets: np.ndarray


@dataclass(frozen=True)
class EncodedQuestions:
    """windows, in the order of the rows; cut: questions that were shortened.

    missed: rows with an answer that no span of tokens can give: it ends inside a token, is longer than max_answer_length,
    or stands across two windows.
    """

    windows: list[QuestionWindow]
    cut: int
    missed: int


def encode_windows(
    tokenizer, rows: Sequence[dict], *, max_length: int, stride: int, max_answer_length: int
) -> EncodedQuestions:
    """Windows of at most max_length tokens, `stride` of which repeat the window before.

    Rows have question and context; with answers {text, answer_start} the windows have start_positions and end_positions,
    those of the first answer that lies in them. No text can spell a special token.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "question answering needs a fast tokenizer, one that knows the characters of its tokens"
        )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    longest = min(QUESTION, room // 2)
    if longest < 1 or stride >= room - longest:
        raise UserError(
            f"max_length={max_length} leaves {max(0, room - longest)} tokens for a context beside a question of "
            f"{longest}, and stride={stride} of them would repeat: raise max_length, up to the model's context, or lower "
            "stride"
        )
    windows: list[QuestionWindow] = []
    cut = missed = 0
    for begin in range(0, len(rows), ROWS_PER_CALL):
        chunk = rows[begin : begin + ROWS_PER_CALL]
        questions = _shortened(tokenizer, [row["question"] for row in chunk], longest)
        cut += sum(short != row["question"] for short, row in zip(questions, chunk))
        batch = tokenizer(
            questions,
            [row["context"] for row in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            split_special_tokens=True,
        )
        owners = batch["overflow_to_sample_mapping"]
        reached: set[int] = set()
        for place, owner in enumerate(owners):
            row, encoding = chunk[owner], batch.encodings[place]
            parts = encoding.sequence_ids  # None: special token, 0: question, 1: context
            if parts[0] is not None:
                raise UserError(
                    "question answering needs a first token that is no text, BERT's [CLS], for windows without an answer: "
                    f"the tokenizer {tokenizer.name_or_path!r} has none; use a BERT class model"
                )
            first = parts.index(1) if 1 in parts else 0
            offsets = np.array(
                encoding.offsets[first : first + parts.count(1)], dtype=np.int32
            ).reshape(-1, 2)
            names = [name for name in tokenizer.model_input_names if name in batch]
            feature = {name: np.array(batch[name][place], dtype=np.int32) for name in names}
            if "answers" in row:
                edges = (
                    0 if place == 0 or owners[place - 1] != owner else None,
                    len(row["context"])
                    if place + 1 == len(owners) or owners[place + 1] != owner
                    else None,
                )
                span, exact = _label(row, offsets, edges, max_answer_length)
                feature["start_positions"], feature["end_positions"] = (
                    (first + t for t in span) if span else (0, 0)
                )
                reached |= {owner} if exact else set()
            windows.append(QuestionWindow(feature, begin + owner, first, offsets))
        missed += sum(bool(row.get("answers", {}).get("text")) for row in chunk) - len(reached)
    return EncodedQuestions(windows, cut, missed)


def _shortened(tokenizer, questions: list[str], longest: int) -> list[str]:
    """Questions of at most `longest` tokens, cut between tokens."""
    short = []
    encoded = tokenizer(
        questions,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    for question, offsets in zip(questions, encoded["offset_mapping"]):
        short.append(question if len(offsets) <= longest else question[: offsets[longest - 1][1]])
    return short


def _label(
    row: dict, offsets: np.ndarray, edges: tuple[int | None, int | None], max_answer_length: int
) -> tuple[tuple[int, int] | None, bool]:
    """(first and last token of the answer, or None where the window does not hold one; whether they give it exactly).

    edges: 0 in the first window of a context, its length in the last: there characters without a token belong to it.
    """
    if not len(offsets):
        return None, False
    begin = offsets[0, 0] if edges[0] is None else edges[0]
    end = offsets[-1, 1] if edges[1] is None else edges[1]
    labels = []
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"]):
        left = start + len(text) - len(text.lstrip())
        right = start + len(text.rstrip())
        # from the first token that ends after the answer begins to the last that begins before it ends
        span = (
            int(np.searchsorted(offsets[:, 1], left, side="right")),
            int(np.searchsorted(offsets[:, 0], right, side="left")) - 1,
        )
        if left >= begin and right <= end and span[0] <= span[1]:
            given = (int(offsets[span[0], 0]), int(offsets[span[1], 1]))
            exact = (
                trimmed(row["context"], *given) == (left, right)
                and span[1] - span[0] < max_answer_length
            )
            labels.append((span, exact))
    return (labels[0][0] if labels else None), any(exact for _, exact in labels)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its ends."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def best_answers(
    rows: Sequence[dict],
    windows: Sequence[QuestionWindow],
    logits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    max_answer_length: int,
) -> list[dict]:
    """The best span of each row: {answer, start, end, score, no_answer, n_best: [{answer, start, end, score}, ...]}.

    windows: in any order, each row has at least one; logits: (start, end) of each window's tokens, padding may follow.
    A span lies in the context and has at most max_answer_length tokens; its logit is that of its start plus that of its
    end, the highest of all windows. score: softmax over the CANDIDATES best spans. no_answer: sigmoid(null - best), where
    null is the logit of the first token, start plus end, the lowest of all windows: the probability of no answer against
    the best one.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in rows]
    null = np.full(len(rows), np.inf)
    for window, (start, end) in zip(windows, logits, strict=True):
        start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
        null[window.row] = min(null[window.row], start[0] + end[0])
        spans = found[window.row]
        for first, last, logit in _best_spans(window, start, end, max_answer_length):
            place = trimmed(
                rows[window.row]["context"],
                int(window.offsets[first, 0]),
                int(window.offsets[last, 1]),
            )
            if place[0] < place[1]:
                spans[place] = max(spans.get(place, -np.inf), logit)
    return [
        _answer(row["context"], spans, nothing) for row, spans, nothing in zip(rows, found, null)
    ]


def _best_spans(window: QuestionWindow, start: np.ndarray, end: np.ndarray, max_answer_length: int):
    """(first token, last token, logit) of the window's CANDIDATES best spans, tokens counted within the context."""
    count = len(window.offsets)
    if not count:
        return []
    inside = slice(window.first, window.first + count)
    width = min(max_answer_length, count)
    padded = np.concatenate([end[inside], np.full(width - 1, -np.inf)])
    totals = start[inside, None] + np.lib.stride_tricks.sliding_window_view(
        padded, width
    )  # (count, width)
    starts = _largest(
        totals.max(axis=1)
    )  # a span among the best begins where the best of its start is among the best
    best = _largest(totals[starts].ravel())
    spans = [
        (int(starts[i // width]), int(i % width), float(totals[starts[i // width], i % width]))
        for i in best
    ]
    return [(first, first + more, logit) for first, more, logit in spans if np.isfinite(logit)]


def _largest(values: np.ndarray) -> np.ndarray:
    """The places of the CANDIDATES largest."""
    return np.argpartition(values, -min(CANDIDATES, len(values)))[-CANDIDATES:]


def _answer(context: str, spans: dict[tuple[int, int], float], null: float) -> dict:
    ranked = sorted(spans, key=lambda place: (-spans[place], place))[:CANDIDATES]
    if not ranked:  # a context without any token the model knows how to read
        return {
            "answer": "",
            "start": None,
            "end": None,
            "score": 0.0,
            "no_answer": 1.0,
            "n_best": [],
        }
    logits = np.array([spans[place] for place in ranked])
    scores = np.exp(logits - logits[0])
    scores /= scores.sum()
    n_best = [
        {"answer": context[start:end], "start": start, "end": end, "score": float(score)}
        for (start, end), score in zip(ranked[:N_BEST], scores)
    ]
    with np.errstate(over="ignore"):
        nothing = float(1 / (1 + np.exp(logits[0] - null)))
    return {**n_best[0], "no_answer": nothing, "n_best": n_best}


def decide(answer: dict, threshold: float | None) -> dict:
    """An answer of `best_answers`, or "" where no_answer is above the threshold; None: the model knows no such case."""
    if threshold is None:
        return {**answer, "no_answer": None}
    if answer["no_answer"] <= threshold:
        return answer
    return {**answer, "answer": "", "start": None, "end": None, "score": answer["no_answer"]}


def question_ids(rows: Sequence[dict]) -> list[str]:
    """The id of each row as a string, q0, q1, ... where it has none. A prediction file is keyed by it: none may repeat."""
    ids = [
        str(row["id"]) if row.get("id") is not None else f"q{place}"
        for place, row in enumerate(rows)
    ]
    seen: set[str] = set()
    twice = list(dict.fromkeys(name for name in ids if name in seen or seen.add(name)))
    if twice:
        raise UserError(
            f"{len(twice)} ids stand in more than one row, the first: {', '.join(twice[:3])}; predictions are "
            "kept by id: give each question its own, or take the column id away"
        )
    return ids
