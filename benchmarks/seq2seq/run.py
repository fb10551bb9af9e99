"""Does attention help a translation, more so on long sentences, and how does a Transformer compare at equal time?

    python benchmarks/seq2seq/run.py --source FOLDER [--record]

--source: a folder with eng_kor_dev.tsv.gz, the pairs of English and Korean sentences of Tatoeba. All models share the
tokenizer, the pairs and the held-out pairs, and take about the same seconds of one core, with their settings in
recipes/configs/seq2seq/. A run that is finished is not repeated. --record writes results/DATE.json and its picture.
"""

import argparse
import csv
import gzip
import json
import os
import resource
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import (  # noqa: E402
    check_clean_tree,
    clean_commits,
    rounded,
    run_recipe,
    spread,
    write_record,
)
from rlhf.data.splits import split_rows  # noqa: E402
from rlhf.runs.record import RunRecord, command_line  # noqa: E402

# name -> the settings file
MODELS = {
    "LSTM": "lstm",
    "LSTM with additive attention": "attention",
    "Transformer": "transformer",
}
HELD_OUT = 0.15  # of the sources
SPLIT = 1  # seed
SHOWN = 12  # held-out pairs in the record
COLORS = ("tab:gray", "tab:blue", "tab:orange")


def main() -> None:
    arguments = parse_arguments()
    commit = check_clean_tree() if arguments.record else ""
    runs = arguments.runs
    train, held_out = split(arguments.source, runs)
    run_recipe(
        "tokenizer",
        runs / "tokenizer",
        dataset_name=train,
        vocab_size=4000,
        chat="false",
        eval_fraction=0.05,
        report_to="none",
    )
    results, records = {}, []
    for seed in arguments.seeds:
        for name, config in MODELS.items():
            folder = runs / f"{config}-{seed}"
            seconds = trained_seconds(folder, config, train, held_out, seed)
            records.append(RunRecord.load(folder))
            result = measured(folder) | {"core_seconds": seconds}
            results.setdefault(name, []).append(result)
            print(f"{name}, seed {seed}: chrF {result['chrf']:.2f}, {seconds:.0f} s", flush=True)
    summary = summarised(results)
    print(json.dumps(summary, indent=1))
    if arguments.record:
        content = {
            "command": command_line(),
            "commits": clean_commits(record.versions for record in records),
            "seeds": arguments.seeds,
            "train_rows": records[0].metrics["train_rows"],
            "held_out_rows": records[0].metrics["eval_rows"],
            "signatures": next(iter(results.values()))[0]["signatures"],
            "data": records[0].data,
            "models": summary,
            "samples": samples(results),
        }
        path = write_record(HERE, __doc__, rounded(content), commit=commit)
        plot(summary, path.with_suffix(".png"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, type=Path)
    parser.add_argument("--runs", default=Path("runs/seq2seq"), type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--record", action="store_true", help="write results/<date>.json and .png")
    return parser.parse_args()


def split(source: Path, runs: Path) -> tuple[Path, Path]:
    """Write the training and the held-out pairs; all pairs of one source are on one side."""
    with gzip.open(source / "eng_kor_dev.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = [{"prompt": english, "completion": korean} for english, korean, *_ in lines]
    runs.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, side in zip(("train", "held_out"), split_rows(rows, HELD_OUT, SPLIT)):
        path = runs / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in side)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return tuple(paths)


def trained_seconds(folder: Path, config: str, train: Path, held_out: Path, seed: int) -> float:
    """Train a model unless it is there, and return the seconds of one core that the whole run took."""
    clock = folder.with_suffix(".seconds")
    if not clock.exists():
        before = children_seconds()
        run_recipe(
            "seq2seq",
            folder,
            config=f"recipes/configs/seq2seq/{config}.yaml",
            dataset_name=train,
            columns="prompt=prompt,completion=completion",
            eval_dataset_name=held_out,
            tokenizer_name_or_path=folder.parent / "tokenizer",
            seed=seed,
        )
        clock.write_text(str(children_seconds() - before))
    return float(clock.read_text())


def children_seconds() -> float:
    """Processor seconds of all programs that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(folder: Path) -> dict:
    """The scores of a run on the held-out pairs, also by the length of the source, and some of its texts."""
    metrics = RunRecord.load(folder).metrics
    report = json.loads((folder / "seq2seq.json").read_text(encoding="utf-8"))
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return metrics | {
        "lengths": report["lengths"],
        "signatures": [report["chrf_signature"], report["bleu_signature"]],
        "samples": [json.loads(line) for line in lines[:SHOWN]],
    }


def summarised(results: dict[str, list[dict]]) -> dict:
    """Mean and spread over the seeds, of all held-out pairs and of those with sources of one length."""
    summary = {}
    for name, runs in results.items():
        entry = {"parameters": runs[0]["parameters"]}
        for metric in ("chrf", "chrf_low", "chrf_high", "bleu", "eval_loss", "core_seconds"):
            entry[metric] = spread([run[metric] for run in runs])
        groups = []
        for same_length in zip(*(run["lengths"] for run in runs)):
            group = {key: same_length[0][key] for key in ("source_tokens", "rows", "mean_tokens")}
            for metric in ("chrf", "chrf_low", "chrf_high"):
                group[metric] = spread([part[metric] for part in same_length])
            groups.append(group)
        summary[name] = entry | {"lengths": groups}
    return summary


def samples(results: dict[str, list[dict]]) -> list[dict]:
    """Some held-out pairs, not picked, with the texts of the first seed."""
    shown = []
    for texts in zip(*(runs[0]["samples"] for runs in results.values())):
        row = {"source": texts[0]["prompt"], "reference": texts[0]["reference"]}
        for name, text in zip(results, texts):
            row[name] = text["completion"]
        shown.append(row)
    return shown


def plot(summary: dict, path: Path) -> None:
    """chrF against the length of the source: mean over the seeds, with the mean interval over the rows."""
    from rlhf.runs.plots import saved_figure

    with saved_figure(path, figsize=(6, 3.8)) as (_, axis):
        for i, (name, entry) in enumerate(summary.items()):
            groups = entry["lengths"]
            # Beside each other, so that the intervals can be read.
            tokens = [group["mean_tokens"] + 0.12 * (i - 1) for group in groups]
            scores = [group["chrf"]["mean"] for group in groups]
            low = [group["chrf"]["mean"] - group["chrf_low"]["mean"] for group in groups]
            high = [group["chrf_high"]["mean"] - group["chrf"]["mean"] for group in groups]
            options = {"marker": "o", "capsize": 3, "color": COLORS[i], "label": name}
            axis.errorbar(tokens, scores, yerr=[low, high], **options)
        axis.set_xlabel("tokens of the English sentence (mean of each group)")
        axis.set_ylabel("chrF of the Korean sentence")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
