"""A few-shot evaluation as a table, as JSON and as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.few_shot.evaluate import Accuracy, Cell, accuracies
from rlhf.runs.plots import saved_figure

COLUMNS = ("run", "shots", "method", "accuracy", "interval", "draws")
LINES = ("-", "--", ":", "-.")  # of the methods


def result_rows(cells: Sequence[Cell], seed: int) -> list[dict]:
    """One entry for each run, number of shots and method."""
    rows = []
    for cell in cells:
        for result in accuracies(cell, seed):
            rows.append(entry(cell, result))
    return rows


def entry(cell: Cell, result: Accuracy) -> dict:
    row = {"run": cell.run, "shots": cell.shots, "method": result.method}
    row |= {"accuracy": result.mean, "low": result.low, "high": result.high}
    row |= {"by_draw": result.by_draw, "dropped_shots": cell.dropped_shots}
    row["ties"] = cell.ties.get(result.method, 0)
    return row


def table_rows(results: Sequence[dict], baselines: dict[str, float]) -> list[dict]:
    """The rows of the printed table: the results, then what needs no model."""
    rows = []
    for result in results:
        row = {name: result[name] for name in ("run", "shots", "method")}
        row["accuracy"] = per_cent(result["accuracy"])
        row["interval"] = f"{per_cent(result['low'])} to {per_cent(result['high'])}"
        row["draws"] = len(result["by_draw"])
        rows.append(row)
    # A number that needs no model has no shots and no method.
    for name, value in baselines.items():
        row = dict.fromkeys(COLUMNS, "")
        rows.append(row | {"run": name, "accuracy": per_cent(value)})
    return rows


def per_cent(share: float) -> str:
    return f"{100 * share:.1f}%"


def draw_picture(results: Sequence[dict], baselines: dict[str, float], path: Path) -> None:
    """Accuracy against shots: a panel for each run, a line for each method, and the baselines."""
    runs = list(dict.fromkeys(row["run"] for row in results))
    methods = list(dict.fromkeys(row["method"] for row in results))
    size = (4.2 * len(runs), 3.6)
    with saved_figure(path, 1, len(runs), figsize=size, squeeze=False, sharey=True) as (_, axes):
        for axis, run in zip(axes[0], runs):
            for style, method in zip(LINES, methods):
                draw_line(axis, results, run, method, style)
            # Grey lines, lighter from one to the next: below them a model has learned nothing.
            for i, (name, value) in enumerate(baselines.items()):
                axis.axhline(value, color=f"{0.4 + 0.3 * i}", linewidth=0.8, label=name)
            axis.set(title=run, xlabel="shots", ylim=(0, 1))
            # 0 and small numbers are as far apart as large ones.
            axis.set_xscale("symlog", base=2, linthresh=1)
            counts = sorted({row["shots"] for row in results})
            axis.set_xticks(counts, [str(count) for count in counts])
        axes[0][0].set_ylabel("accuracy")
        axes[0][-1].legend(fontsize=7)


def draw_line(axis, results: Sequence[dict], run: str, method: str, style: str) -> None:
    """The points of one run and method with their intervals."""
    points = [row for row in results if row["run"] == run and row["method"] == method]
    points.sort(key=lambda row: row["shots"])
    counts = [row["shots"] for row in points]
    means = [row["accuracy"] for row in points]
    # Rounding may put a mean outside of a percentile interval of no width.
    below = [max(0.0, row["accuracy"] - row["low"]) for row in points]
    above = [max(0.0, row["high"] - row["accuracy"]) for row in points]
    axis.errorbar(
        counts, means, [below, above], linestyle=style, marker="o", capsize=2, label=method
    )


def answer_lines(cells: Sequence[Cell], golds: Sequence[int]) -> list[str]:
    """answers.jsonl: for each run, shots, draw and question, the log-probabilities of its answers or the answer."""
    lines = []
    for cell in cells:
        # Ranked questions have log-probs, generated ones a text.
        for draw, values in enumerate(cell.log_probs or cell.answers):
            name = "log_probs" if cell.log_probs else "answer"
            for index, (value, gold) in enumerate(zip(values, golds)):
                row = {"run": cell.run, "shots": cell.shots, "draw": draw, "question": index}
                if name == "log_probs":
                    row["gold"] = gold
                lines.append(json.dumps(row | {name: value}, ensure_ascii=False))
    return lines
