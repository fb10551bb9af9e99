"""Does our PPO learn as much as TRL's last PPOTrainer from the same models, and how much sooner?

    python benchmarks/e2e/run.py --source FOLDER                 # once: runs/e2e with sft/, reward/ and data/
    python benchmarks/ppo_parity/run.py                          # once: makes .venv-trl with TRL 1.12
    python benchmarks/ppo_learning/run.py [--record]

The same SFT policy, reward model and prompts in the same order, the same episodes, optimiser steps and settings (SETTINGS,
from recipes/configs/ppo/e2e.yaml; reward model alone, as TRL takes no Python reward; no warm-up of the learning rate). Each
side saves its policy every few updates, with the training seconds so far. Then one program evaluates all of them: it samples
with the same random numbers on prompts no side has seen, and scores. A finished side is not run again.

The committed record of 2026-11-22 has one seed and was made from a tree with uncommitted changes: it is to be replaced by
one of three seeds. Its intervals are over prompts only and say nothing of other seeds.

  score       of the reward model, that both sides were trained on
  objective   score - missing-EOS penalty - kl_coef * KL: what PPO maximises, in expectation
  coverage    share of the given facts in the text, that no side was trained on
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, clean_commits, rounded, write_record  # noqa: E402
from rlhf.comparison.compare import ChatRun, generate, load_runs, mean_estimate, measure  # noqa: E402
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum  # noqa: E402
from rlhf.data.chat import encode_prompt  # noqa: E402
from rlhf.data.load import load_rows  # noqa: E402
from rlhf.models.load import load_tokenizer  # noqa: E402
from rlhf.policy_gradient.rollouts import choose_rows  # noqa: E402
from rlhf.runs.parents import parent_entry  # noqa: E402
from rlhf.runs.record import command_line, package_versions  # noqa: E402

HERE = Path(__file__).resolve().parent
EPISODES, MINI_BATCH, PROMPT, COMPLETION = 64, 32, 120, 64
PENALTY, KL_COEF = 1.0, 0.05
SETTINGS = {  # of both sides, under the names they share
    "learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_steps": 0, "adam_epsilon": 1e-5, "weight_decay": 0.0,
    "kl_coef": KL_COEF, "gamma": 1.0, "temperature": 1.0, "missing_eos_penalty": PENALTY, "report_to": "none",
}  # fmt: skip
TRL = {
    "per_device_train_batch_size": EPISODES, "gradient_accumulation_steps": 1, "num_mini_batches": EPISODES // MINI_BATCH,
    "num_ppo_epochs": 4, "response_length": COMPLETION, "stop_token": "eos", "kl_estimator": "k1", "cliprange": 0.2,
    "cliprange_value": 0.2, "vf_coef": 0.1, "lam": 0.95, "whiten_rewards": False, "num_sample_generations": 0,
    "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no",
}  # fmt: skip
OURS = {
    "rollout_batch_size": EPISODES, "per_device_train_batch_size": MINI_BATCH, "gradient_accumulation_steps": 1,
    "epochs_per_rollout": 4, "max_prompt_length": PROMPT, "max_completion_length": COMPLETION, "clip_range": 0.2,
    "value_clip_range": 0.2, "value_coef": 0.1, "gae_lambda": 0.95, "per_device_eval_batch_size": 32,
}  # fmt: skip
AS_TRL = {
    "value_learning_rate": 1e-4,
    "max_grad_norm": 0.0,
}  # TRL has one learning rate and never clips gradients
SIDES = {  # column: worker, settings of its own, value model
    "ours": (
        "our_worker.py",
        OURS | {"bf16": True, "value_learning_rate": 1e-3},
        "shared",
    ),  # as e2e.yaml
    "ours separate": ("our_worker.py", OURS | AS_TRL | {"bf16": True}, "reward model"),
    "trl fp32": ("trl_worker.py", TRL | {"bf16": False}, "reward model"),
    "trl bf16": ("trl_worker.py", TRL | {"bf16": True}, "reward model"),
    "ours fp32 separate": ("our_worker.py", OURS | AS_TRL | {"bf16": False}, "reward model"),
}
SHARES = (
    1.0,
    0.9,
)  # of TRL's final gain; where a curve is flat its very last value is mostly noise
JUDGED = ("score", "objective", "coverage", "kl", "eos_rate", "completion_length")


def make_job(side: str, seed: int, rows: list[dict], runs: Path, folder: Path, arguments) -> dict:
    """What a worker needs. Ours takes the rows, TRL their ids in the order in which ours will draw them."""
    worker, own, value_model = SIDES[side]
    episodes = arguments.updates * EPISODES
    job = {
        "folder": str(folder), "policy": str(runs / "sft"), "reward": str(runs / "reward"), "value_model": value_model,
        "every": arguments.every, "settings": SETTINGS | own | {"total_episodes": episodes, "seed": seed},
    }  # fmt: skip
    if worker == "our_worker.py":
        return job | {"rows": rows}
    tokenizer = load_tokenizer(job["policy"])
    order = choose_rows(len(rows), episodes, start=0, seed=seed)
    ids = [encode_prompt(tokenizer, rows[index]["prompt"]) for index in order]
    return job | {"prompt_ids": ids}


def train(side: str, job: dict, arguments) -> dict:
    """Run a worker unless its folder holds the result of this very job."""
    folder, text = Path(job["folder"]), json.dumps(job)
    job_file, result_file = folder / "job.json", folder / "result.json"
    if not (result_file.exists() and job_file.read_text() == text):
        folder.mkdir(parents=True, exist_ok=True)
        for old in (result_file, folder / "judged.json"):
            old.unlink(missing_ok=True)
        job_file.write_text(text)
        run_worker(side, job_file, arguments)
    result = json.loads(result_file.read_text())
    updates, steps = len(result["updates"]), result["optimizer_steps"]
    assert updates == arguments.updates, updates
    assert steps == arguments.updates * 4 * EPISODES // MINI_BATCH, steps
    return result


def run_worker(side: str, job_file: Path, arguments) -> None:
    """Train a side in its own process and environment. Its output goes to log.txt next to the job."""
    worker, log_file = SIDES[side][0], job_file.with_name("log.txt")
    python = sys.executable if worker == "our_worker.py" else arguments.trl_python
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{HERE}:{HERE.parent / 'ppo_throughput'}:{ROOT}",
    }
    command = [python, str(HERE / worker), str(job_file)]
    with open(log_file, "w") as log:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=HERE
        )
    if done.returncode:
        raise SystemExit(f"{side}: {log_file.read_text()[-3000:]}")


def judge(
    run: ChatRun, reference: ChatRun, rewards: WeightedSum, rows: list[dict], samples: int
) -> dict:
    """Measure -> one number per prompt, the mean over its samples. The random numbers depend on a row's place only."""
    repeated = rows * samples
    answers = generate(run, repeated, seed=1234, temperature=1.0, max_completion_length=COMPLETION)
    values = measure(run, answers, repeated, rewards=rewards, reference=reference, temperature=1.0)
    values |= {"score": values["score_reward"], "coverage": values["score_slot_coverage"]}
    parts = zip(values["score"], values["eos_rate"], values["kl"], strict=True)
    values["objective"] = [
        score - PENALTY * (1 - ended) - KL_COEF * kl for score, ended, kl in parts
    ]
    means = {}
    for name in JUDGED:
        # The samples of prompt i are at i, i + len(rows), i + 2 len(rows), ...
        samples_of = [values[name][i :: len(rows)] for i in range(len(rows))]
        means[name] = [sum(numbers) / samples for numbers in samples_of]
    return means


