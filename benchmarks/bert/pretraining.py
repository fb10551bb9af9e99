"""What does pretraining on two megabytes of stories give a small BERT, by its own tasks and by what is fine-tuned from it?

    python benchmarks/bert/pretraining.py --source FOLDER [--seeds 0 1 2] [--record]

--source: a folder with tinystories/tinystories_2mb.txt.gz and the files that tasks.py names. A WordPiece tokenizer and a
small BERT are trained on the stories, first on short blocks (recipes/configs/pretrain/bert_scratch_short.yaml, masked
words), then on long ones (bert_scratch.yaml, and next sentences); then TASKS are fine-tuned from these weights and, with
the same tokenizer, sizes and settings, from random ones. Beside it the floor: the time that the floating-point operations of
pretraining would take as large matrix products on this machine, measured right before and after. A finished stage is taken
as it is. --record writes results/pretraining-DATE.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhf.runs import RunRecord, code_version, package_versions, read_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
TASKS = {  # name of tasks.py: what differs from its YAML here, for a model that knows little
    "sst2": {"num_train_epochs": 3, "learning_rate": 3e-4, "dataset_limit": 2000, "consistency_coef": 0},
    "ner": {"num_train_epochs": 4, "learning_rate": 5e-4, "dataset_limit": 1000},
}


def stage(recipe: str, folder: Path, **keys) -> RunRecord:
    if not (folder / "run.json").is_file() or RunRecord.load(folder).status != "done":
        keys["output_dir"] = folder
        flags = [str(part) for name, value in keys.items() for part in (f"--{name}", value)]
        subprocess.run([sys.executable, f"recipes/{recipe}.py", *flags], check=True, cwd=ROOT)
    return RunRecord.load(folder)


def floor(folder: Path, record: RunRecord, gflops: float) -> dict:
    """Seconds of training beside those that its matrix products alone would take at a rate of `gflops`.

    2 operations per multiply-add, three times those of the forward pass; the vocabulary is scored at masked places alone.
    """
    sizes = json.loads((folder / "config.json").read_text())
    width, inner, block = (
        sizes["hidden_size"],
        sizes["intermediate_size"],
        record.config.get("block_size", 128),
    )  # the default is not recorded
    tokens = record.metrics["train_tokens"] * record.config["num_train_epochs"]
    layers = sizes["num_hidden_layers"] * (4 * width * width + 2 * width * inner + 2 * block * width)
    head = 0.15 * (width * width + width * sizes["vocab_size"])
    seconds = next(row["train_runtime"] for row in read_jsonl(folder / "metrics.jsonl") if "train_runtime" in row)
    least = 6 * tokens * (layers + head) / (gflops * 1e9)
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "times_the_floor": seconds / least}


def matrix_rate() -> dict:
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "ppo_throughput" / "matrix_rate.py")], capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    from tasks import TASKS as GOALS
    from tasks import data, portable

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--runs", default="runs/bert")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    source, runs = Path(arguments.source).resolve(), Path(arguments.runs).resolve()
    stories = source / "tinystories" / "tinystories_2mb.txt.gz"
    configs = ROOT / "recipes" / "configs"
    tokenizer = stage(
        "tokenizer", runs / "tokenizer", config=configs / "tokenizer" / "bert_scratch.yaml", dataset_name=stories
    )
    rate = [matrix_rate()]
    short = stage(
        "pretrain", runs / "short", config=configs / "pretrain" / "bert_scratch_short.yaml", dataset_name=stories,
        tokenizer_name_or_path=runs / "tokenizer",
    )  # fmt: skip
    base = stage(
        "pretrain", runs / "pretrained", config=configs / "pretrain" / "bert_scratch.yaml", dataset_name=stories,
        model_name_or_path=runs / "short",
    )  # fmt: skip
    rate.append(matrix_rate())
    found = {}
    for task, changes in TASKS.items():
        recipe, metric, _ = GOALS[task]
        flags = {"config": HERE / f"{task}.yaml", **data(task, source, runs / "data"), **changes}
        flags["tokenizer_name_or_path"] = runs / "pretrained"
        sizes = json.loads((runs / "pretrained" / "config.json").read_text())
        random = {
            "from_scratch": "true", "model_type": "bert", "hidden_size": sizes["hidden_size"],
            "layers": sizes["num_hidden_layers"], "heads": sizes["num_attention_heads"],
            "context": sizes["max_position_embeddings"], "dropout": sizes["hidden_dropout_prob"],
        }  # fmt: skip
        found[task] = {"metric": metric, "settings": changes}
        for side, start in (("pretrained", {"model_name_or_path": runs / "pretrained"}), ("random", random)):
            records = [
                stage(recipe, runs / f"{task}-{side}-{seed}", seed=seed, **flags, **start) for seed in arguments.seeds
            ]
            values = [record.metrics[metric] for record in records]
            found[task][side] = {
                "mean": statistics.mean(values),
                "values": values,
                "seconds": [r.seconds for r in records],
            }
            found[task][side]["sd"] = statistics.stdev(values) if len(values) > 1 else None
            print(task, side, found[task][side], flush=True)
    result = {
        "question": __doc__.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": code_version(),
        "versions": package_versions(),
        "machine": base.machine,
        "seeds": arguments.seeds,
        "data": base.data,
        "tokenizer": tokenizer.metrics,
        "short": short.metrics | {"seconds": short.seconds, "config": short.config, "commit": short.versions["code"]},
        "pretraining": base.metrics | {"seconds": base.seconds, "config": base.config, "commit": base.versions["code"]},
        "matrix_gflops": rate,
        "floor": {
            folder.name: floor(folder, record, statistics.mean(r["bf16"] for r in rate))
            for folder, record in ((runs / "short", short), (runs / "pretrained", base))
        },
        "curve": [row for row in read_jsonl(runs / "pretrained" / "metrics.jsonl") if "eval_loss" in row],
        "fine_tuning": found,
    }
    if arguments.record:
        path = HERE / "results" / f"pretraining-{result['date']}.json"
        path.write_text(json.dumps(portable(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
