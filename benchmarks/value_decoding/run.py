"""Do values help the decoding, against the best of n at the same number of forward passes?

    python benchmarks/value_decoding/run.py --runs runs/alignment/split_0 --record

FOLDER of --runs is one that benchmarks/alignment writes: an SFT model, its scored samples (samples_0), a PPO run with a
value model of its own, the reward model that it was trained on, another reward model of naturalness that no method sees, and
held-out facts. The script trains ILQL on the scored samples (ilql.yaml). Each way of decoding answers the same prompts once;
the best of n chooses by the reward model.

  quality      the reward model that PPO was trained on, that scored ILQL's rows, and by which the best of n is chosen
  naturalness  a second reward model, which no method sees; coverage: share of the given facts in the text, counted
  passes       rows that policy and value model read for one token. The best of n reads n texts more with the reward model.
               ILQL's heads count by their parameters, in units of the policy's
  kl           to the SFT model in nats per text, of what is sampled by itself; of the best of n the upper bound over it
  seconds      of a processor core that the program took for all prompts, with its start
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from benchmarks.record import check_clean_tree, run_recipe, write_record  # noqa: E402
from rlhf.comparison.compare import load_runs, mean_estimate, summed_log_probs  # noqa: E402
from rlhf.completions.best_of_n import kl_bound, means_of_the_last  # noqa: E402
from rlhf.data.chat import encode_completion, encode_prompt  # noqa: E402
from rlhf.models.value_functions import FOLDER  # noqa: E402
from rlhf.runs.record import RunRecord, command_line, read_jsonl  # noqa: E402

LENGTH = 64  # tokens of an answer, as the PPO run had
BEST_OF = (4, 8, 16)
TOP_K = ["--top_k", "8"]
SFT, PPO, ILQL = "sft", "PPO_own_value_model_0", "ILQL_0"
# Name -> run and flags of `rlhf sample`. The third shows what the tokens that values choose among do by themselves.
SAMPLED = {"SFT": (SFT, []), "PPO": (PPO, []), "PPO, top 8": (PPO, TOP_K)}
# The same; each answers a prompt once.
METHODS = {
    "PPO, value, coefficient 1": (PPO, ["--decoding", "value", "--value_coef", "1", *TOP_K]),
    "PPO, value, coefficient 5": (PPO, ["--decoding", "value", "--value_coef", "5", *TOP_K]),
    "PPO, tree, 8 simulations": (PPO, ["--decoding", "mcts", "--simulations", "8", *TOP_K]),
    "PPO, tree, 16 simulations": (PPO, ["--decoding", "mcts", "--simulations", "16", *TOP_K]),
    "ILQL, coefficient 0": (ILQL, ["--value_coef", "0"]),
    "ILQL, coefficient 4": (ILQL, ["--value_coef", "4"]),
    "ILQL, coefficient 16": (ILQL, ["--value_coef", "16"]),
}
METRICS = {"quality": "reward_model", "naturalness": "reward_model_2", "coverage": "slot_coverage"}


def main() -> None:
    arguments = parse_arguments()
    commit = check_clean_tree() if arguments.record else ""
    runs, output = Path(arguments.runs).resolve(), Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    prompts = choose_prompts(runs / "data" / "heldout.jsonl", arguments.prompts, output)
    ilql = train_ilql(runs)

    results = {}
    for label, (run, flags) in SAMPLED.items():
        # One set of answers serves each n up to its own.
        n = max(BEST_OF)
        folder = output / f"sample_{label.replace(' ', '_').replace(',', '')}"
        sample(runs, run, prompts, folder, ["--n", str(n), *flags])
        # Of the whole distribution: where unlikely tokens are cut off, it is not what was sampled.
        kl = None if flags else kl_to_sft(runs, run, folder, None)
        results[f"{label}, sampling"] = measure(folder, 1, passes=1, of=n) | {"kl": kl}
        for k in BEST_OF:
            bound = None if kl is None else kl + kl_bound(k)
            results[f"{label}, best of {k}"] = measure(folder, k, passes=k, of=n) | {
                "kl_at_most": bound
            }
    for name in arguments.methods:
        run, flags = METHODS[name]
        folder = output / name.replace(" ", "_").replace(",", "")
        results[name] = decode(runs, run, sample(runs, run, prompts, folder, ["--n", "1", *flags]))
    for name, result in results.items():
        print(name, json.dumps(result))
    if arguments.record:
        content = {
            "command": command_line(),
            "prompts": arguments.prompts,
            "stages": {name: stage(runs / name) for name in (SFT, "reward", PPO, ILQL)},
            "ilql": {"metrics": ilql.metrics, "seconds": ilql.seconds},
            "methods": results,
        }
        write_record(HERE, __doc__, content, commit=commit)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", required=True, help="folder of a split that benchmarks/alignment wrote")
    add("--prompts", type=int, default=64, help="held-out facts, spread over all")
    add("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    add("--output", default="runs/value_decoding", help="folder of the samples")
    add("--record", action="store_true", help="write a record; needs a clean tree")
    return parser.parse_args()


def choose_prompts(path: Path, count: int, output: Path) -> Path:
    """A file with `count` rows, evenly spread over those of `path`."""
    rows = read_jsonl(path)
    step = max(1, len(rows) // count)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[::step][:count]]
    chosen = output / "prompts.jsonl"
    chosen.write_text("".join(lines), encoding="utf-8")
    return chosen


def train_ilql(runs: Path) -> RunRecord:
    """ILQL on the SFT model's scored samples, which PPO's training prompts got, unless its folder is finished."""
    return run_recipe(
        "ilql",
        runs / ILQL,
        config="benchmarks/value_decoding/ilql.yaml",
        dataset_name=runs / "samples_0" / "ranked.jsonl",
        model_name_or_path=runs / SFT,
    )


def stage(folder: Path) -> dict:
    """What the model of a stage was trained with, for the record."""
    record = RunRecord.load(folder)
    config = {name: value for name, value in record.config.items() if not name.endswith("_dir")}
    return {"steps": record.steps, "seconds": record.seconds, "config": config}


# ---- sampling ----------------------------------------------------------------------------------------------------


def sample(runs: Path, run: str, prompts: Path, folder: Path, flags: list[str]) -> Path:
    """Sample and score answers; a folder that is done is kept. Naturalness and coverage have no weight."""
    command = [sys.executable, "-m", "rlhf", "sample", str(runs / run)]
    command += ["--reward_model", str(runs / "reward"), str(runs / "reward_naturalness")]
    command += ["--reward_functions", "rlhf.recipes.rewards:slot_coverage"]
    command += ["--reward_weights", "1", "0", "0", "--dataset_name", str(prompts)]
    command += ["--max_completion_length", str(LENGTH)]
    before = children_seconds()
    subprocess.run([*command, "--output", str(folder), *flags], check=True)
    took = folder.with_name(f"{folder.name}.seconds")
    if not took.exists():
        took.write_text(str(children_seconds() - before))
    return folder


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def decode(runs: Path, run: str, folder: Path) -> dict:
    """The results of one of METHODS."""
    record = json.loads((folder / "sample.json").read_text())
    if run == ILQL:
        coef = record["settings"]["value_coef"]
        result = measure(folder, 1, passes=round(1 + heads_share(runs), 3))
        return result | {"kl": kl_to_sft(runs, run, folder, coef)}
    # Policy and value model have the same size.
    return measure(folder, 1, passes=sum(record["passes_per_token"].values()))


def heads_share(runs: Path) -> float:
    """Parameters of the heads that decoding reads, Q's two copies and V, over those of the policy."""
    from safetensors.torch import load_file

    policy = load_file(runs / ILQL / "model.safetensors")
    heads = load_file(runs / ILQL / FOLDER / "action_values.safetensors")
    read = [t.numel() for name, t in heads.items() if name.startswith(("target", "value"))]
    return sum(read) / sum(tensor.numel() for tensor in policy.values())


