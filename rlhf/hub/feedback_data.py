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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.data.conversations import Dropped
from rlhf.data.judgements import from_event
from rlhf.errors import UserError
from rlhf.feedback.events import Comparison, Event, ModelUsed, Rating, to_row
from rlhf.feedback.store import NAME, Store
from rlhf.hub.feedback_card import CardTally, feedback_card
from rlhf.runs.known_secrets import has_secret

RANKINGS, RATINGS, CARD = "train.jsonl", "ratings.jsonl", "README.md"
SECRET = ".salt.share"  # in the store, never in what is published
COMMIT = re.compile(r"[0-9a-f]{40}")  # of a model of the Hub; weights on the disk have a sha256
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


@dataclass(frozen=True)
class Shared:
    """A folder that is ready to be pushed, with its numbers.

    rankings, ratings: rows of the two files. events: the number of those that were taken.
    without_consent, with_keys, unreadable: events that were left behind, by the reason.
    with_email: rows that hold what looks like an e-mail address. They are taken, so somebody should look at them.
    """

    folder: Path
    rankings: int
    ratings: int
    events: int
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
    rankings, ratings = RowFile(target / RANKINGS), RowFile(target / RATINGS)
    with rankings, ratings:
        tally, total, agreed = write_events(store, repo, rankings, ratings)
    if not tally.events:
        raise UserError(nothing_to_share(store, total, agreed))
    if not rankings.rows and not ratings.rows:
        raise UserError(
            f"{store.folder}: the events that may be published rank nothing: all their answers are equal"
        )
    shared = Shared(
        target,
        rankings.rows,
        ratings.rows,
        tally.events,
        without_consent=total - agreed,
        with_keys=agreed - tally.events,
        unreadable=len(store.problems),
        with_email=rankings.with_email + ratings.with_email,
    )
    # A row as an example, which was agreed to like all others.
    first = rankings.first or ratings.first
    text = feedback_card(tally, repo=repo, counts=(rankings.rows, ratings.rows), first=first)
    (target / CARD).write_text(text, encoding="utf-8")
    return shared


def write_events(
    store: Store, repo: str, rankings: "RowFile", ratings: "RowFile"
) -> tuple[CardTally, int, int]:
    """Write the rows of all events that may be published, of which one at a time is in memory.

    Returns what the card needs, the number of all events, and of those that people agreed to publish.
    """
    tally, hashed = CardTally(), None
    total = agreed = 0
    for event in store.events():
        total += 1
        # Consent comes first: a count of keys must not tell about the others.
        if not event.consent:
            continue
        agreed += 1
        if holds_key(event):
            continue
        # The secret is made with the first event that needs it.
        hashed = hashed or hasher(store.secret(SECRET), repo)
        event = with_other_names(event, hashed)
        # From the event under its new names, so that no row can hold an old one.
        for row in ranking_rows(event):
            rankings.add(row)
        for row in rating_rows(event):
            ratings.add(row)
        tally.add(event)
    return tally, total, agreed


def nothing_to_share(store: Store, total: int, agreed: int) -> str:
    """The reason why nothing of a store can be published, and the remedy."""
    if not total:
        return f"{store.folder}: no event in it: rate, compare or rank some answers first"
    if agreed:
        return f"{store.folder}: all {agreed} events that may be published hold a key or token"
    return (
        f'{store.folder}: none of its {total} events may be published. People agree in the app, with the box "My feedback '
        'may be published" in Rank, Compare or the settings of Chat. What was published before stays on the Hub until its '
        "repository is deleted there"
    )


class RowFile:
    """A file of JSON lines, which is made with the first of them: loaders refuse an empty file.

    rows, with_email: numbers of rows, and of those that hold an e-mail address. first: the first row.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = self.with_email = 0
        self.first: dict = {}
        self._file = None

    def __enter__(self) -> "RowFile":
        # Of an earlier data set.
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, row: dict) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115  closed by __exit__
            self.first = row
        line = json.dumps(row, ensure_ascii=False)
        self._file.write(f"{line}\n")
        self.rows += 1
        # To look for a character is much faster than for the pattern.
        self.with_email += "@" in line and EMAIL.search(line) is not None


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
    # The texts as they are, and all in one, which is faster.
    return has_secret("\n".join(texts_of(to_row(event))))


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


def ranking_rows(event: Event) -> Iterator[dict]:
    """{prompt, completions, ranks} of an event that ranks answers, with who, when and by which models."""
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


def rating_rows(event: Event) -> Iterator[dict]:
    """{prompt, completion, label} of a thumb, or of the answers of a comparison that were all bad."""
    rated = []
    if isinstance(event, Rating):
        rated = [(event.completion, event.model, event.value == "up", event.reason)]
    elif isinstance(event, Comparison) and event.verdict == "both bad":
        rated = [(answer.text, answer.model, False, "") for answer in event.answers]
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
