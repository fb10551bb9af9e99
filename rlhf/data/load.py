"""Loads checked rows of one kind from a local file, a folder or the Hub.

Every row is checked before anything is trained, and every bad row is named as `path:line: column: reason`.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from rlhf.data.cache import Stored, Writer, stored
from rlhf.data.conversations import Dropped, join_system, refuse_more_than_text
from rlhf.data.files import READERS, BrokenLine, read_rows, suffix
from rlhf.data.fingerprints import (
    checks_fingerprint,
    code_fingerprint,
    fingerprint,
)
from rlhf.data.folders import read_folder
from rlhf.data.hub import dataset_commit, dataset_id, hub_rows
from rlhf.data.importers import FEEDBACK, FEEDBACK_THUMBS, Layout, conversation_columns
from rlhf.data.judgements import BROKEN
from rlhf.data.labels import LabelTypes
from rlhf.data.ratings import rank_thumbs, split_hh_prompt, thumb_column
from rlhf.data.recognition import (
    AS_THEY_ARE,
    Form,
    Ratings,
    bit_problem,
    nearest_name,
)
from rlhf.data.rows import (
    ANSWERS,
    CONVERSIONS,
    DEMONSTRATIONS,
    KINDS,
    RATED,
    RowKind,
    check_row,
    good_answers,
    normalise,
    number,
    scores_of_pair,
)
from rlhf.data.stored_rows import SCHEMA, SMALL, StoredRows, decode_row, encode_with_digest
from rlhf.digests import file_sha256
from rlhf.errors import UserError

BAD_ROWS_SHOWN = 10  # in one message
CONVERSATION = {"messages", "prompt"}  # a kind has one of them at most
PROBED_ROWS = 100  # decide the kind of a file, so that one bad first row cannot
TIE = "pairs whose two answers have the same score"
NO_GOOD_ANSWER = "answers that are not good (label false)"


def is_local(name: str) -> bool:
    """True if a name means a file or folder here: it exists, or it cannot be the id of a Hub data set."""
    path = Path(name)
    # A Hub id is "name" or "user/name", without an ending that we can read.
    return (
        path.exists()
        or suffix(path) in READERS
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    )


def parse_columns(columns: dict | str | None) -> dict[str, str]:
    """`{our name: their name}` from such a dictionary, or from the flag's form "text=document,label=label"."""
    names = columns or {}
    if isinstance(names, str):
        names = {}
        for pair in columns.split(","):
            if pair.strip():
                our, _, their = pair.partition(
                    "="
                )  # without "=" their name is "", which is refused below
                names[our.strip()] = their.strip()
    if not isinstance(names, dict) or not all(map(_is_name, chain(names, names.values()))):
        raise UserError(
            f"columns: {names!r} is not a map of our name to their name, as in text=document,label=label"
        )
    return names


def _is_name(value) -> bool:
    return isinstance(value, str) and value != ""