# ---- measuring ---------------------------------------------------------------------------------------------------


def kl_to_sft(runs: Path, run: str, folder: Path, coef: float | None) -> float:
    """Mean log-ratio of the sampled texts to the SFT model. coef: of the values of ILQL."""
    if run == SFT:
        return 0.0
    [policy], [reference] = (
        load_runs([str(runs / run)], advantage_coef=coef),
        load_runs([str(runs / SFT)]),
    )
    prompts, completions = [], []
    for row in read_jsonl(folder / "answers.jsonl"):
        for answer in row["answers"]:
            prompts.append(encode_prompt(policy.tokenizer, row["prompt"]))
            ids = encode_completion(policy.tokenizer, answer["completion"])
            completions.append(ids if answer["ended"] else ids[:-1])
    ours = summed_log_probs(policy, prompts, completions, temperature=1.0)
    theirs = summed_log_probs(reference, prompts, completions, temperature=1.0)
    ratios = [a - b for a, b in zip(ours, theirs, strict=True)]
    return round(sum(ratios) / len(ratios), 3)


def measure(folder: Path, n: int, *, passes: float, of: int = 1) -> dict:
    """Mean and 95 % interval over prompts of each metric of the best of n answers, passes per token and length.

    of: answers that the folder has for each prompt; n takes its share of their seconds.
    """
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
    seconds = float(folder.with_name(f"{folder.name}.seconds").read_text())
    result["seconds"] = round(seconds * n / of, 1)
    return result


if __name__ == "__main__":
    main()
