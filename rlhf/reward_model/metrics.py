"""How well scores order ranked completions."""

import torch

from rlhf.data.chat import as_text
from rlhf.errors import UserError
from rlhf.statistics import correlation


def ranking_report(scores: list[list[float]], rows: list[dict]) -> dict:
    """How well scores order the completions: over all strictly ordered pairs of the rows.

    accuracy with its 95 % interval over prompts (bootstrap), loss, accuracy by rank gap, margins, calibration (predicted
    against observed share of right pairs, ten bins), correlation of score with length, and the worst examples.
    """
    pairs = []  # (row, better, worse, margin, rank gap)
    for place, (values, row) in enumerate(zip(scores, rows, strict=True)):
        for i, first in enumerate(row["ranks"]):
            for j, second in enumerate(row["ranks"]):
                if first < second:
                    pairs.append((place, i, j, values[i] - values[j], second - first))
    if not pairs:
        raise UserError("no strictly ordered pair in the evaluation rankings: they are all ties")
    margins = torch.tensor([pair[3] for pair in pairs])
    right = (margins > 0).double() + 0.5 * (margins == 0)
    row_of = torch.tensor([pair[0] for pair in pairs])
    gaps = torch.tensor([pair[4] for pair in pairs])
    hits = torch.zeros(len(rows), dtype=torch.double).index_add_(0, row_of, right)
    counts = torch.zeros(len(rows), dtype=torch.double).index_add_(
        0, row_of, torch.ones_like(right)
    )
    draws = torch.randint(len(rows), (1000, len(rows)), generator=torch.Generator().manual_seed(0))
    resampled = hits[draws].sum(1) / counts[draws].sum(1).clamp(min=1)
    predicted = torch.sigmoid(margins.abs())
    bins = ((predicted - 0.5) * 20).long().clamp(max=9)
    flat = torch.tensor([value for values in scores for value in values])
    lengths = torch.tensor([float(n) for row in rows for n in row["lengths"]])
    worst = sorted(pairs, key=lambda pair: pair[3])[:5]
    return {
        "accuracy": right.mean().item(),
        "accuracy_low": resampled.quantile(0.025).item(),
        "accuracy_high": resampled.quantile(0.975).item(),
        "pairs": len(pairs),
        "prompts": int((counts > 0).sum()),
        "loss": torch.nn.functional.softplus(-margins).mean().item(),
        "margin": margins.mean().item(),
        "score_length_correlation": correlation(flat, lengths),
        "score_mean": flat.mean().item(),
        "score_std": flat.std().item(),
        "accuracy_by_gap": {
            int(gap): {
                "accuracy": right[gaps == gap].mean().item(),
                "pairs": int((gaps == gap).sum()),
            }
            for gap in gaps.unique().tolist()
        },
        "calibration": [
            {
                "predicted": predicted[bins == b].mean().item(),
                "observed": right[bins == b].mean().item(),
                "pairs": n,
            }
            for b in range(10)
            if (n := int((bins == b).sum()))
        ],
        "margins": margins.tolist(),
        "worst": [
            {
                "prompt": as_text(rows[place]["row"]["prompt"]),
                "ranked higher": rows[place]["row"]["completions"][rows[place]["places"][i]],
                "scored higher": rows[place]["row"]["completions"][rows[place]["places"][j]],
                "margin": margin,
            }
            for place, i, j, margin, _ in worst
            if margin < 0
        ],
    }


def plot_ranking_report(report: dict, folder) -> None:
    """plots/ranking.png: margins of ordered pairs, calibration, and accuracy by rank gap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.hist(report["margins"], bins=40)
    left.axvline(0, color="black", linewidth=1)
    left.set(title="margin of ordered pairs", xlabel="score(better) - score(worse)")
    middle.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    middle.plot(
        *zip(*[(b["predicted"], b["observed"]) for b in report["calibration"]], strict=True),
        marker="o",
    )
    middle.set(title="calibration", xlabel="predicted share of right pairs", ylabel="observed")
    gaps = report["accuracy_by_gap"]
    right.bar([str(gap) for gap in gaps], [entry["accuracy"] for entry in gaps.values()])
    right.axhline(0.5, color="grey", linewidth=1)
    right.set(title="accuracy by rank gap", xlabel="rank gap", ylim=(0, 1))
    figure.savefig(folder, dpi=110)
    plt.close(figure)
