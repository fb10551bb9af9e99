"""Question answering by marking a span: rows -> windows of token ids with the answer's positions, and logits -> answers.

A context that is too long is read in windows that overlap, as BERT reads SQuAD (arXiv 1810.04805, sections 4.2 and 4.3).
A window that does not hold the answer is labelled with its first token, [CLS], whose score therefore says "not here".
Deviations from BERT's code:
- `stride` is the overlap in tokens, as in transformers. BERT's `doc_stride` is the distance between two windows.
- All spans are searched, not those of the 20 best starts and ends.
- An answer is cut out of the context by characters.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.data.encodings import Converted, EncodedRows, encode_once, input_columns
from rlhf.data.stored_numbers import NUMBER, NUMBERS
from rlhf.errors import UserError

MAX_QUESTION_LENGTH = 64  # tokens; BERT's max_query_length
CANDIDATES = 20  # spans of a context that share the score among them; BERT's n_best_size
N_BEST = 5  # of them in an answer
ROWS_PER_CALL = 1000  # rows in the tokenizer at once: what it returns for long contexts is large

Span = tuple[int, int]  # first and last token, or first character and the one after the last


# ---- rows -> windows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionWindow:
    """A question with a part of its context.

    feature: the columns that the model takes, with the labels where the row has answers.
    row: index of the row.
    first: index in input_ids of the first token of the context. The tokens of the context follow one another.
    offsets: (tokens, 2) characters of the row's context that each token of the context covers.
    """

    feature: dict
    row: int
    first: int
    offsets: np.ndarray


LABELS = ("start_positions", "end_positions")


def stored_windows(
    tokenizer,
    rows: Sequence[dict],
    *,
    max_length: int,
    stride: int,
    max_answer_length: int,
) -> EncodedRows:
    """The windows of `question_windows` with their labels, encoded once for all processes and runs, mapped from the cache.

    Each has the columns that the model takes, and in_row, first and offsets as of a QuestionWindow, offsets in one list.
    counts: those of `question_windows`.
    """
    columns = input_columns(tokenizer) | dict.fromkeys((*LABELS, "in_row", "first"), NUMBER)
    columns["offsets"] = NUMBERS
    sizes = {"max_length": max_length, "stride": stride, "max_answer_length": max_answer_length}
    return encode_once(labelled_windows, tokenizer, rows, columns, **sizes)


def labelled_windows(
    tokenizer, rows: Sequence[dict], counts: Counter[str], **sizes
) -> Iterator[dict]:
    """Yields what `stored_windows` describes."""
    for window in question_windows(tokenizer, rows, counts, **sizes):
        rest = {"in_row": window.row, "first": window.first, "offsets": window.offsets.ravel()}
        yield window.feature | rest


def to_train_on(encoded: EncodedRows) -> EncodedRows:
    """The columns of stored windows that the model takes."""
    return encoded.without("in_row", "first", "offsets")


def windows_of(encoded: EncodedRows) -> Sequence[QuestionWindow]:
    """Stored windows as windows without features."""

    def window(entry: dict) -> QuestionWindow:
        # A column has flat lists: the first and the last character of each token, one after the other.
        offsets = np.array(entry["offsets"], dtype=np.int32).reshape(-1, 2)
        return QuestionWindow({}, entry["in_row"], entry["first"], offsets)

    return Converted(window, encoded.only("in_row", "first", "offsets"))


def question_windows(
    tokenizer,
    rows: Sequence[dict],
    counts: Counter[str],
    *,
    max_length: int,
    stride: int,
    max_answer_length: int,
) -> Iterator[QuestionWindow]:
    """Yields windows of at most max_length tokens, `stride` of which repeat the window before, in the order of the rows.

    Rows have question and context. If they have answers {text, answer_start}, the windows have start_positions and
    end_positions, those of the first answer that they hold. No text can spell a special token.

    Counts cut, the questions that were shortened, and missed, the rows with an answer that no span of tokens can give: it
    ends inside a token, is longer than max_answer_length, or crosses from one window into the next.
    """
    question_length = _question_length(tokenizer, max_length, stride)
    for start in range(0, len(rows), ROWS_PER_CALL):
        chunk = rows[start : start + ROWS_PER_CALL]
        questions = [row["question"] for row in chunk]
        shortened = _shortened(tokenizer, questions, question_length)
        counts["cut"] += sum(short != question for short, question in zip(shortened, questions))
        batch = tokenizer(
            shortened,
            [row["context"] for row in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            split_special_tokens=True,
        )
        reached: set[int] = set()  # rows with an answer that a window can give exactly
        # index in the chunk of each window's row; the windows of a row follow one another
        owners = batch["overflow_to_sample_mapping"]
        for i, owner in enumerate(owners):
            row = chunk[owner]
            window = _window(tokenizer, batch, i, start + owner)
            if "answers" in row:
                is_first = i == 0 or owners[i - 1] != owner
                is_last = i + 1 == len(owners) or owners[i + 1] != owner
                covered = _covered(window, row["context"], is_first=is_first, is_last=is_last)
                positions, exact = _label(window, row, covered, max_answer_length)
                window.feature.update(zip(LABELS, positions, strict=True))
                if exact:
                    reached.add(owner)
            yield window
        answered = sum(bool(row.get("answers", {}).get("text")) for row in chunk)
        counts["missed"] += answered - len(reached)


def _question_length(tokenizer, max_length: int, stride: int) -> int:
    """The most tokens that a question may have; UserError where tokenizer and settings leave no room."""
    if not tokenizer.is_fast:
        raise UserError(
            "question answering needs a fast tokenizer, one that knows the characters of its tokens"
        )
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    longest = min(MAX_QUESTION_LENGTH, room // 2)
    if longest < 1 or stride >= room - longest:
        raise UserError(
            f"max_length={max_length} leaves {max(0, room - longest)} tokens for a context next to a question of "
            f"{longest}, and stride={stride} of them would repeat: raise max_length, up to the model's context, or lower "
            "stride"
        )
    return longest


def _shortened(tokenizer, questions: list[str], longest: int) -> list[str]:
    """Questions of at most `longest` tokens, cut between tokens."""
    encoded = tokenizer(
        questions,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    shortened = []
    for question, offsets in zip(questions, encoded["offset_mapping"]):
        if len(offsets) > longest:
            _, end = offsets[longest - 1]
            question = question[:end]
        shortened.append(question)
    return shortened


def _window(tokenizer, batch, i: int, row: int) -> QuestionWindow:
    """Window i of a tokenized batch, without labels. UserError where it does not begin with a special token."""
    encoding = batch.encodings[i]
    segments = encoding.sequence_ids  # None: special token, 0: question, 1: context
    if segments[0] is not None:
        raise UserError(
            "question answering needs a first token that is not text, BERT's [CLS], for windows without an answer: "
            f"the tokenizer {tokenizer.name_or_path!r} has none; use a BERT class model"
        )
    count = segments.count(1)
    first = segments.index(1) if count else 0
    offsets = np.array(encoding.offsets[first : first + count], dtype=np.int32)
    feature = {}
    for name in tokenizer.model_input_names:
        if name in batch:
            feature[name] = np.array(batch[name][i], dtype=np.int32)
    return QuestionWindow(feature, row, first, offsets.reshape(-1, 2))


def _covered(
    window: QuestionWindow,
    context: str,
    *,
    is_first: bool,
    is_last: bool,
) -> Span:
    """The characters of the context that belong to one of its windows.

    Characters without a token, at the ends of the context, belong to its first and its last window.
    """
    begin, end = 0, len(context)
    if len(window.offsets):
        if not is_first:
            begin = int(window.offsets[0, 0])
        if not is_last:
            end = int(window.offsets[-1, 1])
    return begin, end


def _label(
    window: QuestionWindow,
    row: dict,
    covered: Span,
    max_answer_length: int,
) -> tuple[Span, bool]:
    """The first and last token, in input_ids, of the first answer that the window holds; (0, 0), [CLS], if none.

    Also returns True if the tokens of at least one of these answers give exactly its characters.
    """
    if not len(window.offsets):
        return (0, 0), False
    token_starts, token_ends = window.offsets.T
    begin, end = covered
    held: list[Span] = []
    any_exact = False
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"]):
        left = start + len(text) - len(text.lstrip())
        right = start + len(text.rstrip())
        # from the first token that ends after the answer begins to the last that begins before it ends
        first = int(np.searchsorted(token_ends, left, side="right"))
        last = int(np.searchsorted(token_starts, right, side="left")) - 1
        if left < begin or right > end or first > last:
            continue
        held.append((window.first + first, window.first + last))
        characters = trimmed(row["context"], int(token_starts[first]), int(token_ends[last]))
        if characters == (left, right) and last - first < max_answer_length:
            any_exact = True
    if not held:
        return (0, 0), False
    return held[0], any_exact


def trimmed(text: str, start: int, end: int) -> Span:
    """The characters start to end without the white space at both ends."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())


