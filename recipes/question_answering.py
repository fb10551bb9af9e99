"""Question answering: questions with the place of their answer in a context -> a BERT class model that marks it.

    accelerate launch recipes/question_answering.py --config recipes/configs/question_answering/squad.yaml
    accelerate launch recipes/question_answering.py --dataset_name questions.jsonl --model_name_or_path bert-base-uncased \\
        --output_dir runs/qa

Rows {question, context, answers: {text: [...], answer_start: [...]}}, or SQuAD's own file, v1 or v2 (KorQuAD's too): a row
whose lists are empty has no answer in its context, and where training rows have none the model learns to say so. Time:
an epoch of SQuAD is some 90,000 windows, so a GPU; a few thousand short contexts take minutes on two cores.
Look at: exact match and F1 on contexts that were not trained on, and the table of mistakes; question_answering.json has
both by kind of question, predictions.json (and na_prob.json, v2) is what SQuAD's official evaluation reads.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from rlhf.hub.recording import recording
from rlhf.runs.durable import write_text
from rlhf.runs.progress import sample_table
from rlhf.runs.ranges import at_least
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.model import read_task, start_encoder, token_limit, with_lora
from rlhf.tasks.question_answering.encode import (
    QuestionWindow,
    best_answers,
    has_unanswerable,
    question_ids,
    stored_windows,
    to_train_on,
    windows_of,
)
from rlhf.tasks.question_answering.metrics import check_unit, reading_report, wrong_answers
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer, set_best_metric

METRICS = ("f1",)  # the evaluations during the training keep the best checkpoint by it
MISTAKES = 100  # wrong answers that are kept
MISTAKES_SHOWN = 8  # on the terminal


@dataclass
class QuestionAnsweringSettings(DataSettings, ModelSettings, ScratchSettings):
    """The task, its rows and its model, and the length of answers."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert."}
    )
    stride: int = field(
        default=128, metadata={"help": "Tokens by which two windows of a long context overlap."}
    )
    max_answer_length: int = field(
        default=30, metadata={"help": "Tokens of the longest answer. BERT: 30."}
    )
    answer_unit: str = field(
        default="word",
        metadata={"help": "What F1 counts: word, by SQuAD's rules, or character, by KorQuAD's."},
    )

    RANGES: ClassVar[dict] = {"stride": at_least(0), "max_answer_length": at_least(1)}


@dataclass
class QuestionAnsweringConfig(EncoderConfig):
    """Settings of training and of the windows that contexts are cut into."""

    max_length: int = field(
        default=384, metadata={"help": "Tokens of a window: question and context. BERT: 384."}
    )


@dataclass
class PreparedQuestionAnswering:
    """The trainer of a run, and what its evaluation needs.

    rows, ids: the held-out questions and their ids.
    windows: of the held-out questions, in the order in which the trainer reads them.
    train_rows: questions that are trained on, in any number of windows.
    missed: answers that are no span of tokens within reach.
    unanswerable: True if some questions have no answer.
    """

    trainer: EncoderTrainer
    tokenizer: PreTrainedTokenizerBase
    settings: QuestionAnsweringSettings
    rows: Sequence[dict]
    ids: list[str]
    windows: Sequence[QuestionWindow]
    train_rows: int
    missed: int
    unanswerable: bool


