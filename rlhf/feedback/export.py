"""Training rows and a table from the events of a feedback store. Events are read, never changed.

rankings        {prompt, completions, ranks}: rankings and comparisons, as `rlhf reward` reads them from the store
pairs           {prompt, chosen, rejected}: each ordered pair of a ranking or comparison, as DPO reads it
labels          {prompt, completion, label}: thumbs, and answers that were all bad, as KTO reads it
demonstrations  {messages}: each prompt with its best answer: thumbs up, winners, and answers that a person wrote
table           CSV, one line per answer
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from rlhf.data.conversations import Dropped
from rlhf.data.judgements import from_event
from rlhf.data.splits import split_rows
from rlhf.feedback.events import Comparison, Event, Rating, to_row

# A spreadsheet takes a cell that begins with one of these for a formula. The last four are full-width forms of the first.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
TABLE_COLUMNS = (
    "time id kind annotator source prompt answer model path revision seed score position rank verdict reason settings"
).split()


def rankings(events: Iterable[Event]) -> Iterator[dict]:
    """Rows for the reward model, without judgements of equal texts."""
    for event in events:
        for row in from_event(to_row(event)):
            # Ratings, and judgements of equal texts.
            if not isinstance(row, Dropped):
                yield {name: row[name] for name in ("prompt", "completions", "ranks")}


def pairs(events: Iterable[Event]) -> Iterator[dict]:
    """Each pair of answers of which one is better. Ties make no row."""
    for row in rankings(events):
        ranked = list(zip(row["completions"], row["ranks"], strict=True))
        for chosen, best in ranked:
            for rejected, rank in ranked:
                # Rank 0 is the best.
                if best < rank:
                    yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def labels(events: Iterable[Event]) -> Iterator[dict]:
    """Thumbs as true or false; answers of a comparison that were all bad as false."""
    for event in events:
        if isinstance(event, Rating):
            label = event.value == "up"
            yield {"prompt": event.messages, "completion": event.completion, "label": label}
        elif isinstance(event, Comparison) and event.verdict == "both bad":
            for answer in event.answers:
                yield {"prompt": event.messages, "completion": answer.text, "label": False}


def demonstrations(events: Iterable[Event]) -> Iterator[dict]:
    """Conversations that end with an answer somebody preferred. Where all answers tie, none of them was."""
    for event in events:
        best = []
        if isinstance(event, Rating):
            if event.value == "up":
                best = [event.completion]
        # All in one tier: nobody said that they are good.
        elif len(set(event.ranks)) > 1:
            ranked = zip(event.answers, event.ranks, strict=True)
            best = [answer.text for answer, rank in ranked if rank == min(event.ranks)]
        for text in dict.fromkeys(best):
            yield {"messages": [*event.messages, {"role": "assistant", "content": text}]}


EXPORTS: dict[str, tuple[Callable, str]] = {
    "rankings": (rankings, "ranking"),
    "pairs": (pairs, "preference"),
    "labels": (labels, "unpaired_preference"),
    "demonstrations": (demonstrations, "messages"),
}


def jsonl(rows: Iterable[dict]) -> str:
    """Rows as JSON lines, which `rlhf validate` and the recipes read."""
    return "".join(json_lines(rows))


def json_lines(rows: Iterable[dict]) -> Iterator[str]:
    """The lines of `jsonl`, one by one."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def split(rows: Sequence[dict], kind: str, fraction: float, seed: int = 0) -> tuple[list, list]:
    """(train, held-out) rows. All rows of a prompt are on one side, and stay there when events are added."""
    train, held_out = split_rows(rows, fraction, seed, kind)
    return list(train), list(held_out)


# ---- the table ----------------------------------------------------------------------------------------------------------


def table(events: Iterable[Event]) -> str:
    """All events as CSV with a header. No cell can become a formula of a spreadsheet."""
    return "".join(table_lines(events))


def table_lines(events: Iterable[Event]) -> Iterator[str]:
    """The header of the table, then its rows, one by one. A cell may have line breaks."""
    yield _csv_row(TABLE_COLUMNS)
    for event in events:
        for line in _lines(event):
            yield _csv_row([cell(line.get(column)) for column in TABLE_COLUMNS])


def _csv_row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    # Quotes around every cell keep line breaks and separators inside.
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow(cells)
    return text.getvalue()


def cell(value) -> str:
    """A value as the text of a cell; a text that a spreadsheet would run gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        return str(value)  # -1.5 is a number
    text = str(value).replace("\0", "")
    if text.lstrip(" ").startswith(FORMULA_STARTS):
        return "'" + text
    return text


def _lines(event: Event) -> Iterator[dict]:
    common = {name: getattr(event, name) for name in ("time", "id", "kind", "annotator", "source")}
    turns = [f"{message['role']}: {message['content']}" for message in event.messages]
    common["prompt"] = "\n".join(turns)
    # A single question needs no speaker.
    if len(turns) == 1:
        common["prompt"] = event.messages[0]["content"]
    common["settings"] = json.dumps(event.settings, ensure_ascii=False)
    if isinstance(event, Rating):
        rated = {"answer": event.completion, "seed": event.seed, "verdict": event.value}
        yield common | rated | {"reason": event.reason} | _model(event.model)
        return
    verdict = event.verdict if isinstance(event, Comparison) else None
    for i, answer in enumerate(event.answers):
        line = {"answer": answer.text, "seed": answer.seed, "score": answer.score}
        line |= {"position": event.shown.index(i), "rank": event.ranks[i], "verdict": verdict}
        yield common | line | _model(answer.model)


def _model(model) -> dict:
    if model is None:
        return {"model": "(written by the annotator)"}
    return {"model": model.name, "path": model.path, "revision": model.revision}