def curve(folder: Path, result: dict, judge_weights, start: dict, arguments) -> list[dict]:
    """One point per snapshot, the SFT policy first: update, episodes, seconds, cpu_seconds, and a number per prompt."""
    path = folder / "judged.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    points = [{"update": 0, "episodes": 0, "seconds": 0.0, "cpu_seconds": 0.0, "values": start}]
    seconds = cpu_seconds = 0.0
    for number, update in enumerate(result["updates"], 1):
        seconds += update["seconds"]
        cpu_seconds += update["cpu_seconds"]
        if number % arguments.every:
            continue
        name = f"{number} x {arguments.samples}"
        if name not in known:
            weights = torch.load(folder / f"policy_{number}.pt", weights_only=True)
            known[name] = judge_weights(weights)
            path.write_text(json.dumps(known))
        points.append(
            {
                "update": number,
                "episodes": number * EPISODES,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "values": known[name],
            }
        )
    for point in points:
        means = {name: mean_estimate(values).mean for name, values in point["values"].items()}
        point.update(means)
    return points


# ---- ours and TRL's ----------------------------------------------------------------------------------------------


def differences(curves: dict) -> list[dict]:
    """Ours minus TRL's at the end of each seed, with a 95 % interval over prompts (both answer the same ones).

    The interval says how well these two policies are told apart, not how two other seeds would compare.
    """
    rows = []
    for theirs, side in product(trl_sides(curves), our_sides(curves)):
        for seed in curves[side]:
            ours, other = curves[side][seed][-1]["values"], curves[theirs][seed][-1]["values"]
            for of in ("score", "objective", "coverage"):
                gaps = [a - b for a, b in zip(ours[of], other[of], strict=True)]
                estimate = mean_estimate(gaps)
                interval = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
                rows.append({"side": side, "trl": theirs, "seed": seed, "of": of, **interval})
    return rows


