"""A text of your own as the files that `make ladder` reads: questions with answers, or plain text.

    python recipes/ladder_data.py ChatbotData.csv --output runs/ladder-ko/data
    python recipes/ladder_data.py stories.txt.gz --document_separator "<|endoftext|>" --output runs/ladder-stories/data

DATA=ChatbotData.csv make ladder calls it. The rows have `prompt` and `completion`, or `text`, in any layout of docs/data.md.
A hash of the question, or of a text, decides the side of its row, so that none is on two sides, and a row stays where it
is when others are added.
    text.jsonl, text_dev.jsonl, text_heldout.jsonl    text to learn from, to choose settings on, and to measure on: a
                     question and on the next line its answer, or a text as it is
    sft.jsonl, sft_dev.jsonl    prompt, completion: the same questions and answers
    heldout.jsonl    prompt, reference: what every rung answers, and the answer in the file. Of a plain text its first line
                     and the rest; texts of one line are not there.
The last three are written only where they have rows.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.data.chat import as_text
from rlhf.data.load import Loaded, load_rows
from rlhf.data.splits import split_rows
from rlhf.errors import UserError
from rlhf.runs.replacement import replacement
from rlhf.tasks.seq2seq.metrics import MISSING, is_installed

SEED = 0  # of the hash
SHARE = 0.05  # of the questions, on each side that is not trained on
SIDES = ("", "_dev", "_heldout")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", help="jsonl, json, csv, tsv, parquet or txt; .gz too")
    add("--output", required=True, type=Path, help="folder for the files")
    add("--columns", help="our column = their column: prompt=question,completion=reply")
    add("--document_separator", help="line between the texts of a .txt; default: a line is a text")
    add("--dataset_limit", type=int, metavar="N", help="use the first N rows only")
    add("--skip_bad", action="store_true", help="drop bad rows, and count them")
    arguments = parser.parse_args()
    loaded = load_rows(
        arguments.file,
        kinds=("prompt_completion", "text"),
        columns=arguments.columns,
        separator=arguments.document_separator,
        limit=arguments.dataset_limit,
        skip_bad=arguments.skip_bad,
    )
    for warning in loaded.warnings:
        print(warning)
    write(arguments.output, make(loaded))


def make(loaded: Loaded) -> dict[str, list[dict]]:
    """Rows by file name. Files without rows are not there."""
    train, others = split_rows(loaded.rows, 2 * SHARE, SEED, loaded.kind)
    dev, heldout = split_rows(others, 0.5, SEED + 1, loaded.kind)
    sides = dict(zip(SIDES, (train, dev, heldout), strict=True))
    if loaded.kind == "prompt_completion" and not is_installed():
        raise UserError(MISSING)  # before any rung is trained: answers are compared by chrF
    files = {}
    for side, rows in sides.items():
        files[f"text{side}"] = [{"text": text_of(row)} for row in rows]
    if loaded.kind == "prompt_completion":
        files["sft"] = demonstrations(train)
        files["sft_dev"] = demonstrations(dev)
        files["heldout"] = questions(heldout)
    else:
        files["heldout"] = openings(heldout)
    return {name: rows for name, rows in files.items() if rows}


def text_of(row: dict) -> str:
    """A text as it is, or a question and on the next line its answer."""
    if "completion" in row:
        return f"{as_text(row['prompt'])}\n{row['completion']}"
    return row["text"]


def demonstrations(rows: Sequence[dict]) -> list[dict]:
    """The rows without other columns."""
    return [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]


def questions(rows: Sequence[dict]) -> list[dict]:
    """The questions, each with its answer and the row's other columns, such as a label."""
    asked = []
    for row in rows:
        others = {name: value for name, value in row.items() if name != "completion"}
        asked.append({**others, "reference": row["completion"]})
    return asked


def openings(rows: Sequence[dict]) -> list[dict]:
    """The first line of each text as its prompt, and the rest as what follows. Texts of one line are not there."""
    prompts = []
    for row in rows:
        first, _, rest = row["text"].strip().partition("\n")
        if rest:
            prompts.append({"prompt": first, "reference": rest})
    return prompts


def write(folder: Path, files: dict[str, list[dict]]) -> None:
    """Write the rows as JSON lines. UserError where the folder has other files: rungs have learned from them."""
    texts = {}
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        texts[f"{name}.jsonl"] = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    if before and before != texts:
        raise UserError(
            f"{folder} has files of other rows, from which models may have learned: give another folder, or delete it"
        )
    with replacement(folder) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
    for name, rows in files.items():
        print(f"{folder / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
