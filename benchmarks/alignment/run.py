"""Which way of using human rankings helps most, from the same models and at the same number of completions?

    python benchmarks/ppo_parity/run.py                                        # once: makes .venv-trl with TRL 1.12
    python benchmarks/alignment/run.py --source FOLDER [--split 1] [--seeds 0 1 2] [--record]

On the E2E NLG challenge: a sentence about a restaurant from a list of facts, and rankings of such sentences by people. One
SFT model and one reward model, trained with recipes/configs/*/e2e.yaml, are where every method starts. Then each trains with
its YAML of this folder, on 1,920 completions of its own, or on the 768 rankings that the reward model was trained on. At
last each model writes REPEATS sampled texts for every held-out list of facts, measured by one program:

  quality      the reward model that the methods train on
  naturalness  a second reward model, trained on the naturalness rankings, which no method sees
  coverage     share of the given facts in the text, counted; no method sees it
  kl           KL(policy || SFT) in nats per text; distinct_2: different pairs of words / all pairs of words
  seconds      of one core that the method's programs took, with their start: other load on the machine does not count

--split: seed of the split of the facts; settings were chosen on split 0. A finished stage is not run again, so the script
can be continued. --record writes results/<date>.json and its picture.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import (  # noqa: E402
    check_clean_tree,
    clean_commits,
    rounded,
    run_recipe,
    spread,
    write_record,
)
from rlhf.comparison.compare import (  # noqa: E402
    ChatRun,
    RunCompletions,
    distinct,
    generate,
    load_runs,
    mean_estimate,
    measure,
    score_values,
)
from rlhf.completions.best_of_n import kl_bound  # noqa: E402
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum  # noqa: E402
from rlhf.data.chat import encode_prompt  # noqa: E402
from rlhf.data.load import load_rows  # noqa: E402
from rlhf.models.load import load_tokenizer  # noqa: E402
from rlhf.policy_gradient.rollouts import choose_rows  # noqa: E402
from rlhf.runs.record import RunRecord, command_line  # noqa: E402

REPEATS = 4  # samples per held-out list of facts
COMPLETIONS = 1920  # that each method may sample and score
LENGTH = 64  # tokens of a completion
PER_PROMPT = 5  # completions for each of the 390 training prompts: 1,950
BEST_OF = 16
SHOWN = 10  # samples of each model in the record: the first held-out facts, unpicked
METRICS = (
    "quality",
    "naturalness",
    "coverage",
    "kl",
    "eos_rate",
    "completion_length",
    "distinct_2",
)
# Heading of a method -> its recipe, its YAML in this folder, and the data it trains on.
METHODS = {
    "expert iteration": ("sft", "expert", "best"),
    "DPO, people's rankings": ("dpo", "dpo", "rankings"),
    "DPO, ranked samples": ("dpo", "dpo", "ranked"),
    "PPO": ("ppo", "ppo", "prompts"),
    "PPO, own value model": ("ppo", "ppo_separate", "prompts"),
    "RLOO": ("ppo", "rloo", "prompts"),
    "GRPO": ("ppo", "grpo", "prompts"),
    "PPO of TRL 1.12": ("trl", "trl", "prompts"),
}


def main() -> None:
    arguments = parse_arguments()
    commit = check_clean_tree() if arguments.record else ""
    runs = Path(arguments.runs).resolve() / f"split_{arguments.split}"
    base = train_base(runs, Path(arguments.source).resolve(), arguments.split)

    seconds: dict[str, list[float]] = {}
    columns = {"SFT": [runs / "sft"]}
    versions = [record.versions for record in base.values()]
    for seed in arguments.seeds:
        for method in arguments.methods:
            folder, code = train(method, runs, seed, arguments)
            took = core_seconds(folder, METHODS[method][2], runs / f"samples_{seed}")
            columns.setdefault(method, []).append(folder)
            seconds.setdefault(method, []).append(took)
            versions.append(code)
            print(f"{method}, seed {seed}: {took:.0f} s", flush=True)

    judge = Judge(runs)
    results = {"SFT": judge.model(runs / "sft"), f"best of {BEST_OF}": judge.best_of(BEST_OF)}
    results = {name: [result] for name, result in results.items()}
    for method in arguments.methods:
        results[method] = [judge.model(folder) for folder in columns[method]]
    summary = summarise(results, seconds)
    print(table(summary))
    if arguments.record:
        content = {
            "command": command_line(),
            "commits": clean_commits(versions),
            "seeds": arguments.seeds,
            "split": arguments.split,
            "prompts": len(judge.rows),
            "samples_per_prompt": REPEATS,
            "completions_per_method": COMPLETIONS,
            "data": base["sft"].data + base["reward"].data + base["reward_naturalness"].data,
            "stages": {name: stage_entry(record) for name, record in base.items()},
            "methods": summary,
            "bound_of_best_of_n": kl_bound(BEST_OF),
            "samples": samples(results, judge.rows),
        }
        path = write_record(HERE, __doc__, rounded(content), commit=commit)
        plot(summary, path.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", default="data/e2e", help="folder with the E2E files, see recipes/e2e.py")
    add("--runs", default="runs/alignment", help="where the runs go, or already are")
    add("--split", type=int, default=1, help="seed of the split of the facts")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    add("--trl_venv", default=str(ROOT / ".venv-trl"), help="see benchmarks/ppo_parity/run.py")
    add("--record", action="store_true", help="write results/<date>.json and .png")
    arguments = parser.parse_args()
    arguments.trl_python = str(Path(arguments.trl_venv).absolute() / "bin" / "python")
    if "PPO of TRL 1.12" in arguments.methods and not Path(arguments.trl_python).exists():
        raise SystemExit(
            f"{arguments.trl_venv} holds no Python: python benchmarks/ppo_parity/run.py makes it"
        )
    return arguments


# ---- training ----------------------------------------------------------------------------------------------------


def train_base(runs: Path, source: Path, split: int) -> dict[str, RunRecord]:
    """The stages that every method shares: tokenizer, SFT, and a reward model for each kind of ranking."""
    data = runs / "data"
    if not data.exists():
        command = [
            sys.executable,
            "recipes/e2e.py",
            "--source",
            source,
            "--output",
            data,
            "--seed",
            split,
        ]
        subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    demonstrations = data / "demonstrations.jsonl"
    records = {"tokenizer": stage("tokenizer", runs / "tokenizer", dataset_name=demonstrations)}
    records["sft"] = stage(
        "sft",
        runs / "sft",
        dataset_name=demonstrations,
        tokenizer_name_or_path=runs / "tokenizer",
    )
    for kind, folder in (("quality", "reward"), ("naturalness", "reward_naturalness")):
        records[folder] = stage(
            "reward",
            runs / folder,
            dataset_name=data / f"{kind}_train.jsonl",
            eval_dataset_name=data / f"{kind}_heldout.jsonl",
            demonstrations=demonstrations,
            model_name_or_path=runs / "sft",
        )
    return records


def stage(recipe: str, folder: Path, **keys) -> RunRecord:
    """Run a recipe with its e2e.yaml unless its folder is finished."""
    if recipe != "tokenizer":
        keys["precision"] = "bf16"
    return run_recipe(recipe, folder, config=f"recipes/configs/{recipe}/e2e.yaml", **keys)


def train(method: str, runs: Path, seed: int, arguments) -> tuple[Path, dict]:
    """Train a method unless its folder is finished -> (folder, versions of the packages)."""
    recipe, config, data = METHODS[method]
    folder = runs / f"{method.replace(',', '').replace(' ', '_')}_{seed}"
    if recipe == "trl":
        with counted(folder):
            train_trl(folder, runs, seed, arguments.trl_python)
        return folder, RunRecord.load(runs / "sft").versions
    if data in ("best", "ranked"):
        file = sample(runs, seed) / f"{data}.jsonl"
    else:
        file = runs / "data" / {"rankings": "quality_train.jsonl", "prompts": "prompts.jsonl"}[data]
    keys = {"dataset_name": file, "model_name_or_path": runs / "sft", "seed": seed}
    if recipe == "ppo":
        keys["reward_model_path"] = runs / "reward"
    if recipe == "dpo":
        keys["eval_dataset_name"] = runs / "data" / "quality_heldout.jsonl"
    with counted(folder):
        record = run_recipe(recipe, folder, config=f"benchmarks/alignment/{config}.yaml", **keys)
    return folder, record.versions


def sample(runs: Path, seed: int) -> Path:
    """PER_PROMPT scored completions of the SFT model for each training prompt -> their folder, written once a seed."""
    folder = runs / f"samples_{seed}"
    record = folder / "sample.json"
    if not record.exists() or json.loads(record.read_text())["status"] != "done":
        command = [
            sys.executable, "-m", "rlhf", "sample", runs / "sft", "--reward_model", runs / "reward", "--n", PER_PROMPT,
            "--dataset_name", runs / "data" / "prompts.jsonl", "--max_completion_length", LENGTH, "--seed", seed,
            "--output", folder,
        ]  # fmt: skip
        with counted(folder):
            subprocess.run(list(map(str, command)), check=True, cwd=ROOT)
    return folder


def train_trl(folder: Path, runs: Path, seed: int, python: str) -> None:
    """Train with TRL's PPO in its own environment unless the folder holds its policy. Prompts come in our PPO's order."""
    if (folder / "config.json").exists():
        return
    ours, settings = [
        yaml.safe_load((HERE / f"{name}.yaml").read_text()) for name in ("ppo", "trl")
    ]
    tokenizer = load_tokenizer(str(runs / "sft"))
    rows = load_rows(str(runs / "data" / "prompts.jsonl"), kinds=("prompt",)).rows
    ids = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    ids = [row for row in ids if len(row) <= ours["max_prompt_length"]]
    order = choose_rows(len(ids), settings["total_episodes"], start=0, seed=seed)
    job = {
        "settings": settings | {"seed": seed},
        "policy": str(runs / "sft"),
        "reward": str(runs / "reward"),
        "prompt_ids": [ids[index] for index in order],
        "output": str(folder),
    }
    file = folder.with_name(f"{folder.name}_job.json")
    file.write_text(json.dumps(job))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([python, HERE / "trl_worker.py", file], check=True, env=environment, cwd=HERE)


@contextmanager
def counted(folder: Path) -> Iterator[None]:
    """Keep in `<folder>.seconds` the processor seconds of the programs that are started meanwhile, the first time."""
    file = folder.with_name(f"{folder.name}.seconds")
    before = children_seconds()
    yield
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(children_seconds() - before))


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def core_seconds(folder: Path, data: str, samples: Path) -> float:
    """Processor seconds of a method, with the sampling of its data."""
    files = [folder] + [samples] * (data in ("best", "ranked"))
    return sum(float(file.with_name(f"{file.name}.seconds").read_text()) for file in files)


def stage_entry(record: RunRecord) -> dict:
    return {"seconds": record.seconds, "metrics": record.metrics, "code": record.versions["code"]}


# ---- measuring ---------------------------------------------------------------------------------------------------


class Judge:
    """Measures every model on the same held-out facts and with the same random numbers."""

    def __init__(self, runs: Path):
        self.runs = runs
        self.rows = load_rows(str(runs / "data" / "heldout.jsonl"), kinds=("prompt",)).rows
        self.reference = load_runs([str(runs / "sft")])[0]
        self.rewards = WeightedSum(
            {
                "quality": RewardModelScorer.load(str(runs / "reward")),
                "naturalness": RewardModelScorer.load(str(runs / "reward_naturalness")),
                "coverage": FunctionScorer.load("rlhf.recipes.rewards:slot_coverage"),
            }
        )

    def model(self, folder: Path) -> dict:
        """Metrics of a model's samples: name -> mean, and "texts"."""

        def compute() -> dict:
            run = load_runs([str(folder)])[0]
            rows = self.rows * REPEATS
            return self.measured(run, self.sampled(run, rows), rows)

        return self.kept(folder.name, compute)

    def best_of(self, n: int) -> dict:
        """Metrics of the best of n samples of the SFT model by the reward model. Its KL is the upper bound."""
        return self.kept(f"best_of_{n}", lambda: self._best_of(n))

    def kept(self, name: str, compute: Callable[[], dict]) -> dict:
        """What `compute` returns, which is kept in a file, so that nothing is measured twice."""
        path = self.runs / "measured" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(compute()))
        return json.loads(path.read_text())

    def _best_of(self, n: int) -> dict:
        rows = self.rows * REPEATS
        drawn = self.sampled(self.reference, rows * n)
        # All n are scored by the model that chooses, and only the chosen ones by the others.
        quality = WeightedSum({"quality": self.rewards.scorers["quality"]})
        scores = score_values(self.reference, drawn, rows * n, quality)["score_quality"]
        best = []
        for i in range(len(rows)):  # the samples of row i are at i, i + len(rows), ...
            own = range(i, len(rows) * n, len(rows))
            best.append(max(own, key=scores.__getitem__))
        chosen = RunCompletions(
            texts=[drawn.texts[i] for i in best],
            prompt_ids=[drawn.prompt_ids[i] for i in best],
            ids=[drawn.ids[i] for i in best],
            ended=[drawn.ended[i] for i in best],
        )
        result = self.measured(self.reference, chosen, rows)
        result["kl"] = kl_bound(n)  # of the choice there are no log-probs
        return result

    def sampled(self, run: ChatRun, rows: list[dict]) -> RunCompletions:
        return generate(run, rows, seed=1234, temperature=1.0, max_completion_length=LENGTH)

    def measured(self, run: ChatRun, completions: RunCompletions, rows: list[dict]) -> dict:
        values = measure(
            run,
            completions,
            rows,
            rewards=self.rewards,
            reference=self.reference,
            temperature=1.0,
        )
        result = {}
        for name in METRICS[:-1]:
            result[name] = mean_estimate(values.get(f"score_{name}", values.get(name))).mean
        result["distinct_2"] = distinct(completions.texts, 2)
        result["texts"] = completions.texts[:SHOWN]
        return result


