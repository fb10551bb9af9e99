"""Does PPO on human rankings make the text better, by what no stage optimised alone?

    python benchmarks/e2e/run.py --source FOLDER [--seeds 0 1 2]

The road of recipes/configs/*/e2e.yaml on the E2E NLG challenge: tokenizer, SFT from scratch, a reward model on the quality
rankings, PPO on it alone and PPO on it plus slot coverage; then every model writes one sampled text for each held-out list
of facts, REPEATS times. Judged by slot coverage (counted), by the quality reward model, and by a second reward model
trained on the naturalness rankings, which no stage sees. A finished stage is not run again, so the script can be continued.
Writes results/<date>.json: numbers with 95 % intervals, spread over seeds, seconds per stage, versions, data hashes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhf.comparison.compare import build_report
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum
from rlhf.data.load import load_rows
from rlhf.runs.record import RunRecord, code_version, package_versions

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
REPEATS = 4
LAUNCH = ["accelerate", "launch", "--quiet", "--config_file", "recipes/accelerate/one_process.yaml"]


def stage(recipe: str, folder: Path, **keys) -> RunRecord:
    """Run a recipe with its e2e.yaml unless its folder is finished; returns its record."""
    if not (folder / "run.json").is_file() or RunRecord.load(folder).status != "done":
        flags = [
            part
            for key, value in keys.items()
            for part in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
        ]
        config = f"recipes/configs/{recipe}/e2e.yaml"
        subprocess.run(
            [*LAUNCH, f"recipes/{recipe}.py", "--config", config, "--output_dir", str(folder), *flags],
            check=True,
            cwd=ROOT,
        )
    return RunRecord.load(folder)


def judge(runs: Path, sft: Path, policy: Path) -> dict:
    """Numbers of the SFT model and of a policy on the same held-out facts with the same random numbers."""
    rewards = WeightedSum(
        {
            "quality": RewardModelScorer.load(str(runs / "reward")),
            "naturalness": RewardModelScorer.load(str(runs / "reward_naturalness")),
            "slot_coverage": FunctionScorer.load("recipes.rewards:slot_coverage"),
        }
    )
    rows = load_rows(str(runs / "data" / "heldout.jsonl"), kinds=("prompt",)).rows * REPEATS
    report = build_report([str(sft), str(policy)], rows, rewards=rewards, max_completion_length=64, seed=1234)
    found = {}
    for name, column in zip(("sft", "policy"), report.columns, strict=True):
        metrics = {k: v for k, v in column.metrics.items() if k not in ("score", "win_rate")}
        found[name] = {k: [round(x, 4) for x in (v.mean, v.low, v.high) if x is not None] for k, v in metrics.items()}
    found["samples"] = [
        {"facts": report.prompts[i], "sft": report.columns[0].completions[i], "ppo": report.columns[1].completions[i]}
        for i in range(5)
    ]
    return found


def spread(judged: list[dict], name: str) -> dict:
    values = [entry["policy"][name][0] for entry in judged]
    return {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="data/e2e", help="folder with the E2E files, see recipes/e2e.py")
    parser.add_argument("--runs", default="runs/e2e", help="where the runs go, or already are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--seeds_alone", type=int, nargs="*", default=[0], help="of the runs with the reward model alone"
    )
    arguments = parser.parse_args()
    runs, data = Path(arguments.runs).resolve(), Path(arguments.runs).resolve() / "data"
    if not data.exists():
        source = str(Path(arguments.source).resolve())
        subprocess.run(
            [sys.executable, "recipes/e2e.py", "--source", source, "--output", str(data)], check=True, cwd=ROOT
        )
    sys.path.insert(0, str(ROOT))

    records = {
        "tokenizer": stage("tokenizer", runs / "tokenizer", dataset_name=data / "demonstrations.jsonl"),
        "sft": stage(
            "sft", runs / "sft", dataset_name=data / "demonstrations.jsonl", tokenizer_name_or_path=runs / "tokenizer"
        ),
    }
    for name, folder in (("quality", "reward"), ("naturalness", "reward_naturalness")):
        records[folder] = stage(
            "reward",
            runs / folder,
            dataset_name=data / f"{name}_train.jsonl",
            eval_dataset_name=data / f"{name}_heldout.jsonl",
            demonstrations=data / "demonstrations.jsonl",
            model_name_or_path=runs / "sft",
        )
    prompts = {"dataset_name": data / "prompts.jsonl", "eval_dataset_name": data / "heldout.jsonl"}
    models = {"model_name_or_path": runs / "sft", "reward_model_path": runs / "reward"}
    both, alone = [], []
    for seed in arguments.seeds:
        folder = runs / f"ppo_both_{seed}"
        records[folder.name] = stage("ppo", folder, **prompts, **models, seed=seed)
        both.append(judge(runs, runs / "sft", folder))
    for seed in arguments.seeds_alone:
        folder = runs / f"ppo_alone_{seed}"
        # An empty list of functions cannot be spelled on a command line; weight 0 leaves coverage a mere observer.
        records[folder.name] = stage("ppo", folder, **prompts, **models, seed=seed, reward_weights=[1.0, 0.0])
        alone.append(judge(runs, runs / "sft", folder))

    names = (
        "score_slot_coverage",
        "score_quality",
        "score_naturalness",
        "kl",
        "completion_length",
        "eos_rate",
        "distinct_2",
    )
    result = {
        "question": __doc__.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": code_version(),
        "versions": package_versions(),
        "machine": records["sft"].machine,
        "seeds": arguments.seeds,
        "seeds_alone": arguments.seeds_alone,
        "prompts": len(load_rows(str(data / "heldout.jsonl"), kinds=("prompt",)).rows),
        "samples_per_prompt": REPEATS,
        "data": records["sft"].data + records["reward"].data + records["reward_naturalness"].data,
        "seconds": {name: record.seconds for name, record in records.items()},
        "peak_memory_gb": max(record.peak_memory_gb for record in records.values()),
        "reward_models": {name: records[name].metrics for name in ("reward", "reward_naturalness")},
        "sft": both[0]["sft"],
        "ppo_both": {name: spread(both, name) for name in names},
        "ppo_reward_model_alone": {name: spread(alone, name) for name in names},
        "runs": {"both": both, "alone": alone},
    }
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / f"{result['date']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")
    ways = ("ppo_both", "ppo_reward_model_alone")
    for name in names:
        sft = result["sft"].get(name, [float("nan")])[0]
        print(f"{name:<22} SFT {sft:8.3f}" + "".join(f"   {k[4:]} {result[k][name]['mean']:8.3f}" for k in ways))


if __name__ == "__main__":
    main()
