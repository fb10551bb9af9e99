"""Classification of a text, or of a pair of texts: labelled rows -> a BERT or GPT-2 class model with a label head.

    accelerate launch recipes/classification.py --config recipes/configs/classification/demo.yaml
    accelerate launch recipes/classification.py --dataset_name reviews.csv --columns text=review,label=stars \\
        --model_name_or_path bert-base-uncased --output_dir runs/reviews

Time: about a minute for the demo on two cores. Look at: accuracy and macro F1 on rows that were not trained on, and
plots/confusion.png; classification.json has every class. Labels are the data's own (strings, integers, true and false),
in the order of the alphabet or of their size, and stand in the model's config.
"""

import json
from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, set_seed

from rlhf.data.labels import check_labels, encode, label_names
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.evaluation.classification import classification_report, plot_confusion
from rlhf.models.load import (
    add_lora,
    context_length,
    fit_embeddings,
    fit_tokenizer,
    load_encoder,
    load_tokenizer,
    new_encoder,
    save,
)
from rlhf.recipe import DataSettings, ModelSettings, ScratchSettings, recording, run
from rlhf.trainers.encoder import EncoderConfig, EncoderTrainer
from rlhf.trainers.progress import sample_table


@dataclass
class ClassificationSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which rows."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(default="bert", metadata={"help": "Architecture of a model from scratch: bert or gpt2."})


def load_model(settings: ClassificationSettings, tokenizer, labels: list[str]):
    """A pretrained model, or one from scratch, with one output per label."""
    if not settings.from_scratch:
        options = {"revision": settings.model_revision, "dtype": settings.dtype}
        return load_encoder(settings.model_name_or_path, "classifier", labels=labels, new_head=True, **options)
    if settings.use_peft:
        raise UserError("use_peft freezes the model, and from_scratch makes it random: set one of the two to false")
    return new_encoder(tokenizer, "classifier", **settings.sizes(), labels=labels)


def main(settings: ClassificationSettings, args: EncoderConfig) -> None:
    with recording("classification", settings, args) as record:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        splits = load_splits(settings, ("classification", "pair_classification"), seed=args.seed)
        record.data(splits)
        if not splits.eval:
            raise UserError("a classifier is judged on rows it has not seen: set eval_fraction or eval_dataset_name")
        labels = label_names(splits.train)
        check_labels(splits.eval, labels)

        model = load_model(settings, tokenizer, labels)
        record.parent("base", None if settings.from_scratch else settings.model_name_or_path)
        pairs = splits.kind == "pair_classification"
        fit_tokenizer(tokenizer, model, pairs=pairs)
        fit_embeddings(model, tokenizer)
        limit = min(args.max_length, context_length(model), tokenizer.model_max_length)
        train, train_cut = encode(tokenizer, splits.train, labels, pairs=pairs, max_length=limit)
        evaluation, eval_cut = encode(tokenizer, splits.eval, labels, pairs=pairs, max_length=limit)
        evaluation.sort(key=lambda row: len(row["input_ids"]))
        cut = train_cut + eval_cut
        record.say(f"{len(train)} rows, {len(evaluation)} held out, {len(labels)} labels; {cut} cut at {limit} tokens")

        if settings.use_peft:
            model = add_lora(model, task="SEQ_CLS", rank=settings.lora_r, alpha=settings.lora_alpha)

        def metrics(output) -> dict[str, float]:
            report = classification_report(output.label_ids.tolist(), output.predictions.tolist(), labels)
            return {name: report[name] for name in ("accuracy", "f1")}

        trainer = EncoderTrainer(
            model=model,
            args=args,
            train=train,
            evaluation=evaluation,
            best_metric="accuracy",
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),  # (B, labels) -> (B,)
        )
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        output = trainer.predict(evaluation, metric_key_prefix="eval")
        report = classification_report(output.label_ids.tolist(), output.predictions.tolist(), labels)
        record.metrics({"accuracy": report["accuracy"], "f1": report["f1"], "eval_loss": output.metrics["eval_loss"]})
        record.metrics(
            {"eval_rows": len(evaluation), "train_rows": len(train), "labels": len(labels), "texts_cut": cut}
        )
        if not record.main:
            return
        save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, args.output_dir)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (record.folder / "classification.json").write_text(text, encoding="utf-8")
        (record.folder / "plots").mkdir(exist_ok=True)
        plot_confusion(report, record.folder / "plots" / "confusion.png")
        if report["confusions"]:
            record.say("Held-out rows that are most often taken for another label:")
            record.say(sample_table(report["confusions"], columns=["label", "predicted", "rows"], limit=8))


if __name__ == "__main__":
    run(main, __doc__)
