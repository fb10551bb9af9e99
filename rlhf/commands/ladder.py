"""`rlhf ladder FOLDER ...`: every rung from n-gram to ChatGPT side by side: numbers, answers and a picture.

    rlhf ladder runs/ladder runs/demo --prompts runs/demo/data/heldout.jsonl --reward_functions rlhf.recipes.rewards:on_topic

`make ladder` trains the rungs and calls this. Writes ladder.json, ladder.md and ladder.png. docs/ladder.md tells the road.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from rlhf.commands.predict import table
from rlhf.commands.report import (
    add_reward_arguments,
    check_limit,
    load_rewards,
    output_folder,
    read_file,
)
from rlhf.comparison.compare import ReportSettings, choose_samples
from rlhf.comparison.ladder import (
    Rung,
    draw,
    find_rungs,
    fitting_rows,
    ladder_json,
    ladder_markdown,
    measure_rung,
    notes,
    shown_prompts,
    table_rows,
)
from rlhf.completions.score import WeightedSum
from rlhf.runs.folders import LADDER
from rlhf.runs.replacement import replacement

PICTURE, PAGE = "ladder.png", "ladder.md"


def main(args: argparse.Namespace) -> int:
    check_limit(args)
    folders = [Path(folder) for folder in args.folders]
    output = output_folder(args.output or folders[0])
    rungs = find_rungs(folders)
    rows = []
    if args.prompts:
        kinds = ("prompt_completion", "prompt")
        rows = read_file(args.prompts, kinds, skip_bad=args.skip_bad, limit=args.limit).rows
    rewards = load_rewards(args)
    settings = ReportSettings(
        seed=args.seed,
        temperature=args.temperature,
        max_completion_length=args.max_completion_length,
        samples=args.samples,
    )
    if rows:
        rows = measure(rungs, rows, settings, rewards)
    prompts = shown_prompts(rows, choose_samples(len(rows), settings))
    output.mkdir(parents=True, exist_ok=True)
    with replacement(output) as temporary:
        has_picture = draw(rungs, temporary / PICTURE)
        page = ladder_markdown(rungs, prompts, PICTURE if has_picture else None)
        (temporary / PAGE).write_text(page, encoding="utf-8")
        content = ladder_json(rungs, prompts, asdict(settings) | {"prompts": len(rows)})
        (temporary / LADDER).write_text(content, encoding="utf-8")
    cells = table_rows(rungs)
    print(table(list(cells[0]), cells))
    for note in notes(rungs):
        print(note)
    print(f"{output}: {LADDER}, {PAGE}{', ' + PICTURE if has_picture else ''}")
    return 0


def measure(
    rungs: list[Rung], rows: list[dict], settings: ReportSettings, rewards: WeightedSum | None
) -> list[dict]:
    """Let every rung answer the rows. Returns those that fit all rungs, which were answered."""
    fit = fitting_rows(rungs, rows, settings)
    if len(fit) < len(rows):
        print(f"{len(rows) - len(fit)} of {len(rows)} prompts are too long and were dropped")
    shown = choose_samples(len(fit), settings)
    for rung in rungs:
        print(f"{rung.name}: answers {len(fit)} prompts", flush=True)
        measure_rung(rung, fit, settings=settings, rewards=rewards, shown=shown)
    return fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="runs, or folders of runs; others are ignored")
    add(
        "--prompts",
        metavar="FILE",
        help="held-out prompts that every rung answers; without it there are no answers",
    )
    add_reward_arguments(parser)
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
    add("--limit", type=int, metavar="N", help="use only the first N prompts")
    add("--skip_bad", action="store_true", help="drop bad rows, and count them")
