"""Named entities (any tags of words or characters): tagged sentences -> a BERT or GPT-2 class model with a tag head.

    accelerate launch recipes/ner.py --config recipes/configs/ner/bert.yaml
    accelerate launch recipes/ner.py --dataset_name train.conll --eval_dataset_name dev.conll \\
        --model_name_or_path bert-base-cased --output_dir runs/names

Look at: f1, of whole entities in sentences that were not trained on; plots/entities.png; the table of errors in the
terminal. ner.json has every type, errors.jsonl every wrong sentence. Tags may be in BIO, IOB1, BIOES, BILOU or bare types
(docs/data.md); the model's are BIO. Sentences longer than max_length are split into windows, never cut.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorForTokenClassification, set_seed

from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_tokenizer, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import context_length
from rlhf.runs.progress import sample_table
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.model import start_encoder
from rlhf.tasks.ner.encode import (
    check_types,
    decode_windows,
    encode_windows,
    entities,
    find_joints,
    find_units,
    in_bio,
    join,
    out_of_reach,
    tag_names,
    warnings_of,
    windows,
)
from rlhf.tasks.ner.metrics import entity_scores, plot_entities, tagging_report, wrong_sentences
from rlhf.tasks.table import TASKS
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer


@dataclass
class NERSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which rows."""

    model_name_or_path: str = field(
        default="bert-base-cased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert or gpt2."}
    )


def shown(tokens: list[str], tags: list[str], units: str) -> dict:
    """A text and what was marked in it."""
    marked = [
        f"{kind}: {join(tokens[first : last + 1], units)[0]}"
        for kind, first, last in entities(tags)
    ]
    return {"text": join(tokens, units)[0], "marked": "; ".join(marked)}


def main(settings: NERSettings, args: EncoderConfig) -> None:
    with recording("ner", settings, args) as run:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        splits = load_splits(settings, TASKS["ner"].trained_on, seed=args.seed)
        run.data(splits)
        if not splits.eval:
            raise UserError(
                "the model is evaluated on rows that it was not trained on: set eval_fraction or eval_dataset_name"
            )
        train, held_out, scheme, broken = in_bio(splits.train, splits.eval)
        labels, units = tag_names(train), find_units(train)
        check_types(held_out, labels)
        if not any(tag != "O" for row in held_out for tag in row["tags"]):
            raise UserError(
                f"none of the {len(held_out)} evaluation rows has an entity to find: raise eval_fraction or add rows"
            )
        for warning in warnings_of(train, held_out, scheme, broken):
            run.say(warning)

        model = start_encoder(run, settings, tokenizer, "ner", pairs=False, labels=labels)
        limit = min(args.max_length, context_length(model), tokenizer.model_max_length)
        # what rlhf.tasks.ner.predictor needs to cut a text as these rows were
        model.config.update(
            {"trained_units": units, "trained_length": limit, "trained_joints": find_joints(train)}
        )
        found, held_found = (
            windows(tokenizer, rows, units=units, max_length=limit) for rows in (train, held_out)
        )
        held_found.sort(key=lambda window: len(window.inputs["input_ids"]))
        split = (
            len(found)
            + len(held_found)
            - len({w.row for w in found})
            - len({w.row for w in held_found})
        )
        lost = out_of_reach(held_found, held_out)
        run.say(
            f"{len(train)} rows, {len(held_out)} held out, {units} tagged in {scheme}: {', '.join(labels)}"
        )
        run.say(
            f"{split} windows more than rows, at {limit} tokens; {lost} held-out entities end inside a token"
        )

        if settings.use_peft:
            model = add_lora(
                model, task="TOKEN_CLS", rank=settings.lora_r, alpha=settings.lora_alpha
            )

        truth = [row["tags"] for row in held_out]

        def predicted(output) -> list[list[str]]:
            numbers = output.predictions  # (windows, tokens)
            marks = [
                [labels[numbers[i][token]] for token, _, _ in w.heads]
                for i, w in enumerate(held_found)
            ]
            return decode_windows(held_found, marks, held_out)

        trainer = EncoderTrainer(
            model=model, args=args, train=encode_windows(found, train, labels),
            evaluation=encode_windows(held_found, held_out, labels),
            metrics=("f1",), smooths=True, compute_metrics=lambda output: entity_scores(truth, predicted(output)),
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),  # (B, L, labels) -> (B, L)
            processing_class=tokenizer, data_collator=DataCollatorForTokenClassification(tokenizer),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
        tags = predicted(output)
        report = tagging_report(truth, tags, [row["tokens"] for row in held_out])
        names = ("precision", "recall", "f1", "token_accuracy", "entities")
        run.metrics(
            {name: report[name] for name in names} | {"eval_loss": output.metrics["eval_loss"]}
        )
        run.metrics({"eval_rows": len(held_out), "train_rows": len(train), "labels": len(labels)})
        run.metrics(
            {"windows_added": split, "entities_out_of_reach": lost, "tags_repaired": broken}
        )
        if not run.main:
            return
        save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, args.output_dir)
        run.write("ner.json", report)
        run.write("errors.jsonl", wrong_sentences(held_out, tags))
        run.samples([shown(row["tokens"], said, units) for row, said in zip(held_out, tags)])
        (run.folder / "plots").mkdir(exist_ok=True)
        plot_entities(report, run.folder / "plots" / "entities.png")
        run.say(sample_table(report["types"], columns=list(report["types"][0]), limit=20))
        if report["confusions"]:
            counts = ", ".join(f"{count} {kind}" for kind, count in report["errors"].items())
            run.say(f"Held-out errors: {counts}. Most often:")
            columns = ["error", "entity", "marked", "count", "example"]
            run.say(sample_table(report["confusions"], columns=columns, limit=8))


if __name__ == "__main__":
    start(main, __doc__)