# ---- logits -> answers -------------------------------------------------------------------------------------------


def best_answers(
    rows: Sequence[dict],
    windows: Sequence[QuestionWindow],
    logits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    max_answer_length: int,
) -> list[dict]:
    """The best span of each row: {answer, start, end, score, no_answer, n_best: [{answer, start, end, score}, ...]}.

    windows: in any order; each row has at least one.
    logits: (start, end) of each window's tokens; padding may follow.

    A span is in the context and has at most max_answer_length tokens. Its logit is that of its start plus that of its
    end, the highest over all windows. score: softmax over the CANDIDATES best spans. no_answer: sigmoid(null - best),
    the probability of no answer against the best one. null is the logit of the first token, start plus end, the lowest
    over all windows.
    """
    rows_spans: list[dict[Span, float]] = [{} for _ in rows]  # logit of each span of characters
    null = np.full(len(rows), np.inf)
    for window, (start, end) in zip(windows, logits, strict=True):
        start = np.asarray(start, np.float64)
        end = np.asarray(end, np.float64)
        null[window.row] = min(null[window.row], start[0] + end[0])
        context = rows[window.row]["context"]
        spans = rows_spans[window.row]
        for first, last, logit in _best_spans(window, start, end, max_answer_length):
            characters = int(window.offsets[first, 0]), int(window.offsets[last, 1])
            span = trimmed(context, *characters)
            is_empty = span[0] >= span[1]
            if not is_empty:
                spans[span] = max(spans.get(span, -np.inf), logit)
    answers = []
    for i, row in enumerate(rows):
        answers.append(_answer(row["context"], rows_spans[i], null[i]))
    return answers


