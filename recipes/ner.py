"""Named entities (any tags of words or characters): tagged sentences -> a BERT or GPT-2 class model with a tag head.

    accelerate launch recipes/ner.py --config recipes/configs/ner/bert.yaml
    accelerate launch recipes/ner.py --dataset_name train.conll --eval_dataset_name dev.conll \\
        --model_name_or_path bert-base-cased --output_dir runs/names

Tags may be in BIO, IOB1, BIOES, BILOU or bare types (docs/data.md); the model's are BIO. Sentences longer than max_length
are split into windows, never cut. Look at: f1, of whole entities in sentences that were not trained on;
plots/entities.png; the table of errors on the terminal. ner.json has every type, errors.jsonl every wrong sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase, set_seed

from rlhf.hub.recording import recording
from rlhf.runs.progress import sample_table
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.model import read_task, start_encoder, token_limit, with_lora
from rlhf.tasks.ner.encode import (
    RowsInBio,
    TokenWindow,
    check_held_out,
    decode_windows,
    entities,
    find_joints,
    find_units,
    in_bio,
    join,
    out_of_reach,
    stored_windows,
    tag_names,
    tags_of_windows,
    to_train_on,
    warnings_of,
    windows_of,
)
from rlhf.tasks.ner.metrics import entity_scores, plot_entities, tagging_report, wrong_sentences
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer, set_best_metric

METRICS = ("precision", "recall", "f1", "token_accuracy", "entities")  # of the run record
WATCHED = ("f1",)  # the evaluations during the training keep the best checkpoint by it
TYPES_SHOWN, CONFUSIONS_SHOWN = 20, 8  # rows of the tables on the terminal


@dataclass
class NERSettings(DataSettings, ModelSettings, ScratchSettings):
    """The task, its rows and its model."""

    model_name_or_path: str = field(
        default="bert-base-cased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert or gpt2."}
    )


@dataclass
class PreparedNER:
    """The trainer of a run, and what its evaluation needs.

    rows: the held-out sentences.
    windows: of the held-out sentences, in the order in which the trainer reads them.
    labels: the names of the model's outputs; units: words or characters are tagged.
    counts: numbers for the record.
    """

    trainer: EncoderTrainer
    tokenizer: PreTrainedTokenizerBase
    rows: RowsInBio
    windows: Sequence[TokenWindow]
    labels: list[str]
    units: str
    counts: dict[str, int]


def main(settings: NERSettings, args: EncoderConfig) -> None:
    with recording("ner", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_ner(run, prepared)


def prepare(settings: NERSettings, args: EncoderConfig, run: Run) -> PreparedNER:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    set_best_metric(args, WATCHED)  # before anything is read
    tokenizer, splits = read_task(run, settings, "ner", seed=args.seed)
    # One scheme for all rows, found in all of them.
    train, held_out, scheme, repaired = in_bio(splits.train, splits.eval)
    labels, units = tag_names(train), find_units(train)
    check_held_out(held_out, labels)
    for warning in warnings_of(train, held_out, scheme, repaired):
        run.say(warning)

    model = start_encoder(run, settings, tokenizer, "ner", pairs=False, labels=labels)
    limit = token_limit(args, model, tokenizer)
    # The predictor cuts a text into tokens as these rows were.
    trained = {"trained_units": units, "trained_joints": find_joints(train)}
    model.config.update(trained | {"trained_length": limit})
    sizes = {"labels": labels, "units": units, "max_length": limit}
    parts = stored_windows(tokenizer, train, **sizes)
    # The evaluation reads windows in this order.
    held_out_parts = stored_windows(tokenizer, held_out, **sizes).by_length()
    windows = windows_of(held_out_parts)
    # Each row has one window at least.
    added = len(parts) - len(train) + len(held_out_parts) - len(held_out)
    lost = out_of_reach(windows, held_out)
    run.say(
        f"{len(train)} rows, {len(held_out)} held out, {units} tagged in {scheme}: {', '.join(labels)}"
    )
    run.say(
        f"{added} windows more than rows, at {limit} tokens; {lost} held-out entities end inside a token"
    )
    trainer = EncoderTrainer(
        model=with_lora(model, settings, "ner"),
        args=args,
        train=to_train_on(parts),
        evaluation=to_train_on(held_out_parts),
        metrics=WATCHED,
        smooths=True,
        compute_metrics=lambda output: watched_scores(prepared, output),
        preprocess_logits_for_metrics=best_labels,  # all logits would fill the memory
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    counts = {"train_rows": len(train), "labels": len(labels), "windows_added": added}
    counts |= {"entities_out_of_reach": lost, "tags_repaired": repaired}
    # The evaluations of the trainer read it too.
    prepared = PreparedNER(trainer, tokenizer, held_out, windows, labels, units, counts)
    return prepared


def predicted_tags(prepared: PreparedNER, output) -> list[list[str]]:
    """The tags of each held-out sentence, from the labels of all windows."""
    tags = tags_of_windows(prepared.windows, output.predictions, prepared.labels)
    return decode_windows(prepared.windows, tags, prepared.rows)


def watched_scores(prepared: PreparedNER, output) -> dict[str, float]:
    """The numbers that are watched during the training."""
    truth = [row["tags"] for row in prepared.rows]
    return entity_scores(truth, predicted_tags(prepared, output))


def evaluate_ner(run: Run, prepared: PreparedNER) -> None:
    """Measure the trained model on the held-out sentences, and write the report, the mistakes and a plot."""
    trainer, rows = prepared.trainer, prepared.rows
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    predicted = predicted_tags(prepared, output)
    truth = [row["tags"] for row in rows]
    report = tagging_report(truth, predicted, [row["tokens"] for row in rows])
    run.metrics({name: report[name] for name in METRICS})
    run.metrics({"eval_loss": output.metrics["eval_loss"], "eval_rows": len(rows)})
    run.metrics(prepared.counts)
    if run.main:
        write_results(run, rows, predicted, report, prepared.units)


def best_labels(logits, labels):
    """The number of the likeliest label of each token: (B, L, labels) -> (B, L)."""
    return logits.argmax(-1)


def write_results(
    run: Run, rows: Sequence[dict], predicted: list, report: dict, units: str
) -> None:
    """The report, the mistakes, samples and a plot in the run folder; tables on the terminal."""
    run.write("ner.json", report)
    run.write("errors.jsonl", wrong_sentences(rows, predicted))
    run.samples([sample(row["tokens"], tags, units) for row, tags in zip(rows, predicted)])
    (run.folder / "plots").mkdir(exist_ok=True)
    plot_entities(report, run.folder / "plots" / "entities.png")
    types = report["types"]
    run.say(sample_table(types, columns=list(types[0]), limit=TYPES_SHOWN))
    if report["confusions"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in report["errors"].items())
        run.say(f"Held-out errors: {counts}. Most often:")
        columns = ["error", "entity", "marked", "count", "example"]
        run.say(sample_table(report["confusions"], columns=columns, limit=CONFUSIONS_SHOWN))


def sample(tokens: list[str], tags: list[str], units: str) -> dict:
    """A text and the entities that were marked in it."""
    marked = []
    for kind, first, last in entities(tags):
        text, _ = join(tokens[first : last + 1], units)
        marked.append(f"{kind}: {text}")
    return {"text": join(tokens, units)[0], "marked": "; ".join(marked)}


if __name__ == "__main__":
    start(main, __doc__)
