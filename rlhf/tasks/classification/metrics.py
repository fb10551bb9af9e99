"""Judging a classifier: one label, several labels, or a number for each text; and the pictures.

As in scikit-learn, macro F1 is the mean over the classes that occur among the true or the predicted labels (of several
labels: over all, one that never occurs having F1 0), and a class that is never predicted has precision 0. Names mean the
same in every task: `f1` is macro, `accuracy` counts whole rows.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf.statistics import wilson_interval

READABLE = 20  # classes whose confusion matrix a person can still read
BINS = 15  # of the calibration error
THRESHOLD = 0.5  # of several labels, those that are more likely than not
METRICS = {  # task -> the numbers of its report, the first of which picks the checkpoint
    "single_label": ("accuracy", "f1", "f1_weighted", "mcc", "calibration_error"),
    "multi_label": ("f1_micro", "f1", "accuracy", "calibration_error"),
    "regression": ("mse", "mae", "r2", "pearson", "spearman"),
}


def classification_report(
    truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]
) -> dict:
    """How well one label of several is predicted: accuracy with its 95 % interval, macro and weighted F1, Matthews'
    correlation (mcc: 0 is chance), and

    classes: precision, recall, F1 and rows of each; confusion: rows by [label][prediction]; confusions: those off the
    diagonal, the most frequent first.
    """
    from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

    matrix = confusion_matrix(truth, predicted, labels=range(len(labels)))
    accuracy = float(matrix.trace() / matrix.sum())
    low, high = wilson_interval(accuracy, len(truth))
    wrong = Counter((t, p) for t, p in zip(truth, predicted) if t != p)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "f1_weighted": float(f1_score(truth, predicted, average="weighted", zero_division=0)),
        "mcc": float(matthews_corrcoef(truth, predicted)),
        "rows": len(truth),
        "classes": _classes(truth, predicted, labels, labels=range(len(labels))),
        "confusion": matrix.tolist(),
        "confusions": [
            {"label": labels[t], "predicted": labels[p], "rows": n}
            for (t, p), n in wrong.most_common()
        ],
    }


def multi_label_report(truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict:
    """How well any number of labels is predicted. truth, predicted (N, K): 0 or 1.

    accuracy: share of rows whose labels are all right, with its 95 % interval; f1_micro: over all decisions; f1: mean over
    labels; classes: as in `classification_report`, with the rows in which a label is missed or invented.
    """
    from sklearn.metrics import f1_score

    truth, predicted = np.asarray(truth, dtype=int), np.asarray(predicted, dtype=int)
    accuracy = float((truth == predicted).all(1).mean())
    low, high = wilson_interval(accuracy, len(truth))
    classes = _classes(truth, predicted, labels)
    for entry, true, said in zip(classes, truth.T, predicted.T):
        entry |= {"missed": int((true > said).sum()), "invented": int((true < said).sum())}
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "f1_micro": float(f1_score(truth, predicted, average="micro", zero_division=0)),
        "f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "rows": len(truth),
        "classes": classes,
    }


def _classes(truth, predicted, names: Sequence[str], **options) -> list[dict]:
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(
        truth, predicted, average=None, zero_division=0, **options
    )
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for name, p, r, f, n in zip(names, *scores)
    ]


def regression_report(truth: Sequence[float], predicted: Sequence[float]) -> dict:
    """How well a number is predicted: mean squared and absolute error; r2 = 1 - mse / variance, 0 for the mean of the
    held-out rows; Pearson's and Spearman's correlation, 0 where all predictions or all labels are the same."""
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    errors = predicted - truth
    mse, variance = float((errors**2).mean()), float(truth.var())
    return {
        "mse": mse,
        "mae": float(np.abs(errors).mean()),
        "r2": 1 - mse / variance if variance else 0.0,
        "pearson": correlation(truth, predicted),
        "spearman": correlation(ranks(truth), ranks(predicted)),
        "rows": len(truth),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0.0 where one of the two does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def calibration(probabilities: Sequence[float], happened: Sequence[bool]) -> dict:
    """Whether what is said with probability p happens in a share p of the cases. Guo et al. 2017 (arXiv 1706.04599), (3).

    calibration_error: sum over BINS bins of equal width of (rows / n) |share - mean probability|; bins: those that have
    rows, with probability, share and rows. A bin holds its upper edge.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(happened, dtype=np.float64)
    place = np.clip(np.ceil(p * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "probability": float(p[place == b].mean()),
            "share": float(y[place == b].mean()),
            "rows": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]
    error = sum(b["rows"] * abs(b["share"] - b["probability"]) for b in bins) / len(p)
    return {"calibration_error": float(error), "bins": bins}


def proper_scores(truth: Sequence[int], probabilities: np.ndarray) -> dict:
    """nll: mean of -log p(label), nats; brier: mean of sum_k (p_k - 1[k is the label])^2. probabilities (N, K)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    chosen = probabilities[np.arange(len(truth)), truth]
    brier = (probabilities**2).sum(1) - 2 * chosen + 1
    return {"nll": float(-np.log(np.maximum(chosen, 1e-12)).mean()), "brier": float(brier.mean())}


# ---- from the outputs of a model ---------------------------------------------------------------------------------


def evaluate(task: str, truth: np.ndarray, outputs: np.ndarray, labels: Sequence[str]) -> dict:
    """The whole report of a task. outputs: probabilities (N, K), or the predicted numbers (N,); truth: as `data.labels.
    targets` gives it, (N,) or (N, K). Its numbers by the names of METRICS, and more."""
    if task == "regression":
        return regression_report(truth, outputs)
    if task == "multi_label":
        certainty, happened = outputs.ravel(), truth.ravel()
        return multi_label_report(truth, outputs > THRESHOLD, labels) | calibration(
            certainty, happened
        )
    predicted = outputs.argmax(1)
    report = classification_report(truth.tolist(), predicted.tolist(), labels)
    return report | calibration(outputs.max(1), predicted == truth) | proper_scores(truth, outputs)


def errors(
    task: str, rows: Sequence[dict], truth: np.ndarray, outputs: np.ndarray, labels: Sequence[str]
) -> list[dict]:
    """Rows that are judged wrong, the worst first: text, label, predicted, and probability or difference.

    Worst: one label, the surest of the wrong one; several, the one decision that is farthest off, whose label is `about`;
    a number, the largest difference, and there every row counts as wrong.
    """
    texts = [{name: row[name] for name in ("text", "text_pair") if name in row} for row in rows]
    found = []
    for text, row, true, given in zip(texts, rows, truth, outputs):
        entry = {**text, "label": row["label"]}
        if task == "regression":
            found.append(
                (
                    abs(given - true),
                    entry | {"predicted": float(given), "difference": float(given - true)},
                )
            )
        elif task == "single_label" and (best := int(given.argmax())) != true:
            found.append(
                (
                    given[best],
                    entry | {"predicted": labels[best], "probability": float(given[best])},
                )
            )
        elif task == "multi_label" and ((given > THRESHOLD) != (true > 0.5)).any():
            off = int(np.abs(given - true).argmax())
            said = [labels[i] for i in np.flatnonzero(given > THRESHOLD)]
            entry |= {"predicted": said, "about": labels[off], "probability": float(given[off])}
            found.append((abs(given[off] - true[off]), entry))
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


# ---- pictures ----------------------------------------------------------------------------------------------------


def plot_evaluation(
    task: str, report: dict, truth: np.ndarray, outputs: np.ndarray, folder
) -> None:
    """The pictures of a task in `folder`: confusion.png (one label), calibration.png (labels), scatter.png (numbers)."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "regression":
        plot_scatter(report, truth, outputs, folder / "scatter.png")
        return
    plot_calibration(report, folder / "calibration.png")
    if task == "single_label":
        plot_confusion(report, folder / "confusion.png")


def plot_calibration(report: dict, path) -> None:
    """How often what is said with a probability happens, over that probability, and how many cases stand behind it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y, rows = (
        [entry[name] for entry in report["bins"]] for name in ("probability", "share", "rows")
    )
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(4.6, 5.2), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
    low, high = zip(*(wilson_interval(share, n) for share, n in zip(y, rows)))
    bars = [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]]
    upper.errorbar(x, y, yerr=bars, marker="o", markersize=4, capsize=2, label="this model, 95 %")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is true")
    upper.legend(loc="upper left", fontsize=8)
    upper.grid(alpha=0.3)
    lower.bar(x, rows, width=0.8 / BINS)
    lower.set(xlabel="probability", ylabel="cases")
    figure.suptitle(f"calibration error {report['calibration_error']:.3f}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_scatter(report: dict, truth: Sequence[float], predicted: Sequence[float], path) -> None:
    """Predicted over true numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
    ends = [min(*truth, *predicted), max(*truth, *predicted)]
    axis.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
    axis.scatter(truth, predicted, s=12, alpha=min(1.0, 0.15 + 100 / len(truth)))
    axis.set(xlabel="label", ylabel="predicted")
    axis.grid(alpha=0.3)
    figure.suptitle(
        f"{report['rows']} held-out rows\nmean absolute error {report['mae']:.3g}, r2 {report['r2']:.3f}, "
        f"Spearman {report['spearman']:.3f}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
                axis.text(
                    j,
                    i,
                    n or "",
                    ha="center",
                    va="center",
                    color="white" if shares[i][j] > 0.5 else "black",
                )
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
    kind = (
        "" if len(names) <= READABLE else f"; the most frequent confusions of {len(names)} labels"
    )
    figure.suptitle(
        f"{report['rows']} held-out rows\naccuracy {report['accuracy']:.3f}, macro F1 {report['f1']:.3f}{kind}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shortened(label: str, limit: int = 24) -> str:
    """A label for a picture: cut, and safe from matplotlib's reading of $ as mathematics."""
    return (label if len(label) <= limit else label[: limit - 1] + "…").replace("$", r"\$")
