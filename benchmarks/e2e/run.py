"""Does PPO on human rankings make the text better, by what no stage optimised alone?

    python benchmarks/e2e/run.py --source FOLDER [--seeds 0 1 2]

Runs recipes/configs/*/e2e.yaml on the E2E NLG challenge: tokenizer, SFT from scratch, a reward model on the quality
rankings, PPO on it alone and PPO on it plus slot coverage; then every model writes one sampled text for each held-out list
of facts, REPEATS times. Scored by slot coverage (counted), by the quality reward model, and by a second reward model
trained on the naturalness rankings, which no stage sees. A finished stage is not run again, so the script can be continued.
Writes results/<date>.json: numbers with 95 % intervals, spread over seeds, seconds per stage, versions, data hashes.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, run_recipe, spread, write_record  # noqa: E402
from rlhf.comparison.compare import ReportSettings, build_report  # noqa: E402
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum  # noqa: E402
from rlhf.data.load import load_rows  # noqa: E402
from rlhf.runs.record import RunRecord  # noqa: E402

REPEATS = 4  # samples per held-out list of facts
JUDGED = (
    "score_slot_coverage",
    "score_quality",
    "score_naturalness",
    "kl",
    "completion_length",
    "eos_rate",
    "distinct_2",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", default="data/e2e", help="folder with the E2E files, see recipes/e2e.py"
    )
    parser.add_argument("--runs", default="runs/e2e", help="where the runs go, or already are")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    commit = check_clean_tree()
    runs = Path(arguments.runs).resolve()
    data = runs / "data"
    if not data.exists():
        source = str(Path(arguments.source).resolve())
        command = [sys.executable, "recipes/e2e.py", "--source", source, "--output", str(data)]
        subprocess.run(command, check=True, cwd=ROOT)

    records = {
        "tokenizer": stage(
            "tokenizer", runs / "tokenizer", dataset_name=data / "demonstrations.jsonl"
        ),
        "sft": stage(
            "sft",
            runs / "sft",
            dataset_name=data / "demonstrations.jsonl",
            tokenizer_name_or_path=runs / "tokenizer",
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

    # An empty list of functions cannot be given on a command line. Weight 0 logs coverage without training on it.
    weights = {"both": {}, "alone": {"reward_weights": [1.0, 0.0]}}
    prompts = {"dataset_name": data / "prompts.jsonl", "eval_dataset_name": data / "heldout.jsonl"}
    models = {"model_name_or_path": runs / "sft", "reward_model_path": runs / "reward"}
    judged = {"both": [], "alone": []}
    for seed in arguments.seeds:
        for way, keys in weights.items():
            folder = runs / f"ppo_{way}_{seed}"
            records[folder.name] = stage("ppo", folder, seed=seed, **prompts, **models, **keys)
            judged[way].append(judge(runs, runs / "sft", folder))

    summaries = {way: summary(judged[way]) for way in judged}
    write_record(
        HERE,
        __doc__,
        {
            "seeds": arguments.seeds,
            "prompts": len(load_rows(str(data / "heldout.jsonl"), kinds=("prompt",)).rows),
            "samples_per_prompt": REPEATS,
            "data": records["sft"].data
            + records["reward"].data
            + records["reward_naturalness"].data,
            "seconds": {name: record.seconds for name, record in records.items()},
            "peak_memory_gb": max(record.peak_memory_gb for record in records.values()),
            "reward_models": {
                name: records[name].metrics for name in ("reward", "reward_naturalness")
            },
            "sft": judged["both"][0]["sft"],
            "ppo_both": summaries["both"],
            "ppo_reward_model_alone": summaries["alone"],
            "runs": judged,
        },
        commit=commit,
    )
    for name in JUDGED:
        sft = judged["both"][0]["sft"][name][0]
        both, alone = (summaries[way][name]["mean"] for way in ("both", "alone"))
        print(f"{name:<22} SFT {sft:8.3f}   both {both:8.3f}   reward model alone {alone:8.3f}")


def stage(recipe: str, folder: Path, **keys) -> RunRecord:
    """Run a recipe with its e2e.yaml unless its folder is finished. In bf16, on every processor."""
    if recipe != "tokenizer":
        keys["precision"] = "bf16"
    return run_recipe(
        recipe, folder, launch=True, config=f"recipes/configs/{recipe}/e2e.yaml", **keys
    )


def judge(runs: Path, sft: Path, policy: Path) -> dict:
    """Compare a policy with the SFT model on the same held-out facts and random numbers."""
    rewards = WeightedSum(
        {
            "quality": RewardModelScorer.load(str(runs / "reward")),
            "naturalness": RewardModelScorer.load(str(runs / "reward_naturalness")),
            "slot_coverage": FunctionScorer.load("rlhf.recipes.rewards:slot_coverage"),
        }
    )
    rows = load_rows(str(runs / "data" / "heldout.jsonl"), kinds=("prompt",)).rows * REPEATS
    paths = [str(sft), str(policy)]
    settings = ReportSettings(max_completion_length=64, seed=1234)
    report = build_report(paths, rows, rewards=rewards, settings=settings)
    result = {"sft": intervals(report.columns[0]), "policy": intervals(report.columns[1])}
    completions = [column.completions for column in report.columns]
    result["samples"] = [
        {"facts": report.prompts[i], "sft": completions[0][i], "ppo": completions[1][i]}
        for i in range(5)
    ]
    return result


def intervals(column) -> dict[str, list[float]]:
    """Mean and, where there is one, the 95 % interval of each metric of a report's column."""
    result = {}
    for name, estimate in column.metrics.items():
        if name not in ("score", "win_rate"):
            numbers = (estimate.mean, estimate.low, estimate.high)
            result[name] = [round(number, 4) for number in numbers if number is not None]
    return result


def summary(judged: list[dict]) -> dict:
    """Mean and spread over the seeds of each metric of the policy."""
    return {name: spread([entry["policy"][name][0] for entry in judged]) for name in JUDGED}


if __name__ == "__main__":
    main()