def summarise(results: dict[str, list[dict]], seconds: dict[str, list[float]]) -> dict:
    """Method -> metric -> mean and spread over the seeds."""
    summary = {}
    for method, seeds in results.items():
        summary[method] = {name: spread([seed[name] for seed in seeds]) for name in METRICS}
        if method in seconds:
            summary[method]["seconds"] = spread(seconds[method])
    return summary


def samples(results: dict[str, list[dict]], rows: list[dict]) -> list[dict]:
    """The first texts of each method, of its first seed."""
    shown = []
    for i in range(SHOWN):
        texts = {method: seeds[0]["texts"][i] for method, seeds in results.items()}
        shown.append({"facts": rows[i]["prompt"], "texts": texts})
    return shown


# ---- showing -----------------------------------------------------------------------------------------------------


def table(summary: dict) -> str:
    """A line per method for the terminal."""
    lines = [f"{'':<26}" + "".join(f"{name:>19}" for name in (*METRICS, "seconds"))]
    for method, entry in summary.items():
        cells = []
        for name in (*METRICS, "seconds"):
            cell = "-"
            if name in entry:
                cell = f"{entry[name]['mean']:.3f}"
                if entry[name]["sd"] is not None:
                    cell += f" ± {entry[name]['sd']:.3f}"
            cells.append(f"{cell:>19}")
        lines.append(f"{method:<26}" + "".join(cells))
    return "\n".join(lines)


def plot(summary: dict, path: Path) -> None:
    """Quality, naturalness and coverage against KL: a point per method with the spread of its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from rlhf.comparison.report import COLOURS, MARKERS

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    titles = ("quality (trained on)", "naturalness (seen by none)", "slot coverage (counted)")
    for axis, name, title in zip(axes, METRICS, titles):
        for index, (method, entry) in enumerate(summary.items()):
            axis.errorbar(
                entry["kl"]["mean"],
                entry[name]["mean"],
                xerr=entry["kl"]["sd"] or 0,
                yerr=entry[name]["sd"] or 0,
                # The second round of colours has other markers.
                fmt=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                label=method,
            )
        axis.set_xlabel("KL to SFT, nats per text")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