def trl_sides(curves: dict) -> list[str]:
    return [side for side in curves if side.startswith("trl")]


def our_sides(curves: dict) -> list[str]:
    return [side for side in curves if side.startswith("ours")]


def first_reached(points: list[dict], level: float, *, of: str, along: str) -> float | None:
    """Where the curve first is at `level`, by straight lines between its points; None if it never is."""
    for before, after in zip(points, points[1:]):
        if before[of] >= level:
            return before[along]
        if after[of] >= level:
            share = (level - before[of]) / (after[of] - before[of])
            return before[along] + share * (after[along] - before[along])
    return None


def races(curves: dict) -> list[dict]:
    """Seconds and episodes after which each curve first has SHARES of the gain that TRL has made at its end."""
    rows = []
    for theirs in trl_sides(curves):
        for seed, points in curves[theirs].items():
            sides = [theirs, *our_sides(curves)]
            for of, share, side in product(("score", "objective"), SHARES, sides):
                level = (1 - share) * points[0][of] + share * points[-1][of]
                names = {"trl": theirs, "seed": seed, "of": of, "share": share, "level": level}
                times = race(points, curves[side][seed], level, of=of)
                rows.append({**names, "side": side, **times})
    return rows


def race(theirs: list[dict], ours: list[dict], level: float, *, of: str) -> dict:
    """The point where `ours` reaches `level`, and how many times sooner that is than where `theirs` does."""
    result = {}
    for along in ("seconds", "cpu_seconds", "episodes"):
        their_point = first_reached(theirs, level, of=of, along=along)
        our_point = first_reached(ours, level, of=of, along=along)
        result[along] = our_point
        result[f"{along}_ratio"] = their_point / our_point if our_point else None
    return result


def table(curves: dict, races_won: list[dict], gaps: list[dict]) -> str:
    """All of it for the terminal."""
    lines, first_side = [], next(iter(curves.values()))
    headings = [name.removeprefix("completion_") for name in ("seconds", *JUDGED)]
    for seed in first_side:
        lines.append(f"\nseed {seed:<15}" + "".join(f"{name:>11}" for name in headings))
        lines.append(table_row("SFT", first_side[seed][0]))
        lines += [table_row(side, column[seed][-1]) for side, column in curves.items()]
    lines.append("\nat the end, ours - TRL, 95 % over prompts")
    for gap in gaps:
        name = f"{gap['of']}, {gap['side']} - {gap['trl']}, seed {gap['seed']}"
        lines.append(f"{name:<60}{gap['mean']:>8.3f}  ({gap['low']:.3f} to {gap['high']:.3f})")
    title = "share of the final gain of TRL, first at"
    lines.append(f"\n{title:<60}{'level':>8}{'seconds':>9}{'episodes':>10}{'times sooner':>14}")
    for row in races_won:
        name = f"{row['of']}, {row['share']:.0%} of {row['trl']}, seed {row['seed']}: {row['side']}"
        reached = "    never"
        if row["seconds_ratio"] is not None:
            reached = f"{row['seconds']:>9.0f}{row['episodes']:>10.0f}{row['seconds_ratio']:>14.1f}"
        lines.append(f"{name:<60}{row['level']:>8.3f}{reached}")
    return "\n".join(lines)


