"""Do PPO's values help the decoding, against the best of n at the same number of forward passes?

    python benchmarks/value_decoding/run.py --runs runs/alignment/split_0 --record

FOLDER of --runs is one that benchmarks/alignment writes: a PPO run with a value model of its own, the reward model that it
was trained on, another reward model of naturalness that no method sees, and held-out facts. Each way of decoding answers
the same prompts once; the best of n chooses by the reward model.

passes: rows that policy and value model read for one token. The reward model of the best of n reads n whole texts more.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from benchmarks.record import check_clean_tree, write_record  # noqa: E402
from rlhf.comparison.compare import mean_estimate  # noqa: E402
from rlhf.completions.best_of_n import means_of_the_last  # noqa: E402
from rlhf.runs.record import command_line, read_jsonl  # noqa: E402

LENGTH = 64  # tokens of an answer, as the PPO run had
BEST_OF = (4, 8, 16)
TOP_K = ["--top_k", "8"]
# Name -> flags of `rlhf sample`; each answers a prompt once.
METHODS = {
    "value, coefficient 1": ["--decoding", "value", "--value_coef", "1", *TOP_K],
    "value, coefficient 5": ["--decoding", "value", "--value_coef", "5", *TOP_K],
    "tree, 8 simulations": ["--decoding", "mcts", "--simulations", "8", *TOP_K],
    "tree, 16 simulations": ["--decoding", "mcts", "--simulations", "16", *TOP_K],
}
METRICS = {"quality": "reward_model", "naturalness": "reward_model_2", "coverage": "slot_coverage"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", required=True, help="folder of a split that benchmarks/alignment wrote")
    add("--prompts", type=int, default=24, help="held-out facts, spread over all")
    add("--output", default="runs/value_decoding", help="folder of the samples")
    add("--record", action="store_true", help="write a record; needs a clean tree")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    runs, output = Path(arguments.runs), Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    prompts = choose_prompts(runs / "data" / "heldout.jsonl", arguments.prompts, output)

    # One set of answers serves each n up to its own.
    folder = sample(runs, prompts, output / "sample", ["--n", str(max(BEST_OF))])
    results = {"sampling": measure(folder, 1, passes=1)}
    for n in BEST_OF:
        results[f"best of {n}"] = measure(folder, n, passes=n)
    for name, flags in METHODS.items():
        folder = sample(runs, prompts, output / name.replace(" ", "_"), ["--n", "1", *flags])
        record = json.loads((folder / "sample.json").read_text())
        # Policy and value model have the same size.
        passes = sum(record["passes_per_token"].values())
        results[name] = measure(folder, 1, passes=passes)
    for name, result in results.items():
        print(name, json.dumps(result))
    if arguments.record:
        content = {
            "command": command_line(),
            "prompts": arguments.prompts,
            "methods": results,
        }
        write_record(HERE, __doc__, content, commit=commit)


def choose_prompts(path: Path, count: int, output: Path) -> Path:
    """A file with `count` rows, evenly spread over those of `path`."""
    rows = read_jsonl(path)
    step = max(1, len(rows) // count)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::step][:count]]
    chosen = output / "prompts.jsonl"
    chosen.write_text("".join(lines), encoding="utf-8")
    return chosen


def sample(runs: Path, prompts: Path, folder: Path, flags: list[str]) -> Path:
    """Sample and score answers; a folder that is done is kept. Naturalness and coverage have no weight."""
    command = [sys.executable, "-m", "rlhf", "sample", str(runs / "PPO_own_value_model_0")]
    command += ["--reward_model", str(runs / "reward"), str(runs / "reward_naturalness")]
    command += ["--reward_functions", "rlhf.recipes.rewards:slot_coverage"]
    command += ["--reward_weights", "1", "0", "0", "--dataset_name", str(prompts)]
    command += ["--max_completion_length", str(LENGTH)]
    subprocess.run([*command, "--output", str(folder), *flags], check=True)
    return folder


def measure(folder: Path, n: int, *, passes: float) -> dict:
    """Mean and 95 % interval over prompts of each metric of the best of n answers, passes per token and length."""
    rows = read_jsonl(folder / "answers.jsonl")
    result = {"passes_per_token": passes}
    for metric, part in METRICS.items():
        means = []
        for row in rows:
            # Answers are there best first.
            values = [answer["parts"][part] for answer in reversed(row["answers"])]
            means.append(means_of_the_last(torch.tensor([values]))[0, n - 1].item())
        estimate = mean_estimate(means)
        result[metric] = [
            round(number, 3) for number in (estimate.mean, estimate.low, estimate.high)
        ]
    ended = [answer["ended"] for row in rows for answer in row["answers"]]
    result["eos_rate"] = round(sum(ended) / len(ended), 3)
    return result


if __name__ == "__main__":
    main()
