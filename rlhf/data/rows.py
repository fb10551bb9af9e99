"""The kinds of rows that recipes read: how a kind is recognised by its columns, and what makes a row bad.

A prompt is a string or a list of messages. A completion, chosen or rejected is a string. TRL's conversational form, a
list with one assistant message, is converted to its string. Extra columns are kept, because reward functions get them.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite, isnan

from rlhf.data.chat import REASONING_KEYS, ROLES
from rlhf.task_table import TASKS, Rows

Problem = tuple[str, str]  # column, reason

# Kinds whose rows say which answers are good, and kinds of which every answer is learned.
RATED = ("ranking", "preference", "unpaired_preference")
DEMONSTRATIONS = ("prompt_completion", "messages")
MAX_CHOICES = 26  # of a question: the letters that a person has to name them


@dataclass(frozen=True)
class RowKind:
    """A kind of row.

    columns: those that a row of this kind must have.
    recipes: the recipes, and commands such as predict, that read it.
    example: a valid row.
    relation: a condition that ties columns to each other: a key of RELATIONS, then its columns.
    is_thumb: the column that must be true or false, where rows of another kind have the same columns.
    has_number: the column that must be a number, likewise.
    """

    name: str
    columns: tuple[str, ...]
    recipes: tuple[str, ...]
    example: dict
    relation: tuple[str, ...] = ()
    is_thumb: str = ""
    has_number: str = ""

    def matches(self, row: Iterable[str]) -> bool:
        """True for a row of this kind, or for columns that one can have."""
        if not set(self.columns) <= set(row):
            return False
        if self.is_thumb and isinstance(row, dict):
            return thumb(row[self.is_thumb]) is not None
        if self.has_number and isinstance(row, dict):
            return number(row[self.has_number]) is not None
        return True


def thumb(value) -> bool | None:
    """A rating of one answer: true or false, as a table writes it too. None for every other value."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    if isinstance(value, bool):
        return value
    return None


def number(value) -> float | None:
    """A finite number, as a table writes it too. None for every other value."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def without(row: dict, *columns: str) -> dict:
    """The other columns of a row."""
    return {key: value for key, value in row.items() if key not in columns}


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


# The most specific kind comes first, because a row is of the first kind whose columns it has.
KINDS = {
    kind.name: kind
    for kind in (
        # Rank 0 is the best answer. Ties share a rank.
        RowKind(
            "ranking",
            ("prompt", "completions", "ranks"),
            ("reward", "dpo", "ilql"),
            {"prompt": "Hi!", "completions": ["Hello!", "What?", "Hey."], "ranks": [0, 1, 0]},
        ),
        # Two answers, of which one is better. The reward recipe reads it as a ranking of two.
        RowKind(
            "preference",
            ("prompt", "chosen", "rejected"),
            ("reward", "dpo", "ilql"),
            {"prompt": "Hi!", "chosen": "Hello!", "rejected": "What?"},
        ),
        # One answer with a thumb up (true) or down (false), as KTO learns from.
        RowKind(
            "unpaired_preference",
            ("prompt", "completion", "label"),
            ("kto", "ilql", "sft (good_answers)"),
            {"prompt": "Hi!", "completion": "What?", "label": False},
            relation=("thumb", "label"),
            is_thumb="label",
        ),
        # One answer with a number, higher for a better one. SFT reads it as a demonstration.
        RowKind(
            "scored",
            ("prompt", "completion", "score"),
            ("ilql", "sft"),
            {"prompt": "Hi!", "completion": "Hello!", "score": 0.9},
            has_number="score",
        ),
        RowKind(
            "prompt_completion",
            ("prompt", "completion"),
            ("sft", "seq2seq"),
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


def recognise(row: Iterable[str], kinds: Iterable[str] = ()) -> RowKind | None:
    """The most specific kind that a row fits. One that can serve one of `kinds` goes first.

    Answers that are rated are never taken for demonstrations: their kind goes first where `kinds` have demonstrations.

    row: a row, or only its columns.
    """
    kinds = tuple(kinds)
    fitting = [kind for kind in KINDS.values() if kind.matches(row)]
    if fitting and needs_rating(fitting[0].name, kinds):
        return fitting[0]
    for kind in fitting:
        if serves(kind.name, kinds):
            return kind
    # None of them is accepted, but the error message can still say what the rows are.
    if fitting:
        return fitting[0]
    return None


def needs_rating(kind: str, kinds: Iterable[str]) -> bool:
    """True for rated answers where demonstrations are wanted: to drop the rating would teach the bad ones."""
    return kind in RATED and not set(DEMONSTRATIONS).isdisjoint(kinds)


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
    for column in ("prompt", "messages"):
        if isinstance(row.get(column), list):
            row[column] = [_our_message(message) for message in row[column]]
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


def _our_message(message):
    """A message with OpenAI's newer forms in ours: the role developer is system, and parts of text are one text."""
    if not isinstance(message, dict):
        return message
    if message.get("role") == "developer":
        message = {**message, "role": "system"}
    parts = message.get("content")
    if isinstance(parts, list) and parts and all(map(_is_text_part, parts)):
        texts = [part["text"] for part in parts]
        message = {**message, "content": "".join(texts)}
    return message


