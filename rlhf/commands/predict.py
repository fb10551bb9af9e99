"""`python -m rlhf predict RUN FILE`: what a classifier, tagger or reader says of each row of a file.

The file is read twice as a stream, first to check and count its rows, so that a bad one is met before the work and not
in its middle. Each row is written with its own columns and the prediction's, which are named predicted_*; the output
gets its name when it is complete. Where rows have answers, they are compared.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean as mean

from rlhf.data.load import CheckedRows, bad_rows_message
from rlhf.data.rows import CHECKS, KINDS
from rlhf.errors import UserError
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, model_kind, read_object
from rlhf.serving.predictors import columns_of, open_encoder
from rlhf.tasks.classification.encode import names_of, number
from rlhf.tasks.classification.metrics import (
    classification_report,
    multi_label_report,
    regression_report,
)
from rlhf.tasks.ner.encode import find_scheme, to_bio
from rlhf.tasks.ner.metrics import tagging_report
from rlhf.tasks.question_answering.encode import question_ids
from rlhf.tasks.question_answering.metrics import answer_scores

PREFIX = "predicted_"
CHUNK = 16  # batches predicted at once: rows of one length meet in them
SHOWN = 20  # labels or types in a table of metrics
CLASS = ("label", "rows", "precision", "recall", "f1")
TYPE = ("type", "entities", "marked", "precision", "recall", "f1")


ANSWERS = {
    "classifier": "label",
    "tagger": "tags",
    "reader": "answers",
}  # kind of model -> column of the answer
OTHERS = {
    "causal": "a language model: talk to it with `python app.py {run}`, or compare runs with `python -m rlhf report`",
    "masked": "a pretrained encoder: fine-tune it with recipes/classification.py, ner.py or question_answering.py first",
    "reward": "a reward model, which scores answers: give it to recipes/ppo.py as reward_model_path",
}


def kind_of_run(run: str) -> str:
    """A key of ANSWERS; UserError for a folder that holds no model of these kinds."""
    if not Path(run).is_dir():
        raise UserError(f"{run}: no such run folder: give the output_dir of a finished run")
    kind = model_kind(run)
    if kind not in ANSWERS:
        what = OTHERS.get(
            kind,
            "no finished model: its config.json names none; give the output_dir of a finished run",
        )
        raise UserError(f"{run} holds {what.format(run=run)}")
    return kind


def kinds_of_rows(kind: str, run: str) -> tuple[str, ...]:
    """The kinds of rows that the model of a run reads."""
    if kind == "tagger":
        return ("tokens", "text")
    needed, taken = columns_of(kind, run)
    return tuple(
        row.name for row in KINDS.values() if set(needed) <= set(row.columns) <= {*needed, *taken}
    )


def check_rows(
    name: str,
    kinds: tuple[str, ...],
    columns=None,
    *,
    skip_bad: bool = False,
    ids: list | None = None,
) -> CheckedRows:
    """A whole pass over the file; UserError where a row is bad or has a column that a prediction would take.

    ids: is given the id of each row, for a file that is keyed by it; none may repeat.
    """
    scan, given = CheckedRows(name, kinds=kinds, columns=columns), []
    for row in scan:
        if ids is not None:
            given.append({"id": row.get("id")})
        if taken := [column for column in row if column.startswith(PREFIX)]:
            raise UserError(
                f"{name}: the column {taken[0]} is for predictions: give the file without predicted_* columns"
            )
    if scan.bad and not skip_bad or scan.bad == scan.total:
        raise UserError(bad_rows_message(scan).replace("skip_bad: true", "--skip_bad"))
    if ids is not None:
        ids += question_ids(given)
    return scan


def predict_rows(
    encoder, rows: Iterable[dict], kind: str, *, batch_size: int = 32
) -> Iterator[tuple[dict, dict]]:
    """(row, prediction) in the order of the rows; kind: of the rows. A part of them is in memory at a time."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK * batch_size)):
        inputs = [{column: row[column] for column in KINDS[kind].columns} for row in chunk]
        yield from zip(chunk, encoder.predict(inputs, batch_size=batch_size), strict=True)


