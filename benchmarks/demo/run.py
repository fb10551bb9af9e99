"""How long does the demo take, how much memory, and what does it reach?

    python benchmarks/demo/run.py [--voice caring] [--voices plain friendly witty enthusiastic]

Runs recipes/demo.sh as `make demo APP=no` does and writes results/<date>.json: seconds, CPU seconds and peak memory, the
report's numbers for base, SFT and PPO on held-out wordings, and the rates of right answers in scope, beyond it and in
dialogues. For each of --voices a reward model and a policy are trained too, from the same SFT model, which does not depend
on the voice.
"""

import argparse
import json
import os
import resource
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
# Another voice on the demo in FOLDER, into OUT.
OTHER_VOICE = """
smalltalk --voice VOICE --output OUT/data
reward --config demo --dataset_name OUT/data/rankings.jsonl --model_name_or_path FOLDER/sft --output_dir OUT/reward
ppo --config demo --dataset_name OUT/data/prompts.jsonl --model_name_or_path FOLDER/sft --reward_model_path OUT/reward \
--output_dir OUT/ppo
examples FOLDER/sft OUT/ppo --data OUT/data
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", default="caring")
    parser.add_argument("--voices", nargs="*", default=[], help="others to train, after the demo")
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
    if not arguments.folder:
        # Other programs on the machine add to the seconds, and not to these.
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        content["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    voices = {arguments.voice: small_talk(folder)}
    for voice in arguments.voices:
        voices[voice] = small_talk(train_voice(folder, voice))
    content["voices"] = voices
    write_record(HERE, __doc__, rounded(content, 6), commit=commit)
    print(f"{content['seconds']} s, {content['peak_memory_gb']} GB")


def train_voice(folder: Path, voice: str) -> Path:
    """The folder of another voice, next to that of the demo; one that is finished is used as it is."""
    out = folder.with_name(f"{folder.name}-{voice}")
    if not (out / "ppo" / "small_talk.json").is_file():
        lines = OTHER_VOICE.replace("VOICE", voice)
        lines = lines.replace("FOLDER", str(folder)).replace("OUT", str(out))
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "rlhf.stages"]
        subprocess.run(command, check=True, cwd=ROOT, env=environment, input=lines, text=True)
    return out


def contents(folder: Path, voice: str) -> dict:
    """Read the record of a finished demo from its folder."""
    records = {stage: RunRecord.load(folder / stage) for stage in STAGES}
    report_file = folder / "ppo" / "report" / "report.json"
    report = json.loads(report_file.read_text(encoding="utf-8"))
    # From the first file written to the last one, so that imports and starts count too.
    first_file = folder / "data" / "text.txt"
    last_file = folder / "ppo" / "small_talk.json"
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


def small_talk(folder: Path) -> dict:
    """The rates of right answers by model, and how often each example is answered right in ten."""
    return json.loads((folder / "ppo" / "small_talk.json").read_text(encoding="utf-8"))


def without_values(run: dict) -> dict:
    """A run of the report without its number per prompt: the metrics have their mean, interval and n."""
    return {key: value for key, value in run.items() if key != "values"}


if __name__ == "__main__":
    main()
