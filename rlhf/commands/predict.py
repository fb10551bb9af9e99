"""`python -m rlhf predict RUN FILE`: the predictions of a trained encoder or encoder-decoder for each row of a file.

The file is read twice as a stream, first to check and count its rows, so that a bad one stops the command before any
work is done. Each row is written with its own columns and the prediction's, which are named predicted_*. The output
gets its name when it is complete. Where rows have answers, the predictions are scored.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from rlhf.data.load import CheckedRows, bad_rows_message
from rlhf.data.rows import CHECKS, KINDS
from rlhf.errors import UserError
from rlhf.models.snapshots import model_folder
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, model_kind, read_object
from rlhf.serving.predictors import columns_of, open_encoder, resolve
from rlhf.task_table import PREDICTED, TASKS
from rlhf.tasks.answers import Table
from rlhf.tasks.question_answering.encode import question_ids

PREFIX = "predicted_"
# Rows of a kind with the answer, whose other columns are given: rows of the tasks have a kind of their own for them.
WITHOUT_ANSWER = {"prompt_completion": "prompt"}
BATCHES_AT_ONCE = 16  # batches predicted together, so that rows of one length meet in them
FINE_TUNING = ", ".join(f"recipes/{name}.py" for name in TASKS)
# What to do with a model of another kind.
OTHERS = {
    "causal": "a language model: talk to it with `python app.py {run}`, or compare runs with `python -m rlhf report`",
    "masked": f"a pretrained encoder: fine-tune it first, with one of {FINE_TUNING}",
    "reward": "a reward model, which scores answers: give it to recipes/ppo.py as reward_model_path",
}
NO_MODEL = "no finished model: its config.json names none; give the output_dir of a finished run"


def kind_of_run(run: str) -> str:
    """A key of PREDICTED; UserError for a folder that holds no model of these kinds."""
    if not Path(run).is_dir():
        raise UserError(f"{run}: no such run folder: give the output_dir of a finished run")
    kind = model_kind(run)
    if kind not in PREDICTED:
        advice = OTHERS.get(kind, NO_MODEL)
        raise UserError(f"{run} holds {advice.format(run=run)}")
    return kind


def kinds_of_rows(kind: str, run: str) -> tuple[str, ...]:
    """The kinds of rows that the model of a run reads."""
    task = PREDICTED[kind]
    needed, taken = columns_of(kind, run)
    required = set(task.optional) & set(needed)
    allowed = set(task.optional) & {*needed, *taken}
    kinds = []
    for name in task.inputs:
        optional = set(task.optional) & set(KINDS[name].columns)
        if required <= optional <= allowed:
            kinds.append(name)
    return tuple(kinds)


def check_rows(
    name: str,
    kinds: tuple[str, ...],
    columns=None,
    *,
    skip_bad: bool = False,
    ids: list | None = None,
) -> CheckedRows:
    """A whole pass over the file; UserError where a row is bad or has a column that a prediction would take.

    ids: a list that gets the id of each row, for a file that is keyed by it; no id may repeat.
    """
    # Only the ids are kept: the file may be larger than the memory.
    scan, id_rows = CheckedRows(name, kinds=kinds, columns=columns), []
    for row in scan:
        if ids is not None:
            id_rows.append({"id": row.get("id")})
        taken = [column for column in row if column.startswith(PREFIX)]
        if taken:
            raise UserError(
                f"{name}: the column {taken[0]} is for predictions: give the file without predicted_* columns"
            )
    nothing_left = scan.bad == scan.total
    if nothing_left or (scan.bad and not skip_bad):
        raise UserError(bad_rows_message(scan).replace("skip_bad: true", "--skip_bad"))
    if ids is not None:
        ids += question_ids(id_rows)
    return scan


def given_columns(kind: str) -> tuple[str, ...]:
    """The columns that a model reads in rows of this kind."""
    return KINDS[WITHOUT_ANSWER.get(kind, kind)].columns


def predict_rows(
    encoder, rows: Iterable[dict], kind: str, *, batch_size: int = 32
) -> Iterator[tuple[dict, dict]]:
    """(row, prediction) in the order of the rows. kind: of the rows. Only a part of them is in memory at a time."""
    columns = given_columns(kind)
    rows = iter(rows)
    while chunk := list(islice(rows, BATCHES_AT_ONCE * batch_size)):
        # The predictor sees no answers.
        inputs = []
        for row in chunk:
            inputs.append({column: row[column] for column in columns})
        yield from zip(chunk, encoder.predict(inputs, batch_size=batch_size), strict=True)


def add_arguments(parser) -> None:
    parser.add_argument(
        "run", help=f"folder or Hub id of a finished run of one of: {', '.join(PREDICTED)}"
    )
    parser.add_argument(
        "file",
        nargs="?",
        help="rows as the recipe reads them, with or without the answers; .txt: one text per line",
    )
    parser.add_argument(
        "--text", nargs="+", help="predict for these texts, on the terminal, instead of a file"
    )
    parser.add_argument(
        "--output", default="predictions.jsonl", help="JSON lines; - for the terminal [%(default)s]"
    )
    parser.add_argument("--columns", help="our name = their name, as in text=document,label=label")
    parser.add_argument("--batch_size", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--device", help="cpu, cuda or mps [the accelerator if there is one]")
    parser.add_argument(
        "--skip_bad", action="store_true", help="drop and count bad rows instead of stopping"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an output that exists")
    parser.add_argument(
        "--squad",
        metavar="FILE",
        help="question answering: also write {id: answer}, which the SQuAD script reads",
    )


def main(args) -> int:
    """Write the predictions and print the metrics; errors are UserErrors."""
    args.run = model_folder(args.run)
    kind = kind_of_run(args.run)
    check_arguments(args, kind)
    kinds = kinds_of_rows(kind, args.run)
    if args.text:
        predict_texts(args, kind, kinds)
        return 0
    # The first pass: after it, a failure is the model's or the disk's.
    ids = [] if args.squad else None
    checked = check_rows(args.file, kinds, args.columns, skip_bad=args.skip_bad, ids=ids)
    if checked.bad:
        first = checked.problems[0]
        say(args, f"{checked.bad} of {checked.total} rows are bad and dropped; first: {first}")
    for note in checked.notes():
        say(args, note)
    encoder = open_encoder(kind, args.run, args.device or best_device())
    scoring, answers_by_id = Scoring(kind, encoder, args.run), {}
    count = checked.total - checked.bad
    # The second pass skips the same bad rows.
    rows = CheckedRows(args.file, kinds=kinds, columns=args.columns)
    with writing(args.output) as file, progress(count) as advance:
        for row, prediction in predict_rows(
            encoder, rows, checked.kind, batch_size=args.batch_size
        ):
            file.write(as_line(row | predicted_columns(prediction, checked.kind)))
            scoring.add(row, prediction)
            if args.squad:
                answers_by_id[ids[len(answers_by_id)]] = prediction["answer"]
            advance()
    if args.squad:
        with writing(args.squad) as file:
            file.write(as_line(answers_by_id))
    say(args, f"{count} rows -> {args.output}")
    report = scoring.report()
    if report:
        say(args, report)
    return 0


def predict_texts(args, kind: str, kinds: tuple[str, ...]) -> None:
    """Print the prediction for each text of the command line."""
    if "text" not in kinds:
        columns = ", ".join(PREDICTED[kind].texts)
        raise UserError(f"--text: this model reads {columns}: write them into a file")
    if not all(text.strip() for text in args.text):
        raise UserError("--text: an empty text: write something to read")
    encoder = open_encoder(kind, args.run, args.device or best_device())
    # As the lines of a text file are.
    rows = [{"text": text} for text in args.text]
    for row, prediction in predict_rows(encoder, rows, "text", batch_size=args.batch_size):
        sys.stdout.write(as_line(row | predicted_columns(prediction, "text")))


def say(args, text: str) -> None:
    """Print a message, to the error stream where the rows themselves go to the terminal."""
    print(text, file=sys.stderr if args.output == "-" else sys.stdout)


def predicted_columns(prediction: dict, kind: str) -> dict:
    """The columns that a row gets: what the model predicted, without what it was given."""
    given = given_columns(kind)
    return {PREFIX + name: value for name, value in prediction.items() if name not in given}


def check_arguments(args, kind: str) -> None:
    """UserError where flags do not fit each other or the model."""
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: give 1 or more")
    if args.squad and "question" not in PREDICTED[kind].texts:
        raise UserError(f"--squad is for question answering; {args.run} holds a {kind} model")
    if bool(args.file) == bool(args.text):
        raise UserError("give a FILE of rows, or --text TEXT: one of the two")
    if args.text:
        return
    for path in (args.output, args.squad):
        check_output(path, force=args.force)


def check_output(path: str | None, *, force: bool) -> None:
    """UserError where the output cannot or must not be written, before any work is done."""
    if path in (None, "-"):
        return
    if Path(path).exists() and not force:
        raise UserError(f"{path} exists: give another --output, or --force to overwrite it")
    if Path(path).is_dir() or not Path(path).resolve().parent.is_dir():
        raise UserError(f"{path}: a file in a folder that exists is expected")


@contextmanager
def writing(path: str):
    """A text file that gets its name when the block ends without an error; - is the terminal."""
    if path == "-":
        yield sys.stdout
        return
    # A file under its own name is complete.
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        yield file
    os.replace(part, path)


def as_line(content: dict) -> str:
    """One line of JSON. Half a surrogate pair, which a column may hold, is written as its escape."""
    # default=str: a parquet column may hold dates.
    text = json.dumps(content, ensure_ascii=False, default=str)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8") + "\n"


@contextmanager
def progress(total: int):
    """A function to call after each row; a bar on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    # On the error stream, since the rows may go to the terminal.
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