class CheckedRows:
    """The good rows of a source, read and checked in one pass when they are iterated.

    name: a file, a folder or a Hub id.
    kinds: the row kinds that the caller accepts.
    checks: further checks of columns: column -> f(value), which returns the reason why it is bad, or None.
    ratings: what becomes of rated answers.

    After the pass these are complete:
    kind: the kind of the rows.
    source_kind: the kind of the file, which may have been converted to `kind`.
    layout: the foreign layout from which they were converted, or None.
    total, bad: rows read, and how many of them were bad.
    problems: `path:line: column: reason` of the bad ones.
    passed: counts of the feedback events that are not rankings, by their name.
    unread: names of the files of a folder that are not part of the split.
    dropped: counts of what holds nothing to learn, by the reason.
    form: how the rows were recognised.
    """

    def __init__(
        self,
        name: str,
        *,
        kinds: Sequence[str],
        columns: dict | str | None = None,
        split: str | None = None,
        config: str | None = None,
        checks: dict[str, Callable] | None = None,
        separator: str | None = None,
        ratings: Ratings = AS_THEY_ARE,
    ):
        self.name = name
        self.kinds = tuple(kinds)
        self.split = split
        self.config = config
        self.checks = checks or {}
        self.separator = separator
        self.streaming = False  # read a Hub data set over the network, and keep nothing of it
        self.columns = parse_columns(columns)
        self.kind = ""
        self.source_kind = ""
        self.layout: Layout | None = None
        self.total = 0
        self.bad = 0
        self.problems: list[str] = []
        self.passed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.unread: list[str] = []
        self.label_types = LabelTypes()
        self.ratings = ratings
        self.form = Form(name, self.kinds, ratings)
        if ratings.good_answers and "prompt_completion" not in self.kinds:
            raise UserError(
                f"good_answers: true is for recipes that learn demonstrations; this one takes {' or '.join(self.kinds)}"
            )

    def __iter__(self) -> Iterator[dict]:
        source = self._source_rows()
        head = []  # the first rows, which are held back until the kind is known
        readable = []
        for location, row in source:
            head.append((location, row))
            if not isinstance(row, BrokenLine):
                readable.append(row)
            if len(readable) == PROBED_ROWS:
                break
        if readable:
            self._recognise(readable)
        rows = chain(head, source)
        if self.layout and self.layout.gather:
            yield from self._gather(rows)
            return
        ours = self._converted(rows)
        if self.kind != "ranking" or not self.form.ranks_thumbs():
            yield from ours
            return
        for row in rank_thumbs(ours):
            if isinstance(row, Dropped):
                self.dropped[row] += 1
            else:
                yield row

    def _converted(self, rows: Iterable) -> Iterator[dict]:
        for location, row in rows:
            yield from self._convert(location, row)

    def _source_rows(self) -> Iterator[tuple[str, dict | BrokenLine]]:
        """Yields (location for messages, row as it is in the source)."""
        if not is_local(self.name):
            return hub_rows(self.name, self.config, self.split, streaming=self.streaming)
        rows = self._local_rows()
        if Path(self.name).is_dir() and "event" not in self.columns.values():
            return self._without_events(rows)
        return rows

    def local_files(self) -> list[Path]:
        """The files that hold the rows, in their order; [] for a data set of the Hub and for a path without files."""
        path = Path(self.name)
        if not is_local(self.name):
            return []
        if path.is_dir():
            folder = read_folder(path, self.split, tuple(READERS))
            self.unread = folder.unread
            return folder.files
        if path.is_file():
            return [path]
        return []

    def _local_rows(self) -> Iterator[tuple[str, dict | BrokenLine]]:
        # The reader says what is wrong with a name that is not a file.
        for path in self.local_files() or [Path(self.name)]:
            for line, row in read_rows(path, self.separator):
                yield f"{path}:{line}", row

    def _without_events(self, rows):
        """A folder may be a feedback store. Its rankings and comparisons are rows, other events are only counted.

        Where thumbs are read, its ratings are rows too.
        """
        events = [None, "ranking", "comparison"]
        if self.form.reads_thumbs():
            events.append("rating")
        for location, row in rows:
            event = None
            if not isinstance(row, BrokenLine):
                event = row.get("event")
            if event in events:
                yield location, row
            else:
                self.passed[str(event)] += 1

    def notes(self) -> list[str]:
        """Sentences about what was passed over, and about columns that are not read. Complete after the pass."""
        notes = []
        for reason, count in self.dropped.most_common():
            notes.append(f"{self.name}: dropped: {count} {reason}")
        if self.unread:
            notes.append(f"{self.name}: files that were not read: {', '.join(self.unread)}")
        if self.form.unread_ratings:
            columns = ", ".join(self.form.unread_ratings)
            notes.append(
                f"{self.name}: every answer is learned; if {columns} says how good it is, drop the bad ones, or rank the "
                "answers of each prompt with rank_by"
            )
        return notes

    # ---- recognising the kind of a source ----

    def _recognise(self, head: list[dict]) -> None:
        """Sets kind, source_kind and layout by a majority of the first rows. UserError where no kind fits."""
        names = list(dict.fromkeys(chain.from_iterable(head)))  # of all columns, in order
        self._check_columns(names)
        rows = [self._rename(row) for row in head]
        self.form.read(rows, names)
        self.layout, self.source_kind = self.form.layout, self.form.source_kind
        self.kind = self.form.kind

    def _check_columns(self, names: list[str]) -> None:
        """UserError where `columns` maps to a name that the source does not have."""
        for our, their in self.columns.items():
            if their in names:
                continue
            hint = nearest_name(their, names)
            if not hint and our in names:
                hint = f"; {our} exists: did you swap the two names?"
            raise UserError(
                f"{self.name}: columns: {our}={their}: there is no column {their!r}; the columns are "
                f"{', '.join(names)}{hint} (columns maps our name to their name)"
            )

    # ---- converting and checking one row ----

    def _rename(self, row: dict) -> dict:
        """The row with our names. A column of theirs that was mapped no longer has its old name."""
        if not self.columns:
            return row
        mapped = set(self.columns.values())
        renamed = {name: value for name, value in row.items() if name not in mapped}
        for our, their in self.columns.items():
            if their in row:
                renamed[our] = row[their]
        return renamed

    def _convert(self, location: str, row: dict | BrokenLine) -> Iterator[dict]:
        """Our rows of one row of the source: several for some layouts, none where it is bad."""
        if isinstance(row, BrokenLine):
            if self.layout in (FEEDBACK, FEEDBACK_THUMBS):
                # A crash may cut off the line that is being written, and people cannot repeat their judgements.
                self.dropped[BROKEN] += 1
            else:
                self._reject(location, [row])
            return
        rows = [self._rename(row)]
        reason = self._unexpected_rating(rows[0])
        if reason:
            self._reject(location, [reason])
            return
        if self.layout:
            try:
                # An importer names the column in its message, as our own checks do.
                rows = self.layout.read(rows[0])
            except UserError as error:
                self._reject(location, [str(error)])
                return
        for ours in rows:
            yield from self._accept(location, ours)

    def _gather(self, source: Iterable) -> Iterator[dict]:
        """Our rows of a source where several rows make one of ours. It is read whole."""
        readable = []
        for location, row in source:
            try:
                if isinstance(row, BrokenLine):
                    raise UserError(row)
                row = self._rename(row)
                self.layout.check(row)
                readable.append((location, row))
            except UserError as error:
                self._reject(location, [str(error)])
        for location, row in self.layout.gather(readable, self.ratings.rank_by):
            if isinstance(row, UserError):
                self._reject(location, [str(row)])
            else:
                yield from self._accept(location, row)

    def _accept(self, location: str, row: dict | Dropped) -> Iterator[dict]:
        """A row of ours, checked and converted to `kind`. None where it is bad, or where nothing is learned from it."""
        if isinstance(row, Dropped):
            self.dropped[row] += 1
            return
        row = normalise(row)
        kind = KINDS[self._expected_kind(row)]
        try:
            for column in CONVERSATION.intersection(kind.columns):
                row = split_hh_prompt(row)
                # Tools, pictures and system messages are in columns of their own.
                if len(row) > len(kind.columns):
                    refuse_more_than_text(row)
                    row = join_system(row, column)
        except UserError as error:
            self._reject(location, [str(error)])
            return
        problems = self._check(row, kind) or self._check_label_type(row, kind, location)
        if problems:
            if "question" in kind.columns and row.get("id") is not None:
                # A whole SQuAD file is often one long line.
                location = f"{location}: question {row['id']}"
            self._reject(location, problems)
            return
        self.total += 1
        if self.source_kind == "preference" and self._is_tie(row):
            self.dropped[TIE] += 1
        elif self.source_kind in RATED and self.kind == "prompt_completion":
            answers = good_answers(row)
            if not answers:
                self.dropped[NO_GOOD_ANSWER] += 1
            yield from answers
        else:
            convert = CONVERSIONS.get((self.source_kind, self.kind), dict)
            yield convert(row)

    def _is_tie(self, row: dict) -> bool:
        """True for a pair of answers with equal scores, where answers matter."""
        chosen, rejected = scores_of_pair(row)
        return chosen == rejected and self.kind != "prompt"

    def _unexpected_rating(self, row: dict) -> str | None:
        """Why a row may not be learned like the first rows of its file, which have no ratings."""
        if self.source_kind not in DEMONSTRATIONS:
            return None
        # Only other columns could rate it.
        if row.keys() <= set(KINDS[self.source_kind].columns):
            return None
        column = thumb_column(row)
        if column:
            return f"{column}: {row[column]!r:.60} rates the answer, but the first rows have no such rating"
        for column, first in self.form.only_values.items():
            # A file that is sorted by its thumbs has only one of them in the first rows.
            if {number(row.get(column)), first} == {0, 1}:
                return bit_problem(column)
        if row.get("chosen") is not None and row.get("rejected") is not None:
            return "chosen and rejected rate the answers, but the first rows have no such rating"
        conversations = conversation_columns(row)
        if len(conversations) > 1:
            return (
                f"{' and '.join(conversations)} could each be what is learned, but the first rows have one of them: remove "
                "the other"
            )
        return None

    def _expected_kind(self, row: dict) -> str:
        """The kind of the source, or for a row without its answer the kind from which it is predicted."""
        answer = ANSWERS.get(self.source_kind)
        if answer and row.get(answer) is None:
            return self.kind
        return self.source_kind

    def _check(self, row: dict, kind: RowKind) -> list[str]:
        """`column: reason` of each problem of a normalised row."""
        problems = check_row(row, kind)
        if not problems and self.checks:
            # The caller's checks may rely on a well-formed row.
            checked = [column for column in kind.columns if column in self.checks]
            reasons = [(column, self.checks[column](row[column])) for column in checked]
            problems = [(column, reason) for column, reason in reasons if reason]
        return [f"{column}: {reason}" for column, reason in problems]

    def _check_label_type(self, row: dict, kind: RowKind, location: str) -> list[str]:
        """The reason why the label of a good row is of another type than those before it."""
        if "label" not in kind.columns or kind.name in RATED:
            return []
        reason = self.label_types.problem(row["label"], location)
        return [f"label: {reason}"] if reason else []

    def _reject(self, location: str, reasons: list[str]) -> None:
        self.total += 1
        self.bad += 1
        # One row may have several problems, so `bad` is not len(problems).
        self.problems += [f"{location}: {reason}" for reason in reasons]


