"""`python -m rlhf predict RUN FILE`: what a classifier, tagger or reader says of each row of a file.

The file is read twice as a stream, first to check and count its rows, so that a bad one is met before the work and not
in its middle. Each row is written with its own columns and the prediction's, which are named predicted_*; the output
gets its name when it is complete. Where rows have answers, they are compared.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rlhf.data.load import Scan, bad_rows
from rlhf.data.rows import CHECKS, KINDS
from rlhf.errors import UserError
from rlhf.inference.encoders import open_encoder
from rlhf.runs import model_kind

PREFIX = "predicted_"
CHUNK = 16  # batches predicted at once: rows of one length meet in them


@dataclass(frozen=True)
class Task:
    """kinds: of the rows that a kind of model reads; answer: the column that it is compared with, where it is there."""

    kinds: tuple[str, ...]
    answer: str


TASKS = {
    "classifier": Task(("pair", "text"), "label"),
    "tagger": Task(("tokens", "text"), "tags"),
    "reader": Task(("question",), "answers"),
}
OTHERS = {
    "causal": "a language model: talk to it with `python app.py {run}`, or compare runs with `python -m rlhf report`",
    "masked": "a pretrained encoder: fine-tune it with recipes/classification.py, ner.py or question_answering.py first",
    "reward": "a reward model, which scores answers: give it to recipes/ppo.py as reward_model_path",
}


def kind_of_run(run: str) -> str:
    """A key of TASKS; UserError for a folder that holds no model of these kinds."""
    if not Path(run).is_dir():
        raise UserError(f"{run}: no such run folder: give the output_dir of a finished run")
    kind = model_kind(run)
    if kind not in TASKS:
        what = OTHERS.get(kind, "no finished model: its config.json names none; give the output_dir of a finished run")
        raise UserError(f"{run} holds {what.format(run=run)}")
    return kind


def check_rows(name: str, kinds: tuple[str, ...], columns=None, *, skip_bad: bool = False) -> Scan:
    """A whole pass over the file; UserError where a row is bad or has a column that a prediction would take."""
    scan = Scan(name, kinds=kinds, columns=columns)
    for row in scan:
        if taken := [column for column in row if column.startswith(PREFIX)]:
            raise UserError(
                f"{name}: the column {taken[0]} is for predictions: give the file without predicted_* columns"
            )
    if scan.bad and not skip_bad or scan.bad == scan.total:
        raise UserError(bad_rows(scan).replace("skip_bad: true", "--skip_bad"))
    return scan


def predict_rows(encoder, rows: Iterable[dict], kind: str, *, batch_size: int = 32) -> Iterator[tuple[dict, dict]]:
    """(row, prediction) in the order of the rows; kind: of the rows. A part of them is in memory at a time."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK * batch_size)):
        inputs = [{column: row[column] for column in KINDS[kind].columns} for row in chunk]
        yield from zip(chunk, encoder.predict(inputs, batch_size=batch_size), strict=True)


def add_arguments(parser) -> None:
    parser.add_argument("run", help="folder of a finished classification, ner or question_answering run")
    parser.add_argument(
        "file", help="rows as the recipe reads them, with or without the answers; .txt: a text per line"
    )
    parser.add_argument("--output", default="predictions.jsonl", help="JSON lines; - for the terminal [%(default)s]")
    parser.add_argument("--columns", help="our name = their name, as in text=document,label=label")
    parser.add_argument("--batch_size", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--device", help="cpu or cuda [cuda where there is one]")
    parser.add_argument(
        "--skip_bad", action="store_true", help="leave bad rows out and count them, instead of stopping"
    )
    parser.add_argument("--force", action="store_true", help="write over an output that is there")
    parser.add_argument("--squad", metavar="FILE", help="of a reader: also {id: answer}, as the SQuAD script reads it")


def main(args) -> int:
    """Writes the predictions and prints the metrics; errors are UserErrors."""
    kind = kind_of_run(args.run)
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give 1 or more")
    if args.squad and kind != "reader":
        raise UserError(f"--squad is for question answering; {args.run} holds a {kind}")
    for path in (args.output, args.squad):
        check_output(path, force=args.force)
    checked = check_rows(args.file, TASKS[kind].kinds, args.columns, skip_bad=args.skip_bad)
    count = checked.total - checked.bad
    say = print if args.output != "-" else lambda text: print(text, file=sys.stderr)
    if checked.bad:
        say(f"{checked.bad} of {checked.total} rows are bad and left out; first: {checked.problems[0]}")
    encoder = open_encoder(kind, args.run, args.device or best_device())
    answer, truth, predicted, official = TASKS[kind].answer, [], [], {}
    rows = Scan(args.file, kinds=TASKS[kind].kinds, columns=args.columns)
    with writing(args.output) as file, progress(count) as advance:
        for row, prediction in predict_rows(encoder, rows, checked.kind, batch_size=args.batch_size):
            named = {PREFIX + name: value for name, value in prediction.items() if name not in row}
            file.write(json.dumps({**row, **named}, ensure_ascii=False, default=str) + "\n")
            if row.get(answer) is not None and CHECKS[answer](row[answer]) is None:
                truth.append(row[answer])
                predicted.append(prediction)
            if args.squad:
                official[str(row.get("id", f"q{len(official)}"))] = prediction["answer"]
            advance()
    if args.squad:
        with writing(args.squad) as file:
            file.write(json.dumps(official, ensure_ascii=False))
    say(f"{count} rows -> {args.output}")
    if truth:
        left = f" ({count - len(truth)} have no {answer})" if len(truth) < count else ""
        say(f"{len(truth)} rows with {answer}{left}: {judge(kind, encoder, truth, predicted)}")
    return 0


def best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
    """A text file that gets its name when the block has ended well; - is the terminal. It holds any string."""
    if path == "-":
        yield sys.stdout
        return
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:  # half a surrogate pair as \ud800
        yield file
    os.replace(part, path)


@contextmanager
def progress(total: int):
    """A function to call after each row; a bar on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