def table_row(name: str, point: dict) -> str:
    return f"{name:<20}" + "".join(f"{point[key]:>11.3f}" for key in ("seconds", *JUDGED))


def plot(curves: dict, path: Path) -> None:
    """Score and coverage against episodes and seconds: a thin line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from rlhf.comparison.report import COLOURS, LINES, MARKERS

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    titles = {"score": "reward model", "coverage": "slot coverage"}
    for line, of in enumerate(titles):
        for column, along in enumerate(("episodes", "seconds")):
            axis = axes[line][column]
            for index, (side, seeds) in enumerate(curves.items()):
                style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
                style["linestyle"] = LINES[index % len(LINES)]
                for number, points in enumerate(seeds.values()):
                    xs, ys = [point[along] for point in points], [point[of] for point in points]
                    label = None if number else side  # one entry of the legend per side
                    axis.plot(xs, ys, label=label, **style)
            axis.set_xlabel("episodes" if along == "episodes" else "seconds of training")
            axis.set_ylabel(titles[of])
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.suptitle(
        "PPO from the same SFT model on the same reward model, evaluated on held-out prompts"
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = parse_arguments()
    commit = check_clean_tree() if arguments.record else ""
    runs, out = Path(arguments.runs).resolve(), Path(arguments.out).resolve()
    prompts = load_rows(str(runs / "data" / "prompts.jsonl"), kinds=("prompt",))
    heldout = load_rows(str(runs / "data" / "heldout.jsonl"), kinds=("prompt",))
    rows = short_rows(prompts.rows, load_tokenizer(str(runs / "sft")))

    results, folders = {side: {} for side in arguments.sides}, {}
    for seed in arguments.seeds:
        for side in arguments.sides:
            folder = out / f"{side.replace(' ', '_')}_{seed}"
            job = make_job(side, seed, rows, runs, folder, arguments)
            result = train(side, job, arguments)
            folders[side, seed], results[side][seed] = folder, result
            seconds = sum(update["seconds"] for update in result["updates"])
            print(f"{side}, seed {seed}: {seconds:.0f} s of training", flush=True)

    curves = judge_all(results, folders, runs, heldout.rows, arguments)
    races_won, gaps = races(curves), differences(curves)
    print(table(curves, races_won, gaps))
    if arguments.record:
        content = {
            "command": command_line(),
            "commits": commits_of(results),
            **sources(runs, prompts, heldout),
            "prompts_left_out": len(prompts.rows) - len(rows),
            "samples_per_prompt": arguments.samples,
            "updates": arguments.updates,
            "seeds": arguments.seeds,
            "curves": without_values(curves),
            "ours_minus_trl_at_the_end": gaps,
            "first_with_share_of_final_gain_of_trl": races_won,
            **of_sides(results),
        }
        path = write_record(HERE, __doc__, rounded(content), commit=commit)
        plot(curves, path.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", default="runs/e2e", help="folder of benchmarks/e2e/run.py: sft/, reward/, data/")
    add("--sides", nargs="+", choices=list(SIDES), default=list(SIDES)[:3])
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--updates", type=int, default=30, help=f"of {EPISODES} episodes each")
    add("--every", type=int, default=5, help="updates between snapshots")
    add("--samples", type=int, default=2, help="completions per held-out prompt")
    add("--out", default="runs/ppo_learning", help="where the snapshots go, or already are")
    add("--trl_venv", default=str(ROOT / ".venv-trl"), help="see benchmarks/ppo_parity/run.py")
    add("--record", action="store_true", help="write results/<date>.json and .png")
    arguments = parser.parse_args()
    arguments.trl_python = str(Path(arguments.trl_venv).absolute() / "bin" / "python")
    needs_trl = any(side.startswith("trl") for side in arguments.sides)
    if needs_trl and not Path(arguments.trl_python).exists():
        raise SystemExit(
            f"{arguments.trl_venv} holds no Python: make it with\n"
            f"  python benchmarks/ppo_parity/run.py --venv {arguments.trl_venv}"
        )
    if arguments.updates % arguments.every:
        raise SystemExit(
            f"--updates {arguments.updates} must be a multiple of --every {arguments.every}"
        )
    return arguments


def short_rows(rows: list[dict], tokenizer) -> list[dict]:
    """The rows whose prompt has at most PROMPT tokens."""
    return [row for row in rows if len(encode_prompt(tokenizer, row["prompt"])) <= PROMPT]


def judge_all(results: dict, folders: dict, runs: Path, rows: list[dict], arguments) -> dict:
    """A curve per side and seed, all evaluated by one program on the same held-out rows."""
    reference, policy = load_runs([str(runs / "sft")] * 2)
    rewards = WeightedSum(
        {
            "reward": RewardModelScorer.load(str(runs / "reward")),
            "slot_coverage": FunctionScorer.load("rlhf.recipes.rewards:slot_coverage"),
        }
    )

    def judge_weights(weights: dict) -> dict:
        policy.model.load_state_dict(weights)
        return judge(policy, reference, rewards, rows, arguments.samples)

    start = judge(reference, reference, rewards, rows, arguments.samples)
    curves = {}
    for side, seeds in results.items():
        curves[side] = {}
        for seed, result in seeds.items():
            curves[side][seed] = curve(folders[side, seed], result, judge_weights, start, arguments)
    return curves


# ---- the record --------------------------------------------------------------------------------------------------


def commits_of(results: dict) -> list[str]:
    """The commits that trained our sides; a finished side may be older than this run."""
    versions = []
    for side, seeds in results.items():
        if SIDES[side][0] == "our_worker.py":
            versions += [result["versions"] for result in seeds.values()]
    return clean_commits(versions)


def sources(runs: Path, prompts, heldout) -> dict:
    """Hashes of the models and of the rows that every side was given."""
    return {
        "models": {
            name: {"sha256": parent_entry(str(runs / name))["sha256"]} for name in ("sft", "reward")
        },
        "data": [
            {"name": f"data/{name}.jsonl", "rows": len(loaded.rows), "sha256": loaded.sha256}
            for name, loaded in (("prompts", prompts), ("heldout", heldout))
        ],
    }


def without_values(curves: dict) -> dict:
    """The curves without their numbers per prompt."""
    result = {}
    for side, seeds in curves.items():
        result[side] = {}
        for seed, points in seeds.items():
            kept = [dict(point) for point in points]
            for point in kept:
                del point["values"]
            result[side][seed] = kept
    return result


def of_sides(results: dict) -> dict:
    """What the workers reported, by side and seed."""
    columns = {
        "settings": {},
        "side_versions": {"judge": package_versions()},
        "threads": {},
        "rollout_scores": {},
        "seconds_of_updates": {},
        "peak_memory_gb": {},
    }
    for side, seeds in results.items():
        first = next(iter(seeds.values()))
        _, settings, value_model = SIDES[side]
        columns["settings"][side] = SETTINGS | settings | {"value_model": value_model}
        columns["side_versions"][side] = first["versions"]
        columns["threads"][side] = first["threads"]
        for name in ("rollout_scores", "seconds_of_updates", "peak_memory_gb"):
            columns[name][side] = {}
        for seed, result in seeds.items():
            seconds = [update["seconds"] for update in result["updates"]]
            columns["rollout_scores"][side][seed] = result["rollout_scores"]
            columns["seconds_of_updates"][side][seed] = seconds
            columns["peak_memory_gb"][side][seed] = result["peak_memory_gb"]
    return columns


if __name__ == "__main__":
    main()
