"""The kinds of rows that recipes read: how a kind is recognised by its columns, and what makes a row bad.

A prompt is a string or a list of messages. A completion, chosen or rejected is a string. TRL's conversational form, a
list with one assistant message, is converted to its string. Extra columns are kept, because reward functions get them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, isnan

from rlhf.data.chat import ROLES

Problem = tuple[str, str]  # column, reason


@dataclass(frozen=True)
class RowKind:
    """A kind of row.

    columns: those that a row of this kind must have.
    recipes: the recipes, and commands such as predict, that read it.
    example: a valid row.
    """

    name: str
    columns: tuple[str, ...]
    recipes: tuple[str, ...]
    example: dict


# The most specific kind comes first, because a row is of the first kind whose columns it has.
KINDS = {
    kind.name: kind
    for kind in (
        # Rank 0 is the best answer. Ties share a rank.
        RowKind(
            "ranking",
            ("prompt", "completions", "ranks"),
            ("reward",),
            {"prompt": "Hi!", "completions": ["Hello!", "What?", "Hey."], "ranks": [0, 1, 0]},
        ),
        # Two answers, of which one is better. The reward recipe reads it as a ranking of two.
        RowKind(
            "preference",
            ("prompt", "chosen", "rejected"),
            ("reward",),
            {"prompt": "Hi!", "chosen": "Hello!", "rejected": "What?"},
        ),
        RowKind(
            "prompt_completion",
            ("prompt", "completion"),
            ("sft",),
            {"prompt": "Hi!", "completion": "Hello!"},
        ),
        RowKind(
            "messages",
            ("messages",),
            ("sft",),
            {
                "messages": [
                    {"role": "user", "content": "Hi!"},
                    {"role": "assistant", "content": "Hello!"},
                ]
            },
        ),
        RowKind("prompt", ("prompt",), ("ppo",), {"prompt": "Hi!"}),
        # The label is a name, a list of names, or a number for regression.
        RowKind(
            "pair_classification",
            ("text", "text_pair", "label"),
            ("classification",),
            {"text": "It rains.", "text_pair": "It is wet.", "label": "entailment"},
        ),
        RowKind(
            "classification",
            ("text", "label"),
            ("classification",),
            {"text": "A fine film.", "label": "good"},
        ),
        RowKind(
            "tagging",
            ("tokens", "tags"),
            ("ner",),
            {
                "tokens": ["Ada", "Lovelace", "wrote", "."],
                "tags": ["B-person", "I-person", "O", "O"],
            },
        ),
        RowKind(
            "question_answering",
            ("question", "context", "answers"),
            ("question_answering",),
            {
                "question": "Who wrote it?",
                "context": "Ada wrote it.",
                # With empty lists the context holds no answer (SQuAD v2).
                "answers": {"text": ["Ada"], "answer_start": [0]},
            },
        ),
        # The input of a trained encoder. The row may also hold the answer.
        RowKind(
            "question",
            ("question", "context"),
            ("predict",),
            {"question": "Who wrote it?", "context": "Ada did."},
        ),
        RowKind("tokens", ("tokens",), ("predict",), {"tokens": ["Ada", "Lovelace", "wrote", "."]}),
        RowKind(
            "pair",
            ("text", "text_pair"),
            ("predict",),
            {"text": "It rains.", "text_pair": "It is wet."},
        ),
        RowKind(
            "text",
            ("text",),
            ("tokenizer", "pretrain", "predict"),
            {"text": "It was a dark night."},
        ),
    )
}


def recognise(columns: Iterable[str], kinds: Iterable[str] = ()) -> RowKind | None:
    """The most specific kind whose columns are all there. One that can serve one of `kinds` goes first."""
    columns = set(columns)
    fitting = [kind for kind in KINDS.values() if columns.issuperset(kind.columns)]
    for kind in fitting:
        if serves(kind.name, kinds):
            return kind
    # None of them is accepted, but the error message can still say what the rows are.
    if fitting:
        return fitting[0]
    return None


def serves(kind: str, kinds: Iterable[str]) -> str | None:
    """The first of the accepted kinds into which a row of `kind` can be converted; `kind` itself where it is accepted."""
    kinds = tuple(kinds)
    if kind in kinds:
        return kind
    for accepted in kinds:
        if (kind, accepted) in CONVERSIONS:
            return accepted
    return None


def normalise(row: dict) -> dict:
    """Brings answers into one form, and leaves all other columns as they are.

    Conversational answers become strings. SQuAD's list of answers becomes our two lists.
    """
    row = dict(row)  # the caller's row stays as it is
    for column in ("completion", "chosen", "rejected"):
        if column in row:
            row[column] = _plain_answer(row[column])
    if isinstance(row.get("completions"), list):
        row["completions"] = [_plain_answer(completion) for completion in row["completions"]]
    if row.get("is_impossible") is True and "answers" in row:
        row["answers"] = []  # KLUE gives these questions answers that are only plausible
    answers = row.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        row["answers"] = {
            "text": [answer.get("text") for answer in answers],
            "answer_start": [answer.get("answer_start") for answer in answers],
        }
    return row


def _plain_answer(value):
    """The text of a list with one assistant message. Every other value is returned as it is, to be checked later."""
    if not isinstance(value, list) or len(value) != 1:
        return value
    message = value[0]
    if isinstance(message, dict) and message.get("role") == "assistant":
        return message.get("content")
    return value


def check_row(row: dict, kind: RowKind) -> list[Problem]:
    """The problems of a normalised row, as (column, reason). [] for a good row."""
    problems = []
    for column in kind.columns:
        reason = "missing"
        if row.get(column) is not None:
            reason = CHECKS[column](row[column])
        if reason:
            problems.append((column, reason))
    if problems:
        return problems  # columns can be compared with each other only where each is good
    if kind.name == "ranking":
        return _check_counts(row, "completions", "ranks", "rank")
    if kind.name == "tagging":
        return _check_counts(row, "tokens", "tags", "tag")
    if kind.name == "preference" and row["chosen"] == row["rejected"]:
        return [("rejected", "the same text as chosen: such a pair says nothing")]
    if kind.name == "question_answering":
        return [("answers", reason) for reason in _misplaced(row["answers"], row["context"])]
    return []


def _check_counts(row: dict, items: str, marks: str, mark: str) -> list[Problem]:
    """Each item, a completion or a token, needs its mark, a rank or a tag."""
    item_count, mark_count = len(row[items]), len(row[marks])
    if item_count == mark_count:
        return []
    item = items.removesuffix("s")
    return [(marks, f"{mark_count} {marks} for {item_count} {items}: give each {item} its {mark}")]


# ---- checks of one column: value -> the reason why it is bad, or None ------------------------------------------------


def _check_text(value) -> str | None:
    if not isinstance(value, str):
        return f"a string is expected, {_shown(value)} given"
    if not value.strip("\0 \t\r\n"):
        if "\0" in value:
            return "only NUL characters"  # what is left of a file after a crash
        return "empty"
    if "\0" in value:
        return f"NUL character at position {value.index(chr(0)) + 1}"
    try:
        value.encode("utf-8")  # tokenizers cannot take half a pair, which JSON can spell
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at position {error.start + 1}"
    return None


def _check_turns(value) -> str | None:
    if not isinstance(value, list) or not value:
        return f"a list of messages is expected, {_shown(value)} given"
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {index}: role and content are expected, {_shown(message)} given"
        if message["role"] not in ROLES:
            return f"message {index}: unknown role {message['role']!r}, allowed: {', '.join(ROLES)}"
        reason = _check_text(message["content"])
        if reason:
            return f"message {index}: content: {reason}"
    return None


def _check_messages(value) -> str | None:
    reason = _check_turns(value)
    if reason:
        return reason
    if any(message["role"] == "assistant" for message in value):
        return None
    return "no assistant message to learn from"


def _check_prompt(value) -> str | None:
    if not isinstance(value, list):
        return _check_text(value)
    reason = _check_turns(value)
    if reason:
        return reason
    if value[-1]["role"] == "assistant":
        return "ends with an assistant message: a prompt ends before the answer"
    return None


def _check_completions(value) -> str | None:
    if not isinstance(value, list) or len(value) < 2:
        return f"a list of at least 2 completions is expected, {_shown(value)} given"
    for index, completion in enumerate(value):
        reason = _check_text(completion)
        if reason:
            return f"completion {index}: {reason}"
    return None


def _check_ranks(value) -> str | None:
    # `type`, not isinstance: True is an int, but not a rank.
    if isinstance(value, list) and all(type(rank) is int and rank >= 0 for rank in value):
        return None
    return f"a list of integers from 0 (the best) is expected, {_shown(value)} given"


def _check_label(value) -> str | None:
    """A label is a name, a list of names that may be empty, or a number to predict."""
    if isinstance(value, float):
        # JSON and parquet can hold NaN, which would end in the loss.
        if isfinite(value):
            return None
        return f"a number is expected, {_shown(value)} given"
    names = value
    if not isinstance(value, list):
        names = [value]
    for name in names:
        if not isinstance(name, str | int):
            return f"a string, a number, true or false, or a list of labels is expected, {_shown(value)} given"
        reason = None
        if isinstance(name, str):
            reason = _check_text(name)
        if reason:
            return reason
    # Labels are compared as strings: 1 and "1" are one label.
    for name, count in Counter(map(str, names)).items():
        if count > 1:
            return f"the label {name!r} appears twice in the list"
    return None


def _check_tokens(value) -> str | None:
    if not isinstance(value, list) or not value:
        return f"a list of strings is expected, {_shown(value)} given"
    for index, token in enumerate(value):
        if isinstance(token, str) and token.isspace():
            continue  # a token where each character is one
        reason = _check_text(token)
        if reason:
            return f"item {index}: {reason}"
    return None


def _check_tags(value) -> str | None:
    # Numbers are the usual mistake with NER data, so their message says what to do.
    if isinstance(value, list) and value and all(type(tag) is int for tag in value):
        return (
            f"numbers without names, {_shown(value)}: write the names, as in B-person, I-person and O (a Hub data set "
            "gives them where the column is a list of ClassLabel)"
        )
    return _check_tokens(value)


def _check_answers(value) -> str | None:
    form = "{text: [...], answer_start: [...]} is expected"
    if not isinstance(value, dict) or not {"text", "answer_start"} <= value.keys():
        return f"{form}, {_shown(value)} given"
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return f"{form}, two lists of one length, {_shown(value)} given"
    if not all(type(start) is int and start >= 0 for start in starts):
        return f"answer_start: characters from 0 are expected, {_shown(starts)} given"
    for text in texts:
        reason = _check_text(text)
        if reason:
            return f"text: {reason}"
    return None


def _misplaced(answers: dict, context: str) -> list[str]:
    """The reasons why answers are bad that are not at their place in the context."""
    reasons = []
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if context.startswith(text, start):
            continue
        actual = context.find(text)
        hint = "it is not in the context"
        if actual >= 0:
            hint = f"it is at {actual}"
        reasons.append(f"{_shown(text)} is not at character {start} of the context; {hint}")
    return reasons


CHECKS: dict[str, Callable[[object], str | None]] = {
    "text": _check_text,
    "text_pair": _check_text,
    "prompt": _check_prompt,
    "completion": _check_text,
    "chosen": _check_text,
    "rejected": _check_text,
    "messages": _check_messages,
    "completions": _check_completions,
    "ranks": _check_ranks,
    "label": _check_label,
    "tokens": _check_tokens,
    "tags": _check_tags,
    "question": _check_text,
    "context": _check_text,
    "answers": _check_answers,
}


def _shown(value) -> str:
    """A value as a message shows it."""
    if isinstance(value, float) and isnan(value):
        return "NaN"  # pandas writes it for a missing value
    return shorten(repr(value), 60)


def shorten(text: str, length: int) -> str:
    """At most `length` characters of a text. Dots end it where something is missing."""
    if len(text) <= length:
        return text
    return text[: length - 3] + "..."


# ---- conversions ----------------------------------------------------------------------------------------------------


def to_ranking(row: dict) -> dict:
    """A preference as a ranking of two completions."""
    rest = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    return {**rest, "completions": [row["chosen"], row["rejected"]], "ranks": [0, 1]}


def to_prompt(row: dict) -> dict:
    """The prompt and the extra columns of a row, without its answers."""
    answers = ("completion", "chosen", "rejected", "completions", "ranks")  # not extra columns
    return {key: value for key, value in row.items() if key not in answers}


# (kind of the file, kind that the caller accepts) -> function that converts a row.
CONVERSIONS: dict[tuple[str, str], Callable[[dict], dict]] = {
    ("preference", "ranking"): to_ranking,
    ("prompt_completion", "prompt"): to_prompt,
    ("preference", "prompt"): to_prompt,
    ("ranking", "prompt"): to_prompt,
    ("tagging", "tokens"): dict,  # keeps the answers, with which predictions are compared
    ("question_answering", "question"): dict,
}
# The column that a row may lack where it is to be predicted.
ANSWERS = {
    "tagging": "tags",
    "question_answering": "answers",
}
