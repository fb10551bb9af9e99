"""Judging a classifier: metrics and the confusion matrix.

As in scikit-learn, macro F1 is the mean over the classes that occur among the true or the predicted labels, and a class
that is never predicted has precision 0.
"""

from collections import Counter
from collections.abc import Sequence

READABLE = 20  # classes whose confusion matrix a person can still read


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
