"""How long does the demo take, how much memory, and what does it reach?

    python benchmarks/demo/run.py

Runs recipes/demo.sh as `make demo APP=no` does and writes results/<date>.json: seconds and peak memory per stage, and the
report's numbers for base, SFT and PPO on held-out wordings.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from rlhf.runs.record import RunRecord

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STAGES = ("tokenizer", "base", "sft", "reward", "ppo")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", default="caring")
    parser.add_argument(
        "--folder", help="a finished run of recipes/demo.sh, instead of running it now"
    )
    arguments = parser.parse_args()
    folder = Path(arguments.folder or tempfile.mkdtemp() + "/demo")
    if not arguments.folder:
        environment = os.environ | {"VOICE": arguments.voice, "RUN": str(folder)}
        subprocess.run(["bash", "recipes/demo.sh"], check=True, cwd=ROOT, env=environment)
    first, last = folder / "data" / "text.txt", folder / "ppo" / "report" / "report.json"
    seconds = round(last.stat().st_mtime - first.stat().st_mtime, 1)
    records = {stage: RunRecord.load(folder / stage) for stage in STAGES}
    report = json.loads((folder / "ppo" / "report" / "report.json").read_text(encoding="utf-8"))
    result = {
        "question": __doc__.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": records["ppo"].versions["code"],
        "versions": records["ppo"].versions,
        "machine": records["sft"].machine,
        "voice": arguments.voice,
        "seed": records["ppo"].seed,
        "seconds": seconds,
        "seconds_training": {stage: record.seconds for stage, record in records.items()},
        "peak_memory_gb": max(record.peak_memory_gb for record in records.values()),
        "data": records["sft"].data,
        "metrics": {stage: record.metrics for stage, record in records.items()},
        "settings": report["settings"],
        "runs": report["runs"],
        "samples": report["samples"],
    }
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / f"{result['date']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}: {seconds} s, {result['peak_memory_gb']} GB")


if __name__ == "__main__":
    main()
