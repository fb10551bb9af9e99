"""Hub name, local file or folder -> checked rows of one kind.

Every row is checked before anything is trained, and every bad one is named as `path:line: column: reason`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain, islice
from pathlib import Path

from rlhf.data.files import READERS, Broken, data_files, read_or_broken, suffix
from rlhf.data.importers import Layout, recognise_layout
from rlhf.data.rows import ANSWERS, CONVERSIONS, KINDS, check_row, normalise, recognise, serves
from rlhf.errors import UserError

SHOWN = 10  # bad rows in one message
HEAD = 100  # rows that decide what kind a file is of, so that one bad first row cannot


def is_local(name: str) -> bool:
    """Whether a name means a file or folder here (it exists, or could not be a Hub id) and not a Hub data set."""
    path = Path(name)
    return (
        path.exists()
        or suffix(path) in READERS
        or name.startswith((".", "/", "~"))
        or name.count("/") > 1
    )


def parse_columns(columns: dict | str | None) -> dict[str, str]:
    """`{our name: their name}` from that map, or from the flag's form "text=document,label=label"."""
    if isinstance(columns, str):
        pairs = [part.partition("=")[::2] for part in columns.split(",") if part.strip()]
        columns = {our.strip(): their.strip() for our, their in pairs}
    columns = columns or {}
    if not isinstance(columns, dict) or not all(
        isinstance(n, str) and n for pair in columns.items() for n in pair
    ):
        raise UserError(
            f"columns: {columns!r} is not a map of our name to their name, as in text=document,label=label"
        )
    return columns


class Scan:
    """One pass over a source: iterate it for the good rows; `problems` and the counts are complete when it has ended.

    kind: what the rows are turned into; layout: the foreign layout they came in, or None; total: rows met;
    bad: rows left out; problems: `path:line: column: reason`; passed: counts of feedback events of other sorts.
    checks: what a caller asks of columns beyond data.rows: column -> f(value), the reason why it is bad, or None.
    """

    def __init__(
        self, name: str, *, kinds: Sequence[str], columns=None, split: str | None = None, config=None,
        checks: dict[str, Callable] | None = None, separator: str | None = None,
    ):  # fmt: skip
        self.name, self.kinds, self.split, self.config = name, tuple(kinds), split, config
        self.checks, self.separator = checks or {}, separator
        self.columns = parse_columns(columns)
        self.kind = self.source_kind = ""
        self.layout: Layout | None = None
        self.total = self.bad = 0
        self.problems: list[str] = []
        self.passed: Counter[str] = Counter()

    def __iter__(self) -> Iterator[dict]:
        places = self._places()
        head, known = [], []
        for item in places:
            head.append(item)
            if not isinstance(item[1], Broken):
                known.append(item[1])
            if len(known) == HEAD:
                break
        if known:
            self._recognise(known)
        for place, row in chain(head, places):
            yield from self._ours(place, row)

    def _places(self) -> Iterator[tuple[str, dict | Broken]]:
        if not is_local(self.name):
            return _hub_rows(self.name, self.config, self.split)
        files = data_files(self.name, self.split)
        rows = (
            (f"{path}:{line}", row)
            for path in files
            for line, row in read_or_broken(path, self.separator)
        )
        return self._rankings(rows) if Path(self.name).is_dir() else rows

    def _rankings(self, rows):
        """A folder may be a feedback store: of its events the rankings are rows, the others are counted."""
        for place, row in rows:
            event = None if isinstance(row, Broken) else row.get("event")
            if event in (None, "ranking"):
                yield place, row
            else:
                self.passed[str(event)] += 1

    def _recognise(self, head: list[dict]) -> None:
        names = list(dict.fromkeys(chain.from_iterable(head)))
        for our, their in self.columns.items():
            if their not in names:
                turned = f"; {our} exists: did you turn the two round?" if our in names else ""
                raise UserError(
                    f"{self.name}: columns: {our}={their}: there is no column {their!r}; the columns are "
                    f"{', '.join(names)}{_nearest(their, names) or turned} (columns maps our name to their name)"
                )
        votes = Counter(vote for row in head if (vote := self._vote(self._map(row))))
        if not votes:
            needed = "; ".join(f"{name}: {', '.join(KINDS[name].columns)}" for name in self.kinds)
            missing = {
                column
                for name in self.kinds
                for column in KINDS[name].columns
                if column not in names
            }
            near = next(
                (hint for column in sorted(missing) if (hint := _nearest(column, names))), ""
            )
            raise UserError(
                f"{self.name}: no known row form; the columns are {', '.join(names)}; needed are {needed}{near}; "
                "map names with columns (our name: their name)"
            )
        (self.layout, kind), _ = votes.most_common(1)[0]
        self.source_kind = kind
        self.kind = serves(kind, self.kinds) or ""
        if not self.kind:
            form = f"{self.layout.name} rows ({kind})" if self.layout else f"{kind} rows"
            raise UserError(
                f"{self.name}: recognised as {form}; this recipe takes {' or '.join(self.kinds)}; "
                f"{kind} rows are for {' and '.join(KINDS[kind].recipes)}"
            )

    def _vote(self, row: dict) -> tuple[Layout | None, str] | None:
        layout, own = recognise_layout(row), recognise(row, self.kinds)
        if layout and (
            serves(layout.kind, self.kinds) or not own or not serves(own.name, self.kinds)
        ):
            return layout, layout.kind
        return (None, own.name) if own else None

    def _map(self, row: dict) -> dict:
        theirs = set(self.columns.values())
        kept = {name: value for name, value in row.items() if name not in theirs}
        return kept | {our: row[their] for our, their in self.columns.items() if their in row}

    def _ours(self, place: str, row: dict | Broken) -> Iterator[dict]:
        if isinstance(row, Broken):
            self._reject(place, [row])
            return
        rows = [self._map(row)]
        if self.layout:
            try:
                rows = self.layout.read(rows[0])
            except UserError as error:
                self._reject(place, [str(error)])
                return
        for ours in map(normalise, rows):
            unanswered = self.source_kind in ANSWERS and ours.get(ANSWERS[self.source_kind]) is None
            kind = KINDS[self.kind if unanswered else self.source_kind]
            asked = (
                (column, self.checks[column](ours[column]))
                for column in kind.columns
                if column in self.checks
            )
            if problems := check_row(ours, kind) or [
                (column, reason) for column, reason in asked if reason
            ]:
                named = "question" in kind.columns and ours.get("id") is not None
                where = (
                    f"{place}: question {ours['id']}" if named else place
                )  # a SQuAD file is one long line
                self._reject(where, [f"{column}: {reason}" for column, reason in problems])
                continue
            self.total += 1
            convert = CONVERSIONS.get((self.source_kind, self.kind))
            yield convert(ours) if convert else ours

    def _reject(self, place: str, reasons: list[str]) -> None:
        self.total += 1
        self.bad += 1
        self.problems += [f"{place}: {reason}" for reason in reasons]


