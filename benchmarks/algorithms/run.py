"""Which algorithm gets how far, with the same policy, reward model, prompts, episodes and seeds?

    make demo APP=no
    python benchmarks/algorithms/run.py --runs runs/demo-... [--seeds 0 1 2] [--record]

--runs: the folder of a finished demo (its sft/, reward/ and data/). Trains with the YAML of recipes/configs/ppo of each row
of ALGORITHMS, one after the other on the cores it is given. Every second rollout is evaluated on held-out wordings, by the
reward model and by what no algorithm sees: the right topic, the preferred voice. Settings are the YAMLs': one learning rate
for all, tuned for none. A finished run is not run again. --record writes results/<date>.json and its plot.
"""

import argparse
import statistics
import sys
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
from rlhf.algorithms import ALGORITHMS  # noqa: E402
from rlhf.runs.record import RunRecord, read_jsonl  # noqa: E402

YAMLS = {name: name for name in ALGORITHMS} | {"ppo": "demo"}
# Key of metrics.jsonl -> heading of the table.
JUDGED = {
    "eval_score_reward_model": "score",
    "eval_kl": "kl",
    "eval_score_on_topic": "on topic",
    "eval_score_preferred_voice": "preferred voice",
}
PANELS = (
    ("kl", "score"),
    ("episodes", "score"),
    ("episodes", "preferred voice"),
    ("kl", "on topic"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=list(YAMLS), choices=list(YAMLS))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    runs, out = arguments.runs.resolve(), arguments.out.resolve()

    results, records = [], []
    for seed in arguments.seeds:
        for algorithm in arguments.algorithms:
            folder = out / f"{algorithm}-{seed}"
            record = train(algorithm, seed, runs, folder)
            result = {"algorithm": algorithm, "seed": seed, **measure(folder, record)}
            records.append(record)
            results.append(result)
            end = result["curve"][-1]
            reached = ", ".join(f"{name} {end[name]:.2f}" for name in JUDGED.values())
            print(f"{algorithm}, seed {seed}: {reached}", flush=True)
    print(table(results))
    if arguments.record:
        content = {
            "commits": clean_commits(record.versions for record in records),
            "data": records[0].data,
            "seeds": arguments.seeds,
            "table": table(results).splitlines(),
            "runs": results,
        }
        path = write_record(HERE, __doc__, content, commit=commit)
        plot(results, path.with_suffix(".png"))


def train(algorithm: str, seed: int, runs: Path, folder: Path) -> RunRecord:
    """Run an algorithm on the demo's models unless its folder is finished."""
    return run_recipe(
        "ppo",
        folder,
        config=f"recipes/configs/ppo/{YAMLS[algorithm]}.yaml",
        dataset_name=runs / "data" / "prompts.jsonl",
        eval_dataset_name=runs / "data" / "heldout.jsonl",
        eval_limit=256,
        eval_every=2,
        model_name_or_path=runs / "sft",
        reward_model_path=runs / "reward",
        reward_functions=["rlhf.recipes.rewards:on_topic", "rlhf.recipes.rewards:preferred_voice"],
        reward_weights=[1, 0, 0],
        seed=seed,
    )


def measure(folder: Path, record: RunRecord) -> dict:
    """The curve of a run (step, episodes, seconds of training so far, what was evaluated) and its totals."""
    rows = read_jsonl(folder / "metrics.jsonl")
    rollouts = [row for row in rows if "policy_loss" in row]
    episodes = {row["step"]: row["episodes"] for row in rollouts}
    all_episodes = rollouts[0]["episodes"] * len(rollouts)
    evaluations = [row["eval_seconds"] for row in rows if "eval_seconds" in row]
    train_seconds = next(row["train_runtime"] for row in rows if "train_runtime" in row)
    # The first and the last evaluation are outside train_runtime.
    seconds = train_seconds - sum(evaluations[1:-1])
    curve = {}
    for row in rows:
        step = row.get("step")
        if "eval_score" in row and step not in curve:
            so_far = episodes.get(step, 0)
            point = {"step": step, "episodes": so_far, "seconds": seconds * so_far / all_episodes}
            curve[step] = point | {name: row[key] for key, name in JUDGED.items()}
    return {
        "seconds": seconds,
        "peak_memory_gb": record.peak_memory_gb,
        "curve": list(curve.values()),
    }


def table(results: list[dict]) -> str:
    """Markdown: a row per algorithm with the mean and spread over seeds of its last evaluation."""
    lines = [
        f"| algorithm | {' | '.join(JUDGED.values())} | seconds, fastest seed | GB |",
        "|---" * (len(JUDGED) + 3) + "|",
    ]
    for algorithm in YAMLS:
        runs = [result for result in results if result["algorithm"] == algorithm]
        if not runs:
            continue
        ends = [run["curve"][-1] for run in runs]
        cells = [with_deviation([end[name] for end in ends]) for name in JUDGED.values()]
        # Other programs only make a run slower.
        cells.append(f"{min(run['seconds'] for run in runs):.0f}")
        cells.append(f"{max(run['peak_memory_gb'] for run in runs):.1f}")
        lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_deviation(values: list[float]) -> str:
    """`1.23 ± 0.04`; of one seed the value alone."""
    result = spread(values)
    if result["sd"] is None:
        return f"{result['mean']:.2f}"
    return f"{result['mean']:.2f} ± {result['sd']:.2f}"


def plot(results: list[dict], path: Path) -> None:
    """The reward model's score and the preferred voice against KL and episodes. Thin lines: seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(17, 4), layout="constrained")
    for axis, (x, y) in zip(axes, PANELS):
        for index, algorithm in enumerate(YAMLS):
            curves = [run["curve"] for run in results if run["algorithm"] == algorithm]
            if curves:
                plot_curves(axis, curves, x, y, colour=f"C{index % 10}", label=algorithm)
        axis.set(xlabel={"kl": "KL to SFT, nats per answer"}.get(x, x), ylabel=y)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def plot_curves(axis, curves: list[list[dict]], x: str, y: str, *, colour: str, label: str) -> None:
    """A thin line per seed and a thick one of their means, as far as every seed has points."""
    for curve in curves:
        xs, ys = [point[x] for point in curve], [point[y] for point in curve]
        axis.plot(xs, ys, color=colour, alpha=0.25, linewidth=1)
    mean_xs, mean_ys = [], []
    for points in zip(*curves):
        mean_xs.append(statistics.mean(point[x] for point in points))
        mean_ys.append(statistics.mean(point[y] for point in points))
    axis.plot(mean_xs, mean_ys, color=colour, label=label, marker="o", markersize=3)


if __name__ == "__main__":
    main()
