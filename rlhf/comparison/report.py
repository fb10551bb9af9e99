"""The report: base / SFT / PPO side by side as a table, Markdown, JSON and plots.

    python -m rlhf report runs/base runs/sft runs/ppo --prompts held_out.jsonl --reward_model runs/reward

The numbers are made in comparison.py and explained in docs/metrics.md; here they are shown.
"""

import json
from dataclasses import asdict
from pathlib import Path

from rlhf.comparison.compare import (
    Column,
    Estimate,
    Report,
)
from rlhf.markdown import markdown_table
from rlhf.runs.record import read_jsonl

UNITS = {"kl": "nats", "completion_length": "tokens"}
# Okabe and Ito: told apart with every kind of colour vision; markers and line styles tell them apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")
WIDTH, CELL = (120, 140), 300  # columns of the terminal table, least and most; characters of a cell


# ---- tables ------------------------------------------------------------------------------------------------------


def metric_names(report: Report) -> list[str]:
    """Metrics that any run has, in the order of the tables."""
    order = ("score", "win_rate", "kl", "completion_length", "eos_rate", "distinct", "perplexity")
    names = list(dict.fromkeys(name for column in report.columns for name in column.metrics))
    return sorted(
        names,
        key=lambda name: next(place for place, start in enumerate(order) if name.startswith(start)),
    )


def metric_rows(report: Report) -> list[list[str]]:
    """One row per metric: its name and unit, the number of every column with its interval, n."""
    rows = []
    for name in metric_names(report):
        found = [column.metrics.get(name) for column in report.columns]
        percent = in_per_cent(report, name)
        unit = "%" if percent else UNITS.get(name)
        counts = sorted({number.n for number in found if number})
        rows.append(
            [
                f"{name} ({unit})" if unit else name,
                *(shown(number, percent) if number else "-" for number in found),
                str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}",
            ]
        )
    return rows


def in_per_cent(report: Report, name: str) -> bool:
    return name in report.rates or name.startswith("win_rate")


def shown(number: Estimate, percent: bool) -> str:
    """mean [low, high], in per cent for rates."""

    def text(value: float) -> str:
        return (
            f"{100 * value:.1f}"
            if percent
            else f"{value:.4g}"
            if abs(value) >= 1
            else f"{value:.3f}"
        )

    return text(number.mean) + (
        f" [{text(number.low)}, {text(number.high)}]" if number.low is not None else ""
    )


def sample_rows(report: Report) -> list[list[str]]:
    """One row per shown prompt: the prompt, and what every column answered."""
    return [
        [report.prompts[i], *(column.completions[i] for column in report.columns)]
        for i in report.samples
    ]


def facts(report: Report) -> list[str]:
    """What a reader needs to know beside the numbers."""
    s = report.settings
    lines = [
        f"One completion per prompt and run, the same {s['prompts']} prompts and random numbers (seed {s['seed']}); "
        f"temperature {s['temperature']:g}, at most {s['max_completion_length']} tokens. 95 % intervals over prompts."
    ]
    if s["reference"]:
        lines.append(f"KL and win rates are against {s['reference']}; ties count half.")
    return lines + report.notes


def to_table(report: Report) -> str:
    """The metrics and the samples as tables for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def cell(text: str) -> Text:
        text = text if len(text) <= CELL else text[: CELL - 1] + "…"
        return Text(
            "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)
        )

    console = Console(width=max(WIDTH[0], min(WIDTH[1], Console().width)))
    titles = [column.title for column in report.columns]
    numbers = Table(title="metrics")
    for name in ("metric", *titles, "n"):
        numbers.add_column(
            Text(name), justify="left" if name == "metric" else "right", no_wrap=name == "metric"
        )
    for row in metric_rows(report):
        numbers.add_row(*map(cell, row))
    examples = Table(title="samples", show_lines=True)
    for name in ("prompt", *titles):
        examples.add_column(Text(name), ratio=1, overflow="fold")
    for row in sample_rows(report):
        examples.add_row(*map(cell, row))
    with console.capture() as capture:
        console.print(numbers)
        for line in facts(report):
            console.print(Text(line))
        if report.samples:
            console.print(examples)
    return capture.get()


def to_markdown(report: Report, pictures: list[Path] = ()) -> str:
    """The same as Markdown, with the plots; any text of a model stands as it is, not as markup."""
    titles = [column.title for column in report.columns]
    parts = [
        "# Report: " + ", ".join(dict.fromkeys(f"{c.label} (`{c.path}`)" for c in report.columns)),
        markdown_table(["metric", *titles, "n"], metric_rows(report)),
        *facts(report),
        *(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures),
    ]
    if report.samples:
        parts += ["## Samples", "Drawn by the seed, not picked."]
        parts.append(markdown_table(["prompt", *titles], sample_rows(report)))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """Everything but the completions that are not shown; values hold one number per prompt, for paired tests."""
    content = {
        "settings": report.settings,
        "rates": [name for name in metric_names(report) if in_per_cent(report, name)],
        "notes": report.notes,
        "runs": [
            {
                "label": column.label,
                "path": column.path,
                "decoding": column.decoding,
                "metrics": {name: asdict(number) for name, number in column.metrics.items()},
                "values": column.values,
            }
            for column in report.columns
        ],
        "samples": [
            {
                "prompt": report.prompts[i],
                "completions": {column.title: column.completions[i] for column in report.columns},
                "scores": {
                    c.title: {name: c.values[name][i] for name in report.rewards}
                    for c in report.columns
                },
            }
            for i in report.samples
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- plots -------------------------------------------------------------------------------------------------------


def plot(report: Report, folder: str | Path) -> list[Path]:
    """learning_curves.png, score_kl.png and scores.png in `folder`; each only where there is something to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = []
    for name, draw in (
        ("learning_curves", draw_curves),
        ("score_kl", draw_score_kl),
        ("scores", draw_scores),
    ):
        figure = draw(report, plt)
        if figure is not None:
            found.append(Path(folder) / f"{name}.png")
            figure.savefig(found[-1], dpi=110)
            plt.close(figure)
    return found


