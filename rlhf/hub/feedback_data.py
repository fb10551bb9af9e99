"""A feedback store as a data set that may be published: a folder with rankings, ratings and a card.

Only what people agreed to publish is in it. Names are hashed again with a secret of the store, so that nobody who knows the
hashes of the store can tell who is who. Times are cut to days, and folders of this machine are dropped. The same events
give the same bytes.

train.jsonl     {prompt, completions, ranks, ...}: rankings and comparisons, which `rlhf reward` trains on as they are
ratings.jsonl   {prompt, completion, label, ...}: thumbs, and answers of comparisons that were all bad
README.md       the card
"""

import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf.data.conversations import Dropped
from rlhf.data.judgements import from_event
from rlhf.errors import UserError
from rlhf.feedback.events import Comparison, Event, ModelUsed, Rating, to_row
from rlhf.feedback.store import NAME, Store
from rlhf.hub.feedback_card import feedback_card

RANKINGS, RATINGS, CARD = "train.jsonl", "ratings.jsonl", "README.md"
SECRET = ".salt.share"  # in the store, never in what is published
COMMIT = re.compile(r"[0-9a-f]{40}")  # of a model of the Hub; weights on the disk have a sha256
# Keys that let somebody act in another's name. An event that holds one is not published. Korean words end with a particle
# and no space, so a letter of another alphabet may be next to a key.
KEYS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}(?![A-Za-z0-9]))"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


@dataclass(frozen=True)
class Shared:
    """A folder that is ready to be pushed, with its numbers.

    rankings, ratings: rows of the two files. events: those that were taken.
    without_consent, with_keys, unreadable: events that were left behind, by the reason.
    with_email: rows that hold what looks like an e-mail address. They are taken, so somebody should look at them.
    """

    folder: Path
    rankings: int
    ratings: int
    events: list[Event] = field(repr=False)
    without_consent: int = 0
    with_keys: int = 0
    unreadable: int = 0
    with_email: int = 0

    def notes(self) -> list[str]:
        """Sentences about what was left behind, and about what to look at."""
        notes = []
        if self.without_consent:
            notes.append(f"{self.without_consent} events without consent were left behind")
        if self.with_keys:
            notes.append(
                f"{self.with_keys} events that hold a key or token were left behind: revoke it"
            )
        if self.unreadable:
            notes.append(f"{self.unreadable} lines that are not whole events were left behind")
        if self.with_email:
            notes.append(
                f"{self.with_email} rows hold what looks like an e-mail address: look at them before you share"
            )
        return notes


def feedback_folder(store_folder: str | Path, target: str | Path, *, repo: str = "") -> Shared:
    """Write the data set of a feedback store into a folder, which is made.

    repo: its id on the Hub, for the card. In another repository the same person has another hash.
    UserError for a folder without events, and where nobody agreed to publish anything.
    """
    store, target = Store(store_folder), Path(target)
    if not store.path.is_file():
        raise UserError(f"{store.folder}: no {NAME} in it: give the folder of a feedback store")
    every = list(store.events())
    unreadable = len(store.problems)
    # Consent comes first: a count of keys must not tell about the others.
    agreed = [event for event in every if event.consent]
    events = [event for event in agreed if not holds_key(event)]
    if not events:
        raise UserError(nothing_to_share(store, len(every), len(agreed)))
    hashed = hasher(store.secret(SECRET), repo)
    events = [with_other_names(event, hashed) for event in events]
    # From the events under their new names, so that no row can hold an old one.
    rankings, ratings = list(ranking_rows(events)), list(rating_rows(events))
    if not rankings and not ratings:
        raise UserError(
            f"{store.folder}: the events that may be published rank nothing: all their answers are equal"
        )
    target.mkdir(parents=True, exist_ok=True)
    emails = 0
    for name, rows in ((RANKINGS, rankings), (RATINGS, ratings)):
        emails += write_rows(target / name, rows)
    shared = Shared(
        target,
        len(rankings),
        len(ratings),
        events,
        without_consent=len(every) - len(agreed),
        with_keys=len(agreed) - len(events),
        unreadable=unreadable,
        with_email=emails,
    )
    # A row as an example, which was agreed to like all others.
    first = (rankings or ratings)[0]
    text = feedback_card(events, repo=repo, counts=(len(rankings), len(ratings)), first=first)
    (target / CARD).write_text(text, encoding="utf-8")
    return shared


