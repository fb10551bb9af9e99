"""Does a small LSTM classifier profit from pretrained word vectors, and of which text?

    pip install "rlhf[ladder]"
    python benchmarks/word_vectors/run.py --source FOLDER [--rows 1000] [--seeds 0 1 2] [--record]

--source: a folder with sst2/stsa.binary.{train,dev}.gz, tinystories/tinystories_2mb.txt.gz and tinyshakespeare/input.txt.gz.
The LSTM of classifier.yaml learns --rows labelled sentences of SST-2 and is measured on its dev set. Its embeddings are
random, or skip-gram vectors of all training sentences without their labels, or of these, stories and plays. All have one
tokenizer, and each seed has its own vectors. A finished run is taken as it is. --record writes results/DATE.json.
"""

import argparse
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.bert.tasks import lines, sst2, write_split  # noqa: E402
from benchmarks.record import (  # noqa: E402
    check_clean_tree,
    clean_commits,
    run_recipe,
    spread,
    write_record,
)
from rlhf.runs.record import RunRecord  # noqa: E402
from rlhf.statistics import wilson_interval  # noqa: E402

VECTORS = {"vector_size": 100, "epochs": 10, "min_count": 2, "eval_fraction": 0.05}
TEXTS = ("sentences", "all")  # files of text, and the starts that are not random
VOCABULARY = 12_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--work", default="runs/word_vectors", type=Path)
    parser.add_argument("--rows", type=int, default=1000, help="labelled sentences [%(default)s]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--note", default="", help="what a reader should know of the machine")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    work = arguments.work.resolve()
    rows = write_data(arguments.source, work / "data", arguments.rows)
    tokenizer = work / "tokenizer"
    text = work / "data" / "all.txt"
    kind = {"tokenizer_type": "wordpiece", "vocab_size": VOCABULARY}
    records = [run_recipe("tokenizer", tokenizer, dataset_name=text, **kind)]

    starts: dict[str, list[RunRecord]] = {"random": []} | {name: [] for name in TEXTS}
    vectors: dict[str, list[RunRecord]] = {name: [] for name in TEXTS}
    for seed in arguments.seeds:
        for start in starts:
            keys = {"config": HERE / "classifier.yaml", "tokenizer_name_or_path": tokenizer}
            if start in TEXTS:
                folder = work / f"vectors-{start}-{seed}"
                name = work / "data" / f"{start}.txt"
                made = run_recipe("word_vectors", folder, dataset_name=name, seed=seed, **VECTORS)
                vectors[start].append(made)
                keys["embeddings_from"] = folder
            folder = work / f"{start}-{arguments.rows}-{seed}"
            made = run_recipe("classification", folder, seed=seed, **keys, **rows)
            starts[start].append(made)
            print(f"{start}, seed {seed}: accuracy {made.metrics['accuracy']:.4f}", flush=True)
    for group in (starts, vectors):
        for made in group.values():
            records += made
    content = {
        "note": arguments.note,
        "rows": arguments.rows,
        "seeds": arguments.seeds,
        "vectors": {name: of_vectors(made) for name, made in vectors.items()},
        "starts": {name: of_classifiers(made) for name, made in starts.items()},
        "better_than_random": {name: differences(starts, name) for name in TEXTS},
    }
    if arguments.record:
        content["commits"] = clean_commits(record.versions for record in records)
        write_record(HERE, __doc__, content, commit=commit)
    for name in TEXTS:
        print(name, "- random:", content["better_than_random"][name])


def write_data(source: Path, work: Path, count: int) -> dict[str, Path]:
    """Write the two texts and the labelled rows. Returns the flags of the rows."""
    train, dev = (sst2(source / "sst2" / f"stsa.binary.{part}.gz") for part in ("train", "dev"))
    held_out = {" ".join(text.split()) for text, _ in dev}
    sentences = [text for text, _ in train if " ".join(text.split()) not in held_out]
    random.Random(0).shuffle(train)
    flags = write_split("sst2", work, train=train[:count], dev=dev)
    stories = lines(source / "tinystories" / "tinystories_2mb.txt.gz")
    plays = lines(source / "tinyshakespeare" / "input.txt.gz")
    others = [line for line in stories + plays if line != "<|endoftext|>"]
    for name, texts in zip(TEXTS, (sentences, sentences + others), strict=True):
        (work / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return flags


def of_vectors(records: list[RunRecord]) -> dict:
    names = ("vocabulary", "train_words", "train_words_known", "eval_loss_before", "eval_loss")
    metrics = [{name: record.metrics[name] for name in names} for record in records]
    return {"metrics": metrics, "seconds": [record.seconds for record in records]}


def of_classifiers(records: list[RunRecord]) -> dict:
    """Accuracy over the seeds, with the interval of the first seed's sentences."""
    accuracies = [record.metrics["accuracy"] for record in records]
    n = records[0].metrics["eval_rows"]
    return {
        "accuracy": spread(accuracies),
        "interval_of_first_seed": wilson_interval(accuracies[0], n),
        "eval_rows": n,
        "eval_loss": spread([record.metrics["eval_loss"] for record in records]),
        "seconds": [record.seconds for record in records],
        "config": records[0].config,
        "data": records[0].data,
    }


def differences(starts: dict[str, list[RunRecord]], name: str) -> dict:
    """Accuracy with these vectors minus that of random embeddings of the same seed."""
    pairs = zip(starts[name], starts["random"], strict=True)
    return spread([own.metrics["accuracy"] - other.metrics["accuracy"] for own, other in pairs])


if __name__ == "__main__":
    main()
