"""`rlhf report`: compare runs on the same prompts, in the terminal and as files."""

import argparse
from pathlib import Path
from types import SimpleNamespace

from rlhf.comparison.compare import build_report
from rlhf.comparison.report import (
    plot,
    to_json,
    to_markdown,
    to_table,
)
from rlhf.completions.score import RewardModelScorer, WeightedSum, load_scorers
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "runs", nargs="+", metavar="RUN", help="run folders or Hub ids, in the order base, SFT, PPO"
    )
    add(
        "--prompts",
        metavar="FILE",
        help="held-out prompts; default: those the last run was evaluated on",
    )
    add(
        "--reward_model",
        nargs="+",
        default=[],
        metavar="RUN",
        help="reward models that score the completions",
    )
    add(
        "--reward_functions",
        nargs="+",
        default=[],
        metavar="MODULE:FUNCTION",
        help="Python functions that score them",
    )
    add(
        "--reward_weights",
        nargs="+",
        type=float,
        metavar="W",
        help="for the total, reward models first [1 each]",
    )
    add(
        "--text",
        metavar="FILE",
        help="plain text for perplexity; default: the prompts' own completions",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="for report.json, report.md and plots; default: <last RUN>/report",
    )
    add(
        "--samples",
        type=int,
        default=10,
        metavar="N",
        help="prompts shown side by side, drawn by the seed [10]",
    )
    add("--seed", type=int, default=0, help="of sampling [0]")
    add("--temperature", type=float, default=1.0, help="of sampling [1.0]")
    add("--max_completion_length", type=int, help="in tokens; default: that of the last run, or 64")
    add("--greedy", action="store_true", help="greedy completions beside the sampled ones")
    add("--limit", type=int, metavar="N", help="use the first N prompts only")


def held_out_rows(args: argparse.Namespace, record: RunRecord | None) -> list[dict]:
    """The rows of --prompts, or the evaluation rows that the last run's own settings lead to."""
    kinds = ("prompt_completion", "prompt")
    if args.prompts:
        return load_rows(args.prompts, kinds=kinds, limit=args.limit).rows
    if record is None or not record.config.get("dataset_name"):
        raise UserError(
            f"{args.runs[-1]} does not say which prompts were held out: give --prompts FILE"
        )
    from rlhf.runs.settings import DataSettings

    settings = vars(DataSettings()) | record.config
    rows = load_splits(SimpleNamespace(**settings), kinds, seed=record.seed).eval[: args.limit]
    if not rows:
        raise UserError(f"{args.runs[-1]} held no prompts out: give --prompts FILE")
    return rows


def main(args: argparse.Namespace) -> int:
    record = RunRecord.load(args.runs[-1]) if Path(args.runs[-1], RECORD).is_file() else None
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit} must be at least 1")
    length = (
        args.max_completion_length
        or (record.config.get("max_completion_length") if record else None)
        or 64
    )
    rows = held_out_rows(args, record)
    scorers = load_scorers(args.reward_model, args.reward_functions)
    for scorer in scorers.values():
        if isinstance(scorer, RewardModelScorer):
            scorer.model.to(best_device())
    report = build_report(
        args.runs,
        rows,
        rewards=WeightedSum(scorers, args.reward_weights) if scorers else None,
        text_rows=load_rows(args.text, kinds=("text",)).rows if args.text else None,
        samples=args.samples,
        seed=args.seed,
        temperature=args.temperature,
        max_completion_length=length,
        greedy=args.greedy,
    )
    folder = Path(args.output or Path(args.runs[-1], "report"))
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plot(report, folder)
    (folder / "report.json").write_text(to_json(report), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(report, pictures), encoding="utf-8")
    print(to_table(report))
    print(f"{folder}: report.json, report.md, {', '.join(path.name for path in pictures)}")
    return 0
