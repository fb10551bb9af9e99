"""Classification of a text, or of a pair of texts: labelled rows -> a BERT or GPT-2 class model with a label head.

    accelerate launch recipes/classification.py --config recipes/configs/classification/demo.yaml
    accelerate launch recipes/classification.py --dataset_name reviews.csv --columns text=review,label=stars \\
        --model_name_or_path bert-base-uncased --output_dir runs/reviews

A label is a string or an integer (one label), a list of them (several labels) or a number with a fraction (regression).
The names of the labels are the data's own. Time: about a minute for the demo on two cores. Look at: the metrics on rows
that were not trained on, plots/, and errors.jsonl, the rows that it gets wrong, the worst first. classification.json has
every class.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from rlhf.baselines.table import BASELINES
from rlhf.data.splits import Splits
from rlhf.hub.recording import recording
from rlhf.models.load import save
from rlhf.runs.keys import Unused
from rlhf.runs.progress import sample_table
from rlhf.runs.ranges import at_least
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.classification.encode import LabelForm, LabelTask, find_task, rare_labels
from rlhf.tasks.classification.metrics import METRICS, errors, evaluate, plot_evaluation
from rlhf.tasks.classification.training import (
    balanced_loss,
    by_length,
    check_class_weights,
    check_options,
    encode_rows,
    outcome,
    start_classifier,
    to_numbers,
)
from rlhf.tasks.model import read_task, token_limit, with_lora
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer, set_best_metric
from rlhf.word_vectors.embeddings import EmbeddingSettings, check_vector_size, start_from_vectors

MISTAKES = 200  # wrong rows that are kept, the worst
LABELS_SHOWN = 8  # labels in a message, rows of a table on the terminal


@dataclass
class ClassificationSettings(DataSettings, ModelSettings, ScratchSettings, EmbeddingSettings):
    """The task, its rows and its model."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert",
        metadata={"help": "Architecture of a model from scratch: bert, gpt2, rnn, lstm or gru."},
    )
    task: str = field(
        default="auto",
        metadata={
            "help": "single_label, multi_label, regression, or auto: what the labels look like."
        },
    )
    consistency_coef: float = field(
        default=0.0,
        metadata={
            "help": "R-Drop (arXiv 2106.14448): a row is read twice, the two answers drawn together; twice the time."
        },
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "balanced: every label weighs the same in the loss, however rare; or none."
        },
    )

    RANGES: ClassVar[dict] = {"consistency_coef": at_least(0)}
    UNUSED: ClassVar[tuple] = (
        Unused(
            ("heads", "context", "gradient_checkpointing"),
            "recurrent models have no attention heads, positions or blocks to compute again; drop it",
            lambda run: not run.from_scratch or run.model_type not in BASELINES,
        ),
    )


@dataclass
class PreparedClassification:
    """The trainer of a run, and what its evaluation needs.

    rows: the held-out rows, in the order in which the trainer reads them.
    cut: how many texts were longer than the model reads.
    """

    trainer: EncoderTrainer
    tokenizer: PreTrainedTokenizerBase
    task: LabelTask
    rows: list[dict]
    cut: int


def main(settings: ClassificationSettings, args: EncoderConfig) -> None:
    with recording("classification", settings, args) as run:
        prepared = prepare(settings, args, run)
        run.train(prepared.trainer, partial(save_classifier, run, prepared))
        evaluate_classifier(run, prepared)


def prepare(
    settings: ClassificationSettings, args: EncoderConfig, run: Run
) -> PreparedClassification:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    check_class_weights(settings.class_weights)
    check_vector_size(settings)
    form = LabelForm(settings.task)
    tokenizer, splits = read_task(
        run, settings, "classification", seed=args.seed, checks={"label": form}
    )
    task = find_task(splits.train, splits.eval, form)
    check_options(settings, task)  # only the rows say which task it is
    set_best_metric(args, METRICS[task.name])  # before a model is loaded
    warn_of_rare_labels(run, splits, task)
    pairs = splits.kind == "pair_classification"
    model, task = start_classifier(run, settings, tokenizer, task, pairs=pairs)
    # after the tokenizer was fitted, which may add tokens
    start_from_vectors(run, settings, model, tokenizer)

    limit = token_limit(args, model, tokenizer)
    model.config.trained_max_length, model.config.trained_pairs = limit, pairs
    encode = partial(encode_rows, tokenizer, task=task, pairs=pairs, max_length=limit)
    train, train_cut = encode(splits.train)
    held_out, eval_cut = encode(splits.eval)
    # The evaluation reads rows in this order; by length, its batches have little padding.
    held_out, rows = by_length(held_out, splits.eval)
    cut = train_cut + eval_cut
    run.say(
        f"{len(train)} rows, {len(held_out)} held out, {described(task)}; {cut} cut at {limit} tokens"
    )
    trainer = make_trainer(
        settings, args, task, tokenizer, model=model, train=train, held_out=held_out
    )
    return PreparedClassification(trainer, tokenizer, task, rows, cut)


