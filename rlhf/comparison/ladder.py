"""The ladder: language models of every age that learned the same text, side by side.

Each rung answers the same prompts, one after another, so that only one model is in memory. Bits per byte on held-out text
come from the record of its run, where every model has the same unit (tasks.pretraining.bits_per_byte). Rungs that learned
from conversations or from rewards have none: their text is another.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rlhf.baselines.table import BASELINES
from rlhf.comparison.compare import (
    Estimate,
    ReportSettings,
    add_estimates,
    fitting,
    generate,
    load_runs,
    make_column,
    rate_names,
)
from rlhf.comparison.report import COLOURS, MARKERS, estimate_text, logged_points
from rlhf.completions.score import WeightedSum
from rlhf.data.chat import as_text
from rlhf.errors import UserError
from rlhf.markdown import markdown_table
from rlhf.runs.plots import saved_figure
from rlhf.runs.record import DONE, RECORD, RunRecord, model_kind, read_object

TIMED_PROMPTS = 32  # for the tokens per second of decoding
# Steps of the road that transformers or a recipe brings: year, paper. The models before are in BASELINES.
TRANSFORMER = (2018, "Radford et al., Improving Language Understanding by Generative Pre-Training")
RECIPES = {
    "sft": (2022, "Ouyang et al., Training language models to follow instructions, step 1"),
    "dpo": (2023, "Rafailov et al., Direct Preference Optimization"),
    "kto": (2024, "Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization"),
    "ppo": (2022, "Ouyang et al., Training language models to follow instructions, step 3"),
}
ROAD = [*BASELINES, "a Transformer", *RECIPES]


@dataclass
class Rung:
    """One model of the ladder.

    name: of its folder. path: the folder.
    parameters: numbers that it has learned: weights, or counts of an n-gram.
    seconds: of its own run. The models that it starts from are rungs of their own.
    bits_per_byte: on held-out text, or None. held_out: tells that text from others.
    position: on the road. Rungs are shown in this order.
    curve: (seconds, bits per byte) of the evaluations while it trained.
    tokens_per_second: of decoding TIMED_PROMPTS prompts together; 0 where it answered none.
    rates: score -> Estimate, of the answers. per_cent: those that are shares.
    answers: to the prompts that are shown.
    """

    name: str
    path: str
    year: int
    paper: str
    parameters: int
    seconds: float
    bits_per_byte: float | None
    held_out: str
    position: int
    curve: list[tuple[float, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    rates: dict[str, Estimate] = field(default_factory=dict)
    per_cent: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def read_rung(folder: Path) -> Rung | None:
    """The rung of a finished run, without its answers; None for a run that answers nothing, such as a tokenizer's."""
    try:
        record = RunRecord.load(folder)
    except (OSError, ValueError):
        return None
    # A pretrained encoder continues no text.
    is_rung = record.recipe in ("pretrain", *RECIPES) and model_kind(folder) == "causal"
    if record.status != DONE or not is_rung:
        return None
    metrics = record.metrics
    # In the order of the road: the models before the Transformer, it and all others, then what is learned from people.
    step = record.recipe
    if step == "pretrain":
        step = read_object(folder / "config.json").get("model_type")
    position = ROAD.index(step) if step in ROAD else len(BASELINES)
    year, paper = RECIPES.get(step, TRANSFORMER)
    if step in BASELINES:
        year, paper = BASELINES[step].year, BASELINES[step].paper
    return Rung(
        folder.name,
        str(folder),
        year,
        paper,
        metrics.get("grams") or metrics.get("parameters") or 0,
        record.seconds,
        metrics.get("bits_per_byte"),
        held_out_text(record),
        position,
        curve(folder, record),
    )


def held_out_text(record: RunRecord) -> str:
    """The hash of the held-out file; where rows were split off, also what decides which."""
    hashes = [data["sha256"] for data in record.data]
    if record.config.get("eval_dataset_name"):
        return hashes[-1]
    return " ".join([*hashes, str(record.config.get("eval_fraction")), str(record.seed)])


def notes(rungs: list[Rung]) -> list[str]:
    """Sentences on what cannot be compared."""
    measured = [rung for rung in rungs if rung.bits_per_byte is not None]
    others = [rung.name for rung in measured if rung.held_out != measured[0].held_out]
    if not others:
        return []
    return [
        f"the bits per byte of {', '.join(others)} are of other held-out text than those of {measured[0].name}: "
        "they cannot be compared"
    ]


def curve(folder: Path, record: RunRecord) -> list[tuple[float, float]]:
    """(seconds, bits per byte) of the evaluations of a pretraining run. Seconds are shared evenly among its steps."""
    final, loss = record.metrics.get("bits_per_byte"), record.metrics.get("eval_loss")
    if not final or not loss or not record.steps:
        return []
    # The loss is per token, of the same tokens and bytes each time.
    per_step, per_nat = record.seconds / record.steps, final / loss
    points = logged_points(folder, "step", "eval_loss")
    return [(step * per_step, nats * per_nat) for step, nats in points]


