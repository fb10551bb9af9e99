"""Loads checked rows of one kind from a local file, a folder or the Hub.

Every row is checked before anything is trained, and every bad row is named as `path:line: column: reason`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path

from rlhf.data.conversations import Dropped
from rlhf.data.files import READERS, BrokenLine, read_rows, suffix
from rlhf.data.folders import read_folder
from rlhf.data.importers import SCORED, Layout, conversation_columns, recognise_layout
from rlhf.data.labels import LabelTypes
from rlhf.data.ratings import answer_column, rank_thumbs, score_columns, thumb_column
from rlhf.data.rows import (
    ANSWERS,
    CONVERSIONS,
    DEMONSTRATIONS,
    KINDS,
    RATED,
    RowKind,
    check_row,
    good_answers,
    needs_rating,
    normalise,
    recognise,
    scores_of_pair,
    serves,
    thumb,
)
from rlhf.errors import UserError

BAD_ROWS_SHOWN = 10  # in one message
TIE = "pairs whose two answers have the same score"
NO_GOOD_ANSWER = "answers that are not good (label false)"
# What a user can do who wants to learn demonstrations and has rated answers.
GOOD_ANSWERS = {
    "unpaired_preference": "good_answers: true learns the answers with the label true",
    "preference": "good_answers: true learns the chosen answers",
    "ranking": "good_answers: true learns the best answers, which have rank 0",
}
# Columns that may say how good the answer of a demonstration is.
RATING_NAMES = "label score scores rating ratings reward rewards rank quality helpfulness upvotes votes feedback".split()
PROBED_ROWS = 100  # decide the kind of a file, so that one bad first row cannot


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


@dataclass(frozen=True)
class Ratings:
    """The treatment of rated answers.

    good_answers: make demonstrations of the good ones, which is never done without being asked for.
    rank_by: the column with a number by which the answers of a prompt are ranked, where each is a row of its own.
    """

    good_answers: bool = False
    rank_by: str | None = None


AS_THEY_ARE = Ratings()


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
    unread_ratings: columns of demonstrations that may say how good an answer is, which nothing reads.
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
        self.unread_ratings: list[str] = []
        self.ratings = ratings
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
        if not self._ranks_thumbs():
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

    def _ranks_thumbs(self) -> bool:
        """True if thumbs are to become rankings, as `rank_by: label` asks for."""
        return self.source_kind == "unpaired_preference" and self.ratings.rank_by == "label"

    def _source_rows(self) -> Iterator[tuple[str, dict | BrokenLine]]:
        """Yields (location for messages, row as it is in the source)."""
        if not is_local(self.name):
            return _hub_rows(self.name, self.config, self.split)
        rows = self._local_rows()
        if Path(self.name).is_dir():
            return self._without_events(rows)
        return rows

    def _local_rows(self) -> Iterator[tuple[str, dict | BrokenLine]]:
        paths = [Path(self.name)]
        if paths[0].is_dir():
            folder = read_folder(paths[0], self.split, tuple(READERS))
            paths, self.unread = folder.files, folder.unread
        for path in paths:
            for line, row in read_rows(path, self.separator):
                yield f"{path}:{line}", row

    def _without_events(self, rows):
        """A folder may be a feedback store. Its rankings are rows, and its other events are only counted."""
        for location, row in rows:
            event = None
            if not isinstance(row, BrokenLine):
                event = row.get("event")
            if event in (None, "ranking"):
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
        if self.unread_ratings:
            columns = ", ".join(self.unread_ratings)
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
        self.layout, self.source_kind = self._elect(rows) or (None, "")
        if not self.source_kind:
            raise UserError(self._unknown_form(names))
        if self.source_kind in (*RATED, *DEMONSTRATIONS):
            self._refuse_two_readings(rows)
        self._check_rank_by(rows, names)
        self.kind = self._kind_of_rows()
        if not self.kind:
            raise UserError(self._not_accepted())
        if self.source_kind in DEMONSTRATIONS and not self._is_topic():
            columns = dict.fromkeys(chain.from_iterable(rows))
            self.unread_ratings = [column for column in columns if column.lower() in RATING_NAMES]

    def _elect(self, rows: list[dict]) -> tuple[Layout | None, str] | None:
        """The layout and the kind of a source by a majority of its first rows, or None where no row has any."""
        votes: Counter[tuple[Layout | None, str]] = Counter()
        for row in rows:
            vote = self._vote(row)
            if vote:
                votes[vote] += 1
        # Of two with equally many votes, the one that was met first.
        ranked = [vote for vote, _ in votes.most_common()]
        for layout, kind in ranked:
            # One rated row is enough: to read it like the others would teach bad answers.
            if needs_rating(kind, self.kinds):
                return layout, kind
        for layout, kind in ranked:
            if (
                layout
                and layout.base
                and sum(row.keys() >= set(layout.base) for row in rows) * 2 > len(rows)
            ):
                return layout, kind
        return next(iter(ranked), None)

    def _kind_of_rows(self) -> str:
        """The accepted kind into which the rows are converted, "" where there is none."""
        if self._ranks_thumbs() and "ranking" in self.kinds:
            return "ranking"
        if self.ratings.good_answers and self.source_kind in RATED:
            return "prompt_completion"
        return serves(self.source_kind, self.kinds) or ""

    def _not_accepted(self) -> str:
        """The message for rows of a kind that the caller does not read."""
        form = f"{self.source_kind} rows"
        if self.layout:
            form = f"{self.layout.name} rows ({self.source_kind})"
        recipes = " and ".join(KINDS[self.source_kind].recipes)
        advice = ""
        if needs_rating(self.source_kind, self.kinds):
            advice = f"; {GOOD_ANSWERS[self.source_kind]}"
        elif self.source_kind == "unpaired_preference" and "ranking" in self.kinds:
            advice = "; rank_by: label ranks the answers of the prompts that have good and bad ones"
        return (
            f"{self.name}: recognised as {form}; this recipe takes {' or '.join(self.kinds)}; "
            f"{self.source_kind} rows are for {recipes}{advice}"
        )

    def _refuse_two_readings(self, rows: list[dict]) -> None:
        """UserError where the columns allow two readings that would teach different answers."""
        for row in rows:
            columns = conversation_columns(row)
            if len(columns) > 1 and "prompt" not in row:
                raise UserError(
                    f"{self.name}: {' and '.join(columns)} could each be what is learned: rename the others, as in "
                    f"columns: {{unused: {columns[1]}}}"
                )
        if self.source_kind not in DEMONSTRATIONS:
            return
        column = next(filter(None, map(thumb_column, rows)), None)
        if column:
            raise UserError(
                f"{self.name}: {column} rates the answers, and {self.source_kind} rows have no rating: name it with "
                f"columns: {{label: {column}}}, or rename it if it means something else"
            )
        labels = {str(row.get("label")) for row in rows}
        if labels == {"0", "1"} and not self._is_topic():
            raise UserError(
                f"{self.name}: label is 0 or 1: if it rates the answers, write true and false; if it does not, rename it, "
                "as in columns: {topic: label}"
            )

    def _is_topic(self) -> bool:
        """True for the one layout whose label is known to be a topic."""
        return self.layout is not None and self.layout.name == "ChatbotData"

    def _check_rank_by(self, rows: list[dict], names: list[str]) -> None:
        """UserError where answers are to be ranked by a column that is not named, or is not there."""
        score = self.ratings.rank_by
        is_scored = self.layout is not None and self.layout.is_scored
        if score and not is_scored and not self._ranks_thumbs():
            raise UserError(
                f"{self.name}: rank_by={score} ranks rows of prompt, response (or completion) and the column {score!r}; "
                f"the columns are {', '.join(names)}"
            )
        if is_scored and not score:
            raise UserError(
                f"{self.name}: recognised as {self.layout.name} rows, whose answers have scores: choose the one by which "
                f"they are ranked with rank_by: {' or '.join(score_columns(rows[0]))}"
            )

    def _check_columns(self, names: list[str]) -> None:
        """UserError where `columns` maps to a name that the source does not have."""
        for our, their in self.columns.items():
            if their in names:
                continue
            hint = _nearest(their, names)
            if not hint and our in names:
                hint = f"; {our} exists: did you swap the two names?"
            raise UserError(
                f"{self.name}: columns: {our}={their}: there is no column {their!r}; the columns are "
                f"{', '.join(names)}{hint} (columns maps our name to their name)"
            )

    def _vote(self, row: dict) -> tuple[Layout | None, str] | None:
        """(foreign layout or None, kind) of one row. None: it fits neither a layout nor a kind.

        A row that fits both is foreign, unless only its own kind is accepted.
        """
        layout = recognise_layout(row)
        if self._is_scored(row):
            layout = SCORED
        kind = recognise(row, self.kinds)
        if layout is None and kind is None:
            return None
        if layout is None:
            return None, kind.name
        is_kind_accepted = kind is not None and serves(kind.name, self.kinds)
        # To rank answers takes a choice, which is not needed where only the prompts are read.
        is_layout_served = serves(layout.kind, self.kinds) and not layout.is_scored
        is_wanted = is_layout_served or needs_rating(layout.kind, self.kinds) or layout is SCORED
        if is_kind_accepted and not is_wanted:
            return None, kind.name
        return layout, layout.kind

    def _is_scored(self, row: dict) -> bool:
        """True for an answer with a number in the column by which answers are ranked."""
        score = self.ratings.rank_by
        has_answer = {"prompt", answer_column(row)} <= row.keys()
        return score in row and has_answer and thumb(row[score]) is None

    def _unknown_form(self, names: list[str]) -> str:
        """The message for a source whose columns fit neither a kind nor a foreign layout."""
        needed = []
        missing = set()
        for kind in self.kinds:
            columns = KINDS[kind].columns
            needed.append(f"{kind}: {', '.join(columns)}")
            missing.update(column for column in columns if column not in names)
        hints = (_nearest(column, names) for column in sorted(missing))
        hint = next(filter(None, hints), "")  # one hint is enough
        return (
            f"{self.name}: no known row form; the columns are {', '.join(names)}; needed are {'; '.join(needed)}{hint}; "
            "map names with columns (our name: their name)"
        )

    # ---- converting and checking one row ----

    def _rename(self, row: dict) -> dict:
        """The row with our names. A column of theirs that was mapped no longer has its old name."""
        mapped = set(self.columns.values())
        renamed = {name: value for name, value in row.items() if name not in mapped}
        for our, their in self.columns.items():
            if their in row:
                renamed[our] = row[their]
        return renamed

    def _convert(self, location: str, row: dict | BrokenLine) -> Iterator[dict]:
        """Our rows of one row of the source: several for some layouts, none where it is bad."""
        if isinstance(row, BrokenLine):
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
        column = thumb_column(row)
        if column:
            return f"{column}: {row[column]!r:.60} rates the answer, but the first rows have no such rating"
        if {"chosen", "rejected"} <= row.keys():
            return "chosen and rejected rate the answers, but the first rows have no such rating"
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
        if not problems:
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


def _nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the most similar of the names, or ""."""
    # Wrong case is a common mistake, which get_close_matches would count as other letters.
    lowered = {other.lower(): other for other in names}
    nearest = get_close_matches(name.lower(), lowered, n=1)
    if not nearest:
        return ""
    return f"; did you mean {lowered[nearest[0]]!r} for {name}?"


