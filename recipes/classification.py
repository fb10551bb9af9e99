"""Text classification, of one text or of a pair: labelled rows -> a BERT or GPT-2 class model with a label head.

    accelerate launch recipes/classification.py --config recipes/configs/classification/demo.yaml
    accelerate launch recipes/classification.py --dataset_name reviews.csv --columns text=review,label=stars \\
        --model_name_or_path bert-base-uncased --output_dir runs/reviews

Time: about a minute for the demo on two cores. Look at: accuracy and macro F1 on rows that were not trained on, and
plots/confusion.png. Deviation: macro F1 is over the classes that the held-out rows or the predictions hold, as in
scikit-learn; classification.json lists every class. Labels are the data's own, sorted, whole numbers by size.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import (
    add_lora,
    context_length,
    fit_embeddings,
    load_classifier,
    load_tokenizer,
    new_classifier,
    save,
)
from rlhf.recipe import DataSettings, ModelSettings, recording, run
from rlhf.trainers.progress import sample_table, use_run_progress

READABLE = 20  # classes whose confusion matrix a person can still read


@dataclass
class ClassificationSettings(DataSettings, ModelSettings):
    """What is learned, from which rows. `from_scratch` builds the model from the sizes below."""

    model_name_or_path: str = field(default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a text or pair; longer ones are cut and counted. BERT on GLUE: 128."})
    from_scratch: bool = field(default=False, metadata={"help": "Random weights instead of model_name_or_path."})
    model_type: str = field(default="bert", metadata={"help": "Architecture of a model from scratch: bert or gpt2."})
    hidden_size: int = field(default=128, metadata={"help": "Width of a model from scratch."})
    layers: int = field(default=2, metadata={"help": "Depth of a model from scratch."})
    heads: int = field(default=4, metadata={"help": "Attention heads of a model from scratch."})
    context: int = field(default=128, metadata={"help": "Positions of a model from scratch."})  # fmt: skip


@dataclass
class ClassificationConfig(TrainingArguments):
    """TrainingArguments keep their meaning; the defaults are those of the BERT paper (arXiv 1810.04805, A.3)."""

    learning_rate: float = field(default=2e-5, metadata={"help": "BERT: 2e-5, 3e-5 or 5e-5."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "BERT: 2 to 4."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "BERT: 16 or 32."})
    train_sampling_strategy: str = field(default="group_by_length", metadata={"help": "Texts of one length together: less padding."})

    def __post_init__(self):
        self.logging_nan_inf_filter = False
        super().__post_init__()
        # The length-grouped sampler shuffles by the global generator unless accelerate gives it one of its own; dropout
        # advances the global one differently in each process, and their shares of the data would come to overlap.
        self.accelerator_config.use_seedable_sampler = self.train_sampling_strategy != "group_by_length"


def label_names(rows: list[dict]) -> list[str]:
    """The labels of the training rows as strings: whole numbers by size, everything else by the alphabet."""
    names = {str(row["label"]) for row in rows}
    if len(names) < 2:
        raise UserError(f"all {len(rows)} training rows have the label {names.pop()!r}: a classifier needs two or more")
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else name)


def check_labels(rows: list[dict], labels: list[str]) -> None:
    """UserError where evaluation rows have a label that cannot be learned."""
    unknown: dict[str, list[int]] = {}
    for place, row in enumerate(rows, start=1):
        if str(row["label"]) not in labels:
            unknown.setdefault(str(row["label"]), []).append(place)
    if unknown:
        shown = [
            f"{label!r} in {', '.join(map(str, places[:5]))}{f' and {len(places) - 5} more' if len(places) > 5 else ''}"
            for label, places in sorted(unknown.items())[:10]
        ]
        raise UserError(
            f"{len(unknown)} labels of the evaluation rows stand in no training row (label, rows): {'; '.join(shown)}. "
            f"The training rows know {', '.join(labels[:20])}. Add training rows with them, remove these rows, "
            "or choose another seed or eval_fraction"
        )


def fit_tokenizer(tokenizer, model, *, pairs: bool) -> None:
    """GPT-2 class tokenizers have no padding and join a pair without a mark: EOS serves as both (GPT-1 put a delimiter)."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no padding token: set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    if pairs and tokenizer.sep_token is None:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A", pair=f"$A {eos[0]} $B", special_tokens=[eos]
        )
    # GPT-2 takes token types too, and adds the embedding of *word* 0 or 1 for them: only BERT's own are given.
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_input_names = [n for n in names if n != names[1] or getattr(model.config, "type_vocab_size", 1) > 1]


