"""Multiple choice: texts with K choices, one of which is right -> a BERT class model that picks it.

    accelerate launch recipes/multiple_choice.py --config recipes/configs/multiple_choice/bert.yaml
    accelerate launch recipes/multiple_choice.py --dataset_name questions.jsonl --model_name_or_path bert-base-uncased \\
        --output_dir runs/choice

Rows {text, choices: [...], label}, where label is the index of the right choice, counted from 0; or SWAG's own columns,
sent1, sent2, ending0 to ending3 and label. The number of choices, 2 to 26, may differ between rows. Time: not yet measured.
Look at: accuracy on rows that were not trained on, next to chance, and the table of mistakes; multiple_choice.json has it
by number of choices, errors.jsonl has the wrong rows, the surest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from transformers import PreTrainedTokenizerBase, set_seed

from rlhf.hub.recording import recording
from rlhf.runs.progress import sample_table
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.model import read_task, start_encoder, token_limit, with_lora
from rlhf.tasks.multiple_choice.encode import PadChoices, choice_loss, training_rows
from rlhf.tasks.multiple_choice.metrics import (
    METRICS,
    choice_probabilities,
    multiple_choice_report,
    right_choices,
    wrong_choices,
)
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer, set_best_metric

MISTAKES = 200  # wrong rows that are kept


@dataclass
class MultipleChoiceSettings(DataSettings, ModelSettings, ScratchSettings):
    """The task, its rows and its model."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert."}
    )


@dataclass
class PreparedMultipleChoice:
    """The trainer of a run, and what its evaluation needs.

    rows: the held-out rows.
    cut: how many choices were longer than the model reads.
    """

    trainer: EncoderTrainer
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[dict]
    cut: int


def main(settings: MultipleChoiceSettings, args: EncoderConfig) -> None:
    with recording("multiple_choice", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_multiple_choice(run, prepared)


def prepare(
    settings: MultipleChoiceSettings, args: EncoderConfig, run: Run
) -> PreparedMultipleChoice:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    set_best_metric(args, METRICS)  # before anything is read
    tokenizer, splits = read_task(run, settings, "multiple_choice", seed=args.seed)
    model = start_encoder(run, settings, tokenizer, "multiple_choice", pairs=True)
    limit = token_limit(args, model, tokenizer)
    model.config.trained_max_length = limit  # for the predictor
    train, train_cut = training_rows(tokenizer, splits.train, max_length=limit)
    held_out, eval_cut = training_rows(tokenizer, splits.eval, max_length=limit)
    cut = train_cut + eval_cut
    run.say(f"{len(train)} rows, {len(held_out)} held out; {cut} choices cut at {limit} tokens")
    trainer = EncoderTrainer(
        model=with_lora(model, settings, "multiple_choice"),
        args=args,
        train=train,
        evaluation=held_out,
        compute_metrics=metrics_of,
        metrics=METRICS,
        loss=choice_loss,  # the model's own loss would count repeated choices
        processing_class=tokenizer,
        data_collator=PadChoices(tokenizer),
    )
    return PreparedMultipleChoice(trainer, tokenizer, splits.eval, cut)


def evaluate_multiple_choice(run: Run, prepared: PreparedMultipleChoice) -> None:
    """Measure the trained model on the held-out rows, and write the report and the mistakes."""
    trainer = prepared.trainer
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    report = report_of(output)
    run.metrics({name: report[name] for name in (*METRICS, "chance")})
    run.metrics({"eval_loss": output.metrics["eval_loss"]})
    run.metrics({"eval_rows": len(prepared.rows), "train_rows": len(trainer.train_dataset)})
    run.metrics({"texts_cut": prepared.cut})
    if run.main:
        write_results(run, prepared.rows, output, report)


def report_of(output) -> dict:
    """The whole report of the trainer's output, which is (N, K) logits and labels."""
    probabilities = choice_probabilities(output.predictions, output.label_ids)
    return multiple_choice_report(right_choices(output.label_ids), probabilities)


def metrics_of(output) -> dict[str, float]:
    """The numbers of the report that are watched during the training."""
    report = report_of(output)
    return {name: report[name] for name in METRICS}


def write_results(run: Run, rows: Sequence[dict], output, report: dict) -> None:
    """The report, the mistakes and some samples in the run folder; a table of mistakes on the terminal."""
    probabilities = choice_probabilities(output.predictions, output.label_ids)
    mistakes = wrong_choices(rows, right_choices(output.label_ids), probabilities)
    run.write("multiple_choice.json", report)
    run.write("errors.jsonl", mistakes[:MISTAKES])
    samples = []
    for row, chances in zip(rows, probabilities):
        predicted = row["choices"][int(chances.argmax())]
        samples.append({"text": row["text"], "choices": row["choices"], "predicted": predicted})
    run.samples(samples)
    if mistakes:
        run.say(f"{len(mistakes)} of {len(rows)} held-out rows are wrong; the surest:")
        columns = ["text", "right", "predicted", "probability"]
        run.say(sample_table(mistakes, columns=columns, limit=8))


if __name__ == "__main__":
    start(main, __doc__)
