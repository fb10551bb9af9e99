"""`rlhf ladder FOLDER ...`: every rung from n-gram to ChatGPT side by side: numbers, answers and a picture.

    rlhf ladder runs/ladder runs/demo --prompts runs/demo/data/heldout.jsonl --reward_functions rlhf.recipes.rewards:on_topic

`make ladder` trains the rungs and calls this. Writes ladder.json, ladder.md and ladder.png. docs/ladder.md tells the road.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from rlhf.commands.report import load_rewards, output_folder, read_file
from rlhf.comparison.compare import ReportSettings, choose_samples
from rlhf.comparison.ladder import (
    draw,
    find_rungs,
    ladder_json,
    ladder_markdown,
    measure_rung,
    shown_prompts,
    table_rows,
)
from rlhf.errors import UserError
from rlhf.runs.folders import LADDER
from rlhf.runs.replacement import replacement

PICTURE, PAGE = "ladder.png", "ladder.md"


def main(args: argparse.Namespace) -> int:
    folders = [Path(folder) for folder in args.folders]
    output = output_folder(args.output or folders[0])
    rungs = find_rungs(folders)
    rows = read_file(
        args.prompts, ("prompt_completion", "prompt"), skip_bad=args.skip_bad, limit=args.limit
    ).rows
    rewards = load_rewards(args)
    settings = ReportSettings(
        seed=args.seed,
        temperature=args.temperature,
        max_completion_length=args.max_completion_length,
        samples=args.samples,
    )
    shown = choose_samples(len(rows), settings)
    for rung in rungs:
        print(f"{rung.name}: answers {len(rows)} prompts", flush=True)
        measure_rung(rung, rows, settings=settings, rewards=rewards, shown=shown)
    prompts = shown_prompts(rows, shown)
    output.mkdir(parents=True, exist_ok=True)
    with replacement(output) as temporary:
        has_picture = draw(rungs, temporary / PICTURE)
        page = ladder_markdown(rungs, prompts, PICTURE if has_picture else None)
        (temporary / PAGE).write_text(page, encoding="utf-8")
        content = ladder_json(rungs, prompts, asdict(settings) | {"prompts": len(rows)})
        (temporary / LADDER).write_text(content, encoding="utf-8")
    print(terminal_table(*table_rows(rungs)))
    print(f"{output}: {LADDER}, {PAGE}{', ' + PICTURE if has_picture else ''}")
    return 0


def terminal_table(header: list[str], rows: list[list[str]]) -> str:
    """The table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = Table()
    for i, title in enumerate(header):
        shown.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    console = Console(width=max(120, min(140, Console().width)))
    with console.capture() as capture:
        console.print(shown, markup=False)
    return capture.get()


def limit(text: str) -> int:
    number = int(text)
    if number < 1:
        raise UserError(f"--limit {text}: must be at least 1")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs; others are ignored")
    add("--prompts", required=True, metavar="FILE", help="held-out prompts that every rung answers")
    add(
        "--reward_model", nargs="+", default=[], metavar="RUN", help="reward models for the answers"
    )
    add(
        "--reward_functions",
        nargs="+",
        default=[],
        metavar="MODULE:FUNCTION",
        help="Python functions that score the answers",
    )
    add("--reward_weights", nargs="+", type=float, metavar="W", help="of the total score [1 each]")
    add(
        "--output",
        metavar="FOLDER",
        help="for ladder.json, ladder.md and ladder.png; default: the first FOLDER",
    )
    add(
        "--samples",
        type=int,
        default=3,
        metavar="N",
        help="prompts whose answers are shown [%(default)s]",
    )
    add("--seed", type=int, default=0, help="sampling seed [%(default)s]")
    add("--temperature", type=float, default=0.5, help="of sampling [%(default)s]")
    add("--max_completion_length", type=int, default=32, help="in tokens [%(default)s]")
    add("--limit", type=limit, metavar="N", help="use only the first N prompts")
    add("--skip_bad", action="store_true", help="drop bad rows, and count them")