# ---- all rows of a source at once -----------------------------------------------------------------------------------


@dataclass
class Loaded:
    """The rows of a source.

    kind: the kind of all rows.
    name: the file, folder or Hub id.
    sha256: of the content of all rows.
    counts: total, kept, bad, duplicates; dropped, where something that holds nothing to learn was dropped.
    layout: the foreign layout from which the rows were converted, or "".
    source_kind: the kind of the source, which may have been converted to `kind`.
    revision: the commit of a Hub data set, "" where it is not known; None for files here.
    """

    rows: Sequence[dict]
    kind: str
    name: str
    sha256: str
    counts: dict[str, int]
    layout: str = ""
    warnings: list[str] = field(default_factory=list)
    source_kind: str = ""
    revision: str | None = None

    @property
    def sources(self) -> list[dict]:
        """The entry of a run's record about these rows, with counts of those that were dropped, if any were."""
        entry = {"name": self.name, "rows": len(self.rows), "sha256": self.sha256}
        # By this key a record tells a data set of the Hub from a file.
        if self.revision is not None:
            entry["revision"] = self.revision
        for count in ("bad", "dropped"):
            if self.counts.get(count):
                entry[count] = self.counts[count]
        return [entry]


def load_rows(
    name: str,
    *,
    kinds: Sequence[str],
    columns: dict | str | None = None,
    split: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    separator: str | None = None,
    ratings: Ratings = AS_THEY_ARE,
) -> Loaded:
    """All rows of a file, a folder or a Hub data set as one of `kinds`, see collect_rows.

    separator: the line between two texts of a .txt file, see files.read_rows.
    ratings: what becomes of rated answers.
    """
    checked = CheckedRows(
        name, kinds=kinds, columns=columns, split=split, separator=separator, ratings=ratings
    )
    return collect_rows(checked, limit=limit, skip_bad=skip_bad)


