"""A queue of prompts in the feedback folder, through which several people rank at once.

Every prompt is ranked by one person, and a share of them by several, so that agreement can be measured. These see the same
answers, which are kept from the first of them. A prompt that somebody has on the screen is not given to others who are not
needed for it, until 20 minutes have passed.

Files in FOLDER/.queue: prompts.jsonl, skipped.jsonl and answers.jsonl are only appended to, settings.json is replaced. Who
ranked what is read from the events. The leases are in memory: after a restart a prompt may be given to two people.
"""

import hashlib
import json
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from rlhf.data.chat import as_messages
from rlhf.data.rows import CHECKS
from rlhf.errors import UserError
from rlhf.feedback.events import Ranking
from rlhf.feedback.store import (
    Cursor,
    Replaced,
    Store,
    append_line,
    append_lines,
    make_folder,
    parse,
    read_lines,
)

LEASE_SECONDS = 20 * 60
MAX_FILE = 1 << 20  # bytes of a file of prompts
MAX_PROMPTS = 20_000  # in the queue
MAX_CHARACTERS = 32_000  # of a prompt


@dataclass(frozen=True)
class Item:
    """A prompt of the queue. id: of its text, so that the same prompt is there once."""

    id: str
    messages: list[dict]


@dataclass(frozen=True)
class Progress:
    """prompts: in the queue. done: ranked by everybody they need. mine, skipped: of the annotator who asks."""

    prompts: int
    done: int
    mine: int
    skipped: int


