"""Classification of a text, or of a pair of texts: labelled rows -> a BERT or GPT-2 class model with a label head.

    accelerate launch recipes/classification.py --config recipes/configs/classification/demo.yaml
    accelerate launch recipes/classification.py --dataset_name reviews.csv --columns text=review,label=stars \\
        --model_name_or_path bert-base-uncased --output_dir runs/reviews

Time: about a minute for the demo on two cores. Look at: the metrics on rows that were not trained on, plots/, and
errors.jsonl, the rows it gets wrong, the worst first; classification.json has every class. A label is a string or an
integer (one label), a list of them (several labels) or a number with a fraction (regression); names are the data's own.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import DataCollatorWithPadding, set_seed

from rlhf.algorithms.losses import (
    balanced_weights,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_tokenizer, save, trained_labels
from rlhf.models.lora import add_lora
from rlhf.models.parts import context_length
from rlhf.models.scores import scale_scores, shift_scores
from rlhf.runs.progress import sample_table
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.classification.encode import (
    PROBLEMS,
    LabelForm,
    Task,
    encode_texts,
    find_task,
    rare_labels,
)
from rlhf.tasks.classification.metrics import METRICS, errors, evaluate, plot_evaluation
from rlhf.tasks.classification.predictor import softmax_or_sigmoid
from rlhf.tasks.model import start_encoder
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer

ERRORS = 200  # of the rows judged wrong, so many are kept


@dataclass
class ClassificationSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which rows."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert or gpt2."}
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


def keep_head(settings: ClassificationSettings, task: Task, run) -> tuple[Task, bool]:
    """Whether the checkpoint's own head is trained on: where it has all labels of the rows; then in its order."""
    path, revision = settings.model_name_or_path, settings.model_revision
    known = [] if settings.from_scratch else trained_labels(path, revision=revision)
    kept = set(task.labels) <= set(known)
    if known:
        has = f"{path} has a head for {', '.join(known[:8])}{', ...' * (len(known) > 8)}"
        run.say(
            f"{has}: it is trained on"
            if kept
            else f"{has}: the head is new, for the labels of these rows"
        )
    return (replace(task, labels=known) if kept else task), kept


def balanced_loss(truth: list, task: Task):
    """The loss in which every label (of several: its presence and its absence) weighs the same over the training rows."""
    given = torch.from_numpy(np.array(truth))
    if task.name == "multi_label":
        weights = balanced_weights(torch.stack([(1 - given).sum(0), given.sum(0)]))
        return lambda logits, labels: weighted_binary_cross_entropy(
            logits, labels, weights.to(logits.device)
        )
    weights = balanced_weights(torch.bincount(given, minlength=len(task.labels)))
    return lambda logits, labels: weighted_cross_entropy(logits, labels, weights.to(logits.device))


