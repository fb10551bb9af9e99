"""The kinds of rows that recipes read, how a kind is recognised by its columns, and what makes a row bad.

A prompt is a string or messages; a completion, chosen or rejected is a string (TRL's conversational form, a list with
one assistant message, is turned into its string). Extra columns are kept: reward functions get them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, isnan

from rlhf.data.chat import ROLES
from rlhf.tasks.table import TASKS, Rows

Problem = tuple[str, str]  # column, reason
MAX_CHOICES = 26  # of a question: the letters that a person has to name them


@dataclass(frozen=True)
class RowKind:
    """name; columns: what a row of this kind must have; recipes: who reads it; example: one valid row.

    relation: a condition that ties columns to each other: a key of RELATIONS, then the columns that it compares.
    """

    name: str
    columns: tuple[str, ...]
    recipes: tuple[str, ...]
    example: dict
    relation: tuple[str, ...] = ()


def task_kinds() -> list[RowKind]:
    """The kinds of the encoder tasks: those with the answer, then those without, which `predict` reads."""
    answered, unanswered = [], []
    for name, task in TASKS.items():
        for kind, rows in task.rows.items():
            if kind in task.trained_on:
                answered.append(_kind_of_task(kind, rows, name))
            else:
                unanswered.append(_kind_of_task(kind, rows, "predict"))
    return _most_specific_first(answered + unanswered)


def _kind_of_task(name: str, rows: Rows, recipe: str) -> RowKind:
    return RowKind(name, tuple(rows.columns), (recipe,), rows.example, rows.relation)


def _most_specific_first(kinds: Iterable[RowKind]) -> list[RowKind]:
    """The same order, except that a kind comes before every kind whose columns it includes."""
    ordered: list[RowKind] = []
    for kind in kinds:
        position = len(ordered)
        for i, other in enumerate(ordered):
            if set(other.columns) < set(kind.columns):
                position = i
                break
        ordered.insert(position, kind)
    return ordered


# Most specific first: a row is of the first kind whose columns it has.
KINDS = {
    kind.name: kind
    for kind in (
        RowKind(
            "ranking",
            ("prompt", "completions", "ranks"),
            ("reward",),
            {"prompt": "Hi!", "completions": ["Hello!", "What?", "Hey."], "ranks": [0, 1, 0]},
        ),
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
        *task_kinds(),
        RowKind(
            "text",
            ("text",),
            ("tokenizer", "pretrain", "predict"),
            {"text": "It was a dark night."},
        ),
    )
}


def recognise(columns: Iterable[str], kinds: Iterable[str] = ()) -> RowKind | None:
    """The most specific kind whose columns are all there; of several, the first that can serve one of `kinds`."""
    columns = set(columns)
    fitting = [kind for kind in KINDS.values() if columns.issuperset(kind.columns)]
    serving = [kind for kind in fitting if serves(kind.name, kinds)]
    return next(iter(serving + fitting), None)


def serves(kind: str, kinds: Iterable[str]) -> str | None:
    """Which of the accepted kinds a row of `kind` is or can be turned into."""
    kinds = tuple(kinds)
    return (
        kind
        if kind in kinds
        else next((wanted for wanted in kinds if (kind, wanted) in CONVERSIONS), None)
    )


def normalise(row: dict) -> dict:
    """Answers in conversational form become strings, SQuAD's lists of answers our two lists; all else stays as it is."""
    row = dict(row)
    for column in ("completion", "chosen", "rejected"):
        if column in row:
            row[column] = _answer(row[column])
    if isinstance(row.get("completions"), list):
        row["completions"] = [_answer(completion) for completion in row["completions"]]
    if (
        row.get("is_impossible") is True and "answers" in row
    ):  # what KLUE's rows hold there is only plausible
        row["answers"] = []
    answers = row.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        row["answers"] = {
            name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")
        }
    return row


