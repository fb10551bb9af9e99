"""How long does the demo take, how much memory, and what does it reach?

    python benchmarks/demo/run.py [--voice caring]

Runs recipes/demo.sh as `make demo APP=no` does and writes results/<date>.json: seconds and peak memory per stage, and the
report's numbers for base, SFT and PPO on held-out wordings.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, clean_commits, rounded, write_record  # noqa: E402
from rlhf.runs.record import RunRecord  # noqa: E402

STAGES = ("tokenizer", "base", "sft", "reward", "ppo")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", default="caring")
    parser.add_argument("--folder", help="a finished run of recipes/demo.sh, used as it is")
    arguments = parser.parse_args()
    commit = check_clean_tree()
    if arguments.folder:
        folder = Path(arguments.folder)
    else:
        folder = Path(tempfile.mkdtemp()) / "demo"
        environment = os.environ | {"VOICE": arguments.voice, "RUN": str(folder)}
        subprocess.run(["bash", "recipes/demo.sh"], check=True, cwd=ROOT, env=environment)
    content = contents(folder, arguments.voice)
    write_record(HERE, __doc__, rounded(content, 6), commit=commit)
    print(f"{content['seconds']} s, {content['peak_memory_gb']} GB")


def contents(folder: Path, voice: str) -> dict:
    """Read the record of a finished demo from its folder."""
    records = {stage: RunRecord.load(folder / stage) for stage in STAGES}
    last_file = folder / "ppo" / "report" / "report.json"
    report = json.loads(last_file.read_text(encoding="utf-8"))
    # From the first file written to the last one, so that the starts of the programs count too.
    first_file = folder / "data" / "text.txt"
    seconds = last_file.stat().st_mtime - first_file.stat().st_mtime
    return {
        "commits": clean_commits(record.versions for record in records.values()),
        "voice": voice,
        "seed": records["ppo"].seed,
        "seconds": round(seconds, 1),
        "seconds_training": {stage: record.seconds for stage, record in records.items()},
        "peak_memory_gb": max(record.peak_memory_gb for record in records.values()),
        "data": records["sft"].data,
        "metrics": {stage: record.metrics for stage, record in records.items()},
        "settings": report["settings"],
        "runs": [without_values(run) for run in report["runs"]],
        "samples": report["samples"],
    }


def without_values(run: dict) -> dict:
    """A run of the report without its number per prompt: the metrics have their mean, interval and n."""
    return {key: value for key, value in run.items() if key != "values"}


if __name__ == "__main__":
    main()