def collect_rows(checked: CheckedRows, *, limit: int | None, skip_bad: bool) -> Loaded:
    """The first `limit` rows, or all with None. Duplicates are kept and counted.

    One UserError names the bad rows, unless skip_bad drops them. The second time the rows come from the cache.
    """
    if limit is not None and limit < 1:
        raise UserError(
            f"dataset_limit={limit} must be at least 1; without the key all rows are used"
        )
    checked.streaming = limit is not None  # the other rows need not be downloaded
    collected = _Collected(checked, limit, skip_bad)
    key = cache_key(checked, limit, skip_bad)
    content = stored(key, SCHEMA, collected.fill, f"reading {checked.name}")
    return collected.loaded(content)


class _Collected:
    """The rows of a source on their way into a file. Those of a small source stay in memory, too."""

    def __init__(self, checked: CheckedRows, limit: int | None, skip_bad: bool):
        self.checked = checked
        self.limit = limit
        self.skip_bad = skip_bad
        self.decoded: list[dict] | None = []
        self.others: dict[int, dict] = {}  # rows that JSON does not hold, by their index
        self.filled = False
        self.changes = file_changes(checked)

    def fill(self, writer: Writer) -> dict:
        """Writes the good rows, and returns the note about them. UserError for bad ones."""
        checked = self.checked
        content = hashlib.sha256()
        # Eight bytes tell rows apart well enough to count those that repeat, and all of them fit in memory.
        digests = array("Q")
        size = 0
        # The pass ends at the limit: bad rows behind it are not noticed.
        for row in islice(checked, self.limit):
            data, digest = encode_with_digest(row)
            content.update(digest.encode())
            digests.append(int(digest[:16], 16))
            if data is None:
                self.others[writer.rows] = row
                data = b"null"
            size += len(data)
            writer.add((data,), size=len(data))
            if size > SMALL:
                self.decoded = None
            if self.decoded is not None:
                self.decoded.append(row)
        if not writer.rows or (checked.bad and not self.skip_bad):
            raise UserError(bad_rows_message(checked))
        self.filled = True
        counts = {
            "total": checked.total,
            "kept": writer.rows,
            "bad": checked.bad,
            "duplicates": repeats(digests),
        }
        if checked.dropped:
            counts["dropped"] = checked.dropped.total()
        states = {}
        for column, check in checked.checks.items():
            if hasattr(check, "state"):
                states[column] = check.state()
        return {
            "kind": checked.kind,
            "source_kind": checked.source_kind,
            "sha256": content.hexdigest(),
            "counts": counts,
            "layout": checked.layout.name if checked.layout else "",
            "warnings": _warnings(checked, counts, self.limit),
            "checks": states,
            "bytes": size,
            # What changed while it was read is not what the key names.
            "keep": not self.others and self.changes == file_changes(checked),
        }

    def loaded(self, content: Stored) -> Loaded:
        """The rows of a file, and what was noted about them."""
        note = content.note
        for column, state in note["checks"].items():
            self.checked.checks[column].restore(state)
        column = content.table.column("row")
        if not self.filled and note["bytes"] <= SMALL:
            self.decoded = [decode_row(data) for data in column.to_pylist()]
        elif not self.filled:
            self.decoded = None
        identity = note["sha256"]
        if self.others:
            identity = None
        rows = StoredRows(column, identity, decoded=self.decoded, others=self.others)
        name, revision = self.checked.name, None
        if not is_local(name):
            name, revision = dataset_id(name), dataset_commit(name)
        return Loaded(
            rows,
            note["kind"],
            name,
            note["sha256"],
            note["counts"],
            note["layout"],
            note["warnings"],
            note["source_kind"],
            revision,
        )