def _answer(value):
    message = value[0] if isinstance(value, list) and len(value) == 1 else None
    return (
        message.get("content")
        if isinstance(message, dict) and message.get("role") == "assistant"
        else value
    )


def check_row(row: dict, kind: RowKind) -> list[Problem]:
    """What is wrong with a normalised row: (column, reason) for each problem, [] for a good row."""
    problems = []
    for column in kind.columns:
        reason = CHECKS[column](row[column]) if row.get(column) is not None else "missing"
        if reason:
            problems.append((column, reason))
    if problems:
        return problems
    if kind.name == "ranking" and len(row["ranks"]) != len(row["completions"]):
        return [
            (
                "ranks",
                f"{len(row['ranks'])} ranks for {len(row['completions'])} completions: give each its rank",
            )
        ]
    if kind.name == "preference" and row["chosen"] == row["rejected"]:
        return [("rejected", "the same text as chosen: such a pair says nothing")]
    if kind.relation:
        relation, *columns = kind.relation
        return RELATIONS[relation](row, *columns)
    return []


def _check_text(value) -> str | None:
    if not isinstance(value, str):
        return f"a string is expected, {_shown(value)} given"
    if not value.strip("\0 \t\r\n"):
        return "only NUL characters" if "\0" in value else "empty"
    if "\0" in value:
        return f"NUL character at position {value.index(chr(0)) + 1}"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at position {error.start + 1}"
    return None


def _check_turns(value) -> str | None:
    if not isinstance(value, list) or not value:
        return f"a list of messages is expected, {_shown(value)} given"
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {place}: role and content are expected, {_shown(message)} given"
        if message["role"] not in ROLES:
            return f"message {place}: unknown role {message['role']!r}, allowed: {', '.join(ROLES)}"
        if reason := _check_text(message["content"]):
            return f"message {place}: content: {reason}"
    return None


def _check_messages(value) -> str | None:
    if reason := _check_turns(value):
        return reason
    return (
        None
        if any(m["role"] == "assistant" for m in value)
        else "no assistant message to learn from"
    )


def _check_prompt(value) -> str | None:
    if not isinstance(value, list):
        return _check_text(value)
    if reason := _check_turns(value):
        return reason
    ended = value[-1]["role"] == "assistant"
    return "ends with an assistant message: a prompt ends before the answer" if ended else None


def _check_completions(value) -> str | None:
    if not isinstance(value, list) or len(value) < 2:
        return f"a list of at least 2 completions is expected, {_shown(value)} given"
    reasons = ((place, _check_text(completion)) for place, completion in enumerate(value))
    return next((f"completion {place}: {reason}" for place, reason in reasons if reason), None)


def _check_ranks(value) -> str | None:
    if isinstance(value, list) and all(type(rank) is int and rank >= 0 for rank in value):
        return None
    return f"a list of integers from 0 (the best) is expected, {_shown(value)} given"


def _check_label(value) -> str | None:
    """One label, a list of labels that may be empty, or a number to be predicted."""
    if isinstance(value, float):
        return None if isfinite(value) else f"a number is expected, {_shown(value)} given"
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str) and (reason := _check_text(name)):
            return reason
        if not isinstance(name, str | int):
            return f"a string, a number, true or false, or a list of labels is expected, {_shown(value)} given"
    names = [str(name) for name in value] if isinstance(value, list) else []
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"the label {twice!r} stands twice in the list"


def _check_tokens(value) -> str | None:
    if not isinstance(value, list) or not value:
        return f"a list of strings is expected, {_shown(value)} given"
    # a white space is a token where each character is one
    reasons = (
        (place, None if isinstance(token, str) and token.isspace() else _check_text(token))
        for place, token in enumerate(value)
    )
    return next((f"item {place}: {reason}" for place, reason in reasons if reason), None)


def _check_tags(value) -> str | None:
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
    return next((f"text: {reason}" for text in texts if (reason := _check_text(text))), None)