def find_rungs(folders: Sequence[Path]) -> list[Rung]:
    """The rungs among runs and folders of runs, in the order of the road. UserError where there is none."""
    rungs = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        runs = [folder]
        if not (folder / RECORD).is_file():
            runs = sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
        for run in runs:
            rung = read_rung(run)
            if rung is not None:
                rungs[run.resolve()] = rung
    if not rungs:
        raise UserError(
            f"{', '.join(map(str, folders))}: no finished run of pretrain, sft, dpo, kto or ppo: `make ladder` trains them"
        )
    return sorted(rungs.values(), key=lambda rung: (rung.position, rung.name))


def fitting_rows(rungs: list[Rung], rows: list[dict], settings: ReportSettings) -> list[dict]:
    """The rows whose prompt leaves room for an answer in every rung, so that all rungs answer the same rows."""
    for rung in rungs:
        rows = fitting(
            rows, load_runs([rung.path], settings.precision), settings.max_completion_length
        )
    return rows


def measure_rung(
    rung: Rung,
    rows: list[dict],
    *,
    settings: ReportSettings,
    rewards: WeightedSum | None,
    shown: Sequence[int],
) -> None:
    """Let a rung answer, and fill in its rates, answers and speed. rows: with a "prompt" and columns for the rewards.

    They fit every rung, see fitting_rows.
    shown: indices of the rows whose answers are kept.
    """
    (run,) = load_runs([rung.path], settings.precision)
    if not rung.parameters:
        rung.parameters = sum(weight.numel() for weight in run.model.parameters())
    column = make_column(run, rows, "sampled", settings, rewards, None)
    scores = [name for name in column.values if name.startswith("score")]
    shares = rate_names([column], scores)
    add_estimates([column], shares)
    rung.per_cent = [name for name in scores if name in shares]
    rung.rates = {name: column.metrics[name] for name in scores}
    rung.answers = [column.completions[i] for i in shown]
    began = time.perf_counter()
    timed = generate(
        run,
        rows[:TIMED_PROMPTS],
        seed=settings.seed,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_length,
    )
    rung.tokens_per_second = sum(map(len, timed.ids)) / (time.perf_counter() - began)


# ---- what is shown ------------------------------------------------------------------------------------------------


def table_rows(rungs: list[Rung]) -> list[dict[str, str]]:
    """Title -> cell, for each rung."""
    rows = []
    for rung in rungs:
        bits = "-" if rung.bits_per_byte is None else f"{rung.bits_per_byte:.3f}"
        row = {
            "rung": rung.name,
            "year": str(rung.year),
            "learned numbers": f"{rung.parameters:,}",
            "seconds": f"{rung.seconds:.0f}",
            "tokens/s": f"{rung.tokens_per_second:.0f}" if rung.tokens_per_second else "-",
            "bits per byte": bits,
        }
        for name, estimate in rung.rates.items():
            title = name.removeprefix("score_").replace("_", " ")
            percent = name in rung.per_cent
            row[f"{title}, %" if percent else title] = estimate_text(estimate, percent)
        rows.append(row)
    return rows


def ladder_markdown(rungs: list[Rung], prompts: list[str], picture: str | None) -> str:
    """The ladder as a page."""
    rows = table_rows(rungs)
    parts = ["# The ladder", markdown_table(list(rows[0]), [row.values() for row in rows])]
    parts += notes(rungs)
    if picture:
        parts.append(f"![bits per byte against seconds]({picture})")
    if prompts:
        parts += ["## Answers", "To prompts drawn by the seed, not picked."]
        answers = [[f"{rung.name} ({rung.year})", *rung.answers] for rung in rungs]
        parts.append(markdown_table(["rung", *prompts], answers))
    parts += ["## Papers", "\n".join(f"- {rung.name}: {rung.paper}, {rung.year}" for rung in rungs)]
    return "\n\n".join(parts) + "\n"


def draw(rungs: list[Rung], path: Path) -> bool:
    """Draw bits per byte against seconds, a curve per rung that was trained in steps. False where none has bits per byte."""
    measured = [rung for rung in rungs if rung.bits_per_byte is not None]
    if not measured:
        return False
    trained = [rung for rung in measured if rung.curve]
    with saved_figure(path, figsize=(7.5, 5)) as (_, axis):
        for i, rung in enumerate(trained):
            options = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            label = f"{rung.name}: {rung.bits_per_byte:.3f}"
            axis.plot(*zip(*rung.curve, strict=True), markevery=[-1], label=label, **options)
        for rung in measured:
            if rung.curve:
                continue
            # the order of an n-gram as its mark: their points are near each other
            options = {"color": "black", "marker": f"${rung.name[0]}$", "linestyle": "none"}
            label = f"{rung.name}: {rung.bits_per_byte:.3f}"
            axis.plot(rung.seconds, rung.bits_per_byte, label=label, **options)
        axis.set_xscale("log")
        axis.set_xlabel("seconds of training")
        axis.set_ylabel("bits per byte, held-out text (lower is better)")
        axis.grid(alpha=0.3)
        axis.legend()
    return True


def ladder_json(rungs: list[Rung], prompts: list[str], settings: dict) -> str:
    """Everything that the page and the app show."""
    content = {"settings": settings, "prompts": prompts, "rungs": [asdict(rung) for rung in rungs]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def shown_prompts(rows: list[dict], shown: Sequence[int]) -> list[str]:
    return [as_text(rows[i]["prompt"]) for i in shown]