def points(path: str, x: str, y: str) -> list[tuple[float, float]]:
    """(row[x], row[y]) of every line of a run's metrics.jsonl that has both as numbers."""
    pairs = [(row.get(x), row.get(y)) for row in read_jsonl(Path(path, "metrics.jsonl"))]
    return [pair for pair in pairs if all(isinstance(value, int | float) for value in pair)]


def sampled(report: Report) -> list[Column]:
    return [column for column in report.columns if column.decoding == "sampled"]


def draw_curves(report: Report, plt):
    """Per run what it was trained on: its score where it has one, else its loss."""
    panels = []
    for column in sampled(report):
        name = "score" if points(column.path, "step", "score") else "loss"
        lines = {"training": points(column.path, "step", name)}
        lines["held out"] = points(column.path, "step", f"eval_{name}")
        if any(lines.values()):
            panels.append((column.label, name, lines))
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (label, name, lines) in zip(axes.flat, panels, strict=True):
        for place, (title, line) in enumerate(lines.items()):
            if line:
                style = {
                    "color": COLOURS[place],
                    "ls": LINES[place],
                    "marker": MARKERS[place],
                    "ms": 3,
                }
                axis.plot(*zip(*line, strict=True), label=title, **style)
        axis.set(
            title=label,
            xlabel="optimiser step",
            ylabel="loss (nats per token)" if name == "loss" else "score",
        )
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def draw_score_kl(report: Report, plt):
    """Score against KL: the last run's rollouts while it trained, and its own and its reference's point with intervals.

    Runs before the reference are left out: a base model is hundreds of nats away and would squeeze the rest together.
    """
    measured = [c for c in sampled(report)[-2:] if "kl" in c.metrics]
    if not report.rewards or not measured:
        return None
    name = next(
        name for name in report.rewards if name != "score"
    )  # rollouts log it by this name too
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    if path := points(measured[-1].path, "kl", name):
        axis.plot(*zip(*path, strict=True), color="0.8", lw=1, zorder=1)
        dots = axis.scatter(
            *zip(*path, strict=True), c=range(1, len(path) + 1), cmap="cividis", s=14, zorder=2
        )
        figure.colorbar(
            dots, label=f"rollout of {measured[-1].label}", ticks=sorted({1, len(path)})
        )
    for place, column in enumerate(measured):
        x, y = column.metrics["kl"], column.metrics[name]
        bars = [None if e.low is None else [[e.mean - e.low], [e.high - e.mean]] for e in (x, y)]
        style = {
            "fmt": MARKERS[place % 7],
            "color": COLOURS[place % 7],
            "ms": 8,
            "capsize": 3,
            "zorder": 3,
        }
        axis.errorbar([x.mean], [y.mean], xerr=bars[0], yerr=bars[1], label=column.label, **style)
    axis.set(xlabel=f"KL(run || {report.settings['reference']}) (nats per completion)", ylabel=name)
    axis.grid(alpha=0.3)
    axis.legend(title="held-out prompts")
    return figure


def draw_scores(report: Report, plt):
    """How each score is distributed over the prompts, per run; rates as bars with their intervals."""
    if not report.rewards:
        return None
    names, columns = report.rewards, sampled(report)
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=True):
        everything = [value for column in columns for value in column.values[name]]
        for place, column in enumerate(columns):
            colour = COLOURS[place % 7]
            if name in report.rates:
                number = column.metrics[name]
                bars = [[100 * (number.mean - number.low)], [100 * (number.high - number.mean)]]
                axis.bar([column.label], [100 * number.mean], yerr=bars, color=colour, capsize=4)
            else:
                style = {
                    "histtype": "step",
                    "color": colour,
                    "ls": LINES[place % 4],
                    "lw": 1.8,
                    "label": column.label,
                }
                axis.hist(
                    column.values[name], bins=20, range=(min(everything), max(everything)), **style
                )
        if name in report.rates:
            axis.set(title=name, ylabel="completions (%)", ylim=(0, 105))
        else:
            axis.set(title=name, xlabel="score of a completion", ylabel="completions")
            axis.legend()
    return figure


# ---- command -----------------------------------------------------------------------------------------------------
