"""Show a comparison of runs as a table for the terminal, as Markdown, as JSON and as plots.

rlhf.comparison.compare makes the numbers, docs/metrics.md explains them.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rlhf.comparison.compare import Column, Estimate, Report
from rlhf.markdown import markdown_table
from rlhf.runs.plots import saved_figure
from rlhf.runs.record import read_jsonl

# The order of the metrics in tables, by the beginning of their names.
METRIC_ORDER = (
    "score",
    "win_rate",
    "kl",
    "completion_length",
    "eos_rate",
    "distinct",
    "perplexity",
)
UNITS = {"kl": "nats", "completion_length": "tokens"}
# Okabe and Ito's palette can be read with every kind of colour vision. Markers and line styles help in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":")
MIN_WIDTH, MAX_WIDTH = 120, 140  # columns of the terminal table
CELL = 300  # characters in a cell of the terminal table


# ---- tables ------------------------------------------------------------------------------------------------------


def to_table(report: Report) -> str:
    """The metrics and the samples as tables for a terminal."""
    # rich is slow to import, and only this function needs it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    titles = [column.title for column in report.columns]
    numbers = Table(title="metrics")
    numbers.add_column("metric", justify="left", no_wrap=True)
    for name in (*titles, "n"):
        numbers.add_column(Text(name), justify="right")
    for row in metric_rows(report):
        numbers.add_row(*[Text(terminal_text(cell)) for cell in row])

    examples = Table(title="samples", show_lines=True)
    for name in ("prompt", *titles):
        examples.add_column(Text(name), ratio=1, overflow="fold")
    for row in sample_rows(report):
        examples.add_row(*[Text(terminal_text(cell)) for cell in row])

    # A narrow terminal wraps the lines. A narrower table would fold every number.
    width = min(MAX_WIDTH, Console().width)
    console = Console(width=max(MIN_WIDTH, width))
    with console.capture() as capture:
        console.print(numbers)
        for line in explanations(report):
            console.print(Text(line))
        if report.samples:
            console.print(examples)
    return capture.get()


def terminal_text(text: str) -> str:
    """Shortened to one cell, without control codes: a model may generate escape sequences."""
    if len(text) > CELL:
        text = text[: CELL - 1] + "…"
    characters = []
    for character in text:
        if character.isprintable() or character == "\n":
            characters.append(character)
        else:
            characters.append("\ufffd")
    return "".join(characters)


def to_markdown(report: Report, pictures: Sequence[Path] = ()) -> str:
    """The same tables as Markdown, with the plots. Text from a model is escaped, so it is never read as markup."""
    titles = [column.title for column in report.columns]
    # A run has two columns if it also answered greedily, but is named once.
    names = dict.fromkeys(f"{column.label} (`{column.path}`)" for column in report.columns)
    parts = [
        "# Report: " + ", ".join(names),
        markdown_table(["metric", *titles, "n"], metric_rows(report)),
    ]
    parts += explanations(report)
    for path in pictures:
        # Relative paths: report.md is written next to the plots.
        parts.append(f"![{path.stem.replace('_', ' ')}]({path.name})")
    if report.samples:
        parts += ["## Samples", "Drawn by the seed, not picked."]
        parts.append(markdown_table(["prompt", *titles], sample_rows(report)))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """Everything except the completions that are not shown. `values` holds one number per prompt, for paired tests."""
    rates = [name for name in metric_names(report) if in_per_cent(report, name)]
    content = {
        "settings": report.settings,
        "rates": rates,
        "notes": report.notes,
        "runs": [column_content(column) for column in report.columns],
        "samples": [sample_content(report, i) for i in report.samples],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def column_content(column: Column) -> dict:
    return {
        "label": column.label,
        "path": column.path,
        "decoding": column.decoding,
        "metrics": {name: asdict(estimate) for name, estimate in column.metrics.items()},
        "values": column.values,
    }


def sample_content(report: Report, i: int) -> dict:
    """Prompt i with the completion and the scores of every column."""
    completions = {}
    scores = {}
    for column in report.columns:
        # The title, not the label: a run may have a sampled and a greedy column.
        completions[column.title] = column.completions[i]
        scores[column.title] = {name: column.values[name][i] for name in report.rewards}
    return {"prompt": report.prompts[i], "completions": completions, "scores": scores}


def metric_names(report: Report) -> list[str]:
    """Metrics that any run has, in the order of the tables."""
    names = {}  # a dict keeps the order within one kind of metric, which a set would not
    for column in report.columns:
        names |= dict.fromkeys(column.metrics)
    return sorted(names, key=metric_position)


def metric_position(name: str) -> int:
    for index, beginning in enumerate(METRIC_ORDER):
        if name.startswith(beginning):
            return index
    raise ValueError(f"{name}: not in METRIC_ORDER")


def metric_rows(report: Report) -> list[list[str]]:
    """One row per metric: its name and unit, the number of every column with its interval, n."""
    rows = []
    for name in metric_names(report):
        percent = in_per_cent(report, name)
        unit = "%" if percent else UNITS.get(name)
        row = [f"{name} ({unit})" if unit else name]
        counts = set()
        for column in report.columns:
            estimate = column.metrics.get(name)
            if estimate is None:
                row.append("-")
                continue
            row.append(estimate_text(estimate, percent))
            counts.add(estimate.n)
        # Perplexity may be over fewer texts for a run with a shorter context.
        if len(counts) == 1:
            row.append(str(counts.pop()))
        else:
            row.append(f"{min(counts)}-{max(counts)}")
        rows.append(row)
    return rows


def in_per_cent(report: Report, name: str) -> bool:
    # A win rate with ties is not in report.rates, because its interval is that of a mean.
    return name in report.rates or name.startswith("win_rate")


def estimate_text(estimate: Estimate, percent: bool) -> str:
    """mean [low, high], in per cent for rates."""
    text = number_text(estimate.mean, percent)
    if estimate.low is None:  # distinct_n, or a single prompt
        return text
    return f"{text} [{number_text(estimate.low, percent)}, {number_text(estimate.high, percent)}]"


def number_text(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.1f}"
    if abs(value) >= 1:
        return f"{value:.4g}"
    return f"{value:.3f}"  # .4g would show a KL of almost 0 as 1.234e-07


def sample_rows(report: Report) -> list[list[str]]:
    """One row per shown prompt: the prompt, and the completion of every column."""
    rows = []
    for i in report.samples:
        completions = [column.completions[i] for column in report.columns]
        rows.append([report.prompts[i], *completions])
    return rows


def explanations(report: Report) -> list[str]:
    """Sentences that say how the numbers were made, and the notes."""
    settings = report.settings
    lines = [
        f"One completion per prompt and run, the same {settings['prompts']} prompts and random numbers "
        f"(seed {settings['seed']}); temperature {settings['temperature']:g}, "
        f"at most {settings['max_completion_length']} tokens. 95 % intervals over prompts."
    ]
    if settings["reference"]:
        lines.append(f"KL and win rates are against {settings['reference']}; ties count half.")
    if "value_coef" in settings:
        lines.append(
            f"(values): the {settings['value_top_k']} likeliest tokens, re-ranked by the run's value model with the weight "
            f"{settings['value_coef']:g}."
        )
    return lines + report.notes


# ---- plots -------------------------------------------------------------------------------------------------------


def plot(report: Report, folder: str | Path) -> list[Path]:
    """Write learning_curves.png, score_kl.png and scores.png to `folder`, if there is something to draw."""
    drawings = {
        "learning_curves": draw_curves,
        "score_kl": draw_score_kl,
        "scores": draw_scores,
    }
    paths = []
    for name, draw in drawings.items():
        path = Path(folder) / f"{name}.png"
        if draw(report, path):
            paths.append(path)
    return paths


def draw_curves(report: Report, path: Path) -> bool:
    """One panel per run with the score it was trained on, or its loss if it has no score. False: nothing to draw."""
    panels = []
    for column in sampled_columns(report):
        # Policy-gradient runs log the score they maximise. Their loss says nothing about progress.
        name = "loss"
        if logged_points(column.path, "step", "score"):
            name = "score"
        curves = {
            "training": logged_points(column.path, "step", name),
            "held out": logged_points(column.path, "step", f"eval_{name}"),
        }
        if any(curves.values()):
            panels.append((column.label, name, curves))
    if not panels:  # plain checkpoints have no log
        return False
    with panel_row(path, len(panels)) as axes:
        for axis, panel in zip(axes, panels, strict=True):
            draw_curve_panel(axis, *panel)
    return True


def draw_curve_panel(axis, label: str, name: str, curves: dict[str, list]) -> None:
    for index, (title, points) in enumerate(curves.items()):
        if not points:  # the run was not evaluated while it trained
            continue
        steps, values = zip(*points, strict=True)
        axis.plot(
            steps,
            values,
            label=title,
            color=COLOURS[index],
            ls=LINES[index],
            marker=MARKERS[index],
            ms=3,
        )
    unit = " (nats per token)" if name == "loss" else ""
    axis.set(title=label, xlabel="optimiser step", ylabel=name + unit)
    axis.grid(alpha=0.3)
    axis.legend()


def draw_score_kl(report: Report, path: Path) -> bool:
    """Score against KL: the rollouts of the last run's training, and the final estimates of it and its reference.

    Earlier runs are not drawn: a base model is hundreds of nats away and would squeeze the rest together.
    """
    columns = [column for column in sampled_columns(report)[-2:] if "kl" in column.metrics]
    if not report.rewards or not columns:
        return False
    # The first reward, not the weighted sum: rollouts log it under the same name.
    name = next(name for name in report.rewards if name != "score")
    with saved_figure(path, figsize=(6, 4)) as (figure, axis):
        draw_rollouts(figure, axis, columns[-1], name)
        for index, column in enumerate(columns):
            kl, score = column.metrics["kl"], column.metrics[name]
            axis.errorbar(
                [kl.mean],
                [score.mean],
                xerr=error_bar(kl),
                yerr=error_bar(score),
                label=column.label,
                fmt=MARKERS[index % len(MARKERS)],
                color=COLOURS[index % len(COLOURS)],
                ms=8,
                capsize=3,
                zorder=3,  # above the rollouts
            )
        xlabel = f"KL(run || {report.settings['reference']}) (nats per completion)"
        axis.set(xlabel=xlabel, ylabel=name)
        axis.grid(alpha=0.3)
        axis.legend(title="held-out prompts")
    return True


def draw_rollouts(figure, axis, column: Column, name: str) -> None:
    """The path of the run through training: one dot per rollout, coloured by its number."""
    rollouts = logged_points(column.path, "kl", name)
    if not rollouts:
        return
    kls, scores = zip(*rollouts, strict=True)
    numbers = range(1, len(rollouts) + 1)
    axis.plot(kls, scores, color="0.8", lw=1, zorder=1)
    dots = axis.scatter(kls, scores, c=numbers, cmap="cividis", s=14, zorder=2)
    # Ticks at the first and last rollout only. A set, because there may be one rollout.
    ticks = sorted({1, len(rollouts)})
    figure.colorbar(dots, label=f"rollout of {column.label}", ticks=ticks)


def draw_scores(report: Report, path: Path) -> bool:
    """The distribution of each score over the prompts, per run. Rates are bars with their intervals."""
    if not report.rewards:
        return False
    columns = sampled_columns(report)
    with panel_row(path, len(report.rewards)) as axes:
        for axis, name in zip(axes, report.rewards, strict=True):
            # A histogram of zeros and ones would be two bars that hide the interval.
            if name in report.rates:
                draw_rates(axis, name, columns)
            else:
                draw_histograms(axis, name, columns)
    return True


def draw_rates(axis, name: str, columns: list[Column]) -> None:
    for index, column in enumerate(columns):
        rate = column.metrics[name]
        axis.bar(
            [column.label],
            [100 * rate.mean],
            yerr=[[100 * (rate.mean - rate.low)], [100 * (rate.high - rate.mean)]],
            color=COLOURS[index % len(COLOURS)],
            capsize=4,
        )
    axis.set(title=name, ylabel="completions (%)", ylim=(0, 105))  # room for the caps at 100 %


def draw_histograms(axis, name: str, columns: list[Column]) -> None:
    values = []
    for column in columns:
        values += column.values[name]
    bounds = (min(values), max(values))  # the same bins for every run
    for index, column in enumerate(columns):
        axis.hist(
            column.values[name],
            bins=20,
            range=bounds,
            histtype="step",  # outlines stay visible where runs overlap
            color=COLOURS[index % len(COLOURS)],
            ls=LINES[index % len(LINES)],
            lw=1.8,
            label=column.label,
        )
    axis.set(title=name, xlabel="score of a completion", ylabel="completions")
    axis.legend()


def sampled_columns(report: Report) -> list[Column]:
    return [column for column in report.columns if column.decoding == "sampled"]


def logged_points(path: str, x: str, y: str) -> list[tuple[float, float]]:
    """(row[x], row[y]) for every line of a run's metrics.jsonl where both are numbers."""
    points = []
    for row in read_jsonl(Path(path, "metrics.jsonl")):
        point = (row.get(x), row.get(y))
        # Training and evaluation log separate lines, so most lines lack one of the two.
        if all(isinstance(value, int | float) for value in point):
            points.append(point)
    return points


@contextmanager
def panel_row(path: Path, count: int) -> Iterator[list]:
    """The axes of `count` panels in one row; the figure is saved at the end of the `with` block."""
    # squeeze=False: plt.subplots would return a bare axis for one panel.
    figsize = (4.2 * count, 3.2)
    with saved_figure(path, 1, count, figsize=figsize, squeeze=False) as (_, axes):
        yield list(axes.flat)


def error_bar(estimate: Estimate) -> list[list[float]] | None:
    """Distances below and above the mean in matplotlib's form; None if there is no interval."""
    if estimate.low is None:
        return None
    return [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
