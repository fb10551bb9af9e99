"""`python -m rlhf.commands.look REQUEST`: what `rlhf validate` says of a file, as JSON, for a program that asks.

REQUEST is a JSON object: file, and columns, tokenizer, good_answers, rank_by as the flags of `rlhf validate`. It prints
`{"rows": n}` about twice a second while it reads, then `{"report": {...}}` or `{"error": "..."}`. The app starts it, so that
a large file takes neither the memory of the server nor the time of those who chat.
"""

import json
import sys
import time

from rlhf.commands.learned import learned_part
from rlhf.commands.validate import (
    LABELS_SHOWN,
    PERCENTILES,
    ValidationReport,
    load_tokenizer,
    percentile,
    validate,
)
from rlhf.data.load import Ratings
from rlhf.data.rows import serves
from rlhf.errors import UserError
from rlhf.task_table import TASKS

EVERY = 0.5  # seconds between two lines of progress
PROBLEMS_SHOWN = 200
# Recipe -> the kinds of rows that it reads as they are. Those of the tasks are in their table.
KINDS_READ = {
    "tokenizer": ("text", "prompt_completion", "scored"),
    "word_vectors": ("text",),
    "pretrain": ("text",),
    "sft": ("prompt_completion", "scored", "messages", "text"),
    "reward": ("ranking",),
    "dpo": ("ranking",),
    "kto": ("unpaired_preference",),
    "ilql": ("scored", "ranking", "unpaired_preference"),
    "ppo": ("prompt", "scored"),
    "seq2seq": ("prompt_completion",),
}


class Progress:
    """Prints the number of rows from time to time."""

    def __init__(self):
        self.last = time.monotonic()

    def __call__(self, report: ValidationReport) -> None:
        now = time.monotonic()
        if now - self.last > EVERY:
            self.last = now
            say({"rows": report.good})


def main(argv: list[str]) -> int:
    """Print progress and the report; 2 where the file could not be read."""
    request = json.loads(argv[0])
    try:
        report = validate(
            request["file"],
            columns=request.get("columns") or None,
            tokenizer=load_tokenizer(request.get("tokenizer") or None),
            ratings=Ratings(bool(request.get("good_answers")), request.get("rank_by") or None),
            progress=Progress(),
        )
    except UserError as error:
        say({"error": str(error)})
        return 2
    except (OSError, MemoryError, ValueError) as error:
        say({"error": f"{request['file']}: {type(error).__name__}: {error}"})
        return 2
    say({"report": content(report)})
    return 0


def say(answer: dict) -> None:
    """Print one line of JSON at once."""
    print(json.dumps(answer), flush=True)


def content(report: ValidationReport) -> dict:
    """The report without its long lists: lengths as percentiles, the first labels and problems with their counts."""
    facts = dict(vars(report))
    lengths = []
    for column, units in facts.pop("lengths").items():
        for unit, values in units.items():
            if values:
                row = {"column": column, "unit": unit}
                for percent in PERCENTILES:
                    row[str(percent)] = percentile(values, percent)
                lengths.append(row)
    facts["lengths"] = lengths
    for name in ("labels", "tags"):
        counter = getattr(report, name)
        facts[name] = dict(counter.most_common(LABELS_SHOWN))
        facts[f"{name}_count"] = len(counter)
    facts["problems"] = report.problems[:PROBLEMS_SHOWN]
    facts["problem_count"] = len(report.problems)
    facts["learned"] = learned_part(report.kind) if report.kind else ""
    facts["recipes"] = recipes_for(report.kind)
    return facts


def recipes_for(kind: str) -> list[str]:
    """The recipes that train on rows of this kind, as they are or converted."""
    if not kind:
        return []
    names = [name for name, kinds in KINDS_READ.items() if serves(kind, kinds)]
    for name, task in TASKS.items():
        if kind in task.trained_on:
            names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