def nothing_to_share(store: Store, total: int, agreed: int) -> str:
    """The reason why nothing of a store can be published, and the remedy."""
    if not total:
        return f"{store.folder}: no event in it: rate, compare or rank some answers first"
    if agreed:
        return f"{store.folder}: all {agreed} events that may be published hold a key or token"
    return (
        f'{store.folder}: none of its {total} events may be published. People agree in the app, with the box "My feedback '
        'may be published" in Rank, Compare or the settings of Chat'
    )


def write_rows(path: Path, rows: list[dict]) -> int:
    """Write rows as JSON lines; a file without rows is removed. Returns how many hold an e-mail address."""
    # Loaders refuse an empty file.
    if not rows:
        path.unlink(missing_ok=True)
        return 0
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return sum(EMAIL.search(line) is not None for line in lines)


# ---- names ------------------------------------------------------------------------------------------------------------


def hasher(secret: str, repo: str) -> Callable[[str, str], str]:
    """A function (kind, name) -> hexadecimal digits, which only the owner of the secret can repeat."""

    # With or without its owner, a repository is the same.
    short = repo.rpartition("/")[2]

    def hashed(kind: str, name: str) -> str:
        message = json.dumps([short, kind, name]).encode()
        return hmac.new(secret.encode(), message, "sha256").hexdigest()

    return hashed


def with_other_names(event: Event, hashed: Callable[[str, str], str]) -> Event:
    """The event as it is published: another id and annotator, the day alone, and no folder of this machine."""
    annotator = hashed("annotator", event.annotator)[:16] if event.annotator else ""
    shown = replace(
        event,
        id=hashed("event", event.id)[:32],
        annotator=annotator,
        time=event.time[:10],
    )
    if isinstance(event, Rating):
        return replace(shown, model=public_model(event.model))
    answers = []
    for answer in event.answers:
        answers.append(replace(answer, model=public_model(answer.model)))
    return replace(shown, answers=answers)


def public_model(model: ModelUsed | None) -> ModelUsed | None:
    """The model without its path, unless it is of the Hub."""
    if model is None or COMMIT.fullmatch(model.revision):
        return model
    # Its label and the sha256 of its weights tell it apart. The path may tell the name of a person.
    return replace(model, path="", name=Path(model.name).name)


def holds_key(event: Event) -> bool:
    """True if a text of the event looks like a key or token."""
    # The texts as they are: in JSON, a line break before a key is a letter.
    return any(KEYS.search(text) for text in texts_of(to_row(event)))


def texts_of(value) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts_of(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)


# ---- rows -------------------------------------------------------------------------------------------------------------


def ranking_rows(events: Iterable[Event]) -> Iterator[dict]:
    """{prompt, completions, ranks} of the events that rank answers, with who, when and by which models."""
    for event in events:
        for row in from_event(to_row(event)):
            # Ratings, and judgements of equal texts.
            if isinstance(row, Dropped):
                continue
            models = models_of(event, row["completions"])
            yield {
                "prompt": plain(row["prompt"]),
                "completions": row["completions"],
                "ranks": row["ranks"],
                "models": [model.name for model in models],
                "revisions": [model.revision for model in models],
                "judgement": event.kind,
            } | who_and_when(event)


def models_of(event: Event, completions: list[str]) -> list[ModelUsed]:
    """The model of each completion. Of equal texts, the first one's; an empty name for what the annotator wrote."""
    by_text: dict[str, ModelUsed] = {}
    for answer in event.answers:
        by_text.setdefault(answer.text, answer.model or ModelUsed("", ""))
    return [by_text[text] for text in completions]


def rating_rows(events: Iterable[Event]) -> Iterator[dict]:
    """{prompt, completion, label} of thumbs, and of the answers of comparisons that were all bad."""
    for event in events:
        if isinstance(event, Rating):
            rated = [(event.completion, event.model, event.value == "up", event.reason)]
        elif isinstance(event, Comparison) and event.verdict == "both bad":
            rated = [(answer.text, answer.model, False, "") for answer in event.answers]
        else:
            continue
        for completion, model, label, reason in rated:
            model = model or ModelUsed("", "")
            yield {
                "prompt": plain(event.messages),
                "completion": completion,
                "label": label,
                "reason": reason,
                "model": model.name,
                "revision": model.revision,
                "judgement": event.kind,
            } | who_and_when(event)


def plain(messages: list[dict]) -> list[dict]:
    """The messages with the two fields that all rows have in common."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def who_and_when(event: Event) -> dict:
    return {"annotator": event.annotator, "day": event.time, "source": event.source, "id": event.id}
