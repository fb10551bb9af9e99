"""`python -m rlhf validate FILE`: what a file holds, and every bad row of it as `path:line: column: reason`.

The file is read as a stream; only lengths and hashes are kept.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from rlhf.data.chat import as_text, encode_text
from rlhf.data.load import CheckedRows, row_digest
from rlhf.data.rows import KINDS
from rlhf.data.splits import prompt_key
from rlhf.errors import UserError
from rlhf.tasks.classification.encode import LabelForm, names_of

PERCENTILES = (5, 50, 95, 100)
LABELS_SHOWN = 20


@dataclass
class Report:
    """lengths: column -> unit -> one length per text; answers: how many rows rank K; pairs: tied and all.

    tags: how many tokens bear each; readings: how many questions have so many answers, 0 = the context has none.
    """

    name: str
    kind: str = ""
    layout: str = ""
    total: int = 0
    kept: int = 0
    bad: int = 0
    duplicates: int = 0
    prompt_duplicates: int = 0
    lengths: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    answers: Counter[int] = field(default_factory=Counter)
    pairs: int = 0
    tied: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    readings: Counter[int] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 2 if self.problems or not self.kept else 0


def validate(name: str, *, columns: dict | str | None = None, tokenizer=None) -> Report:
    """Reads a file, folder or Hub data set once. A `tokenizer` adds lengths in tokens."""
    units: dict[str, Callable[[str], int]] = {
        "characters": len,
        "words": lambda text: len(text.split()),
    }
    if tokenizer is not None:
        units["tokens"] = lambda text: len(encode_text(tokenizer, text))
    scan = CheckedRows(name, kinds=tuple(KINDS), columns=columns, checks={"label": LabelForm()})
    report = Report(name)
    seen: set[str] = set()
    prompts: set[str] = set()
    for row in scan:
        report.kept += 1
        report.duplicates += (digest := row_digest(row)) in seen
        report.prompt_duplicates += (key := prompt_key(row, scan.kind)) in prompts
        seen.add(digest)
        prompts.add(key)
        for column in KINDS[scan.kind].columns:
            if column == "label":
                report.labels.update(names_of(row[column]))
            elif column == "ranks":
                _count_ranks(report, row[column])
            elif column == "tags":
                report.tags.update(row[column])
            else:
                if column == "answers":
                    report.readings[len(row[column]["text"])] += 1
                lengths = report.lengths.setdefault(column, {unit: [] for unit in units})
                for text in _texts(column, row[column]):
                    for unit, measure in units.items():
                        lengths[unit].append(measure(text))
    report.kind, report.layout = scan.kind, scan.layout.name if scan.layout else ""
    report.total, report.bad, report.problems, report.passed = (
        scan.total,
        scan.bad,
        scan.problems,
        scan.passed,
    )
    return report


def _texts(column: str, value) -> list[str]:
    """The texts of a column whose lengths are told; the words of a tagged sentence are one text."""
    if column == "answers":
        return value["text"]
    if column == "tokens":
        return [" ".join(value)]
    return value if column == "completions" else [as_text(value)]


def _count_ranks(report: Report, ranks: list[int]) -> None:
    report.answers[len(ranks)] += 1
    report.pairs += len(ranks) * (len(ranks) - 1) // 2
    report.tied += sum(count * (count - 1) // 2 for count in Counter(ranks).values())


def percentile(values: list[int], percent: int) -> int:
    """Nearest rank: the smallest value that at least `percent` % of the values do not exceed."""
    return sorted(values)[max(ceil(percent / 100 * len(values)), 1) - 1]


def format_report(report: Report) -> str:
    form = f"{report.kind} rows" + (f", imported from {report.layout}" if report.layout else "")
    lines = [
        f"{report.name}: {form if report.kind else 'no row could be read'}",
        f"rows        {report.total} ({report.kept} good, {report.bad} bad)",
        f"duplicates  {report.duplicates} whole rows, {report.prompt_duplicates} prompts or texts",
    ]
    if report.passed:
        lines.append(
            "passed over "
            + ", ".join(f"{event} {count}" for event, count in report.passed.most_common())
        )
    if report.lengths:
        lines += [
            "",
            f"{'length':<24}"
            + "".join(f"{'max' if p == 100 else f'{p} %':>8}" for p in PERCENTILES),
        ]
    for column, units in report.lengths.items():
        for unit, values in units.items():
            if not values:  # no question has an answer
                continue
            numbers = "".join(f"{percentile(values, p):>8}" for p in PERCENTILES)
            lines.append(f"{column + ', ' + unit:<24}{numbers}")
    if report.answers:
        answers = ", ".join(f"K = {k}: {count}" for k, count in sorted(report.answers.items()))
        rate = report.tied / report.pairs
        lines += [
            "",
            f"rankings    {answers}; {report.tied} of {report.pairs} pairs tie ({rate:.1%})",
        ]
    if report.readings:
        counts = ", ".join(
            f"{number}: {count}" for number, count in sorted(report.readings.items())
        )
        rate = report.readings[0] / report.readings.total()
        lines += ["", f"answers     per question {counts}; {rate:.1%} of the questions without one"]
    for name, values in (("labels", report.labels), ("tags", report.tags)):
        if values:
            shown = ", ".join(
                f"{value} {count}" for value, count in values.most_common(LABELS_SHOWN)
            )
            more = len(values) - LABELS_SHOWN
            lines += [
                "",
                f"{name:<12}{len(values)}: {shown}" + (f", and {more} more" if more > 0 else ""),
            ]
    if report.problems:
        lines += ["", *report.problems]
    return "\n".join(lines)


def add_arguments(parser) -> None:
    parser.add_argument("file", help="local file, folder of .jsonl files, or Hub id")
    parser.add_argument("--columns", help="our name = their name, as in text=document,label=label")
    parser.add_argument("--tokenizer", help="folder or Hub id: lengths in tokens too")


def main(args) -> int:
    """Prints the report; 0 where every row is good, else 2."""
    try:
        report = validate(args.file, columns=args.columns, tokenizer=_tokenizer(args.tokenizer))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_report(report))
    return report.exit_code


def _tokenizer(name: str | None):
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"--tokenizer {name}: no tokenizer there ({reason}): give a folder or Hub id"
        ) from error