@dataclass(frozen=True)
class Overlap:
    """share: of the prompts that several people rank. people: how many."""

    share: float = 0.2
    people: int = 2

    def __post_init__(self):
        if not _is_number(self.share) or not 0 <= self.share <= 1:
            raise UserError(f"overlap={self.share!r}: give a share from 0 to 1, as in 0.2")
        if type(self.people) is not int or not 2 <= self.people <= 20:
            raise UserError(f"people={self.people!r}: give a whole number from 2 to 20")

    def needs(self, item: str) -> int:
        """The number of people who rank an item. It does not change while the share stays."""
        # A uniform number from 0 to 1 that belongs to the item.
        position = int(hashlib.sha256(item.encode()).hexdigest()[:8], 16) / 2**32
        if position < self.share:
            return self.people
        return 1


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Queue:
    """The prompts of a store's folder, and who is to rank which of them next."""

    def __init__(self, store: Store):
        self.store = store
        self.folder = store.folder / ".queue"
        # The app calls from several threads.
        self._lock = threading.RLock()
        self._leases: dict[tuple[str, str], float] = {}  # (item, annotator) -> until
        self._forget()

    def _forget(self) -> None:
        self._items: dict[str, Item] = {}
        self._answers: dict[str, dict] = {}  # item -> what `keep_answers` kept
        self._ranked_first: dict[str, Ranking] = {}  # by item
        self._skipped: dict[str, set[str]] = defaultdict(set)  # annotator -> items
        self._ranked: dict[str, set[str]] = defaultdict(set)  # item -> annotators
        self._cursors: dict[str, Cursor] = defaultdict(Cursor)
        self.problems: list[str] = []

    # ---- filling ----------------------------------------------------------------------------------------------------

    def add(self, prompts: list[list[dict]]) -> int:
        """Add prompts (lists of messages) and return how many were new."""
        with self._lock:
            self._read()
            # A file may be added twice.
            new = {item_id(messages): messages for messages in prompts}
            new = {item: messages for item, messages in new.items() if item not in self._items}
            if len(self._items) + len(new) > MAX_PROMPTS:
                raise UserError(
                    f"{len(self._items)} + {len(new)} prompts: the queue holds {MAX_PROMPTS}; use another folder"
                )
            # One write and one sync: with one for each prompt, thousands take minutes.
            rows = [{"item": item, "messages": messages} for item, messages in new.items()]
            append_lines(self.folder / "prompts.jsonl", rows)
            for item, messages in new.items():
                self._items[item] = Item(item, messages)
            return len(new)

    def set_overlap(self, overlap: Overlap) -> None:
        """Set how many prompts several people rank. It holds for the prompts that were ranked before, too."""
        make_folder(self.folder)
        path = self.folder / "settings.json"
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            temporary.write_text(json.dumps({"share": overlap.share, "people": overlap.people}))
            # A reader sees the old settings or the new ones, never half of them.
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"{path}: not saved ({error.strerror}): check the folder") from error
        finally:
            # Half written on a full disk.
            temporary.unlink(missing_ok=True)

    @property
    def overlap(self) -> Overlap:
        path = self.folder / "settings.json"
        if not path.exists():
            return Overlap()
        try:
            return Overlap(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: {error}: remove it for the defaults") from error

    # ---- working through --------------------------------------------------------------------------------------------

    def next(self, annotator: str) -> Item | None:
        """The next prompt for somebody, which is theirs for 20 minutes; None if there is none.

        Prompts that others have ranked and that need more people come first, so that overlap is not left for the end.
        """
        with self._lock:
            self._read()
            overlap, now = self.overlap, time.monotonic()
            self._leases = {key: until for key, until in self._leases.items() if until > now}
            # Collected once, and not for each of thousands of prompts.
            holders = defaultdict(set)
            for leased, who in self._leases:
                holders[leased].add(who)
            best, best_people = None, -1
            for item in self._items.values():
                done = self._ranked[item.id]
                # Nobody ranks a prompt twice, nor one that they skipped.
                if annotator in done or item.id in self._skipped[annotator]:
                    continue
                open_for = holders.get(item.id, set())
                if annotator in open_for:
                    best = item  # a reload of the page shows the same prompt
                    break
                if len(done | open_for) < overlap.needs(item.id) and len(done) > best_people:
                    best, best_people = item, len(done)
            if best is not None:
                self._leases[best.id, annotator] = now + LEASE_SECONDS
            return best

    def skip(self, item: str, annotator: str) -> None:
        """Do not give a prompt to somebody again. Others still get it."""
        with self._lock:
            self._read()
            self.item(item)
            append_line(self.folder / "skipped.jsonl", {"item": item, "annotator": annotator})
            self._skipped[annotator].add(item)
            # Others need not wait for the end of the lease.
            self._leases.pop((item, annotator), None)

    def open_for(self, annotator: str) -> str | None:
        """The item that somebody was given and has not ranked yet."""
        with self._lock:
            now = time.monotonic()
            for (item, who), until in self._leases.items():
                if who == annotator and until > now:
                    return item
            return None

    def release(self, item: str, annotator: str) -> None:
        """End a lease: the prompt was ranked."""
        with self._lock:
            self._leases.pop((item, annotator), None)

    def item(self, item: str) -> Item:
        with self._lock:
            self._read()
            if item not in self._items:
                raise UserError(f"no prompt {item!r:.80} in the queue: ask for the next one")
            return self._items[item]

    def answers(self, item: str) -> dict | None:
        """The answers that somebody has ranked, or that `keep_answers` kept for a prompt, or None.

        A dict of settings and drafts, each {model, seed, text}.
        """
        with self._lock:
            self._read()
            return self._kept(item)

    def _kept(self, item: str) -> dict | None:
        if item in self._answers:
            return self._answers[item]
        # One person was enough when it was ranked, and more are needed now.
        event = self._ranked_first.get(item)
        # Nobody has ranked it.
        if event is None:
            return None
        drafts = []
        for answer in event.answers:
            # The annotator's own answer was shown to nobody.
            if answer.model is not None:
                drafts.append(
                    {"model": answer.model.name, "seed": answer.seed, "text": answer.text}
                )
        return {"drafts": drafts, "settings": event.settings}

    def keep_answers(self, item: str, content: dict) -> dict:
        """Keep the answers of a prompt for its other annotators; returns those that were kept first."""
        with self._lock:
            self._read()
            kept = self._kept(item)
            if kept is None:
                append_line(self.folder / "answers.jsonl", {"item": item, "content": content})
                # Another process may have been first, and then its answers count.
                self._read()
                kept = self._answers[item]
            return kept

    def needs(self, item: str) -> int:
        return self.overlap.needs(item)

    def progress(self, annotator: str) -> Progress:
        with self._lock:
            self._read()
            overlap = self.overlap
            done = mine = 0
            for item in self._items:
                done += len(self._ranked[item]) >= overlap.needs(item)
                mine += annotator in self._ranked[item]
            return Progress(len(self._items), done, mine, len(self._skipped[annotator]))

    # ---- reading what was appended since the last time, by other processes too -----------------------------------------

    def _read(self) -> None:
        try:
            self._read_on()
        # Another process may have emptied it too.
        except Replaced:  # the folder was emptied or replaced while the app ran
            self._forget()
            self._read_on()

    def _read_on(self) -> None:
        for name, take in (
            ("prompts.jsonl", self._take_prompt),
            ("skipped.jsonl", self._take_skip),
            ("answers.jsonl", self._take_answers),
        ):
            path = self.folder / name
            lines, self._cursors[name] = read_lines(path, self._cursors[name])
            for number, data in lines:
                try:
                    take(parse(data))
                except (UserError, KeyError, TypeError) as error:
                    self.problems.append(f"{path}:{number}: {error}")
        events, self._cursors["events"] = self.store.read_from(self._cursors["events"], [])
        for event in events:
            # Rankings of typed prompts are of no item.
            if isinstance(event, Ranking) and event.item:
                self._ranked_first.setdefault(event.item, event)
                self._ranked[event.item].add(event.annotator)

    def _take_prompt(self, row: dict) -> None:
        item = _text(row, "item")
        self._items.setdefault(item, Item(item, _messages(row["messages"])))

    def _take_skip(self, row: dict) -> None:
        self._skipped[_text(row, "annotator")].add(_text(row, "item"))

    def _take_answers(self, row: dict) -> None:
        item, content = _text(row, "item"), row["content"]
        if not isinstance(content["settings"], dict) or len(content["drafts"]) < 2:
            raise UserError("content: settings and at least two drafts are expected")
        for draft in content["drafts"]:
            _text(draft, "model"), _text(draft, "text")
            if set(draft) != {"model", "seed", "text"}:
                raise UserError("content: a draft has a model, a seed and a text")
        self._answers.setdefault(item, content)


def _text(row: dict, name: str) -> str:
    if not isinstance(row[name], str):
        raise UserError(f"{name}: a text is expected, {row[name]!r:.60} given")
    return row[name]


def item_id(messages: list[dict]) -> str:
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- a file of prompts ------------------------------------------------------------------------------------------------


def read_prompts(data: bytes, name: str) -> list[list[dict]]:
    """The prompts of a .txt file (one per line) or .jsonl file ({prompt} or {messages}), as lists of messages.

    UserError names the first bad line.
    """
    if len(data) > MAX_FILE:
        raise UserError(
            f"{name}: {len(data)} bytes: a file of prompts has at most {MAX_FILE}: split it"
        )
    try:
        # Editors on Windows write a byte order mark.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {error.start} is not UTF-8: save the file as UTF-8"
        ) from error
    is_json = name.lower().endswith(".jsonl")
    if not is_json and not name.lower().endswith(".txt"):
        raise UserError(f"{name}: give a .txt file with one prompt per line, or a .jsonl file")
    prompts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(line.strip(), is_json))
        except UserError as error:
            raise UserError(f"{name}:{number}: {error}") from error
    if not prompts:
        raise UserError(f"{name}: no prompts: give at least one")
    return prompts


def _prompt(line: str, is_json: bool) -> list[dict]:
    prompt = line
    if is_json:
        row = parse(line.encode())
        if not isinstance(row, dict):
            raise UserError("an object with a prompt is expected")
        prompt = row.get("prompt", row.get("messages"))
    return _messages(prompt)


def _messages(prompt) -> list[dict]:
    """The messages of a prompt. UserError for what nobody could answer."""
    reason = "missing" if prompt is None else CHECKS["prompt"](prompt)
    if reason:
        raise UserError(f"prompt: {reason}")
    # Only these two: other keys of a turn are not shown.
    messages = [{name: turn[name] for name in ("role", "content")} for turn in as_messages(prompt)]
    if messages[-1]["role"] != "user":
        raise UserError("prompt: the last message must be the user's")
    size = sum(len(message["content"]) for message in messages)
    if size > MAX_CHARACTERS:
        raise UserError(f"prompt: {size} characters, at most {MAX_CHARACTERS} are allowed")
    return messages
