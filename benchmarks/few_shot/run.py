"""Do `rlhf evaluate` and lm_eval give the same log-probabilities and accuracies on the same task?

    python -m venv .venv-lm-eval && .venv-lm-eval/bin/pip install lm_eval==0.4.13 torch transformers
    python benchmarks/few_shot/run.py --source FOLDER --model runs/base [--record]

--source: a folder with banking77/train.csv.gz and sst2/stsa.binary.dev.gz. --model: a run folder of a language model.
Both tasks are exported by `rlhf evaluate --export_lm_eval`, and lm_eval runs them on the same model. --record writes
results/DATE.json.
"""

import argparse
import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, write_record  # noqa: E402

ROWS = 1200  # of banking77, which holds them by label: every 7th row
TOLERANCE = 1e-4  # nats
SAME = {"sum": "acc", "per_byte": "acc_norm"}  # our method: lm_eval's metric


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--lm_eval", default=".venv-lm-eval/bin/lm_eval", help="the command")
    parser.add_argument("--work", default="runs/few_shot", type=Path)
    parser.add_argument("--num_rows", default=30, type=int)
    parser.add_argument("--shots", nargs="+", type=int, default=[0, 1, 4])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    commit = check_clean_tree() if args.record else ""
    args.work.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for name, rows in (("sst2", sst2(args.source)), ("banking77", banking77(args.source))):
        tasks[name] = compare(args, name, rows)
        print(name, json.dumps(tasks[name], indent=2))
        worst = tasks[name]["largest_difference_nats"]
        assert worst <= TOLERANCE, f"{name}: log-probabilities differ by {worst} nats"
        assert tasks[name]["accuracies_equal"], f"{name}: accuracies differ"
    if args.record:
        content = {"model": args.model, "tolerance_nats": TOLERANCE, "tasks": tasks}
        write_record(HERE, __doc__, content, commit=commit)


def sst2(source: Path) -> list[dict]:
    """Rows of lines "1 a fine film ."."""
    with gzip.open(source / "sst2" / "stsa.binary.dev.gz", "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip()]
    names = {"0": "negative", "1": "positive"}
    return [{"text": line[2:], "label": names[line[0]]} for line in lines]


def banking77(source: Path) -> list[dict]:
    with gzip.open(source / "banking77" / "train.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{"text": row["text"], "label": row["category"]} for row in rows[::7]][:ROWS]


def compare(args: argparse.Namespace, name: str, rows: list[dict]) -> dict:
    """Run both on the rows, and count how far they differ."""
    folder = args.work / name
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "rlhf", "evaluate", args.model, "--dataset_name", file]
    command += ["--shots", *args.shots, "--num_rows", args.num_rows, "--draws", 2]
    command += ["--format", "text", "--output", folder / "ours", "--export_lm_eval"]
    command += [folder / "task", "--task_name", name]
    subprocess.run([*map(str, command)], check=True, cwd=ROOT)
    command = [args.lm_eval, "--include_path", folder / "task", "--tasks", name, "--model", "hf"]
    command += ["--model_args", f"pretrained={args.model},dtype=float32", "--device", "cpu"]
    command += ["--batch_size", 32, "--log_samples", "--output_path", folder / "theirs"]
    subprocess.run([*map(str, command)], check=True, cwd=ROOT)
    return differences(folder, name)


def differences(folder: Path, name: str) -> dict:
    """The largest difference of a log-probability, and both accuracies of every number of shots and draw."""
    ours = json.loads((folder / "ours" / "evaluation.json").read_text(encoding="utf-8"))
    log_probs: dict[tuple, list[list[float]]] = {}
    for line in (folder / "ours" / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        log_probs.setdefault((row["shots"], row["draw"]), []).append(row["log_probs"])
    worst, compared, equal, accuracies = 0.0, 0, True, []
    for (shots, draw), values in log_probs.items():
        samples = newest_samples(folder / "theirs", f"{name}_{shots}_shots_draw_{draw}")
        assert len(samples) == len(values), (len(samples), len(values))
        for sample, own in zip(samples, values):
            # [log-probability, is greedy] of each answer
            theirs = [float(response[0]) for response in sample["filtered_resps"]]
            assert len(theirs) == len(own), (len(theirs), len(own))
            worst = max(worst, *(abs(a - b) for a, b in zip(theirs, own)))
            compared += len(own)
        for method, metric in SAME.items():
            own = accuracy(ours, shots, draw, method)
            other = sum(sample[metric] for sample in samples) / len(samples)
            equal = equal and abs(own - other) < 1e-9
            entry = {"shots": shots, "draw": draw, "method": method}
            accuracies.append(entry | {"ours": own, "lm_eval": other})
    return {
        "rows": ours["rows"],
        "log_probs_compared": compared,
        "largest_difference_nats": worst,
        "accuracies_equal": equal,
        "accuracies": accuracies,
        "baselines": ours["baselines"],
    }


def newest_samples(folder: Path, task: str) -> list[dict]:
    """The samples that lm_eval logged for a task, in the order of the rows."""
    files = sorted(folder.rglob(f"samples_{task}_*.jsonl"))
    lines = files[-1].read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    return sorted(samples, key=lambda sample: sample["doc_id"])


def accuracy(ours: dict, shots: int, draw: int, method: str) -> float:
    for result in ours["results"]:
        if result["shots"] == shots and result["method"] == method:
            return result["by_draw"][draw]
    raise KeyError((shots, method))


if __name__ == "__main__":
    main()