# ---- comparing with the answers ----------------------------------------------------------------------------------


class Scoring:
    """Gathers the answers that rows have, with the predictions, and prints how well they agree."""

    def __init__(self, kind: str, encoder, run: str):
        task = PREDICTED[kind]
        self.column = task.answer
        run_config = read_object(Path(run) / RECORD).get("config") or {}
        self.answers = resolve(task.answers)(encoder, run_config)
        self.scored = self.without = 0

    def add(self, row: dict, prediction: dict) -> None:
        # An answer that breaks its form, such as half a SQuAD entry, counts as missing.
        answer = row.get(self.column)
        is_good = answer is not None and not CHECKS[self.column](answer)
        if is_good and self.answers.add(answer, prediction):
            self.scored += 1
        else:
            self.without += 1

    def report(self) -> str:
        """The metrics as text; "" where no row has an answer."""
        if not self.scored:
            return ""
        lines = []
        for part in self.answers.report():
            if isinstance(part, Table):
                part = table(part.columns, part.rows, limit=part.limit)
            lines.append(part)
        # After `report`, which may skip some itself.
        without = self.without + self.answers.skipped
        if without:
            lines.append(f"{without} rows without {self.column} are not scored")
        return "\n".join(lines)


def table(columns: Sequence[str], rows: Sequence[dict], limit: int | None = None) -> str:
    """Aligned columns for the terminal: the first `limit` rows, and how many more there are."""
    lines = [list(columns)]
    for row in rows[:limit]:
        lines.append([_cell(row[column]) for column in columns])
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    texts = []
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths)]
        texts.append("  ".join(padded).rstrip())
    if limit and len(rows) > limit:
        texts.append(f"... and {len(rows) - limit} more")
    return "\n".join(texts)


def _cell(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