def repeats(numbers: array) -> int:
    """Count the numbers that are equal to an earlier one."""
    return len(numbers) - len(np.unique(np.array(numbers)))


def file_changes(checked: CheckedRows) -> list[tuple[int, ...] | None]:
    """Numbers of each file of a source that differ after it was written to or replaced; None for one that is gone."""
    changes = []
    for path in checked.local_files():
        try:
            status = path.stat()
        except OSError:
            changes.append(None)
            continue
        # A copy may keep the size and the time of the last change.
        changes.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return changes


def cache_key(checked: CheckedRows, limit: int | None, skip_bad: bool) -> str | None:
    """A name for the rows of a source, from all that decides them; None where that cannot be told."""
    files = checked.local_files()
    checks = checks_fingerprint(checked.checks)
    if not files or checks is None:
        return None
    contents = []
    for path in files:
        try:
            contents.append((str(path), file_sha256(path)))
        except OSError:  # reading it says what is wrong
            return None
    settings = {
        "name": checked.name,
        "unread": checked.unread,
        "kinds": checked.kinds,
        "columns": list(checked.columns.items()),
        "separator": checked.separator,
        "ratings": asdict(checked.ratings),
        "limit": limit,
        "skip_bad": skip_bad,
    }
    return "rows-" + fingerprint(settings, contents, checks, code_fingerprint())


