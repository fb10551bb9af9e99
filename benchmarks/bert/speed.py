"""How many rows a second does fine-tuning take, compared with transformers.Trainer and its example scripts' settings?

    python benchmarks/bert/speed.py --source FOLDER [--rounds 2] [--record]

Same MiniLM, same encoded rows, batch, epochs, learning rate and seed; in each round every side runs once, in a process of
its own, on all cores: `example` pads every row to the example scripts' maximum (128 for GLUE, 384 for SQuAD; their NER
pads to the batch), `plain` pads to the batch's longest row, `ours` is EncoderTrainer as the recipes use it. All else is
TrainingArguments' default, but for the precision of `ours`: what `precision: auto` chooses for this MiniLM here, once and
recorded with both rates. Evaluated afterwards on held-out rows, to see that speed costs nothing. --record writes
results/speed-DATE.json.
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

from benchmarks.record import check_clean_tree, write_record  # noqa: E402
from rlhf.data.load import load_rows  # noqa: E402
from rlhf.data.splits import split_rows  # noqa: E402

SIDES = ("example", "plain", "ours")
TASKS = {  # name: the example script's maximum length (None: it pads to the batch), learning rate
    "sst2": (128, 1e-4),
    "ner": (None, 3e-4),
    "qa": (384, 3e-4),
}
ROWS, EPOCHS, BATCH = 640, 2, 32


def encoded(task: str, source: Path, work: Path):
    """(model, tokenizer, training rows, held-out rows, function that scores the predictions)."""
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    from benchmarks.bert.tasks import data, minilm
    from rlhf.models.load import load_encoder, load_tokenizer
    from rlhf.models.parts import fit_tokenizer

    flags = data(task, source, work)
    tokenizer = load_tokenizer(minilm())
    kinds = ("classification", "ner", "question_answering")
    found = [load_rows(str(path), kinds=kinds).rows for path in flags.values()]
    train, test = found if len(found) == 2 else split_rows(found[0], 0.1, 0)
    train = train[:ROWS]
    if task == "sst2":
        from rlhf.tasks.classification.encode import encode_texts, label_names

        labels = label_names(train)
        model = load_encoder(
            minilm(), "AutoModelForSequenceClassification", labels=labels, new_head=True
        )
        fit_tokenizer(tokenizer, model, pairs=False)
        number = {label: place for place, label in enumerate(labels)}
        sides = []
        for part in (train, test):
            rows, _ = encode_texts(tokenizer, part, pairs=False, max_length=128)
            sides.append(
                [row | {"labels": number[str(given["label"])]} for row, given in zip(rows, part)]
            )

        def judge(output) -> float:
            return float((output.label_ids == output.predictions.argmax(-1)).mean())

        return model, tokenizer, *sides, judge, DataCollatorWithPadding
    if task == "ner":
        from rlhf.tasks.ner.encode import (
            decode_windows,
            in_bio,
            stored_windows,
            tag_names,
            to_train_on,
            windows_of,
        )
        from rlhf.tasks.ner.metrics import entity_scores

        train, test, _, _ = in_bio(train, test)
        labels = tag_names(train)
        model = load_encoder(
            minilm(), "AutoModelForTokenClassification", labels=labels, new_head=True
        )
        fit_tokenizer(tokenizer, model, pairs=False)
        sizes = dict(labels=labels, units="words", max_length=128)
        encoded = stored_windows(tokenizer, train, **sizes)
        held_out = stored_windows(tokenizer, test, **sizes).by_length()
        sides = [to_train_on(encoded), to_train_on(held_out)]
        windows = windows_of(held_out)

        def judge(output) -> float:
            best = output.predictions.argmax(-1)
            marks = [
                [labels[best[i][token]] for token, _, _ in window.heads]
                for i, window in enumerate(windows)
            ]
            return entity_scores(
                [row["tags"] for row in test], decode_windows(windows, marks, test)
            )["f1"]

        return model, tokenizer, *sides, judge, DataCollatorForTokenClassification
    from rlhf.tasks.question_answering.encode import (
        best_answers,
        stored_windows,
        to_train_on,
        windows_of,
    )
    from rlhf.tasks.question_answering.metrics import reading_report

    model = load_encoder(minilm(), "AutoModelForQuestionAnswering", new_head=True)
    fit_tokenizer(tokenizer, model, pairs=True)
    reading = {"max_length": 384, "stride": 128, "max_answer_length": 30}
    held_out = stored_windows(tokenizer, test, **reading).by_length()
    sides = [to_train_on(stored_windows(tokenizer, train, **reading)), to_train_on(held_out)]
    windows = windows_of(held_out)

    def judge(output) -> float:
        answers = best_answers(test, windows, list(zip(*output.predictions)), max_answer_length=30)
        return reading_report(test, answers, answer_unit="word", with_threshold=False)["f1"]

    return model, tokenizer, *sides, judge, DataCollatorWithPadding


def chosen_precision() -> dict:
    """GFLOP/s of MiniLM's own matrix products in a batch, and the faster precision, as the recipes choose it."""
    import torch

    from benchmarks.bert.tasks import minilm
    from rlhf.models.load import load_encoder
    from rlhf.models.precision import training_rates
    from rlhf.runs.processes import use_all_cores

    use_all_cores(1)
    model = load_encoder(minilm(), "AutoModelForMaskedLM", new_head=True)
    rates = training_rates(model, tokens=BATCH * 128, device=torch.device("cpu"))
    return {"fp32": rates.fp32, "bf16": rates.bf16, "faster": rates.faster}