def _check_choices(value) -> str | None:
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_CHOICES:
        return f"a list of 2 to {MAX_CHOICES} strings is expected, {_shown(value)} given"
    for i, choice in enumerate(value):
        reason = _check_text(choice)
        if reason:
            return f"choice {i}: {reason}"
    return None


def _check_same_length(row: dict, column: str, other: str) -> list[Problem]:
    """Two lists whose items belong together, with names in the plural, as tags and tokens."""
    items, others = row[column], row[other]
    if len(items) == len(others):
        return []
    advice = f"give each {other.removesuffix('s')} its {column.removesuffix('s')}"
    return [(column, f"{len(items)} {column} for {len(others)} {other}: {advice}")]


def _check_quotes(row: dict, column: str, other: str) -> list[Problem]:
    """Answers that are not in the context at the character that they give."""
    answers, context = row[column], row[other]
    problems = []
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if context.startswith(text, start):
            continue
        position = context.find(text)
        hint = f"it stands at {position}" if position >= 0 else f"it stands nowhere in the {other}"
        reason = f"{_shown(text)} is not at character {start} of the {other}; {hint}"
        problems.append((column, reason))
    return problems


def _check_index_of(row: dict, column: str, other: str) -> list[Problem]:
    """A number that counts the items of a list from 0; in a table it is a string."""
    value, count = row[column], len(row[other])
    is_number = type(value) is int or (isinstance(value, str) and value.isdecimal())
    if is_number and 0 <= int(value) < count:
        return []
    expected = f"the index of one of the {other} is expected, 0 to {count - 1}"
    return [(column, f"{expected}, {_shown(value)} given")]


# Conditions that tie columns of a row to each other.
RELATIONS: dict[str, Callable[..., list[Problem]]] = {
    "same_length": _check_same_length,
    "quotes": _check_quotes,
    "index_of": _check_index_of,
}
# Forms of the columns of the encoder tasks.
FORMS: dict[str, Callable[[object], str | None]] = {
    "text": _check_text,
    "label": _check_label,
    "tokens": _check_tokens,
    "tags": _check_tags,
    "answers": _check_answers,
    "choices": _check_choices,
}
CHECKS: dict[str, Callable[[object], str | None]] = {
    "text": _check_text,
    "prompt": _check_prompt,
    "completion": _check_text,
    "chosen": _check_text,
    "rejected": _check_text,
    "messages": _check_messages,
    "completions": _check_completions,
    "ranks": _check_ranks,
}
for _task in TASKS.values():
    for _rows in _task.rows.values():
        CHECKS |= {column: FORMS[form] for column, form in _rows.columns.items()}


def _shown(value) -> str:
    if isinstance(value, float) and isnan(value):
        return "NaN"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_ranking(row: dict) -> dict:
    """A preference as a ranking of K = 2."""
    rest = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
    return {**rest, "completions": [row["chosen"], row["rejected"]], "ranks": [0, 1]}


def to_prompt(row: dict) -> dict:
    """A row with answers as its prompt and the extra columns."""
    answers = ("completion", "chosen", "rejected", "completions", "ranks")
    return {key: value for key, value in row.items() if key not in answers}


# (kind of the file, kind the caller accepts) -> how a row is turned into the other.
CONVERSIONS: dict[tuple[str, str], Callable[[dict], dict]] = {
    ("preference", "ranking"): to_ranking,
    ("prompt_completion", "prompt"): to_prompt,
    ("preference", "prompt"): to_prompt,
    ("ranking", "prompt"): to_prompt,
}
ANSWERS: dict[str, str] = {}  # kind -> the column that a row may lack where it is to be predicted
for _task in TASKS.values():
    for _kind, _rows in _task.rows.items():
        if _rows.unanswered:
            # The answers stay in the row: predictions are compared with them.
            CONVERSIONS[_kind, _rows.unanswered] = dict
            ANSWERS[_kind] = _task.answer
