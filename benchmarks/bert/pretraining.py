"""What does pretraining on two megabytes of text give a small BERT, by its own tasks and by what is fine-tuned from it?

    python benchmarks/bert/pretraining.py --source FOLDER [--corpus stories|reviews] [--seeds 0 1 2] [--record]

--source: a folder with tinystories/tinystories_2mb.txt.gz, nsmc/nsmc_{train,valid}.tsv.gz and the files that tasks.py names.
A tokenizer and a small BERT are trained on the corpus in the stages of CORPORA, each a YAML of recipes/configs; then its
tasks are fine-tuned from these weights and, with the same tokenizer, sizes and settings, from random ones. `stories` is
English and unlike its tasks; `reviews` is Korean, the training reviews of one of its tasks. Also the floor: the time that
the floating-point operations of pretraining would take as large matrix products on this machine, measured right before and
after. A finished stage is taken as it is. --record writes results/pretraining-CORPUS-DATE.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.bert.tasks import TASKS, data  # noqa: E402
from benchmarks.record import (  # noqa: E402
    check_clean_tree,
    clean_commits,
    run_recipe,
    spread,
    write_record,
)
from rlhf.runs.record import RunRecord, read_jsonl  # noqa: E402

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--corpus", default="stories", choices=list(CORPORA))
    parser.add_argument("--runs", default="runs/bert")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    corpus = CORPORA[arguments.corpus]
    source, work = Path(arguments.source).resolve(), Path(arguments.runs).resolve() / "data"
    runs = work.parent / arguments.corpus
    text = text_of(arguments.corpus, source, work)

    config = ROOT / "recipes" / "configs" / "tokenizer" / f"{corpus['tokenizer']}.yaml"
    tokenizer = run_recipe("tokenizer", runs / "tokenizer", config=config, **text)
    rates = [matrix_rate()]
    stages = pretrain(corpus["stages"], runs, text)
    rates.append(matrix_rate())

    fine_tuning, fine_tuned = {}, []
    for task, changes in corpus["tasks"].items():
        rows = data(task, source, work)
        records = fine_tune(task, runs, rows | changes, arguments.seeds)
        metric = TASKS[task][1]
        fine_tuning[task] = {"metric": metric, "settings": changes}
        for side, of_side in records.items():
            fine_tuned += of_side
            fine_tuning[task][side] = {
                **spread([record.metrics[metric] for record in of_side]),
                "seconds": [record.seconds for record in of_side],
                "data": of_side[0].data,
            }
            print(task, side, fine_tuning[task][side], flush=True)
    if arguments.record:
        gflops = statistics.mean(rate["bf16"] for rate in rates)
        records = [tokenizer, *stages.values(), *fine_tuned]
        content = {
            "commits": clean_commits(record.versions for record in records),
            "corpus": arguments.corpus,
            "seeds": arguments.seeds,
            "data": stages["pretrained"].data,
            "tokenizer": tokenizer.metrics,
            "stages": {
                name: summary(runs / name, record, gflops) for name, record in stages.items()
            },
            "matrix_gflops": rates,
            "curve": evaluations(runs / "pretrained"),
            "fine_tuning": fine_tuning,
        }
        name = f"pretraining-{arguments.corpus}"
        write_record(HERE, __doc__, content, commit=commit, name=name)


def text_of(corpus: str, source: Path, work: Path) -> dict:
    """The flags that name the text to pretrain on."""
    if corpus == "reviews":
        return {"dataset_name": data("nsmc", source, work)["dataset_name"], "columns": "text=text"}
    return {"dataset_name": source / "tinystories" / "tinystories_2mb.txt.gz"}


def pretrain(stages: dict[str, str], runs: Path, text: dict) -> dict[str, RunRecord]:
    """Run the stages (folder -> name of the YAML), each from the model of the one before."""
    records = {}
    start = {"tokenizer_name_or_path": runs / "tokenizer"}
    for name, yaml in stages.items():
        config = ROOT / "recipes" / "configs" / "pretrain" / f"{yaml}.yaml"
        records[name] = run_recipe(
            "pretrain", runs / name, config=config, precision="bf16", **text, **start
        )
        start = {"model_name_or_path": runs / name}
    return records


def fine_tune(task: str, runs: Path, keys: dict, seeds: list[int]) -> dict[str, list[RunRecord]]:
    """Fine-tune from the pretrained weights and from random ones of the same sizes, once per seed."""
    sizes = json.loads((runs / "pretrained" / "config.json").read_text(encoding="utf-8"))
    starts = {
        "pretrained": {"model_name_or_path": runs / "pretrained"},
        "random": {
            "from_scratch": "true",
            "model_type": "bert",
            "hidden_size": sizes["hidden_size"],
            "layers": sizes["num_hidden_layers"],
            "heads": sizes["num_attention_heads"],
            "context": sizes["max_position_embeddings"],
            "dropout": sizes["hidden_dropout_prob"],
        },
    }
    keys = {"config": HERE / f"{task}.yaml", **keys}
    keys["tokenizer_name_or_path"] = runs / "pretrained"
    records = {}
    for side, start in starts.items():
        records[side] = []
        for seed in seeds:
            folder = runs / f"{task}-{side}-{seed}"
            records[side].append(run_recipe(TASKS[task][0], folder, seed=seed, **keys, **start))
    return records


def summary(folder: Path, record: RunRecord, gflops: float) -> dict:
    """A stage of pretraining as a record has it."""
    return {
        "metrics": record.metrics,
        "seconds": record.seconds,
        "config": record.config,
        "commit": record.versions["code"],
        "floor": floor(folder, record, gflops),
    }


def floor(folder: Path, record: RunRecord, gflops: float) -> dict:
    """Seconds of training, and their ratio to those that its matrix products alone would take at a rate of `gflops`.

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
    rows = read_jsonl(folder / "metrics.jsonl")
    seconds = next(row["train_runtime"] for row in rows if "train_runtime" in row)
    least = 6 * tokens * (layers + head) / (gflops * 1e9)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "times_the_floor": seconds / least,
    }


def matrix_rate() -> dict:
    """GFLOP/s of large matrix products on this machine now, in a process of its own."""
    script = HERE.parent / "ppo_throughput" / "matrix_rate.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def evaluations(folder: Path) -> list[dict]:
    """The evaluations of a run, in order."""
    return [row for row in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in row]


if __name__ == "__main__":
    main()