def encode(tokenizer, rows: list[dict], labels: list[str], max_length: int) -> tuple[list[dict], int]:
    """Rows of token ids with the place of their label, and how many texts were cut. No text can spell a special token."""
    texts, pairs = [row["text"] for row in rows], [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    whole = tokenizer(texts, pairs, split_special_tokens=True, verbose=False)["input_ids"]
    cut = tokenizer(texts, pairs, split_special_tokens=True, truncation=True, max_length=max_length)
    place = {label: place for place, label in enumerate(labels)}
    encoded = [
        {**{name: cut[name][i] for name in cut}, "labels": place[str(row["label"])]} for i, row in enumerate(rows)
    ]
    return encoded, sum(len(ids) > max_length for ids in whole)


def report(truth: list[int], predicted: list[int], labels: list[str]) -> dict:
    """Accuracy, macro F1, one entry per class, the confusion matrix [label][prediction], and the confusions by number."""
    every = range(len(labels))
    matrix = confusion_matrix(truth, predicted, labels=every)
    scores = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    classes = [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for label, p, r, f, n in zip(labels, *scores)
    ]
    wrong = Counter((t, p) for t, p in zip(truth, predicted) if t != p)
    return {
        "accuracy": float(matrix.trace() / matrix.sum()),
        "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "rows": len(truth),
        "classes": classes,
        "confusion": matrix.tolist(),
        "confusions": [{"label": labels[t], "predicted": labels[p], "rows": n} for (t, p), n in wrong.most_common()],
    }


def plot_confusion(found: dict, path) -> None:
    """The matrix; beyond READABLE classes the confusions that happen most, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [entry["label"] if len(entry["label"]) <= 24 else entry["label"][:23] + "…" for entry in found["classes"]]
    title = f"{found['rows']} held-out rows, accuracy {found['accuracy']:.3f}, macro F1 {found['f1']:.3f}"
    if len(names) <= READABLE:
        size = 2.5 + 0.45 * len(names)
        figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
        shares = [[n / max(1, sum(row)) for n in row] for row in found["confusion"]]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(found["confusion"]):
            for j, n in enumerate(row):
                axis.text(j, i, n or "", ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="predicted", ylabel="label")
    else:
        most = found["confusions"][:READABLE][::-1]
        figure, axis = plt.subplots(figsize=(8, 6), layout="constrained")
        bars = axis.barh([f"{c['label']} → {c['predicted']}" for c in most], [c["rows"] for c in most])
        axis.bar_label(bars)
        axis.set(xlabel="rows", ylabel="label → predicted, the most frequent confusions")
    axis.set_title(title, fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(settings: ClassificationSettings, args: ClassificationConfig) -> None:
    with recording("classification", settings, args) as record:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        splits = load_splits(settings, ("classification", "pair_classification"), seed=args.seed)
        record.data(splits)
        if not splits.eval:
            raise UserError("a classifier is judged on rows it has not seen: set eval_fraction or eval_dataset_name")
        labels = label_names(splits.train)
        check_labels(splits.eval, labels)

        if settings.from_scratch:
            sizes = {key: getattr(settings, key) for key in ("model_type", "hidden_size", "layers", "heads", "context")}
            model = new_classifier(tokenizer, **sizes, labels=labels)
        else:
            options = {"revision": settings.model_revision, "dtype": settings.dtype}
            model = load_classifier(settings.model_name_or_path, labels, **options)
            record.parent("base", settings.model_name_or_path)
        fit_tokenizer(tokenizer, model, pairs=splits.kind == "pair_classification")
        fit_embeddings(model, tokenizer)
        limit = min(settings.max_length, context_length(model), tokenizer.model_max_length)
        train, train_cut = encode(tokenizer, splits.train, labels, limit)
        evaluation, eval_cut = encode(tokenizer, splits.eval, labels, limit)
        record.say(f"{len(train)} rows, {len(evaluation)} held out, {len(labels)} labels, {train_cut + eval_cut} texts longer than {limit} tokens cut")

        if settings.use_peft:
            model = add_lora(model, task="SEQ_CLS", rank=settings.lora_r, alpha=settings.lora_alpha)

        def metrics(prediction) -> dict[str, float]:
            found = report(prediction.label_ids.tolist(), prediction.predictions.tolist(), labels)
            return {name: found[name] for name in ("accuracy", "f1")}

        trainer = Trainer(
            model=model,
            args=args,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=train,
            eval_dataset=evaluation,
            compute_metrics=metrics,
            preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
        )
        use_run_progress(trainer, args.output_dir)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        output = trainer.predict(evaluation, metric_key_prefix="eval")
        found = report(output.label_ids.tolist(), output.predictions.tolist(), labels)
        record.metrics({"accuracy": found["accuracy"], "f1": found["f1"], "eval_loss": output.metrics["eval_loss"]})
        record.metrics({"eval_rows": len(evaluation), "train_rows": len(train), "labels": len(labels)})
        record.metrics({"texts_cut": train_cut + eval_cut})
        if not record.main:
            return
        save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, args.output_dir)
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (record.folder / "classification.json").write_text(text, encoding="utf-8")
        plot_confusion(found, record.folder / "plots" / "confusion.png")
        if found["confusions"]:
            record.say("Held-out rows that are most often taken for another label:")
            record.say(sample_table(found["confusions"], columns=["label", "predicted", "rows"], limit=8))


if __name__ == "__main__":
    run(main, __doc__)
