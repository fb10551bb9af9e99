"""Classifying texts: labels -> numbers, texts -> tokens, predictions -> a report and a picture.

As in scikit-learn, macro F1 is the mean over the classes that occur among the true or the predicted labels, and a class
that is never predicted has precision 0.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers.processors import TemplateProcessing
from transformers import TrainingArguments

from rlhf.errors import UserError

READABLE = 20  # classes whose confusion matrix a person can still read


@dataclass
class ClassificationConfig(TrainingArguments):
    """TrainingArguments keep their meaning; the defaults are the BERT paper's (arXiv 1810.04805, appendix A.3)."""

    max_length: int = field(
        default=128, metadata={"help": "Tokens of a text or pair; longer ones are cut and counted. BERT on GLUE: 128."}
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "BERT: 2e-5, 3e-5 or 5e-5."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "BERT: 2, 3 or 4."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "BERT: 16 or 32."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "Texts of one length together, for less padding; or random."}
    )

    def __post_init__(self):
        self.logging_nan_inf_filter = False
        super().__post_init__()
        # The length-grouped sampler draws from the global generator unless accelerate gives it one of its own. Dropout
        # advances the global one differently in each process: from the second epoch on their shares would overlap.
        self.accelerator_config.use_seedable_sampler = self.train_sampling_strategy != "group_by_length"


def label_names(rows: Sequence[dict]) -> list[str]:
    """The labels of the training rows as strings: whole numbers by size, everything else by the alphabet."""
    names = {str(row["label"]) for row in rows}
    if len(names) < 2:
        raise UserError(f"all {len(rows)} training rows have the label {names.pop()!r}: a classifier needs two or more")
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else name)


def check_labels(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a label that no training row has."""
    unknown: dict[str, list[int]] = {}
    for place, row in enumerate(rows, start=1):
        if str(row["label"]) not in labels:
            unknown.setdefault(str(row["label"]), []).append(place)
    if not unknown:
        return
    shown = []
    for label, places in sorted(unknown.items())[:10]:
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        shown.append(f"{label!r} in evaluation row{'s' * (len(places) > 1)} {', '.join(map(str, places[:5]))}{more}")
    others = f", and {len(unknown) - 10} labels more" if len(unknown) > 10 else ""
    known = ", ".join(labels[:READABLE]) + (", ..." if len(labels) > READABLE else "")
    raise UserError(
        f"no training row has the label {'; '.join(shown)}{others}. Labels of the training rows: {known}. Give them "
        "rows with it, remove the evaluation rows, or, where one file is split, take another seed or eval_fraction"
    )


def fit_tokenizer(tokenizer, model, *, pairs: bool) -> None:
    """What a GPT-2 class tokenizer lacks: EOS pads, and stands between the texts of a pair (GPT-1 put a delimiter)."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no pad_token: set one in its folder")
        tokenizer.pad_token = tokenizer.eos_token
    if pairs and tokenizer.sep_token is None:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A", pair=["$A", eos[0], "$B"], special_tokens=[eos]
        )
    # BERT was pretrained with token types, and a tokenizer made by hand gives none; GPT-2 takes them too, as *words* 0
    # and 1. So it follows the model, in this process and in the saved folder (init_kwargs).
    typed = (getattr(model.config, "type_vocab_size", None) or 1) > 1
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def encode(
    tokenizer, rows: Sequence[dict], labels: Sequence[str], *, pairs: bool, max_length: int
) -> tuple[list[dict], int]:
    """Rows of token ids with the number of their label, and how many were cut. No text can spell a special token."""
    if max_length <= tokenizer.num_special_tokens_to_add(pair=pairs) + pairs:
        raise UserError(f"max_length={max_length} leaves no room for a text: raise it, up to the model's context")
    texts = [[row[column] for row in rows] for column in ("text", "text_pair")[: 1 + pairs]]
    whole = tokenizer(*texts, split_special_tokens=True, verbose=False)["input_ids"]
    cut = tokenizer(*texts, split_special_tokens=True, truncation=True, max_length=max_length)
    number = {label: place for place, label in enumerate(labels)}
    columns = {**cut, "labels": [number[str(row["label"])] for row in rows]}
    encoded = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return encoded, sum(len(ids) > max_length for ids in whole)


def classification_report(truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> dict:
    """How well labels are predicted: accuracy, macro F1, and

    classes: precision, recall, F1 and rows of each; confusion: rows by [label][prediction]; confusions: those off the
    diagonal, the most frequent first.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    every = range(len(labels))
    matrix = confusion_matrix(truth, predicted, labels=every)
    scores = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0)
    wrong = Counter((t, p) for t, p in zip(truth, predicted) if t != p)
    return {
        "accuracy": float(matrix.trace() / matrix.sum()),
        "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "rows": len(truth),
        "classes": [
            {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
            for label, p, r, f, n in zip(labels, *scores)
        ],
        "confusion": matrix.tolist(),
        "confusions": [{"label": labels[t], "predicted": labels[p], "rows": n} for (t, p), n in wrong.most_common()],
    }


def plot_confusion(report: dict, path) -> None:
    """The confusion matrix; beyond READABLE classes the confusions that happen most, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [shortened(entry["label"]) for entry in report["classes"]]
    if len(names) <= READABLE:
        size = 2.5 + 0.45 * len(names)
        figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
        shares = [[n / max(1, sum(row)) for n in row] for row in report["confusion"]]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(report["confusion"]):
            for j, n in enumerate(row):
                axis.text(j, i, n or "", ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="predicted", ylabel="label")
    else:
        most = report["confusions"][:READABLE][::-1]
        figure, axis = plt.subplots(figsize=(8, 6), layout="constrained")
        arrows = [f"{shortened(c['label'])} → {shortened(c['predicted'])}" for c in most]
        axis.bar_label(axis.barh(range(len(most)), [c["rows"] for c in most]), padding=2)
        axis.set_yticks(range(len(most)), arrows)
        axis.set(xlabel="rows", ylabel="label → predicted")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.margins(x=0.08)
    kind = "" if len(names) <= READABLE else f"; the most frequent confusions of {len(names)} labels"
    figure.suptitle(
        f"{report['rows']} held-out rows\naccuracy {report['accuracy']:.3f}, macro F1 {report['f1']:.3f}{kind}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shortened(label: str, limit: int = 24) -> str:
    """A label for a picture: cut, and safe from matplotlib's reading of $ as mathematics."""
    return (label if len(label) <= limit else label[: limit - 1] + "…").replace("$", r"\$")