# ---- the Hub --------------------------------------------------------------------------------------------------------


def load_hub_splits(name: str, config: str | None) -> dict:
    """{split name: data set} of a Hub data set."""
    import datasets

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # noqa: BLE001
        # No network, an unknown id, a gated data set, a bad config: all are for the user to fix.
        reason = (str(error).splitlines() or [""])[0]  # the rest is a trace for developers
        raise UserError(
            f"{name!r} is neither a local file or folder nor a data set reachable on the Hub "
            f"({type(error).__name__}: {reason}): check the spelling, dataset_config, your connection and login"
        ) from error


def _hub_rows(name: str, config: str | None, split: str | None) -> Iterator[tuple[str, dict]]:
    splits = load_hub_splits(name, config)
    split = split or "train"  # the Hub's usual name
    if split not in splits:
        raise UserError(
            f"{name}: no split {split!r}; it has {', '.join(splits)}: set dataset_train_split or dataset_test_split"
        )
    class_names = {}  # of the columns that hold numbers of classes
    for column, feature in splits[split].features.items():
        item = getattr(feature, "feature", feature)  # the feature of a list's items
        if hasattr(item, "names"):
            class_names[column] = item.names
    for index, row in enumerate(splits[split]):
        for column, names in class_names.items():
            row[column] = _class_name(row[column], names)
        yield f"{name}[{split}]:{index}", row


