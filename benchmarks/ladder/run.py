"""What does each step from n-gram to PPO reach on the same text, with three seeds?

    python benchmarks/ladder/run.py --demo runs/demo-caring-... [--seeds 0 1 2] [--folder runs/ladder_seeds]
    python benchmarks/ladder/run.py --data ChatbotData.csv --name korean --folder runs/ladder_korean

Runs recipes/ladder.sh for each seed, on small talk with SFT and PPO of one finished demo, or on a file, and writes
results/<name-><date>.json: per rung the bits per byte on held-out text and the scores of its answers (the share on topic,
or chrF), each with its value for every seed. The picture is that of the first seed. Finished rungs in the folder are used
as they are. Seconds are those of the wall clock.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from rlhf.recipes.pretrain import PretrainConfig, PretrainSettings  # noqa: E402

from benchmarks.ladder.positions import bits_by_position  # noqa: E402
from benchmarks.ladder.retrieval import chrf_without_model  # noqa: E402
from benchmarks.record import check_clean_tree, clean_commits, rounded, spread, write_record  # noqa: E402
from rlhf.comparison.ladder import draw, find_rungs  # noqa: E402
from rlhf.runs.record import RunRecord  # noqa: E402

FACTS = ("year", "paper", "parameters")
SETTINGS = ("DATA_FLAGS", "CONFIG", "VOCAB", "FLAGS")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--demo", type=Path, help="a finished demo")
    text.add_argument("--data", type=Path, help="a file: DATA of recipes/ladder.sh")
    add("--name", default="", help="of the record, where the text is not small talk")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--folder", type=Path, default=Path("runs/ladder_seeds"))
    for key in SETTINGS:
        add(f"--{key.lower()}", default="", help=f"{key} of recipes/ladder.sh")
    arguments = parser.parse_args()
    text = {"DEMO": arguments.demo} if arguments.demo else {"DATA": arguments.data}
    environment = {key: str(path.resolve()) for key, path in text.items()}
    for key in SETTINGS:
        environment[key] = getattr(arguments, key.lower())
    commit = check_clean_tree()
    ladders = []
    for seed in arguments.seeds:
        folder = arguments.folder.resolve() / str(seed)
        environment |= {"RUN": str(folder), "SEED": str(seed)}
        subprocess.run(
            ["bash", "recipes/ladder.sh"], check=True, cwd=ROOT, env=os.environ | environment
        )
        ladders.append(json.loads((folder / "ladder.json").read_text(encoding="utf-8")))
    rungs = {}
    records = []
    for same in zip(*[ladder["rungs"] for ladder in ladders], strict=True):
        runs = [RunRecord.load(Path(rung["path"])) for rung in same]
        records += runs
        rungs[same[0]["name"]] = summary(same) | measured(same, runs)
    files = arguments.folder / str(arguments.seeds[0]) / "data"
    content = {
        "seeds": arguments.seeds,
        "commits": clean_commits(record.versions for record in records),
        "flags": {key: environment[key] for key in SETTINGS if environment[key]},
        "settings": ladders[0]["settings"],
        "data": records[0].data,
        "rungs": rungs,
        "prompts": ladders[0]["prompts"],
        "answers": {rung["name"]: rung["answers"] for rung in ladders[0]["rungs"]},
    }
    # questions with answers
    if arguments.data and (files / "sft.jsonl").is_file():
        content["chrf_without_model"] = chrf_without_model(files)
    path = write_record(HERE, __doc__, rounded(content, 6), commit=commit, name=arguments.name)
    draw_first(ladders[0]["rungs"], path.with_suffix(".png"))


def summary(rungs: tuple[dict, ...]) -> dict:
    """One rung of all seeds. rungs: of ladder.json, the same name in each."""
    first = rungs[0]
    result = {name: first[name] for name in FACTS}
    result["bits_per_byte"] = (
        None
        if first["bits_per_byte"] is None
        else spread([rung["bits_per_byte"] for rung in rungs])
    )
    for name in first["rates"]:
        means = [rung["rates"][name]["mean"] for rung in rungs]
        result[name.removeprefix("score_")] = spread(means)
    result["seconds"] = spread([rung["seconds"] for rung in rungs])
    result["tokens_per_second"] = spread([rung["tokens_per_second"] for rung in rungs])
    return result


def measured(rungs: tuple[dict, ...], runs: list[RunRecord]) -> dict:
    """Processor seconds, and of a pretrained rung the tokens learned in each, and bits per byte by position.

    rungs: of ladder.json, one per seed; runs: their records.
    """
    result = {"cpu_seconds": spread([run.cpu_seconds for run in runs])}
    if rungs[0]["bits_per_byte"] is None:
        return result
    rates, positions = [], []
    for rung, run in zip(rungs, runs, strict=True):
        if not run.cpu_seconds:
            raise SystemExit(f"{rung['path']}: its run.json has no cpu_seconds: delete the folder")
        rates.append(passes(run) * run.metrics["train_tokens"] / run.cpu_seconds)
        size = run.config.get("block_size", PretrainSettings.block_size)
        positions.append(
            bits_by_position(Path(rung["path"]), run.config["eval_dataset_name"], size)
        )
    result["train_tokens_per_cpu_second"] = spread(rates)
    groups = {}
    for group in positions[0]:
        groups[group] = spread([bits[group] for bits in positions])
    return result | {"bits_per_byte_by_tokens_before": groups}


def passes(run: RunRecord) -> float:
    """How often a run has read its text. An n-gram counts it once."""
    if not run.steps:
        return 1
    # A record has the settings that differ from their default.
    return run.config.get("num_train_epochs", PretrainConfig.num_train_epochs)


def draw_first(rungs: list[dict], path: Path) -> None:
    """Draw the rungs of ladder.json over processor seconds, which other work on the cores does not stretch."""
    drawn = []
    for rung in find_rungs([Path(rung["path"]) for rung in rungs]):
        factor = RunRecord.load(Path(rung.path)).cpu_seconds / rung.seconds
        rung.seconds *= factor
        rung.curve = [(seconds * factor, bits) for seconds, bits in rung.curve]
        drawn.append(rung)
    draw(drawn, path)


if __name__ == "__main__":
    main()
