"""`python -m rlhf validate FILE`: what a file holds, and every bad row of it as `path:line: column: reason`.

It says what will be learned from the file, and shows the first rows with the learned part in [[ ]]. Exits with 0, or with
2 if any row is invalid or none could be read. The file is read as a stream: only lengths and hashes are kept.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from math import ceil

from rlhf.commands import learned
from rlhf.commands.learned import learned_part, show_row
from rlhf.data.answers import template_checks
from rlhf.data.cache import stored
from rlhf.data.chat import as_text, encode_text
from rlhf.data.fingerprints import fingerprint, module_fingerprint, tokenizer_fingerprint
from rlhf.data.load import (
    AS_THEY_ARE,
    CheckedRows,
    Ratings,
    cache_key,
    file_changes,
    repeats,
)
from rlhf.data.rows import KINDS
from rlhf.data.splits import prompt_number
from rlhf.data.stored_rows import SCHEMA, row_digest
from rlhf.errors import UserError
from rlhf.tasks.classification.encode import LabelForm, names_of

PERCENTILES = (5, 50, 95, 100)
ROWS_SHOWN = 3  # with their learned part
LABELS_SHOWN = 20  # a column of free text would fill the terminal

# unit -> length of a text in it
Units = dict[str, Callable[[str], int]]


@dataclass
class ValidationReport:
    """Counts over all rows of a file.

    total, good, bad: numbers of rows.
    duplicates, prompt_duplicates: good rows that repeat an earlier row, or an earlier prompt or text.
    lengths: column -> unit -> one length per text.
    ranking_sizes: number of ranked completions -> number of rows.
    pairs, tied: pairs of ranked completions, and those whose ranks are equal.
    labels, tags: how often each occurs.
    answers_per_question: number of answers -> number of questions; 0 means that the context has no answer.
    passed: events of a feedback store that are not rankings -> count.
    notes: sentences about what was dropped, or is not read.
    shown: the lines of the first rows, with the learned part marked.
    problems: one line per reason why a row is bad.
    """

    name: str
    kind: str = ""
    source_kind: str = ""
    layout: str = ""
    total: int = 0
    good: int = 0
    bad: int = 0
    duplicates: int = 0
    prompt_duplicates: int = 0
    lengths: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    ranking_sizes: Counter[int] = field(default_factory=Counter)
    pairs: int = 0
    tied: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    answers_per_question: Counter[int] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    shown: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.problems or not self.good:
            return 2
        return 0


def main(args) -> int:
    """Print the report; returns 0, or 2 if any row is invalid."""
    try:
        tokenizer = load_tokenizer(args.tokenizer)
        ratings = Ratings(args.good_answers, args.rank_by)
        report = validate(args.file, columns=args.columns, tokenizer=tokenizer, ratings=ratings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_report(report))
    return report.exit_code


def load_tokenizer(name: str | None):
    """The tokenizer of a folder or Hub id; None if no name is given."""
    if name is None:
        return None
    # transformers takes seconds to import, and most calls do not need it.
    from rlhf.models.load import load_tokenizer as load

    try:
        return load(name)
    except UserError as error:
        raise UserError(
            f"--tokenizer {name}: no tokenizer there ({error}): give a folder or Hub id"
        ) from error


# ---- counts ------------------------------------------------------------------------------------------------------


def validate(
    name: str,
    *,
    columns: dict | str | None = None,
    tokenizer=None,
    ratings: Ratings = AS_THEY_ARE,
    progress: Callable[[ValidationReport], None] | None = None,
) -> ValidationReport:
    """Read a file, folder or Hub data set once and count. A `tokenizer` adds lengths in tokens.

    Of a folder, the rows are those that a recipe would train on. The second time the report comes from the cache.
    progress: called with the unfinished report after each good row.
    """
    units: Units = {"characters": len, "words": lambda text: len(text.split())}
    if tokenizer is not None:
        units["tokens"] = lambda text: len(encode_text(tokenizer, text))
    # Every kind of row is accepted: the scan recognises the kind from the first rows.
    checks = {"label": LabelForm()}
    if tokenizer is not None:
        checks |= template_checks(tokenizer)
    scan = CheckedRows(name, kinds=tuple(KINDS), columns=columns, checks=checks, ratings=ratings)
    changes = file_changes(scan)

    def fill(writer) -> dict:
        report = read_report(scan, units, tokenizer, progress)
        # What changed while it was read is not what the key names.
        return {"report": to_json(report), "keep": changes == file_changes(scan)}

    # A cached report has no rows, and is a note alone.
    content = stored(report_key(scan, tokenizer), SCHEMA, fill, f"reading {name}")
    return from_json(content.note["report"])


def report_key(scan: CheckedRows, tokenizer) -> str | None:
    """A name for the report on a source, from all that decides it; None where that cannot be told."""
    rows = cache_key(scan, None, False)
    encoder = tokenizer_fingerprint(tokenizer) if tokenizer is not None else ""
    code = [module_fingerprint(module) for module in (__name__, learned.__name__)]
    if rows is None or encoder is None or None in code:
        return None
    return "report-" + fingerprint(rows, encoder, code)


def to_json(report: ValidationReport) -> dict:
    """The report as values of JSON, whose objects have no keys but texts."""
    values = dict(vars(report))
    for name, value in values.items():
        if isinstance(value, Counter):
            values[name] = list(value.items())
    return values


def from_json(values: dict) -> ValidationReport:
    report = ValidationReport(**values)
    for column in fields(ValidationReport):
        if column.default_factory is Counter:
            setattr(report, column.name, Counter(dict(values[column.name])))
    return report


def read_report(
    scan: CheckedRows, units: Units, tokenizer, progress: Callable | None
) -> ValidationReport:
    """The counts of all rows of a source."""
    report = ValidationReport(scan.name)
    # Hashes of eight bytes, because the rows themselves may not fit in memory.
    digests, prompts = array("Q"), array("Q")
    for row in scan:
        report.good += 1
        digests.append(int(row_digest(row)[:16], 16))
        prompts.append(prompt_number(row, scan.kind))
        for column in KINDS[scan.kind].columns:
            count_column(report, column, row[column], units)
        if len(report.shown) < ROWS_SHOWN:
            report.shown.append(show_row(row, scan.kind, tokenizer))
        if progress is not None:
            progress(report)
    report.duplicates = repeats(digests)
    report.prompt_duplicates = repeats(prompts)
    # The scan's own counts are complete only now.
    report.kind, report.source_kind = scan.kind, scan.source_kind
    if scan.layout:
        report.layout = scan.layout.name
    report.total, report.bad = scan.total, scan.bad
    report.problems, report.passed, report.notes = scan.problems, scan.passed, scan.notes()
    return report


def count_column(report: ValidationReport, column: str, value, units: Units) -> None:
    """Add one value of a row: labels, tags and ranks are counted, texts are measured. A score is neither."""
    if column == "label":
        report.labels.update(names_of(value))
    elif column == "tags":
        report.tags.update(value)
    elif column == "ranks":
        count_ranks(report, value)
    elif column != "score":  # a number
        if column == "answers":  # SQuAD's form: {"text": [...], "answer_start": [...]}
            report.answers_per_question[len(value["text"])] += 1
        lengths = report.lengths.setdefault(column, {unit: [] for unit in units})
        for text in texts_of(column, value):
            for unit, measure in units.items():
                lengths[unit].append(measure(text))


def texts_of(column: str, value) -> list[str]:
    """The texts to measure in a column. The words of a tagged sentence are one text."""
    if column == "answers":
        return value["text"]
    if column == "tokens":
        return [" ".join(value)]
    # completions and choices; a conversation is a list of messages
    if isinstance(value, list) and isinstance(value[0], str):
        return value
    return [as_text(value)]


def count_ranks(report: ValidationReport, ranks: list[int]) -> None:
    report.ranking_sizes[len(ranks)] += 1
    report.pairs += pairs_among(len(ranks))
    # Completions that share a rank tie with each other.
    for count in Counter(ranks).values():
        report.tied += pairs_among(count)


def pairs_among(count: int) -> int:
    return count * (count - 1) // 2


# ---- text --------------------------------------------------------------------------------------------------------


def format_report(report: ValidationReport) -> str:
    """The report as text for a terminal. Sections without content are omitted."""
    lines = [
        heading(report),
        f"rows        {report.total} ({report.good} good, {report.bad} bad)",
        f"duplicates  {report.duplicates} whole rows, {report.prompt_duplicates} prompts or texts",
    ]
    if report.passed:
        events = [f"{event} {count}" for event, count in report.passed.most_common()]
        lines.append(f"skipped     feedback events: {', '.join(events)}")
    lines += [f"note        {note.removeprefix(f'{report.name}: ')}" for note in report.notes]
    if report.kind:
        lines.append(f"learned     {learned_part(report.kind)}")
    sections = [
        length_lines(report),
        ranking_lines(report),
        answer_lines(report),
        counter_lines("labels", report.labels),
        counter_lines("tags", report.tags),
        shown_lines(report),
        report.problems,
    ]
    for section in sections:
        if section:
            lines += ["", *section]
    return "\n".join(lines)


def heading(report: ValidationReport) -> str:
    if not report.kind:  # every row is bad
        return f"{report.name}: no row could be read"
    text = f"{report.name}: {report.kind} rows"
    if report.layout:
        text += f", imported from {report.layout}"
    if report.source_kind != report.kind:
        text += f", of {report.source_kind} rows"
    return text


def shown_lines(report: ValidationReport) -> list[str]:
    """The first rows, one after the other."""
    if not report.shown:
        return []
    lines = ["the first rows, with what is learned in [[ ]]:"]
    for row in report.shown:
        first, *others = row
        lines.append(f"- {first}")
        lines += [f"  {line}" for line in others]
    return lines


def length_lines(report: ValidationReport) -> list[str]:
    """A table with the percentiles of each column's lengths in each unit."""
    if not report.lengths:
        return []
    header = f"{'length':<24}"
    for percent in PERCENTILES:
        title = "max" if percent == 100 else f"{percent} %"
        header += f"{title:>8}"
    lines = [header]
    for column, units in report.lengths.items():
        for unit, lengths in units.items():
            if not lengths:  # no question has an answer
                continue
            line = f"{f'{column}, {unit}':<24}"
            for percent in PERCENTILES:
                line += f"{percentile(lengths, percent):>8}"
            lines.append(line)
    return lines