def work_of(side: str, task: str, source: Path, work: Path, *, seed: int, precision: str) -> dict:
    """One training, in this process. precision: of our side, fp32 or bf16."""
    import torch
    from transformers import Trainer, TrainingArguments, set_seed

    from rlhf.runs.processes import keep_freed_memory, use_all_cores
    from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer

    use_all_cores(1)
    set_seed(seed)
    model, tokenizer, train, test, judge, collator = encoded(task, source, work)
    longest, rate = TASKS[task]
    settings = dict(
        output_dir=str(work / "none"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=rate,
        per_device_eval_batch_size=64, eval_strategy="no", save_strategy="no", report_to="none", seed=seed,
        disable_tqdm=True, use_cpu=not torch.accelerator.is_available(),
        label_names=["start_positions", "end_positions"] if task == "qa" else None,
    )  # fmt: skip
    if side == "ours":
        keep_freed_memory()
        args = EncoderConfig(bf16=precision == "bf16", **settings)
        trainer = EncoderTrainer(
            model=model, args=args, train=train, evaluation=test, processing_class=tokenizer,
            data_collator=collator(tokenizer),
        )  # fmt: skip
    else:
        longest = longest if side == "example" else None
        pad = collator(tokenizer, padding="max_length" if longest else True, max_length=longest)
        trainer = Trainer(
            model=model, args=TrainingArguments(**settings), train_dataset=train, eval_dataset=test,
            processing_class=tokenizer, data_collator=pad,
        )  # fmt: skip
    seconds = trainer.train().metrics["train_runtime"]
    return {
        "seconds": seconds,
        "rows_per_second": EPOCHS * len(train) / seconds,
        "judged": judge(trainer.predict(test)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--work", default="runs/bert/speed")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    parser.add_argument(
        "--worker", nargs=4, help=argparse.SUPPRESS
    )  # side, task, seed, precision: one training, in this process
    arguments = parser.parse_args()
    source, work = Path(arguments.source).resolve(), Path(arguments.work).resolve()
    if arguments.worker:
        side, task, seed, precision = arguments.worker
        print(json.dumps(work_of(side, task, source, work, seed=int(seed), precision=precision)))
        return
    commit = check_clean_tree() if arguments.record else ""
    rates = chosen_precision()
    print(
        f"precision: {rates['faster']} (fp32 {rates['fp32']:.0f} GFLOP/s a core, bf16 {rates['bf16']:.0f})"
    )
    rounds = []
    for seed in range(arguments.rounds):
        for task in arguments.tasks:
            for side in SIDES:
                worker = [side, task, str(seed), rates["faster"]]
                result = run_worker(worker, source, work)
                rounds.append({"task": task, "side": side, "seed": seed, **result})
                print(rounds[-1], flush=True)
    summaries = {}
    for task in arguments.tasks:
        summaries[task] = summary([result for result in rounds if result["task"] == task])
    print(json.dumps(summaries, indent=1))
    if arguments.record:
        settings = {"rows": ROWS, "epochs": EPOCHS, "batch": BATCH, "tasks": TASKS}
        content = {"settings": settings, "gflops": rates, "summary": summaries, "rounds": rounds}
        write_record(HERE, __doc__, content, commit=commit, name="speed")


def run_worker(worker: list[str], source: Path, work: Path) -> dict:
    """One training in a process of its own. worker: the values of --worker."""
    command = [sys.executable, __file__, "--source", str(source), "--work", str(work)]
    command += ["--worker", *worker]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(rounds: list[dict]) -> dict:
    """Speed and quality of each side of one task: medians and means over the rounds, and our speed over theirs."""
    speeds, judged = {}, {}
    for side in SIDES:
        of_side = [result for result in rounds if result["side"] == side]
        speeds[side] = [result["rows_per_second"] for result in of_side]
        judged[side] = [result["judged"] for result in of_side]
    result = {}
    for side in SIDES:
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[side], strict=True)]
        result[side] = {
            "rows_per_second": statistics.median(speeds[side]),
            "judged": statistics.mean(judged[side]),
            "ours_is_faster_by": [min(ratios), statistics.median(ratios), max(ratios)],
        }
    return result


if __name__ == "__main__":
    main()