def _class_name(value, names: list[str]):
    """The name of a class, which says more than its number. None for -1, which means unlabelled."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if value in (None, -1):
        return None
    return names[value]


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
    """

    rows: list[dict]
    kind: str
    name: str
    sha256: str
    counts: dict[str, int]
    layout: str = ""
    warnings: list[str] = field(default_factory=list)
    source_kind: str = ""

    @property
    def sources(self) -> list[dict]:
        """The entry of a run's record about these rows, with counts of those that were dropped, if any were."""
        entry = {"name": self.name, "rows": len(self.rows), "sha256": self.sha256}
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

    One UserError names the bad rows, unless skip_bad drops them.
    """
    # The pass ends at the limit: bad rows behind it are not noticed.
    rows = list(islice(checked, limit))
    if not rows or (checked.bad and not skip_bad):
        raise UserError(bad_rows_message(checked))
    digests = [row_digest(row) for row in rows]
    counts = {
        "total": checked.total,
        "kept": len(rows),
        "bad": checked.bad,
        "duplicates": len(rows) - len(set(digests)),
    }
    if checked.dropped:
        counts["dropped"] = checked.dropped.total()
    layout = ""
    if checked.layout:
        layout = checked.layout.name
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
    warnings = _warnings(checked, counts, limit)
    return Loaded(
        rows, checked.kind, checked.name, sha256, counts, layout, warnings, checked.source_kind
    )


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
            events = f" ({checked.passed.total()} feedback events, none of them a ranking)"
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


def row_digest(row: dict) -> str:
    """sha256 of a row's content. The order of its columns does not matter."""
    # `default`: parquet has dates and decimals, which JSON does not.
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