def percentile(values: list[int], percent: int) -> int:
    """Nearest rank: the smallest value that at least `percent` % of the values do not exceed."""
    # Ranks start at 1. A small percentage of few values would give rank 0.
    rank = ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def ranking_lines(report: ValidationReport) -> list[str]:
    if not report.ranking_sizes:
        return []
    sizes = [f"K = {size}: {count}" for size, count in sorted(report.ranking_sizes.items())]
    share = report.tied / report.pairs  # a valid ranking has at least 2 completions, so 1 pair
    return [
        f"rankings    {', '.join(sizes)}; {report.tied} of {report.pairs} pairs tie ({share:.1%})"
    ]


def answer_lines(report: ValidationReport) -> list[str]:
    if not report.answers_per_question:
        return []
    counts = [f"{n}: {count}" for n, count in sorted(report.answers_per_question.items())]
    share = report.answers_per_question[0] / report.answers_per_question.total()
    return [
        f"answers     per question {', '.join(counts)}; {share:.1%} of the questions without one"
    ]


def counter_lines(name: str, counter: Counter[str]) -> list[str]:
    """The most frequent values with their counts, and how many more there are."""
    if not counter:
        return []
    values = [f"{value} {count}" for value, count in counter.most_common(LABELS_SHOWN)]
    line = f"{name:<12}{len(counter)}: {', '.join(values)}"
    more = len(counter) - LABELS_SHOWN
    if more > 0:
        line += f", and {more} more"
    return [line]


def add_arguments(parser) -> None:
    parser.add_argument("file", help="local file, folder of .jsonl files, or Hub id")
    parser.add_argument("--columns", help="our name = their name, as in text=document,label=label")
    parser.add_argument("--tokenizer", help="folder or Hub id: adds lengths in tokens")
    parser.add_argument(
        "--good_answers",
        action="store_true",
        help="of rated answers, what sft learns with that key",
    )
    parser.add_argument("--rank_by", help="column with a number by which answers are ranked")