def _is_text_part(part) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _plain_answer(value):
    """The text of a list with one assistant message. Every other value is returned as it is, to be checked later."""
    if not isinstance(value, list) or len(value) != 1:
        return value
    message = _our_message(value[0])
    if isinstance(message, dict) and message.get("role") == "assistant":
        if not more_than_text(message):
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
        return _check_same_length(row, "ranks", "completions")
    if kind.name == "preference":
        return _check_preference(row)
    if kind.relation:
        relation, *columns = kind.relation
        return RELATIONS[relation](row, *columns)
    return []


def _check_preference(row: dict) -> list[Problem]:
    if row["chosen"] == row["rejected"]:
        return [("rejected", "the same text as chosen: such a pair says nothing")]
    chosen, rejected = scores_of_pair(row)
    if chosen < rejected:
        better, worse = _score_columns(row)
        return [(worse, f"{rejected} is above {better}, {chosen}: are the two answers swapped?")]
    return []


def scores_of_pair(row: dict) -> tuple[float, float]:
    """The scores of the two answers of a preference; (1, 0) where it has none."""
    columns = _score_columns(row)
    if columns is None:
        return 1, 0
    better, worse = columns
    return number(row[better]), number(row[worse])


# Scores of the chosen and of the rejected answer: UltraFeedback's, and those of Argilla's sets.
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


def _score_columns(row: dict) -> tuple[str, str] | None:
    """The first two columns that hold scores of the two answers of a preference, or None."""
    for columns in SCORE_COLUMNS:
        better, worse = columns
        if better not in row or worse not in row:
            continue
        if number(row[better]) is not None and number(row[worse]) is not None:
            return columns
    return None


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
    if value.isascii():
        return None
    try:
        value.encode("utf-8")  # tokenizers cannot take half a pair, which JSON can spell
    except UnicodeEncodeError as error:
        return f"half a surrogate pair at position {error.start + 1}"
    return None


def _are_good_texts(values: list) -> bool:
    """True only if `_check_text` accepts every value. One call for all, since lists of words have many."""
    try:
        joined = "".join(values)
        if not joined.isascii():
            joined.encode("utf-8")
    except (TypeError, UnicodeEncodeError):  # a value that is not a string, half a surrogate pair
        return False
    return "\0" not in joined and all(map(str.strip, values))


def _check_turns(value) -> str | None:
    if isinstance(value, str) and WRITTEN_MESSAGES.fullmatch(value):
        return _check_words(value)
    if not isinstance(value, list) or not value:
        return f"a list of messages is expected, {_shown(value)} given"
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            return f"message {index}: role and content are expected, {_shown(message)} given"
        if message["role"] not in ROLES:
            return f"message {index}: unknown role {message['role']!r}, allowed: {', '.join(ROLES)}"
        reason = more_than_text(message)
        if not reason:
            reason = _check_text(message["content"])
            reason = reason and f"content: {reason}"
        if reason:
            return f"message {index}: {reason}"
    return None


PLAIN = {"role", "content"}  # keys of a message with nothing else in it


def more_than_text(message: dict) -> str | None:
    """The reason why a message is more than its text, which is all that is learned."""
    if message.keys() <= PLAIN:
        return None
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            return f"{key}: calls of tools cannot be learned here, {_shown(message[key])} given"
    for key in REASONING_KEYS:
        if message.get(key):
            return f"{key} would not be learned: write it into the content, as <think>...</think>"
    return None


def _check_messages(value) -> str | None:
    reason = _check_turns(value)
    if reason:
        return reason
    if not any(message["role"] == "assistant" for message in value):
        return "no assistant message to learn from"
    for index, message in enumerate(value):
        reason = None
        if message["role"] == "assistant":
            reason = weight_problem(message)
        if reason:
            return f"message {index}: {reason}"
    return None


# Keys of a message that say if it is learned: OpenAI's, Axolotl's and ms-swift's.
WEIGHTS = ("weight", "train", "training", "loss")


def weight_of(turn: dict) -> tuple[str, object]:
    """(key, value) of the first weight of a turn that is not 1; 1 where it has none."""
    if turn.keys() <= PLAIN:
        return WEIGHTS[0], 1
    for key in WEIGHTS:
        value = turn.get(key)
        # A number under `loss` may be a measurement.
        if value == 0 or (key == "weight" and value not in (None, 1)):
            return key, value
    return WEIGHTS[0], 1


def weight_problem(turn: dict) -> str | None:
    """The reason why a turn with a weight cannot be learned like the others of its file."""
    key, weight = weight_of(turn)
    if weight == 1:
        return None
    return (
        f"{key} {_shown(weight)}: the first rows of the file have no such key, so all answers would be learned: put a row "
        "with one first"
    )