def main(settings: QuestionAnsweringSettings, args: QuestionAnsweringConfig) -> None:
    with recording("question_answering", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_question_answering(run, prepared)


def prepare(
    settings: QuestionAnsweringSettings, args: QuestionAnsweringConfig, run: Run
) -> PreparedQuestionAnswering:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    # before anything is read
    check_unit(settings.answer_unit)
    set_best_metric(args, METRICS)
    tokenizer, splits = read_task(run, settings, "question_answering", seed=args.seed)
    ids, unanswerable = question_ids(splits.eval), has_unanswerable(splits.train, splits.eval)

    model = start_encoder(run, settings, tokenizer, "question_answering", pairs=True)
    # The evaluation finds a threshold. Without one, the predictor always answers.
    model.config.no_answer_threshold = None
    sizes = {
        "max_length": token_limit(args, model, tokenizer),
        "stride": settings.stride,
        "max_answer_length": settings.max_answer_length,
    }
    model.config.reader_windows = sizes  # the predictor reads contexts in the same windows
    train = stored_windows(tokenizer, splits.train, **sizes)
    # The evaluation reads windows in this order.
    held_out = stored_windows(tokenizer, splits.eval, **sizes).by_length()
    counts = train.counts + held_out.counts
    run.say(
        f"{len(splits.train)} questions in {len(train)} windows of at most {sizes['max_length']} tokens, "
        f"{len(splits.eval)} held out in {len(held_out)}; {counts['cut']} questions cut, "
        f"{counts['missed']} answers are no span of tokens within reach"
    )
    # The Trainer looks for "labels" by itself.
    args.label_names = ["start_positions", "end_positions"]
    trainer = EncoderTrainer(
        model=with_lora(model, settings, "question_answering"),
        args=args,
        train=to_train_on(train),
        evaluation=to_train_on(held_out),
        metrics=METRICS,
        compute_metrics=lambda output: numbers_of(answers_and_report(prepared, output)[1]),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    # The evaluations of the trainer read it too.
    prepared = PreparedQuestionAnswering(
        trainer,
        tokenizer,
        settings,
        rows=splits.eval,
        ids=ids,
        windows=windows_of(held_out),
        train_rows=len(splits.train),
        missed=counts["missed"],
        unanswerable=unanswerable,
    )
    return prepared


def answers_and_report(prepared: PreparedQuestionAnswering, output) -> tuple[list[dict], dict]:
    """(best answer of each held-out question, the report), from the logits of all windows."""
    settings, rows = prepared.settings, prepared.rows
    logits = list(zip(*output.predictions))  # (start, end) of each window
    longest = settings.max_answer_length
    answers = best_answers(rows, prepared.windows, logits, max_answer_length=longest)
    options = {"answer_unit": settings.answer_unit, "with_threshold": prepared.unanswerable}
    return answers, reading_report(rows, answers, **options)


def evaluate_question_answering(run: Run, prepared: PreparedQuestionAnswering) -> None:
    """Measure the trained model on the held-out questions, and write its threshold, the report and the answers."""
    trainer = prepared.trainer
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    answers, report = answers_and_report(prepared, output)
    run.metrics(numbers_of(report) | {"eval_loss": output.metrics["eval_loss"]})
    run.metrics({"eval_rows": len(prepared.rows), "train_rows": prepared.train_rows})
    run.metrics(
        {"train_windows": len(trainer.train_dataset), "answers_out_of_reach": prepared.missed}
    )
    if prepared.unanswerable:
        run.metrics({"no_answer_threshold": report["no_answer_threshold"]})
    if not run.main:
        return
    if prepared.unanswerable:
        add_to_config(run.folder, no_answer_threshold=report["no_answer_threshold"])
    write_results(run, prepared.rows, prepared.ids, answers, report)


def add_to_config(folder: Path, **entries) -> None:
    """Write entries into the config.json of a saved model, in the form in which transformers writes it."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def numbers_of(report: dict) -> dict[str, float]:
    """The numbers of the report that are watched during the training."""
    return {"exact": report["exact"], "f1": report["f1"]}


def write_results(
    run: Run, rows: Sequence[dict], ids: list[str], answers: list[dict], report: dict
) -> None:
    """The report, the official prediction files and samples in the run folder; the mistakes on the terminal."""
    scores = report.pop("rows_scored")
    mistakes = wrong_answers(rows, ids, scores)
    run.write("question_answering.json", report | {"mistakes": mistakes[:MISTAKES]})
    predicted = {name: score["predicted"] for name, score in zip(ids, scores)}
    run.write("predictions.json", predicted)
    if "no_answer_threshold" in report:
        no_answer = {name: answer["no_answer"] for name, answer in zip(ids, answers)}
        run.write("na_prob.json", no_answer)
    samples = []
    for row, score in zip(rows, scores):
        question = {"question": row["question"], "context": row["context"]}
        samples.append(question | {"predicted": score["predicted"]})
    run.samples(samples)
    if mistakes:
        run.say(
            f"{len(mistakes)} of {len(ids)} held-out questions are not answered exactly; the first:"
        )
        columns = ["question", "gold", "predicted", "f1"]
        run.say(sample_table(mistakes, columns=columns, limit=MISTAKES_SHOWN))


if __name__ == "__main__":
    start(main, __doc__)