def add_arguments(parser) -> None:
    parser.add_argument(
        "run", help="folder of a finished classification, ner or question_answering run"
    )
    parser.add_argument(
        "file",
        help="rows as the recipe reads them, with or without the answers; .txt: a text per line",
    )
    parser.add_argument(
        "--output", default="predictions.jsonl", help="JSON lines; - for the terminal [%(default)s]"
    )
    parser.add_argument("--columns", help="our name = their name, as in text=document,label=label")
    parser.add_argument("--batch_size", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--device", help="cpu or cuda [cuda where there is one]")
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help="leave bad rows out and count them, instead of stopping",
    )
    parser.add_argument("--force", action="store_true", help="write over an output that is there")
    parser.add_argument(
        "--squad",
        metavar="FILE",
        help="of a reader: also {id: answer}, as the SQuAD script reads it",
    )


def main(args) -> int:
    """Writes the predictions and prints the metrics; errors are UserErrors."""
    kind = kind_of_run(args.run)
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give 1 or more")
    if args.squad and kind != "reader":
        raise UserError(f"--squad is for question answering; {args.run} holds a {kind}")
    for path in (args.output, args.squad):
        check_output(path, force=args.force)
    kinds = kinds_of_rows(kind, args.run)
    ids = [] if args.squad else None
    checked = check_rows(args.file, kinds, args.columns, skip_bad=args.skip_bad, ids=ids)
    count = checked.total - checked.bad
    say = print if args.output != "-" else lambda text: print(text, file=sys.stderr)
    if checked.bad:
        say(
            f"{checked.bad} of {checked.total} rows are bad and left out; first: {checked.problems[0]}"
        )
    encoder = open_encoder(kind, args.run, args.device or best_device())
    answers, official = Answers(kind, encoder, args.run), {}
    rows, given = (
        CheckedRows(args.file, kinds=kinds, columns=args.columns),
        KINDS[checked.kind].columns,
    )
    with writing(args.output) as file, progress(count) as advance:
        for row, prediction in predict_rows(
            encoder, rows, checked.kind, batch_size=args.batch_size
        ):
            named = {
                PREFIX + name: value for name, value in prediction.items() if name not in given
            }
            file.write(as_line({**row, **named}))
            answers.add(row, prediction)
            if args.squad:
                official[ids[len(official)]] = prediction["answer"]
            advance()
    if args.squad:
        with writing(args.squad) as file:
            file.write(as_line(official))
    say(f"{count} rows -> {args.output}")
    if report := answers.report():
        say(report)
    return 0


def check_output(path: str | None, *, force: bool) -> None:
    """UserError where the output cannot or must not be written, before any work is done."""
    if path in (None, "-"):
        return
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists: give another --output, or --force to write over it")
    if Path(path).is_dir() or not Path(path).resolve().parent.is_dir():
        raise UserError(f"{path}: a file in a folder that exists is expected")


@contextmanager
def writing(path: str):
    """A text file that gets its name when the block has ended well; - is the terminal."""
    if path == "-":
        yield sys.stdout
        return
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        yield file
    os.replace(part, path)


