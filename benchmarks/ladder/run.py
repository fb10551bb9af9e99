"""What does each step from n-gram to PPO reach on the same text, with three seeds?

    python benchmarks/ladder/run.py --demo runs/demo-caring-... [--seeds 0 1 2] [--folder runs/ladder_seeds]

Runs recipes/ladder.sh for each seed, with SFT and PPO of one finished demo, and writes results/<date>.json: per rung the
bits per byte on held-out text and the share of answers on topic, each with its value for every seed. The picture is that of
the first seed. Finished rungs in the
folder are used as they are. Seconds are those of the wall clock.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, clean_commits, rounded, spread, write_record  # noqa: E402
from rlhf.runs.record import RunRecord  # noqa: E402

FACTS = ("year", "paper", "parameters")
SCORE = "score_on_topic"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", required=True, type=Path, help="a finished demo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/ladder_seeds"))
    arguments = parser.parse_args()
    commit = check_clean_tree()
    ladders = []
    for seed in arguments.seeds:
        folder = arguments.folder.resolve() / str(seed)
        environment = {"RUN": str(folder), "DEMO": str(arguments.demo.resolve()), "SEED": str(seed)}
        subprocess.run(
            ["bash", "recipes/ladder.sh"], check=True, cwd=ROOT, env=os.environ | environment
        )
        ladders.append(json.loads((folder / "ladder.json").read_text(encoding="utf-8")))
    rungs = {}
    for same in zip(*[ladder["rungs"] for ladder in ladders], strict=True):
        rungs[same[0]["name"]] = summary(same)
    records = [RunRecord.load(Path(rung["path"])) for ladder in ladders for rung in ladder["rungs"]]
    content = {
        "seeds": arguments.seeds,
        "commits": clean_commits(record.versions for record in records),
        "settings": ladders[0]["settings"],
        "data": records[0].data,
        "rungs": rungs,
        "prompts": ladders[0]["prompts"],
        "answers": {rung["name"]: rung["answers"] for rung in ladders[0]["rungs"]},
    }
    path = write_record(HERE, __doc__, rounded(content, 6), commit=commit)
    shutil.copy(arguments.folder / str(arguments.seeds[0]) / "ladder.png", path.with_suffix(".png"))


def summary(rungs: tuple[dict, ...]) -> dict:
    """One rung of all seeds. rungs: of ladder.json, the same name in each."""
    first = rungs[0]
    result = {name: first[name] for name in FACTS}
    result["bits_per_byte"] = (
        None
        if first["bits_per_byte"] is None
        else spread([rung["bits_per_byte"] for rung in rungs])
    )
    result["on_topic"] = spread([rung["rates"][SCORE]["mean"] for rung in rungs])
    result["seconds"] = spread([rung["seconds"] for rung in rungs])
    result["tokens_per_second"] = spread([rung["tokens_per_second"] for rung in rungs])
    return result


if __name__ == "__main__":
    main()
