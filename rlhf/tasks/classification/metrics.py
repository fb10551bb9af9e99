"""Scores of a classifier: one label, several labels, or a number for each text; and their plots.

As in scikit-learn, macro F1 is the mean over the classes that occur among the true or the predicted labels (with several
labels: over all, and one that never occurs has F1 0), and a class that is never predicted has precision 0. Names mean the
same in every task: `f1` is macro, `accuracy` counts whole rows.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf.runs.plots import saved_figure
from rlhf.statistics import correlation, ranks, wilson_interval

READABLE = 20  # classes whose confusion matrix a person can still read
BINS = 15  # of the calibration error
THRESHOLD = 0.5  # of several labels, those that are more likely than not are predicted
SMALLEST_PROBABILITY = 1e-12  # so that log(0) does not make the mean infinite
METRICS = {  # task -> the numbers of its report, the first of which picks the checkpoint
    "single_label": ("accuracy", "f1", "f1_weighted", "mcc", "calibration_error"),
    "multi_label": ("f1_micro", "f1", "accuracy", "calibration_error"),
    "regression": ("mse", "mae", "r2", "pearson", "spearman"),
}


# ---- true and predicted labels or numbers ------------------------------------------------------------------------


def classification_report(
    truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]
) -> dict:
    """Scores for one label of several. truth, predicted (N,): indices in labels.

    accuracy: with its 95 % interval.
    f1, f1_weighted: macro, and weighted by the rows of each class.
    mcc: Matthews' correlation; 0 is chance.
    classes: precision, recall, F1 and rows of each.
    confusion: rows by [label][prediction].
    confusions: those off the diagonal, the most frequent first.
    """
    # scikit-learn takes a second to import, and predictors need only the constants above.
    from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

    indices = range(len(labels))
    matrix = confusion_matrix(truth, predicted, labels=indices)  # (K, K): label by prediction
    accuracy = float(matrix.trace() / matrix.sum())
    low, high = wilson_interval(accuracy, len(truth))
    macro_f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    weighted_f1 = f1_score(truth, predicted, average="weighted", zero_division=0)
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "f1": float(macro_f1),
        "f1_weighted": float(weighted_f1),
        "mcc": float(matthews_corrcoef(truth, predicted)),
        "rows": len(truth),
        "classes": _class_scores(truth, predicted, labels, labels=indices),
        "confusion": matrix.tolist(),
        "confusions": _confusions(truth, predicted, labels),
    }


def _confusions(
    truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]
) -> list[dict]:
    """The wrong predictions by (label, predicted label), the most frequent first."""
    pairs = zip(truth, predicted)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    confusions = []
    for (true, prediction), count in wrong.most_common():
        confusions.append(
            {
                "label": labels[true],
                "predicted": labels[prediction],
                "rows": count,
            }
        )
    return confusions


def multi_label_report(
    truth: np.ndarray,
    predicted: np.ndarray,
    labels: Sequence[str],
) -> dict:
    """Scores for any number of labels. truth, predicted (N, K): 0 or 1.

    accuracy: share of rows whose labels are all right, with its 95 % interval.
    f1_micro: over all decisions.
    f1: mean over labels.
    classes: as in `classification_report`, with the rows in which a label is missed or invented.
    """
    from sklearn.metrics import f1_score

    truth = np.asarray(truth, dtype=int)
    predicted = np.asarray(predicted, dtype=int)
    is_right = (truth == predicted).all(axis=1)  # (N,)
    accuracy = float(is_right.mean())
    low, high = wilson_interval(accuracy, len(truth))
    micro_f1 = f1_score(truth, predicted, average="micro", zero_division=0)
    macro_f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    classes = _class_scores(truth, predicted, labels)
    missed = (truth > predicted).sum(axis=0)  # (K,)
    invented = (truth < predicted).sum(axis=0)
    for i, entry in enumerate(classes):
        entry["missed"] = int(missed[i])
        entry["invented"] = int(invented[i])
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "f1_micro": float(micro_f1),
        "f1": float(macro_f1),
        "rows": len(truth),
        "classes": classes,
    }


def _class_scores(truth, predicted, names: Sequence[str], **options) -> list[dict]:
    """label, precision, recall, f1 and rows of each class. options: of scikit-learn's function."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, rows = precision_recall_fscore_support(
        truth, predicted, average=None, zero_division=0, **options
    )
    classes = []
    for i, name in enumerate(names):
        classes.append(
            {
                "label": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "rows": int(rows[i]),
            }
        )
    return classes