def _warnings(checked: CheckedRows, counts: dict[str, int], limit: int | None) -> list[str]:
    """Sentences about the rows that were dropped, repeated or passed over."""
    warnings = []
    if limit is not None and counts["kept"] == limit:
        warnings.append(
            f"{checked.name}: dataset_limit: the first {limit} rows are used, and nothing after them is read"
        )
    if checked.bad:
        warnings.append(
            f"{checked.name}: {checked.bad} of {checked.total} rows are bad and were dropped; "
            f"first: {checked.problems[0]}"
        )
    if counts["duplicates"]:
        repeats = f"{counts['duplicates']} of {counts['kept']} rows"
        warnings.append(f"{checked.name}: {repeats} repeat an earlier one and are kept")
    if checked.passed:
        events = [f"{event} {count}" for event, count in checked.passed.most_common()]
        warnings.append(f"{checked.name}: feedback events passed over: {', '.join(events)}")
    warnings += checked.notes()
    return warnings


def bad_rows_message(checked: CheckedRows) -> str:
    """The message about a finished pass that met bad rows, or no rows at all."""
    if not checked.bad:
        events = ""
        if checked.passed:
            judgement = "thumb" if checked.form.reads_thumbs() else "ranking"
            events = (
                f" ({checked.passed.total()} feedback events, none of them a {judgement}; if event means something else, "
                "rename it, as in columns: {topic: event})"
            )
        for reason, count in checked.dropped.most_common():
            events += f" ({count} {reason})"
        kinds = " or ".join(checked.kinds)
        return f"{checked.name}: no rows{events}: give at least one {kinds} row"
    lines = [f"{checked.name}: {checked.bad} of {checked.total} rows are bad:"]
    lines += checked.problems[:BAD_ROWS_SHOWN]
    more = len(checked.problems) - BAD_ROWS_SHOWN
    if more > 0:
        lines.append(f"... and {more} more; `python -m rlhf validate {checked.name}` lists all")
    lines.append("fix them, or drop them with skip_bad: true")
    return "\n  ".join(lines)
