"""`python -m rlhf report`: compare runs on the same prompts, in the terminal and as files.

    python -m rlhf report runs/base runs/sft runs/ppo --prompts held_out.jsonl --reward_model runs/reward

Writes report.json, report.md and plots. docs/metrics.md explains the numbers.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from rlhf.commands.guiding import check_is_finite_from_0
from rlhf.comparison.compare import Report, ReportSettings, build_report
from rlhf.comparison.report import plot, to_json, to_markdown, to_table
from rlhf.completions.functions import CallLimits
from rlhf.completions.score import RewardModelScorer, WeightedSum, load_scorers
from rlhf.data.load import Loaded, load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.snapshots import is_local_model, model_folder, split_revision
from rlhf.models.value_functions import has_state_values
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, RunRecord

DEFAULTS = ReportSettings()


def main(args: argparse.Namespace) -> int:
    last_run = Path(model_folder(args.runs[-1]))
    record = None
    if (last_run / RECORD).is_file():
        record = RunRecord.load(last_run)
    check_limit(args)
    check_value_flags(args)
    folder = output_folder(args.output or report_folder(args.runs[-1]))
    # Rows and rewards are checked before the runs are loaded, which takes longest.
    rows = held_out_rows(args, record)
    rewards = load_rewards(args)
    text_rows = None
    if args.text:
        text_rows = read_file(args.text, ("text",), skip_bad=args.skip_bad).rows
    settings = ReportSettings(
        seed=args.seed,
        temperature=args.temperature,
        max_completion_length=completion_length(args, record),
        greedy=args.greedy,
        value_coef=args.value_coef,
        value_top_k=args.top_k,
        samples=args.samples,
        precision=args.precision,
    )
    report = build_report(args.runs, rows, settings=settings, rewards=rewards, text_rows=text_rows)
    files = write_report(report, folder)
    print(to_table(report))
    print(f"{folder}: {', '.join(files)}")
    return 0


def check_limit(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit} must be at least 1")


def check_value_flags(args: argparse.Namespace) -> None:
    """UserError for values that mean nothing, or that no run has."""
    if args.value_coef is None:
        if args.top_k != DEFAULTS.value_top_k:
            raise UserError("--top_k is read with --value_coef alone: give both, or neither")
        return
    check_is_finite_from_0(args, "value_coef")
    if args.top_k < 1:
        raise UserError(f"--top_k {args.top_k} must be at least 1")
    if not any(map(has_state_values, args.runs)):
        raise UserError(
            "--value_coef: none of the runs keeps a value_model/, as those of PPO do: drop it"
        )


def report_folder(run: str) -> Path:
    """The default folder of a report: in the run, or for one of the Hub here, under its name."""
    if is_local_model(run):
        return Path(run) / "report"
    return Path("report") / split_revision(run)[0].replace("/", "--")


def output_folder(path: str | Path) -> Path:
    """The folder for the results. UserError where it cannot be one, before any work is done."""
    folder = Path(path)
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise UserError(f"--output {folder}: {part} is a file: name a folder")
    return folder


def read_file(path: str, kinds: tuple[str, ...], *, skip_bad: bool, **options) -> Loaded:
    """The rows of a file that a flag names. What was dropped is printed. options: further ones of `load_rows`."""
    try:
        loaded = load_rows(path, kinds=kinds, skip_bad=skip_bad, **options)
    except UserError as error:
        raise UserError(str(error).replace("skip_bad: true", "--skip_bad")) from error
    for warning in loaded.warnings:
        print(warning)
    return loaded


def held_out_rows(args: argparse.Namespace, record: RunRecord | None) -> list[dict]:
    """The rows of --prompts; without it, the rows that the last run was evaluated on."""
    kinds = ("prompt_completion", "prompt")
    if args.prompts:
        return read_file(args.prompts, kinds, skip_bad=args.skip_bad, limit=args.limit).rows
    if record is None or not record.config.get("dataset_name"):
        raise UserError(
            f"{args.runs[-1]} does not record which prompts were held out: give --prompts FILE"
        )
    # A record holds only the settings that differ from their defaults.
    from rlhf.runs.settings import DataSettings

    settings = vars(DataSettings()) | record.config
    # The run's own seed gives the same split as in training.
    splits = load_splits(SimpleNamespace(**settings), kinds, seed=record.seed)
    rows = splits.eval[: args.limit]
    if not rows:
        raise UserError(f"{args.runs[-1]} did not hold out any prompts: give --prompts FILE")
    return rows


def load_rewards(args: argparse.Namespace, limits: CallLimits | None = None) -> WeightedSum | None:
    """The rewards named by the flags, on the fastest device; None if there are none. limits: of calls of functions."""
    scorers = load_scorers(args.reward_model, args.reward_functions, limits=limits)
    if not scorers:
        return None
    for scorer in scorers.values():
        if isinstance(scorer, RewardModelScorer):
            scorer.model.to(best_device())
    return WeightedSum(scorers, args.reward_weights)


def completion_length(args: argparse.Namespace, record: RunRecord | None) -> int:
    """The flag's value, else that of the last run, else the default."""
    if args.max_completion_length:  # 0 counts as not given
        return args.max_completion_length
    # Policy-gradient runs were trained with a length. Longer answers would be new to them.
    if record is not None and record.config.get("max_completion_length"):
        return record.config["max_completion_length"]
    return DEFAULTS.max_completion_length


def write_report(report: Report, folder: Path) -> list[str]:
    """Write report.json, report.md and the plots; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plot(report, folder)  # first: report.md shows them
    (folder / "report.json").write_text(to_json(report), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(report, pictures), encoding="utf-8")
    return ["report.json", "report.md", *(path.name for path in pictures)]


def add_reward_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `load_rewards` reads."""
    add = parser.add_argument
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
        help="Python functions that score the completions",
    )
    add(
        "--reward_weights",
        nargs="+",
        type=float,
        metavar="W",
        help="weights of the total score, reward models first [1 each]",
    )


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
    add_reward_arguments(parser)
    add(
        "--text",
        metavar="FILE",
        help="plain text for perplexity; default: the completions in the prompts file",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="folder for report.json, report.md and plots; default: <last RUN>/report",
    )
    add(
        "--samples",
        type=int,
        default=DEFAULTS.samples,
        metavar="N",
        help="prompts to show side by side, drawn by the seed [%(default)s]",
    )
    add("--seed", type=int, default=DEFAULTS.seed, help="sampling seed [%(default)s]")
    add(
        "--temperature",
        type=float,
        default=DEFAULTS.temperature,
        help="sampling temperature [%(default)s]",
    )
    add(
        "--max_completion_length",
        type=int,
        help=f"in tokens; default: that of the last run, or {DEFAULTS.max_completion_length}",
    )
    add(
        "--precision",
        choices=["fp32", "bf16"],
        default=DEFAULTS.precision,
        help="of all runs; bf16 takes half the memory [%(default)s]",
    )
    add("--greedy", action="store_true", help="add greedy completions to the sampled ones")
    add(
        "--value_coef",
        type=float,
        help="add completions that the value model of a PPO run re-ranks with this weight (docs/value_decoding.md)",
    )
    add(
        "--top_k",
        type=int,
        default=DEFAULTS.value_top_k,
        help="--value_coef: tokens that are re-ranked [%(default)s]",
    )
    add("--limit", type=int, metavar="N", help="use only the first N prompts")
    add("--skip_bad", action="store_true", help="drop and count bad rows of the files")