def save_classifier(run: Run, prepared: PreparedClassification) -> None:
    """Save the trained model, whose outputs after a regression are the numbers themselves."""
    if not run.main:
        return
    trainer, task = prepared.trainer, prepared.task
    model = trainer.accelerator.unwrap_model(trainer.model)
    if task.name == "regression":
        # A copy, because the evaluation reads the outputs that were trained.
        model = to_numbers(copy.deepcopy(model), task)
    save(model, prepared.tokenizer, run.folder)


def evaluate_classifier(run: Run, prepared: PreparedClassification) -> None:
    """Measure the trained model on the held-out rows, and write the report, the mistakes and the plots."""
    trainer, task, rows = prepared.trainer, prepared.task, prepared.rows
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    truth, outputs = outcome(task, output)
    report = {"task": task.name} | evaluate(task.name, truth, outputs, task.labels)
    run.metrics({name: report[name] for name in METRICS[task.name]})
    run.metrics({"eval_loss": output.metrics["eval_loss"], "eval_rows": len(rows)})
    labels = {} if task.name == "regression" else {"labels": len(task.labels)}
    run.metrics({"train_rows": len(trainer.train_dataset), **labels, "texts_cut": prepared.cut})
    if run.main:
        write_results(run, task, rows, report, truth, outputs)


def warn_of_rare_labels(run: Run, splits: Splits, task: LabelTask) -> None:
    if task.name == "regression":
        return
    for warning in rare_labels(splits.train, splits.eval):
        run.say(warning)


def described(task: LabelTask) -> str:
    if task.name == "regression":
        return f"regression, mean {task.mean:.4g}"
    return f"{len(task.labels)} labels"


def make_trainer(
    settings: ClassificationSettings, args, task: LabelTask, tokenizer, *, model, train, held_out
) -> EncoderTrainer:
    balanced = settings.class_weights == "balanced"
    # None: the model's own loss, which knows its problem type
    loss = balanced_loss(train.targets, task) if balanced else None
    return EncoderTrainer(
        model=with_lora(model, settings, "classification"),
        args=args,
        train=train,
        evaluation=held_out,
        compute_metrics=partial(metrics_of, task),
        metrics=METRICS[task.name],
        loss=loss,
        consistency_coef=settings.consistency_coef,
        smooths=task.name == "single_label" and not balanced,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def metrics_of(task: LabelTask, output) -> dict[str, float]:
    """The numbers of the report that are watched during the training."""
    report = evaluate(task.name, *outcome(task, output), task.labels)
    return {name: report[name] for name in METRICS[task.name]}


def write_results(
    run: Run, task: LabelTask, rows: list[dict], report: dict, truth, outputs
) -> None:
    """The report, the mistakes, plots and samples in the run folder; the worst labels on the terminal."""
    run.write("classification.json", report)
    mistakes = errors(task.name, rows, truth, outputs, task.labels)
    run.write("errors.jsonl", mistakes[:MISTAKES])
    plot_evaluation(task.name, report, truth, outputs, run.folder / "plots")
    samples = []
    for row in rows:
        samples.append({name: row[name] for name in ("text", "text_pair", "label") if name in row})
    run.samples(samples)
    show_labels(run, report)


def show_labels(run: Run, report: dict) -> None:
    """The labels that are predicted worst, and those that are taken for each other."""
    worst = [entry for entry in report.get("classes", ()) if entry["rows"]]
    worst.sort(key=lambda entry: entry["f1"])
    if worst:
        run.say("Labels, the worst predicted first:")
        columns = ["label", "rows", "precision", "recall", "f1"]
        run.say(sample_table(worst, columns=columns, limit=LABELS_SHOWN))
    if report.get("confusions"):
        run.say("Held-out rows that are most often taken for another label:")
        columns = ["label", "predicted", "rows"]
        run.say(sample_table(report["confusions"], columns=columns, limit=LABELS_SHOWN))


if __name__ == "__main__":
    start(main, __doc__)