def main(settings: ClassificationSettings, args: EncoderConfig) -> None:
    with recording("classification", settings, args) as run:
        set_seed(args.seed)
        if settings.class_weights not in ("none", "balanced"):
            raise UserError(f"class_weights={settings.class_weights!r}: use none or balanced")
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        form = LabelForm(settings.task)
        kinds = ("classification", "pair_classification")
        splits = load_splits(settings, kinds, seed=args.seed, checks={"label": form})
        run.data(splits)
        if not splits.eval:
            raise UserError(
                "the model is evaluated on rows that it was not trained on: set eval_fraction or eval_dataset_name"
            )
        task, pairs = (
            find_task(splits.train, splits.eval, form),
            splits.kind == "pair_classification",
        )
        for warning in rare_labels(splits.train, splits.eval) if task.name != "regression" else ():
            run.say(warning)
        if task.name == "regression" and settings.class_weights != "none":
            raise UserError(
                "class_weights is for labels, and these rows have numbers: set it to none"
            )
        if task.name != "single_label" and settings.consistency_coef:
            raise UserError(
                f"consistency_coef is for rows of one label, and the task is {task.name}: set it to 0"
            )
        task, kept = keep_head(settings, task, run)
        options = {"labels": task.labels, "problem_type": PROBLEMS[task.name]}
        model = start_encoder(run, settings, tokenizer, "classification", pairs=pairs, **options)
        if task.name == "regression" and kept:  # it gives the numbers themselves
            shift_scores(model, -task.mean)
            scale_scores(model, 1 / task.spread)
        limit = min(args.max_length, context_length(model), tokenizer.model_max_length)
        model.config.trained_max_length, model.config.trained_pairs = limit, pairs
        train, train_cut = encode_texts(tokenizer, splits.train, pairs=pairs, max_length=limit)
        held_out, eval_cut = encode_texts(tokenizer, splits.eval, pairs=pairs, max_length=limit)
        train = [row | {"labels": target} for row, target in zip(train, task.targets(splits.train))]
        held_out = [
            row | {"labels": target} for row, target in zip(held_out, task.targets(splits.eval))
        ]
        order = sorted(range(len(held_out)), key=lambda place: len(held_out[place]["input_ids"]))
        held_out, rows = (
            [held_out[place] for place in order],
            [splits.eval[place] for place in order],
        )
        cut = train_cut + eval_cut
        what = (
            f"regression, mean {task.mean:.4g}"
            if task.name == "regression"
            else f"{len(task.labels)} labels"
        )
        run.say(f"{len(train)} rows, {len(held_out)} held out, {what}; {cut} cut at {limit} tokens")

        if settings.use_peft:
            model = add_lora(model, task="SEQ_CLS", rank=settings.lora_r, alpha=settings.lora_alpha)

        def outcome(output) -> tuple[np.ndarray, np.ndarray]:
            """What is true, and the probabilities or numbers that are predicted."""
            if task.name == "regression":
                both = (output.label_ids, output.predictions)
                return tuple(values.reshape(-1) * task.spread + task.mean for values in both)
            logits = torch.from_numpy(output.predictions)
            return output.label_ids, softmax_or_sigmoid(logits, PROBLEMS[task.name]).numpy()

        def metrics(output) -> dict[str, float]:
            report = evaluate(task.name, *outcome(output), task.labels)
            return {name: report[name] for name in METRICS[task.name]}

        balanced = settings.class_weights == "balanced"
        trainer = EncoderTrainer(
            model=model, args=args, train=train, evaluation=held_out, compute_metrics=metrics,
            metrics=METRICS[task.name],
            loss=balanced_loss([row["labels"] for row in train], task) if balanced else None,
            consistency_coef=settings.consistency_coef, smooths=task.name == "single_label" and not balanced,
            processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        output = trainer.predict(held_out, metric_key_prefix="eval")
        truth, outputs = outcome(output)
        report = {"task": task.name} | evaluate(task.name, truth, outputs, task.labels)
        run.metrics({name: report[name] for name in METRICS[task.name]})
        run.metrics(
            {
                "eval_loss": output.metrics["eval_loss"],
                "eval_rows": len(held_out),
                "train_rows": len(train),
            }
        )
        run.metrics({"labels": len(task.labels)} if task.name != "regression" else {})
        run.metrics({"texts_cut": cut})
        if not run.main:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        if task.name == "regression":
            model.float()  # bf16 has three digits, a year four
            scale_scores(model, task.spread)
            shift_scores(model, task.mean)
        save(model, tokenizer, args.output_dir)
        run.write("classification.json", report)
        run.write("errors.jsonl", errors(task.name, rows, truth, outputs, task.labels)[:ERRORS])
        plot_evaluation(task.name, report, truth, outputs, run.folder / "plots")
        shown = ("text", "text_pair", "label")
        run.samples([{name: row[name] for name in shown if name in row} for row in rows])
        show(run, report)


def show(run, report: dict) -> None:
    """The labels that are worst predicted, and what is taken for what."""
    worst = sorted(
        (entry for entry in report.get("classes", ()) if entry["rows"]),
        key=lambda entry: entry["f1"],
    )
    if worst:
        run.say("Labels, the worst predicted first:")
        run.say(
            sample_table(worst, columns=["label", "rows", "precision", "recall", "f1"], limit=8)
        )
    if report.get("confusions"):
        run.say("Held-out rows that are most often taken for another label:")
        run.say(sample_table(report["confusions"], columns=["label", "predicted", "rows"], limit=8))


if __name__ == "__main__":
    start(main, __doc__)
