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
    path = write_record(HERE, __doc__, rounded(content, 6), commit=commit, name=arguments.name)
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
    for name in first["rates"]:
        means = [rung["rates"][name]["mean"] for rung in rungs]
        result[name.removeprefix("score_")] = spread(means)
    result["seconds"] = spread([rung["seconds"] for rung in rungs])
    result["tokens_per_second"] = spread([rung["tokens_per_second"] for rung in rungs])
    return result


if __name__ == "__main__":
    main()
