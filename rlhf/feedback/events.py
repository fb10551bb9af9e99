"""The events of a feedback store: what people said about answers, and all that is needed to repeat what they saw.

Schema 2. An event is one JSON object: `event` (rating, comparison or ranking), `schema`, `id`, `time`, and the fields of its
class. Events are never edited. Training rows are derived from them, see export.py. Events of schema 1 are read too: nobody
was asked for `consent` then, so they have none.
"""

import json
import re
import sys
import uuid
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import cache
from typing import ClassVar

from rlhf.data.judgements import SCHEMA, check_ranks, check_schema, comparison_ranks
from rlhf.data.rows import CHECKS
from rlhf.errors import UserError

# "import" is for events that another tool recorded.
SOURCES = ("app", "api", "import")
ANNOTATOR = re.compile(r"[0-9a-f]{16}")
# of uuid4, in hex
IDENTIFIER = re.compile(r"[0-9a-f]{32}")
MAX_ANSWERS = 10  # nine, and one that the annotator wrote
MAX_SEED = 2**64


@dataclass(frozen=True)
class ModelUsed:
    """The model that wrote an answer.

    name: its label in the app. path: its folder or Hub id.
    revision: sha256 of the weights, or the commit on the Hub; "" if it is not known.
    """

    name: str
    path: str
    revision: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer with the seed that repeats it. model: None for one that the annotator wrote. score: of a reward model."""

    text: str
    model: ModelUsed | None
    seed: int | None = None
    score: float | None = None


def new_id() -> str:
    return uuid.uuid4().hex


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Rating:
    """A thumb for one answer. messages: the conversation before it. value: "up" or "down".

    consent: True where the annotator agreed that it may be published.
    """

    messages: list[dict]
    completion: str
    model: ModelUsed | None
    settings: dict
    seed: int | None
    value: str
    reason: str = ""
    annotator: str = ""  # a hash, see Store.annotator; "" is somebody without a name
    source: str = "app"
    consent: bool = False
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)
    kind: ClassVar[str] = "rating"


@dataclass(frozen=True)
class Comparison:
    """A blind choice between two or three answers.

    shown: indices of the answers in their order on the screen.
    verdict: "left", "right", "tie" or "both bad". Of three answers, the index on the screen, "tie" or "both bad".
    consent: as of a Rating.
    """

    messages: list[dict]
    answers: list[Answer]
    shown: list[int]
    settings: dict
    verdict: str | int
    annotator: str = ""
    source: str = "app"
    consent: bool = False
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)
    kind: ClassVar[str] = "comparison"

    @property
    def ranks(self) -> list[int]:
        """0 for the better answer and 1 for the others; all 0 without a winner."""
        return comparison_ranks(self.verdict, self.shown, len(self.answers))


@dataclass(frozen=True)
class Ranking:
    """2 to 9 answers in an order, and maybe one that the annotator wrote.

    ranks: 0 is the best, ties share a rank. item: the prompt's id in the queue, or "". consent: as of a Rating.
    """

    messages: list[dict]
    answers: list[Answer]
    shown: list[int]
    settings: dict
    ranks: list[int]
    annotator: str = ""
    source: str = "app"
    item: str = ""
    consent: bool = False
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)
    kind: ClassVar[str] = "ranking"


Event = Rating | Comparison | Ranking
CLASSES = {cls.kind: cls for cls in (Rating, Comparison, Ranking)}


# ---- to JSON and back -------------------------------------------------------------------------------------------------


def to_row(event: Event) -> dict:
    """The JSON object of an event. Its messages and settings are those of the event, and not copies."""
    row = {"event": event.kind, "schema": SCHEMA, **vars(event)}
    # `dataclasses.asdict` would copy every text and number of it, and takes ten times as long.
    if isinstance(event, Rating):
        row["model"] = _fields_of(event.model)
    else:
        row["answers"] = [_fields_of(answer) for answer in event.answers]
        for answer in row["answers"]:
            answer["model"] = _fields_of(answer["model"])
    return row


def _fields_of(value: Answer | ModelUsed | None) -> dict | None:
    return None if value is None else dict(vars(value))


def from_row(row) -> Event:
    """The event of a JSON object. UserError("field: reason") for one that is not exactly an event of this schema."""
    if not isinstance(row, dict):
        raise UserError(f"event: an object is expected, {row!r:.60} given")
    schema = row.get("schema")
    check_schema(schema)
    kind = row.get("event")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UserError(f"event: one of {', '.join(CLASSES)} is expected, {kind!r:.60} given")
    cls = CLASSES[kind]
    # These two are in every event, and are no fields of a class.
    values = {name: value for name, value in row.items() if name not in ("event", "schema")}
    if schema == 1:
        if "consent" in values:
            raise UserError("consent: unknown in schema 1, which did not ask for it")
        values["consent"] = False
    _check_names(values, cls, "")
    if cls is Rating:
        values["model"] = _model(values["model"], "model")
    else:
        values["answers"] = _answers(values["answers"])
    event = cls(**values)
    check(event)
    return event


@cache
def _names_of(cls: type) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


def _check_names(values: dict, cls: type, prefix: str) -> None:
    """UserError unless an object has exactly the fields of a class."""
    names = _names_of(cls)
    # Strict in both directions: a field of a later version would be lost without a word.
    missing = [name for name in names if name not in values]
    unknown = [name for name in values if name not in names]
    if missing:
        raise UserError(f"{prefix}{missing[0]}: missing")
    if unknown:
        raise UserError(f"{prefix}{unknown[0]!s:.60}: unknown; the fields are {', '.join(names)}")


def _answers(value) -> list[Answer]:
    _expect("answers", value, list)
    answers = []
    for i, item in enumerate(value):
        prefix = f"answers: answer {i}: "
        if not isinstance(item, dict):
            raise UserError(f"{prefix}an object is expected, {item!r:.60} given")
        _check_names(item, Answer, prefix)
        answers.append(Answer(**(item | {"model": _model(item["model"], f"{prefix}model")})))
    return answers


def _model(value, where: str) -> ModelUsed | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(f"{where}: an object or null is expected, {value!r:.60} given")
    _check_names(value, ModelUsed, f"{where}: ")
    return ModelUsed(**value)


# ---- checks -------------------------------------------------------------------------------------------------------------


def check(event: Event) -> None:
    """UserError("field: reason") unless every field has its type and range."""
    _expect("id", event.id, str)
    if not IDENTIFIER.fullmatch(event.id):
        raise UserError(f"id: 32 hexadecimal digits are expected, {event.id!r:.60} given")
    _check_time(event.time)
    _expect("annotator", event.annotator, str)
    # Names of people never reach the file.
    if event.annotator and not ANNOTATOR.fullmatch(event.annotator):
        raise UserError("annotator: a hash of 16 hexadecimal digits is expected, never a name")
    _one_of("source", event.source, SOURCES)
    _expect("consent", event.consent, bool)
    _expect("settings", event.settings, dict)
    _check_json("settings", event.settings)
    reason = CHECKS["prompt"](event.messages) if isinstance(event.messages, list) else "not a list"
    if reason:
        raise UserError(f"messages: {reason}")
    if isinstance(event, Rating):
        _check_text("completion", event.completion)
        _one_of("value", event.value, ("up", "down"))
        _check_words("reason", event.reason)
        _check_seed("seed", event.seed)
        _check_model("model", event.model)
        return
    _check_answers(event.answers)
    # The verdict does not matter here.
    comparison_ranks("tie", event.shown, len(event.answers))  # checks the order
    if isinstance(event, Comparison):
        if len(event.answers) > 3:
            raise UserError(f"answers: 2 or 3 are compared, {len(event.answers)} given")
        comparison_ranks(event.verdict, event.shown, len(event.answers))
    else:
        check_ranks(event.ranks, len(event.answers))
        _check_words("item", event.item)


def _check_answers(answers) -> None:
    _expect("answers", answers, list)
    if not 2 <= len(answers) <= MAX_ANSWERS:
        raise UserError(f"answers: 2 to {MAX_ANSWERS} are expected, {len(answers)} given")
    for i, answer in enumerate(answers):
        where = f"answers: answer {i}"
        if not isinstance(answer, Answer):
            raise UserError(f"{where}: an Answer is expected, {answer!r:.60} given")
        _check_text(f"{where}: text", answer.text)
        _check_seed(f"{where}: seed", answer.seed)
        _check_model(f"{where}: model", answer.model)
        if answer.score is not None and not _is_finite(answer.score):
            raise UserError(f"{where}: score: a finite number is expected, {answer.score!r} given")


def _check_model(where: str, model) -> None:
    if model is None:
        return
    if not isinstance(model, ModelUsed):
        raise UserError(f"{where}: a ModelUsed is expected, {model!r:.60} given")
    for name in ("name", "path", "revision"):
        _check_words(f"{where}: {name}", getattr(model, name))


def _check_words(where: str, value) -> None:
    """UserError for anything but a text that a file can hold. It may be empty."""
    _expect(where, value, str)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair at position {error.start}") from error


def _check_json(where: str, value) -> None:
    try:
        # As it will be written.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from error


def _check_text(where: str, value) -> None:
    reason = CHECKS["completion"](value)
    if reason:
        raise UserError(f"{where}: {reason}")


def _check_time(value) -> None:
    _expect("time", value, str)
    try:
        has_zone = datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        has_zone = False
    if not has_zone:
        raise UserError(f"time: an ISO time with its zone is expected, {value!r:.60} given")


def _check_seed(where: str, value) -> None:
    if value is not None and (type(value) is not int or not 0 <= value < MAX_SEED):
        raise UserError(f"{where}: a whole number from 0 below 2**64 is expected")


def _is_finite(value) -> bool:
    # True is an int in Python. NaN is not equal to itself.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value == value and abs(value) <= sys.float_info.max


def _one_of(where: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise UserError(f"{where}: one of {', '.join(allowed)} is expected, {value!r:.60} given")


def _expect(where: str, value, kind: type) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{where}: a {kind.__name__} is expected, {value!r:.60} given")