def regression_report(truth: Sequence[float], predicted: Sequence[float]) -> dict:
    """Scores for a number.

    mse, mae: mean squared and mean absolute error.
    r2: 1 - mse / variance; 0 for a prediction of the mean of the held-out rows.
    pearson, spearman: correlations; 0 where all predictions or all labels are the same.
    """
    truth = np.asarray(truth, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    differences = predicted - truth
    mse = float((differences**2).mean())
    variance = float(truth.var())
    return {
        "mse": mse,
        "mae": float(np.abs(differences).mean()),
        "r2": 1 - mse / variance if variance else 0.0,
        "pearson": correlation(truth, predicted),
        "spearman": correlation(ranks(truth), ranks(predicted)),
        "rows": len(truth),
    }


# ---- probabilities -----------------------------------------------------------------------------------------------


def calibration(probabilities: Sequence[float], happened: Sequence[bool]) -> dict:
    """Calibration: do predictions made with probability p come true a fraction p of the time?

    calibration_error: sum over BINS bins of equal width of (rows / n) |share - mean probability|, as in Guo et al. 2017
    (arXiv 1706.04599), (3).
    bins: those that have rows, with mean probability, share that came true, and rows. A bin holds its upper edge.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    happened = np.asarray(happened, dtype=np.float64)
    bin_of = np.ceil(probabilities * BINS).astype(int) - 1
    bin_of = np.clip(bin_of, 0, BINS - 1)  # a probability of 0 belongs to the first bin
    bins = []
    weighted_gaps = 0.0
    for index in np.unique(bin_of):
        inside = bin_of == index
        rows = int(inside.sum())
        probability = float(probabilities[inside].mean())
        share = float(happened[inside].mean())
        bins.append(
            {
                "probability": probability,
                "share": share,
                "rows": rows,
            }
        )
        weighted_gaps += rows * abs(share - probability)
    return {"calibration_error": float(weighted_gaps / len(probabilities)), "bins": bins}


def proper_scores(truth: Sequence[int], probabilities: np.ndarray) -> dict:
    """nll: mean of -log p(label), nats. brier: mean of sum_k (p_k - 1[k is the label])^2. probabilities (N, K)."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    of_label = probabilities[np.arange(len(truth)), truth]  # (N,)
    log_probs = np.log(np.maximum(of_label, SMALLEST_PROBABILITY))
    # The square written out: sum_k p_k^2 - 2 p_label + 1.
    brier = (probabilities**2).sum(axis=1) - 2 * of_label + 1
    return {"nll": float(-log_probs.mean()), "brier": float(brier.mean())}


# ---- from the outputs of a model ---------------------------------------------------------------------------------


def evaluate(
    task: str,
    truth: np.ndarray,
    outputs: np.ndarray,
    labels: Sequence[str],
) -> dict:
    """The whole report of a task: the numbers of METRICS, and more.

    truth: as `LabelTask.targets` gives it, (N,) or (N, K).
    outputs: probabilities (N, K), or the predicted numbers (N,).
    """
    if task == "regression":
        return regression_report(truth, outputs)
    if task == "multi_label":
        report = multi_label_report(truth, outputs > THRESHOLD, labels)
        # Each of the N x K decisions is a case.
        return report | calibration(outputs.ravel(), truth.ravel())
    predicted = outputs.argmax(axis=1)  # (N,)
    report = classification_report(truth.tolist(), predicted.tolist(), labels)
    # Each row is a case, with the probability of its predicted label.
    report |= calibration(outputs.max(axis=1), predicted == truth)
    return report | proper_scores(truth, outputs)


def errors(
    task: str,
    rows: Sequence[dict],
    truth: np.ndarray,
    outputs: np.ndarray,
    labels: Sequence[str],
) -> list[dict]:
    """Rows that are predicted wrong, the worst first: text, label, predicted, and probability or difference.

    One label: the worst is the one with the highest probability of a wrong label. Several labels: the one with the decision
    that is farthest off, whose label is `about`. A number: the largest difference; here every row counts as wrong.
    """
    mistakes = []  # (how bad, entry)
    for row, true, output in zip(rows, truth, outputs):
        if task == "regression":
            mistake = _wrong_number(true, output)
        elif task == "single_label":
            mistake = _wrong_label(true, output, labels)
        else:
            mistake = _wrong_labels(true, output, labels)
        if mistake is None:
            continue
        badness, prediction = mistake
        entry = {name: row[name] for name in ("text", "text_pair", "label") if name in row}
        mistakes.append((badness, entry | prediction))
    mistakes.sort(key=lambda mistake: -mistake[0])
    return [entry for _, entry in mistakes]


def _wrong_number(true: float, output: float) -> tuple[float, dict]:
    difference = output - true
    prediction = {"predicted": float(output), "difference": float(difference)}
    return abs(difference), prediction


def _wrong_label(
    true: int,
    output: np.ndarray,
    labels: Sequence[str],
) -> tuple[float, dict] | None:
    """(probability of the predicted label, entry), None if the label is right. output (K,)."""
    best = int(output.argmax())
    if best == true:
        return None
    prediction = {"predicted": labels[best], "probability": float(output[best])}
    return output[best], prediction


def _wrong_labels(
    true: np.ndarray, output: np.ndarray, labels: Sequence[str]
) -> tuple[float, dict] | None:
    """(distance of the worst decision, entry), None if all labels are right. true, output (K,)."""
    predicted = output > THRESHOLD
    is_true = true > 0.5  # the targets are floats
    if (predicted == is_true).all():
        return None
    distances = np.abs(output - true)
    worst = int(distances.argmax())
    prediction = {
        "predicted": [labels[i] for i in np.flatnonzero(predicted)],
        "about": labels[worst],
        "probability": float(output[worst]),
    }
    return distances[worst], prediction


# ---- plots -------------------------------------------------------------------------------------------------------


def plot_evaluation(
    task: str,
    report: dict,
    truth: np.ndarray,
    outputs: np.ndarray,
    folder: Path,
) -> None:
    """The plots of a task in `folder`: confusion.png (one label), calibration.png (labels), scatter.png (numbers)."""
    folder.mkdir(parents=True, exist_ok=True)
    if task == "regression":
        plot_scatter(report, truth, outputs, folder / "scatter.png")
        return
    plot_calibration(report, folder / "calibration.png")
    if task == "single_label":
        plot_confusion(report, folder / "confusion.png")


def plot_calibration(report: dict, path) -> None:
    """The share of predictions that come true over their probability, and the number of cases in each bin."""
    bins = report["bins"]
    probabilities = [entry["probability"] for entry in bins]
    shares = [entry["share"] for entry in bins]
    rows = [entry["rows"] for entry in bins]
    below, above = [], []  # lengths of the error bars
    for share, count in zip(shares, rows):
        low, high = wilson_interval(share, count)
        below.append(share - low)
        above.append(high - share)

    options = {
        "figsize": (4.6, 5.2),
        "sharex": True,
        "height_ratios": [3, 1],
    }
    with saved_figure(path, 2, 1, **options) as (figure, (upper, lower)):
        upper.plot(
            [0, 1],
            [0, 1],
            color="grey",
            linestyle="--",
            linewidth=1,
            label="calibrated",
        )
        style = {
            "marker": "o",
            "markersize": 4,
            "capsize": 2,
            "label": "this model, 95 %",
        }
        upper.errorbar(probabilities, shares, yerr=[below, above], **style)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is true")
        upper.legend(loc="upper left", fontsize=8)
        upper.grid(alpha=0.3)
        lower.bar(probabilities, rows, width=0.8 / BINS)
        lower.set(xlabel="probability", ylabel="cases")
        error = report["calibration_error"]
        figure.suptitle(f"calibration error {error:.3f}", fontsize=10)


def plot_scatter(
    report: dict,
    truth: Sequence[float],
    predicted: Sequence[float],
    path,
) -> None:
    """Predicted over true numbers."""
    numbers = [*truth, *predicted]
    ends = [min(numbers), max(numbers)]  # of the diagonal
    opacity = min(1.0, 0.15 + 100 / len(truth))  # so that many points do not become one blot
    title = (
        f"{report['rows']} held-out rows\n"
        f"mean absolute error {report['mae']:.3g}, r2 {report['r2']:.3f}, "
        f"Spearman {report['spearman']:.3f}"
    )
    with saved_figure(path, figsize=(4.8, 4.8)) as (figure, axis):
        axis.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
        axis.scatter(truth, predicted, s=12, alpha=opacity)
        axis.set(xlabel="label", ylabel="predicted")
        axis.grid(alpha=0.3)
        figure.suptitle(title, fontsize=10)


def plot_confusion(report: dict, path) -> None:
    """The confusion matrix; beyond READABLE classes the most frequent confusions, as bars."""
    count = len(report["classes"])
    title = (
        f"{report['rows']} held-out rows\n"
        f"accuracy {report['accuracy']:.3f}, macro F1 {report['f1']:.3f}"
    )
    if count <= READABLE:
        size = 2.5 + 0.45 * count  # inches
        with saved_figure(path, figsize=(size + 1, size)) as (figure, axis):
            _draw_matrix(axis, report)
            figure.suptitle(title, fontsize=10)
    else:
        title += f"; the most frequent confusions of {count} labels"
        with saved_figure(path, figsize=(8, 6)) as (figure, axis):
            _draw_confusions(axis, report["confusions"][:READABLE])
            figure.suptitle(title, fontsize=10)


def _draw_matrix(axis, report: dict) -> None:
    """Rows by label and prediction; the colour is the share of the label's rows."""
    matrix = np.array(report["confusion"])
    totals = matrix.sum(axis=1, keepdims=True)  # (K, 1)
    totals = np.maximum(totals, 1)  # a label without a row has shares of 0
    shares = matrix / totals
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (label, predicted), rows in np.ndenumerate(matrix):
        # readable on dark and on light blue
        colour = "white" if shares[label, predicted] > 0.5 else "black"
        axis.text(
            predicted,
            label,
            rows or "",
            ha="center",
            va="center",
            color=colour,
        )
    names = [shortened(entry["label"]) for entry in report["classes"]]
    positions = range(len(names))
    axis.set_xticks(
        positions,
        names,
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_yticks(positions, names)
    axis.set(xlabel="predicted", ylabel="label")


def _draw_confusions(axis, confusions: Sequence[dict]) -> None:
    """A bar for each confusion, the most frequent at the top."""
    names, rows = [], []
    for entry in reversed(confusions):  # the first bar is the lowest
        label, predicted = shortened(entry["label"]), shortened(entry["predicted"])
        names.append(f"{label} → {predicted}")
        rows.append(entry["rows"])
    positions = range(len(names))
    bars = axis.barh(positions, rows)
    axis.bar_label(bars, padding=2)
    axis.set_yticks(positions, names)
    axis.set(xlabel="rows", ylabel="label → predicted")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.margins(x=0.08)


def shortened(label: str, limit: int = 24) -> str:
    """A label for a plot: cut to `limit` characters, and with $ escaped, which begins a formula in matplotlib."""
    if len(label) > limit:
        label = label[: limit - 1] + "…"
    return label.replace("$", r"\$")
