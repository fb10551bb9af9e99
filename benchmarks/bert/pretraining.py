"""What does pretraining on two megabytes of text give a small BERT, by its own tasks and by what is fine-tuned from it?

    python benchmarks/bert/pretraining.py --source FOLDER [--corpus stories|reviews] [--seeds 0 1 2] [--record]

--source: a folder with tinystories/tinystories_2mb.txt.gz, nsmc/nsmc_{train,valid}.tsv.gz and the files that tasks.py names.
A tokenizer and a small BERT are trained on the corpus in the stages of CORPORA, each a YAML of recipes/configs; then its
tasks are fine-tuned from these weights and, with the same tokenizer, sizes and settings, from random ones. `stories` is
English and unlike its tasks; `reviews` is Korean, the training reviews of one of its tasks. Beside it the floor: the time
that the floating-point operations of pretraining would take as large matrix products on this machine, measured right before
and after. A finished stage is taken as it is. --record writes results/pretraining-CORPUS-DATE.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rlhf.runs.record import RunRecord, code_version, package_versions, read_jsonl

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
CORPORA = {  # tokenizer: its YAML; stages: run folder and YAML; tasks, of tasks.py: what differs from their YAML here
    "stories": {
        "tokenizer": "bert_scratch",
        "stages": {"short": "bert_scratch_short", "pretrained": "bert_scratch"},
        "tasks": {
            "sst2": {
                "num_train_epochs": 3,
                "learning_rate": 3e-4,
                "dataset_limit": 2000,
                "consistency_coef": 0,
            },
            "ner": {"num_train_epochs": 4, "learning_rate": 5e-4, "dataset_limit": 1000},
        },
    },
    "reviews": {
        "tokenizer": "korean_scratch",
        "stages": {"pretrained": "korean_scratch"},
        "tasks": {"nsmc": {"dataset_limit": 5000}, "klue_ner": {}},
    },
}


def floor(folder: Path, record: RunRecord, gflops: float) -> dict:
    """Seconds of training beside those that its matrix products alone would take at a rate of `gflops`.

    2 operations per multiply-add, three times those of the forward pass; the vocabulary is scored at masked places alone.
    """
    sizes = json.loads((folder / "config.json").read_text())
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    block = record.config.get("block_size", 128)  # a default is not recorded
    tokens = record.metrics["train_tokens"] * record.config["num_train_epochs"]
    layers = sizes["num_hidden_layers"] * (
        4 * width * width + 2 * width * inner + 2 * block * width
    )
    head = 0.15 * (width * width + width * sizes["vocab_size"])
    seconds = next(
        row["train_runtime"]
        for row in read_jsonl(folder / "metrics.jsonl")
        if "train_runtime" in row
    )
    least = 6 * tokens * (layers + head) / (gflops * 1e9)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "times_the_floor": seconds / least,
    }


def matrix_rate() -> dict:
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "ppo_throughput" / "matrix_rate.py")],
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    from tasks import TASKS as GOALS
    from tasks import data, portable, stage

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--corpus", default="stories", choices=list(CORPORA))
    parser.add_argument("--runs", default="runs/bert")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    corpus, configs = CORPORA[arguments.corpus], ROOT / "recipes" / "configs"
    source, shared = Path(arguments.source).resolve(), Path(arguments.runs).resolve() / "data"
    runs = shared.parent / arguments.corpus
    text = {"dataset_name": source / "tinystories" / "tinystories_2mb.txt.gz"}
    if arguments.corpus == "reviews":
        text = {
            "dataset_name": data("nsmc", source, shared)["dataset_name"],
            "columns": "text=text",
        }
    config = configs / "tokenizer" / f"{corpus['tokenizer']}.yaml"
    tokenizer = stage("tokenizer", runs / "tokenizer", config=config, **text)
    rate, stages = [matrix_rate()], {}
    for name, config in corpus["stages"].items():
        config = configs / "pretrain" / f"{config}.yaml"
        first = {"tokenizer_name_or_path": runs / "tokenizer"}
        before = {"model_name_or_path": runs / list(stages)[-1]} if stages else first
        stages[name] = stage("pretrain", runs / name, config=config, **text, **before)
    rate.append(matrix_rate())
    found = {}
    for task, changes in corpus["tasks"].items():
        recipe, metric, _ = GOALS[task]
        flags = {"config": HERE / f"{task}.yaml", **data(task, source, shared), **changes}
        flags["tokenizer_name_or_path"] = runs / "pretrained"
        sizes = json.loads((runs / "pretrained" / "config.json").read_text())
        random = {
            "from_scratch": "true", "model_type": "bert", "hidden_size": sizes["hidden_size"],
            "layers": sizes["num_hidden_layers"], "heads": sizes["num_attention_heads"],
            "context": sizes["max_position_embeddings"], "dropout": sizes["hidden_dropout_prob"],
        }  # fmt: skip
        found[task] = {"metric": metric, "settings": changes}
        for side, start in (
            ("pretrained", {"model_name_or_path": runs / "pretrained"}),
            ("random", random),
        ):
            records = [
                stage(recipe, runs / f"{task}-{side}-{seed}", seed=seed, **flags, **start)
                for seed in arguments.seeds
            ]
            values = [record.metrics[metric] for record in records]
            found[task][side] = {
                "mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None,
                "values": values, "seconds": [record.seconds for record in records], "data": records[0].data,
            }  # fmt: skip
            print(task, side, found[task][side], flush=True)
    result = {
        "question": __doc__.strip().splitlines()[0],
        "date": time.strftime("%Y-%m-%d"),
        "commit": code_version(),
        "versions": package_versions(),
        "corpus": arguments.corpus,
        "machine": tokenizer.machine,
        "seeds": arguments.seeds,
        "data": stages["pretrained"].data,
        "tokenizer": tokenizer.metrics,
        "stages": {
            name: {
                "metrics": record.metrics,
                "seconds": record.seconds,
                "config": record.config,
                "commit": record.versions["code"],
                "floor": floor(runs / name, record, statistics.mean(r["bf16"] for r in rate)),
            }
            for name, record in stages.items()
        },
        "matrix_gflops": rate,
        "curve": [
            row for row in read_jsonl(runs / "pretrained" / "metrics.jsonl") if "eval_loss" in row
        ],
        "fine_tuning": found,
    }
    if arguments.record:
        path = HERE / "results" / f"pretraining-{arguments.corpus}-{result['date']}.json"
        path.write_text(
            json.dumps(portable(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(path)


if __name__ == "__main__":
    main()