# Two messages or one, as Python or JSON write a list of them.
WRITTEN_MESSAGES = re.compile(
    r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:.*\}\s*\]\s*", re.DOTALL
)


def _check_words(value) -> str | None:
    """The check of a text in a conversation, which is not the conversation itself."""
    if isinstance(value, str) and WRITTEN_MESSAGES.fullmatch(value):
        return (
            f"a list of messages as a string, {_shown(value)}: give the list itself, in JSON lines or parquet: a table "
            "holds no lists"
        )
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return more_than_text(value[0]) or _check_text(value)
    return _check_text(value)


def _check_prompt(value) -> str | None:
    if not isinstance(value, list):
        return _check_words(value)
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
        reason = _check_words(completion)
        if reason:
            return f"completion {index}: {reason}"
    return None


def _check_ranks(value) -> str | None:
    # `type`, not isinstance: True is an int, but not a rank.
    if isinstance(value, list) and all(type(rank) is int and rank >= 0 for rank in value):
        return None
    return f"a list of integers from 0 (the best) is expected, {_shown(value)} given"


def _check_score(value) -> str | None:
    if number(value) is not None:
        return None
    return f"a number is expected, {_shown(value)} given"


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
    if _are_good_texts(value):
        return None
    for index, token in enumerate(value):
        if isinstance(token, str) and token.isspace():
            continue  # a token where each character is one
        reason = _check_text(token)
        if reason:
            return f"item {index}: {reason}"
    return None


def _check_tags(value) -> str | None:
    # Numbers are the usual mistake with NER data, so their message says what to do.
    is_number = isinstance(value, list) and bool(value) and type(value[0]) is int
    if is_number and all(type(tag) is int for tag in value):
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


def _check_choices(value) -> str | None:
    if not isinstance(value, list) or not 2 <= len(value) <= MAX_CHOICES:
        return f"a list of 2 to {MAX_CHOICES} strings is expected, {_shown(value)} given"
    if _are_good_texts(value):
        return None
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
        hint = f"it is not in the {other}"
        if position >= 0:
            hint = f"it is at {position}"
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


def _check_thumb(row: dict, column: str) -> list[Problem]:
    if thumb(row[column]) is not None:
        return []
    return [(column, f"true or false is expected, {_shown(row[column])} given")]


# Conditions that tie columns of a row to each other.
RELATIONS: dict[str, Callable[..., list[Problem]]] = {
    "same_length": _check_same_length,
    "quotes": _check_quotes,
    "index_of": _check_index_of,
    "thumb": _check_thumb,
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
    "completion": _check_words,
    "chosen": _check_words,
    "rejected": _check_words,
    "messages": _check_messages,
    "completions": _check_completions,
    "ranks": _check_ranks,
    "score": _check_score,
}
for _task in TASKS.values():
    for _rows in _task.rows.values():
        CHECKS |= {column: FORMS[form] for column, form in _rows.columns.items()}


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
    rest = without(row, "chosen", "rejected")
    return {**rest, "completions": [row["chosen"], row["rejected"]], "ranks": [0, 1]}


def to_prompt(row: dict) -> dict:
    """The prompt and the extra columns of a row, without its answers."""
    return without(row, "completion", "chosen", "rejected", "completions", "ranks")


def unrated_to_prompt(row: dict) -> dict:
    """The prompt of an answer with a thumb, which says nothing about the prompt."""
    return without(to_prompt(row), "label")


def good_answers(row: dict) -> list[dict]:
    """The good answers of a row of a RATED kind as demonstrations: label true, chosen, or rank 0. [] where it has none."""
    if "chosen" in row:
        answers = [row["chosen"]]
    elif "ranks" in row:
        best = min(row["ranks"])
        pairs = zip(row["completions"], row["ranks"], strict=True)
        answers = [completion for completion, rank in pairs if rank == best]
    elif thumb(row["label"]):
        answers = [row["completion"]]
    else:
        answers = []
    rest = without(to_prompt(row), "prompt", "label")
    return [{"prompt": row["prompt"], "completion": answer, **rest} for answer in answers]


# (kind of the file, kind that the caller accepts) -> function that converts a row.
CONVERSIONS: dict[tuple[str, str], Callable[[dict], dict]] = {
    ("preference", "ranking"): to_ranking,
    ("prompt_completion", "prompt"): to_prompt,
    ("preference", "prompt"): to_prompt,
    ("unpaired_preference", "prompt"): unrated_to_prompt,
    ("ranking", "prompt"): to_prompt,
}
ANSWERS: dict[str, str] = {}  # kind -> the column that a row may lack where it is to be predicted
for _task in TASKS.values():
    for _kind, _rows in _task.rows.items():
        if _rows.unanswered:
            # The answers stay in the row: predictions are compared with them.
            CONVERSIONS[_kind, _rows.unanswered] = dict
            ANSWERS[_kind] = _task.answer
