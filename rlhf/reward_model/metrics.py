"""Metrics of a reward model: how well its scores order ranked completions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf.data.chat import as_text
from rlhf.errors import UserError
from rlhf.runs.plots import saved_figure
from rlhf.statistics import correlation, middle_95

RESAMPLES = 1000  # of the bootstrap
BINS = 10  # of the calibration, over predictions from 0.5 to 1
WORST = 5  # misranked pairs that are reported


class Pair(NamedTuple):
    """Two completions of row `row` in strict order: `better` and `worse` are their indices.

    margin: score(better) - score(worse).
    gap: difference of their ranks, at least 1.
    """

    row: int
    better: int
    worse: int
    margin: float
    gap: int


def ranking_report(scores: list[list[float]], rows: Sequence[dict]) -> dict:
    """Evaluate scores on all strictly ordered pairs of the rows.

    Accuracy with its 95 % interval over prompts (bootstrap), loss, accuracy by rank gap, margins, calibration (predicted
    against observed share of correctly ordered pairs, ten bins), correlation of score with length, and the most misranked
    pairs. A tie of scores counts as half correct.

    scores: one list per row, in the order of its completions.
    rows: as from `encode_rankings`.
    """
    pairs = ordered_pairs(scores, rows)
    if not pairs:
        raise UserError("no strictly ordered pair in the evaluation rankings: they are all ties")
    margins = torch.tensor([pair.margin for pair in pairs])
    correct = (margins > 0).double() + 0.5 * (margins == 0)
    row_of = torch.tensor([pair.row for pair in pairs])
    gaps = torch.tensor([pair.gap for pair in pairs])
    hits = _sums_by_row(correct, row_of, len(rows))
    counts = _sums_by_row(torch.ones_like(correct), row_of, len(rows))
    low, high = _bootstrap_interval(hits, counts)
    flat_scores, lengths = _flat_scores_and_lengths(scores, rows)
    return {
        "accuracy": correct.mean().item(),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": len(pairs),
        "prompts": int((counts > 0).sum()),
        "loss": softplus(-margins).mean().item(),  # -log sigmoid(margin)
        "margin": margins.mean().item(),
        "score_length_correlation": correlation(flat_scores, lengths),
        "score_mean": flat_scores.mean().item(),
        "score_std": flat_scores.std().item(),
        "accuracy_by_gap": _accuracy_by_gap(correct, gaps),
        "calibration": _calibration(margins, correct),
        "margins": margins.tolist(),
        "worst": _worst(pairs, rows),
    }


def metric_names(rows: Sequence[dict]) -> list[str]:
    """The names of the numbers that `ranking_report` gives for the rows, whatever their scores are."""
    zeros = [[0.0] * len(row["ranks"]) for row in rows]
    report = ranking_report(zeros, rows)
    return [name for name, value in report.items() if isinstance(value, int | float)]


def ordered_pairs(scores: list[list[float]], rows: Sequence[dict]) -> list[Pair]:
    """All pairs of completions of one row whose ranks differ."""
    pairs = []
    for index, (values, row) in enumerate(zip(scores, rows, strict=True)):
        ranks = row["ranks"]
        for i, first in enumerate(ranks):
            for j, second in enumerate(ranks):
                if first < second:  # ties have no order
                    margin = values[i] - values[j]
                    pairs.append(Pair(index, i, j, margin, second - first))
    return pairs


def _sums_by_row(values: Tensor, row_of: Tensor, rows: int) -> Tensor:
    """Sum the values of each row's pairs: (pairs,), (pairs,) -> (rows,), fp64."""
    sums = torch.zeros(rows, dtype=torch.double)
    return sums.index_add_(0, row_of, values)


def _bootstrap_interval(hits: Tensor, counts: Tensor) -> tuple[float, float]:
    """95 % interval of sum(hits) / sum(counts), shapes (R,).

    Whole prompts are drawn again, since the pairs of one prompt are not independent.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(hits)
    draws = torch.randint(count, (RESAMPLES, count), generator=generator)
    pairs_drawn = counts[draws].sum(1).clamp(min=1)  # all rows of a draw may be ties
    resampled = hits[draws].sum(1) / pairs_drawn
    return middle_95(resampled)


def _flat_scores_and_lengths(
    scores: list[list[float]], rows: Sequence[dict]
) -> tuple[Tensor, Tensor]:
    """Scores, and lengths in tokens, of all completions."""
    flat, lengths = [], []
    for values in scores:
        flat += values
    for row in rows:
        lengths += [float(length) for length in row["lengths"]]
    return torch.tensor(flat), torch.tensor(lengths)


def _accuracy_by_gap(correct: Tensor, gaps: Tensor) -> dict[int, dict]:
    by_gap = {}
    for gap in gaps.unique().tolist():
        of_gap = correct[gaps == gap]
        by_gap[int(gap)] = {"accuracy": of_gap.mean().item(), "pairs": len(of_gap)}
    return by_gap


def _calibration(margins: Tensor, correct: Tensor) -> list[dict]:
    """Predicted and observed share of correct pairs; sigmoid(|margin|) is the prediction. Empty bins are omitted."""
    predicted = torch.sigmoid(margins.abs())  # from 0.5 to 1
    bins = ((predicted - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    calibration = []
    for number in range(BINS):
        in_bin = bins == number
        count = int(in_bin.sum())
        if count:
            calibration.append(
                {
                    "predicted": predicted[in_bin].mean().item(),
                    "observed": correct[in_bin].mean().item(),
                    "pairs": count,
                }
            )
    return calibration


def _worst(pairs: list[Pair], rows: Sequence[dict]) -> list[dict]:
    """The pairs with the lowest margins below 0, as text."""
    worst = []
    for pair in sorted(pairs, key=lambda pair: pair.margin)[:WORST]:
        if pair.margin >= 0:
            break
        encoded = rows[pair.row]
        # Completions that were too long have left gaps.
        original, places = encoded["row"], encoded["places"]
        worst.append(
            {
                "prompt": as_text(original["prompt"]),
                "ranked higher": original["completions"][places[pair.better]],
                "scored higher": original["completions"][places[pair.worse]],
                "margin": pair.margin,
            }
        )
    return worst


def plot_ranking_report(report: dict, path) -> None:
    """Draw margins of ordered pairs, calibration, and accuracy by rank gap into the file `path`."""
    with saved_figure(path, 1, 3, figsize=(12, 3.4)) as (_, axes):
        left, middle, right = axes
        left.hist(report["margins"], bins=40)
        left.axvline(0, color="black", linewidth=1)
        left.set(title="margin of ordered pairs", xlabel="score(better) - score(worse)")

        predicted = [row["predicted"] for row in report["calibration"]]
        observed = [row["observed"] for row in report["calibration"]]
        middle.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)  # perfect calibration
        middle.plot(predicted, observed, marker="o")
        middle.set(
            title="calibration", xlabel="predicted share of correct pairs", ylabel="observed"
        )

        by_gap = report["accuracy_by_gap"]
        accuracies = [entry["accuracy"] for entry in by_gap.values()]
        right.bar([str(gap) for gap in by_gap], accuracies)
        right.axhline(0.5, color="grey", linewidth=1)  # chance
        right.set(title="accuracy by rank gap", xlabel="rank gap", ylim=(0, 1))