def _nearest(name: str, names: Iterable[str]) -> str:
    lowered = {other.lower(): other for other in names}
    near = get_close_matches(name.lower(), lowered, n=1)
    return f"; did you mean {lowered[near[0]]!r} for {name}?" if near else ""


def hub_splits(name: str, config: str | None) -> dict:
    """Split name -> data set."""
    import datasets

    try:
        return datasets.load_dataset(name, config)
    except Exception as error:  # noqa: BLE001  (network, unknown id, gated, bad config: all the user's to repair)
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{name!r} is neither a local file or folder nor a data set reachable on the Hub "
            f"({type(error).__name__}: {reason}): check the spelling, dataset_config, your connection and login"
        ) from error


def _hub_rows(name: str, config: str | None, split: str | None) -> Iterator[tuple[str, dict]]:
    splits, split = hub_splits(name, config), split or "train"
    if split not in splits:
        raise UserError(
            f"{name}: no split {split!r}; it has {', '.join(splits)}: set dataset_train_split or dataset_test_split"
        )
    classes = {
        column: getattr(f, "feature", f) for column, f in splits[split].features.items()
    }  # of a list's items
    named = {column: f.names for column, f in classes.items() if hasattr(f, "names")}
    for place, row in enumerate(splits[split]):
        for column, names in named.items():
            row[column] = _class_name(row[column], names)
        yield f"{name}[{split}]:{place}", row


def _class_name(value, names: list[str]):
    """ClassLabel: the name says more than its number; -1 means unlabelled."""
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return names[value] if value not in (None, -1) else None


@dataclass
class Loaded:
    """rows of one `kind`; sha256 of their content; counts: total, kept, bad, duplicates; layout: foreign one, or ""."""

    rows: list[dict]
    kind: str
    name: str
    sha256: str
    counts: dict[str, int]
    layout: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def sources(self) -> list[dict]:
        """What a run's record keeps of it."""
        return [{"name": self.name, "rows": len(self.rows), "sha256": self.sha256}]


def load_rows(
    name: str,
    *,
    kinds: Sequence[str],
    columns: dict | str | None = None,
    split: str | None = None,
    config: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    checks: dict[str, Callable] | None = None,
    separator: str | None = None,
) -> Loaded:
    """All rows of a source as one of `kinds`, or one UserError that names the bad ones. Duplicates count, and stay.

    separator: what stands between the texts of a .txt file (files.read_or_broken).
    """
    scan = Scan(
        name, kinds=kinds, columns=columns, split=split, config=config, checks=checks, separator=separator
    )  # fmt: skip
    rows = list(islice(scan, limit))
    if scan.bad and not skip_bad or not rows:
        raise UserError(bad_rows(scan))
    digests = [row_digest(row) for row in rows]
    counts = {
        "total": scan.total,
        "kept": len(rows),
        "bad": scan.bad,
        "duplicates": len(rows) - len(set(digests)),
    }
    warnings = []
    if scan.bad:
        warnings.append(
            f"{name}: {scan.bad} of {scan.total} rows are bad and left out; first: {scan.problems[0]}"
        )
    if counts["duplicates"]:
        warnings.append(
            f"{name}: {counts['duplicates']} of {len(rows)} rows repeat an earlier one and are kept"
        )
    if scan.passed:
        events = ", ".join(f"{event} {count}" for event, count in scan.passed.most_common())
        warnings.append(f"{name}: feedback events passed over: {events}")
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Loaded(
        rows, scan.kind, name, sha256, counts, scan.layout.name if scan.layout else "", warnings
    )


def bad_rows(scan: Scan) -> str:
    """The message for a finished scan that met bad rows, or none at all."""
    if not scan.bad:
        passed = (
            f" ({sum(scan.passed.values())} feedback events, none of them a ranking)"
            if scan.passed
            else ""
        )
        return f"{scan.name}: no rows{passed}: give at least one {' or '.join(scan.kinds)} row"
    more = len(scan.problems) - SHOWN
    return "\n  ".join(
        [
            f"{scan.name}: {scan.bad} of {scan.total} rows are bad:",
            *scan.problems[:SHOWN],
            *(
                [f"... and {more} more; `python -m rlhf validate {scan.name}` lists all"]
                if more > 0
                else []
            ),
            "mend them, or leave them out with skip_bad: true",
        ]
    )


def row_digest(row: dict) -> str:
    """sha256 of a row's content, whatever the order of its columns."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()
