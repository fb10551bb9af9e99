"""Which algorithm gets how far, with the same policy, reward model, prompts, episodes and seeds?

    make demo APP=no
    python benchmarks/algorithms/run.py --runs runs/demo-... [--seeds 0 1 2] [--record]

--runs: the folder of a finished demo (its sft/, reward/ and data/). Trains with each YAML of recipes/configs/ppo that
stands for a row of ALGORITHMS, one after the other on the cores it is given. Judged every second rollout on held-out
wordings, by the reward model and by what no algorithm sees: the right topic, the preferred voice. Settings are the
YAMLs': one learning rate for all, not tuned for each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhf.algorithms import ALGORITHMS
from rlhf.runs.record import RunRecord, read_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
YAMLS = {name: "demo" if name == "ppo" else name for name in ALGORITHMS}
JUDGED = {"eval_score_reward_model": "score", "eval_kl": "kl", "eval_score_on_topic": "on topic",
          "eval_score_preferred_voice": "preferred voice"}  # fmt: skip


def train(algorithm: str, seed: int, runs: Path, out: Path) -> dict:
    """One run: its curve (episodes, seconds of training so far, what was judged) and totals."""
    output = out / f"{algorithm}-{seed}"
    settings = {
        "config": ROOT / f"recipes/configs/ppo/{YAMLS[algorithm]}.yaml",
        "dataset_name": runs / "data" / "prompts.jsonl",
        "eval_dataset_name": runs / "data" / "heldout.jsonl",
        "eval_limit": 256,
        "eval_every": 2,
        "model_name_or_path": runs / "sft",
        "reward_model_path": runs / "reward",
        "output_dir": output,
        "seed": seed,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    flags += ["--reward_functions", "recipes.rewards:on_topic", "recipes.rewards:preferred_voice"]
    flags += ["--reward_weights", "1", "0", "0"]
    if not output.is_dir():  # a run that is there already is taken as it is
        command = [sys.executable, ROOT / "recipes" / "ppo.py", *flags]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    rows, record = read_jsonl(output / "metrics.jsonl"), RunRecord.load(output)
    rollouts = [row for row in rows if "policy_loss" in row]
    per_rollout = rollouts[0]["episodes"]
    episode_of = {row["step"]: row["episodes"] for row in rollouts}
    curve = []
    for row in rows:
        if "eval_score" in row and row["step"] not in {point["step"] for point in curve}:
            point = {"step": row["step"], "episodes": episode_of.get(row["step"], 0)}
            curve.append(point | {name: row[key] for key, name in JUDGED.items()})
    seconds = [row["train_runtime"] for row in rows if "train_runtime" in row][0]
    evaluations = [row["eval_seconds"] for row in rows if "eval_seconds" in row]
    spent = seconds - sum(evaluations[1:-1])  # the first and the last stand outside training
    for point in curve:
        point["seconds"] = spent * point["episodes"] / (per_rollout * len(rollouts))
    return {
        "algorithm": algorithm, "seed": seed, "curve": curve, "seconds": spent,
        "peak_memory_gb": record.peak_memory_gb, "versions": record.versions, "machine": record.machine, "data": record.data,
    }  # fmt: skip


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (
        f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    )


def table(results: list[dict]) -> str:
    lines = [
        "| algorithm | " + " | ".join(JUDGED.values()) + " | seconds | GB |",
        "|---" * (len(JUDGED) + 3) + "|",
    ]
    for algorithm in YAMLS:
        runs = [r for r in results if r["algorithm"] == algorithm]
        if runs:
            cells = [spread([r["curve"][-1][name] for r in runs]) for name in JUDGED.values()]
            cells += [
                spread([r["seconds"] for r in runs]),
                f"{max(r['peak_memory_gb'] for r in runs):.1f}",
            ]
            lines.append(f"| {algorithm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: list[dict], path: Path) -> None:
    """Reward model's score against KL and against seconds; the preferred voice against episodes. Thin lines: seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("kl", "score"),
        ("seconds", "score"),
        ("episodes", "preferred voice"),
        ("kl", "on topic"),
    )
    figure, axes = plt.subplots(1, 4, figsize=(17, 4), layout="constrained")
    for axis, (x, y) in zip(axes, panels):
        for place, algorithm in enumerate(YAMLS):
            curves = [r["curve"] for r in results if r["algorithm"] == algorithm]
            if not curves:
                continue
            for curve in curves:
                axis.plot(
                    [p[x] for p in curve],
                    [p[y] for p in curve],
                    color=f"C{place}",
                    alpha=0.25,
                    linewidth=1,
                )
            means = [
                [statistics.mean(c[i][name] for c in curves) for i in range(min(map(len, curves)))]
                for name in (x, y)
            ]
            axis.plot(*means, color=f"C{place}", label=algorithm, marker="o", markersize=3)
        axis.set(xlabel={"kl": "KL to SFT, nats per answer"}.get(x, x), ylabel=y)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", default=list(YAMLS), choices=list(YAMLS))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        for algorithm in arguments.algorithms:
            results.append(
                train(algorithm, seed, arguments.runs.resolve(), arguments.out.resolve())
            )
            last = results[-1]["curve"][-1]
            print(
                f"{algorithm}, seed {seed}: "
                + ", ".join(f"{k} {last[k]:.2f}" for k in JUDGED.values()),
                flush=True,
            )
    print(table(results))
    if arguments.record:
        (HERE / "results").mkdir(exist_ok=True)
        path = HERE / "results" / f"{time.strftime('%Y-%m-%d')}.json"
        first = results[0]
        record = {
            "question": __doc__.strip().splitlines()[0], "date": path.stem, "commit": first["versions"]["code"],
            "versions": first["versions"], "machine": first["machine"] | {"cores": len(os.sched_getaffinity(0))},
            "data": [source | {"name": Path(source["name"]).name} for source in first["data"]],
            "seeds": arguments.seeds, "table": table(results).splitlines(),
            "runs": [{k: r[k] for k in ("algorithm", "seed", "seconds", "peak_memory_gb", "curve")} for r in results],
        }  # fmt: skip
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        plot(results, path.with_suffix(".png"))
        print(f"wrote {path.relative_to(ROOT)} and its plot")


if __name__ == "__main__":
    main()