def _best_spans(
    window: QuestionWindow,
    start: np.ndarray,
    end: np.ndarray,
    max_answer_length: int,
) -> list[tuple[int, int, float]]:
    """(first token, last token, logit) of the window's CANDIDATES best spans; tokens are counted within the context."""
    count = len(window.offsets)
    if not count:
        return []
    start = start[window.first : window.first + count]
    end = end[window.first : window.first + count]
    width = min(max_answer_length, count)
    # ends[i, j]: the logit of an end j tokens after i, -inf behind the context
    padded = np.concatenate([end, np.full(width - 1, -np.inf)])
    ends = np.lib.stride_tricks.sliding_window_view(padded, width)
    totals = start[:, None] + ends  # (count, width)
    # Each of the best spans begins at a token whose own best span is among the best.
    starts = _largest(totals.max(axis=1))
    totals = totals[starts]
    spans = []
    for i in _largest(totals.ravel()):
        row, more = divmod(int(i), width)
        logit = float(totals[row, more])
        if np.isfinite(logit):
            first = int(starts[row])
            spans.append((first, first + more, logit))
    return spans


def _largest(values: np.ndarray) -> np.ndarray:
    """The indices of the CANDIDATES largest values, in no order."""
    count = min(CANDIDATES, len(values))
    return np.argpartition(values, -count)[-count:]


def _answer(context: str, spans: dict[Span, float], null: float) -> dict:
    """The answer from the logits of its spans of characters, and from that of no answer."""
    ranked = sorted(spans, key=lambda span: (-spans[span], span))[:CANDIDATES]
    if not ranked:  # a context without any token the model knows how to read
        nowhere = {
            "answer": "",
            "start": None,
            "end": None,
            "score": 0.0,
        }
        return {**nowhere, "no_answer": 1.0, "n_best": []}
    logits = np.array([spans[span] for span in ranked])
    scores = np.exp(logits - logits[0])  # at most 1: the first logit is the largest
    scores /= scores.sum()
    n_best = []
    for (start, end), score in zip(ranked[:N_BEST], scores):
        text = context[start:end]
        n_best.append(
            {
                "answer": text,
                "start": start,
                "end": end,
                "score": float(score),
            }
        )
    with np.errstate(over="ignore"):
        no_answer = float(1 / (1 + np.exp(logits[0] - null)))
    return {**n_best[0], "no_answer": no_answer, "n_best": n_best}


def decide(answer: dict, threshold: float | None) -> dict:
    """An answer of `best_answers`, replaced by "" where its no_answer is above the threshold.

    threshold: None for a model that always answers.
    """
    if threshold is None:
        return {**answer, "no_answer": None}
    if answer["no_answer"] <= threshold:
        return answer
    return {
        **answer,
        "answer": "",
        "start": None,
        "end": None,
        "score": answer["no_answer"],
    }


def question_ids(rows: Sequence[dict]) -> list[str]:
    """The id of each row as a string, q0, q1, ... where it has none.

    UserError where an id repeats: the official prediction file is keyed by it.
    """
    ids: list[str] = []
    seen: set[str] = set()
    repeated: dict[str, None] = {}  # a dict keeps the order
    for i, row in enumerate(rows):
        name = f"q{i}" if row.get("id") is None else str(row["id"])
        if name in seen:
            repeated[name] = None
        seen.add(name)
        ids.append(name)
    if repeated:
        shown = ", ".join(list(repeated)[:3])
        raise UserError(
            f"{len(repeated)} ids are in more than one row, the first: {shown}; predictions are saved by id: give each "
            "question its own, or drop the column id"
        )
    return ids


def has_unanswerable(train: Sequence[dict], evaluation: Sequence[dict]) -> bool:
    """True if the model has to learn that a context may hold no answer; UserError where it cannot."""
    in_train = count_unanswerable(train)
    in_evaluation = count_unanswerable(evaluation)
    if in_evaluation and not in_train:
        raise UserError(
            f"{in_evaluation} evaluation rows have no answer in their context, and no training row shows that this may be: "
            "add such rows to the training, or remove these"
        )
    if in_train == len(train):
        raise UserError(
            f"none of the {in_train} training rows has an answer: there is nothing to mark"
        )
    return in_train > 0


def count_unanswerable(rows: Sequence[dict]) -> int:
    return sum(not row["answers"]["text"] for row in rows)