def as_line(content: dict) -> str:
    """One line of JSON; half a surrogate pair, which a column may hold, is written as its escape."""
    text = json.dumps(content, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8") + "\n"


@contextmanager
def progress(total: int):
    """A function to call after each row; a bar on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


# ---- comparing with the answers ----------------------------------------------------------------------------------


class Answers:
    """The answers that rows have, beside what the model said; of a row only these two are kept."""

    def __init__(self, kind: str, encoder, run: str):
        self.kind, self.encoder, self.column = kind, encoder, ANSWERS[kind]
        self.unit = (read_object(Path(run) / RECORD).get("config") or {}).get("answer_unit", "word")
        self.pairs: list[tuple] = []
        self.without = 0

    def add(self, row: dict, prediction: dict) -> None:
        answer = row.get(self.column)
        odd = (
            self.kind == "tagger" and answer is not None and len(answer) != len(prediction["tags"])
        )
        if answer is None or odd or CHECKS[self.column](answer):
            self.without += 1
        elif self.kind == "classifier":
            self.pairs.append((answer, prediction["label"]))
        elif self.kind == "tagger":
            self.pairs.append((answer, prediction["tags"], prediction["tokens"]))
        else:
            scores = answer_scores(prediction["answer"], answer["text"], self.unit)
            self.pairs.append((bool(answer["text"]), *scores))

    def report(self) -> str:
        """The metrics as text; "" where no row has an answer."""
        if not self.pairs:
            return ""
        said = {"classifier": self._labels, "tagger": self._tags, "reader": self._spans}[
            self.kind
        ]()
        return (
            f"{said}\n{self.without} rows without {self.column} are not judged"
            if self.without
            else said
        )

    def _labels(self) -> str:
        if self.encoder.problem == "regression":
            numbers = [
                (number(true), said) for true, said in self.pairs if number(true) is not None
            ]
            self.without += len(self.pairs) - len(numbers)
            names = ("rows", "mae", "r2", "pearson", "spearman")
            return (
                table(names, [regression_report(*zip(*numbers))])
                if numbers
                else "no label is a number"
            )
        place = {label: i for i, label in enumerate(self.encoder.labels)}
        pairs = [(names_of(true), names_of(said)) for true, said in self.pairs]
        known = [pair for pair in pairs if all(name in place for name in pair[0])]
        strange = Counter(name for true, _ in pairs for name in true if name not in place)
        notes = []
        if strange:
            shown = ", ".join(f"{name!r} ({count})" for name, count in strange.most_common(5))
            notes = [
                f"{len(pairs) - len(known)} rows have a label that the model does not know, as {shown}: not judged"
            ]
            if not known:
                return f"{notes[0]}; its labels are {', '.join(self.encoder.labels[:20])}"
        if self.encoder.problem == "multi_label_classification":
            marks = [[[int(label in names) for label in place] for names in pair] for pair in known]
            report = multi_label_report(*zip(*marks), self.encoder.labels)
            overall = ("rows", "accuracy", "f1_micro", "f1")
        else:
            report = classification_report(
                *zip(*([place[n[0]] for n in pair] for pair in known)), self.encoder.labels
            )
            overall = ("rows", "accuracy", "f1")
        classes = sorted(
            (entry for entry in report["classes"] if entry["rows"]), key=lambda entry: entry["f1"]
        )
        return "\n".join([table(overall, [report]), "", table(CLASS, classes, limit=SHOWN), *notes])

    def _tags(self) -> str:
        truth, said, tokens = zip(*self.pairs)
        scheme = find_scheme(truth)
        report = tagging_report([to_bio(tags, scheme)[0] for tags in truth], said, tokens)
        overall = ("sentences", "entities", "precision", "recall", "f1")
        return "\n".join([table(overall, [report]), "", table(TYPE, report["types"], limit=SHOWN)])

    def _spans(self) -> str:
        parts = {"all": self.pairs, "answerable": [p for p in self.pairs if p[0]]}
        parts["unanswerable"] = [p for p in self.pairs if not p[0]]
        rows = [
            {
                "questions": name,
                "rows": len(part),
                "exact": mean(p[1] for p in part),
                "f1": mean(p[2] for p in part),
            }
            for name, part in parts.items()
            if part and (name == "all" or len(part) < len(self.pairs))
        ]
        return table(("questions", "rows", "exact", "f1"), rows)


def table(columns: Sequence[str], rows: Sequence[dict], limit: int | None = None) -> str:
    """Aligned columns for the terminal; the first `limit` rows, and how many more there are."""
    cells = [
        [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows[:limit]
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in [columns, *cells]
    ]
    return "\n".join(
        lines + ([f"... and {len(rows) - limit} more"] if limit and len(rows) > limit else [])
    )
