"""`rlhf sample RUN --reward_model RM --dataset_name PROMPTS --n 16 --output FOLDER`: n scored answers to each prompt.

FOLDER/best.jsonl holds the best of them as demonstrations, so that `rlhf sft` on it is expert iteration. FOLDER/ranked.jsonl
holds all of them as rankings, for `rlhf reward` and `rlhf dpo`. A command that was killed goes on when it is started again.
Several processes share the prompts: accelerate launch --config_file LAYOUT -m rlhf sample ... docs/best_of_n.md explains it.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from rlhf.commands.guiding import (
    add_guiding_arguments,
    advantage_coef,
    check_guiding_arguments,
    guiding_models,
    guiding_settings,
    load_guide,
)
from rlhf.commands.predict import progress
from rlhf.commands.report import load_rewards
from rlhf.commands.sampled_files import (
    PART,
    append,
    check_same,
    gather,
    save_record,
    write_results,
)
from rlhf.comparison.compare import load_runs
from rlhf.completions.best_of_n import SamplingSettings, sample_answers
from rlhf.completions.functions import CallLimits
from rlhf.completions.prompts import fitting_prompts
from rlhf.completions.rollout import Prompts
from rlhf.completions.score import column_names
from rlhf.data.answers import template_checks
from rlhf.data.splits import Splits, load_splits
from rlhf.data.templates import fixed_date
from rlhf.errors import UserError
from rlhf.models.load import load_tokenizer
from rlhf.models.parts import context_length, stop_token_ids
from rlhf.models.snapshots import hub_commit, model_folder, split_revision
from rlhf.runs.ending import leave, report
from rlhf.runs.layouts import leave_together, patient_group, wait_for_all
from rlhf.runs.output_folder import claim
from rlhf.runs.parents import history, parent_entry
from rlhf.runs.processes import is_launched, join_processes, on_main
from rlhf.runs.record import command_line, cpu_name, package_versions
from rlhf.runs.settings import DataSettings
from rlhf.runs.sharding import disable_sharded_loading
from rlhf.serving.engine.sampling import keep_likely

# Flags that decide what is sampled. A command that goes on must have the same.
DECIDING = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "max_completion_length",
    "max_prompt_length",
    "long_prompts",
    "seed",
    "precision",
    "reward_functions",
    "reward_weights",
)
# Flags that decide which rows are made of it. They may change, and nothing is sampled again.
OF_ROWS = ("keep", "min_score", "min_margin", "keep_unended")


def main(args: argparse.Namespace) -> int:
    check_arguments(args)
    disable_progress_bar()  # of loading
    index, count = join_processes()
    disable_sharded_loading()  # each process holds whole models
    if count > 1:
        patient_group()  # now, while none is waiting for another
    try:
        sample(args, index, count)
    except (Exception, KeyboardInterrupt) as error:
        # To leave the group in order would mean to wait for the others.
        if is_launched():
            leave(report(error), error)
        raise
    if is_launched():
        leave_together()
    return 0


def sample(args: argparse.Namespace, index: int, count: int) -> None:
    """Sample what is missing, and write the results. index, count: of this process and of all."""
    folder, started = Path(args.output), time.time()
    # All is read and checked before a model is loaded.
    tokenizer = load_tokenizer(args.run)
    splits = load_splits(
        data_settings(args), ("prompt",), seed=0, checks=template_checks(tokenizer)
    )
    with ExitStack() as stack:
        on_main(partial(claim, stack, args.output))
        record = on_main(partial(begin, args, splits, folder))
        if index == 0:
            for warning in splits.warnings:
                print(warning)
        stack.enter_context(fixed_date(date.fromisoformat(record["template_date"])))
        # All processes leave the same prompts alone.
        done = on_main(lambda: {item.number for item in gather(folder)})
        if record["status"] != "done" or not done:
            try:
                # A part of the answers is on the disk, however this ends.
                record |= sample_missing(args, splits, done, index, count)
                wait_for_all()
            finally:
                record["seconds"] += round(time.time() - started, 1)
                if index == 0:
                    save_record(folder, record)
        if index == 0:
            finish(args, record, folder)
        wait_for_all()  # the lock is held until all files are written


def begin(args: argparse.Namespace, splits: Splits, folder: Path) -> dict:
    """The record of the command, or of the one that it continues."""
    models = {"policy": model_entry(args.run)}
    for number, path in enumerate(args.reward_model, start=1):
        models["reward" if number == 1 else f"reward_{number}"] = model_entry(path)
    for role, path in guiding_models(args).items():
        models[role] = model_entry(path)
    record = {
        "status": "running",
        "settings": {name: getattr(args, name) for name in DECIDING} | guiding_settings(args),
        "models": models,
        "data": splits.sources,
    }
    before = check_same(folder, record)
    if before:
        return before
    # Facts that do not decide what is sampled.
    record |= {
        "command": command_line(),
        "versions": package_versions(),
        "machine": {"cpu": cpu_name()},
        "ancestors": history(models, folder),
        "template_date": date.today().isoformat(),
        "seconds": 0.0,
    }
    save_record(folder, record)
    return record


def model_entry(path: str) -> dict:
    """The entry of a model with its hashes, and the commit of one of the Hub."""
    model_folder(path)  # downloads it
    commit = hub_commit(path)
    if commit:
        return parent_entry(split_revision(path)[0], revision=commit)
    return parent_entry(path)


def sample_missing(
    args: argparse.Namespace, splits: Splits, done: set[int], index: int, count: int
) -> dict:
    """Sample this process's share of the prompts that have no answers yet. Returns counts for the record.

    prompts_too_long: of all prompts. passes_per_token: of each model, where values guide this process.
    """
    rewards = load_rewards(args, CallLimits(args.reward_timeout, args.reward_retries))
    [run] = load_runs([args.run], args.precision, advantage_coef=advantage_coef(args))
    room = context_length(run.model) - args.max_completion_length
    if room < 1:
        raise UserError(
            f"--max_completion_length {args.max_completion_length} leaves no room for a prompt in the context of "
            f"{args.run}: use a smaller one"
        )
    limit = min(args.max_prompt_length, room)
    prompts, too_long = fitting_prompts(
        splits.train, run.tokenizer, limit=limit, long_prompts=args.long_prompts, name="prompt"
    )
    if not prompts.rows:
        raise UserError(
            f"every prompt is longer than {limit} tokens: raise --max_prompt_length, or use --long_prompts cut"
        )
    guide = guided = None
    if args.decoding != "sample" and run.advantage_coef is None:
        guide, guided = load_guide(args, run)
    settings = SamplingSettings(
        n=args.n,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        batch_size=args.per_device_batch_size,
        stop_token_ids=tuple(stop_token_ids(run.model, run.tokenizer)),
        warp=likely_tokens(args.temperature, args.top_k, args.top_p),
        columns=column_names(prompts.rows),
        guided=guided,
    )
    # Whole prompts, as many as fill a batch.
    chunks = missing_chunks(prompts, done, max(1, args.per_device_batch_size // args.n))
    part = Path(args.output) / PART.format(index)
    # In turn, so that each process gets short prompts and long ones.
    own = chunks[index::count]
    with shown_progress(sum(map(len, own)), shown=index == 0) as advance:
        for chunk in own:
            chosen = prompts.choose(chunk)
            append(part, sample_answers(run.model, run.tokenizer, chosen, rewards, settings))
            advance(len(chunk))
    counts = {"prompts_too_long": too_long}
    if guide is not None and guide.tokens:
        counts["passes_per_token"] = guide.passes_per_token()
    return counts


def missing_chunks(prompts: Prompts, done: set[int], size: int) -> list[list[int]]:
    """Prompts that are sampled together, as indices, without the chunks that are done.

    Prompts of like length share a chunk. The chunks are the same whatever is done, so that a command that goes on computes
    with the same batches.
    """
    order = sorted(range(len(prompts.ids)), key=lambda i: len(prompts.ids[i]))
    missing = []
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        if not all(prompts.numbers[i] in done for i in chunk):
            missing.append(chunk)
    return missing


def likely_tokens(temperature: float, top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """Logits (B, V) -> those to sample from: divided by the temperature, -inf outside of top-k and then of top-p."""

    def warp(logits: Tensor) -> Tensor:
        scores = logits.float() / temperature
        # NaN would be sampled as the last token, whatever the prompt.
        if not scores.amax(-1).isfinite().all():
            raise UserError(
                f"the model gives no finite numbers at --temperature {temperature}: use a higher one, or a model whose "
                "training did not diverge"
            )
        if top_k == 0 and top_p == 1:
            return scores
        # The engine has other settings for each row, and here they are all the same.
        rows, device = len(scores), scores.device
        return keep_likely(
            scores,
            top_k=torch.full((rows,), top_k, device=device),
            top_p=torch.full((rows,), top_p, device=device),
        )

    return warp


@contextmanager
def shown_progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of prompts that are done; a bar if it is shown."""
    if not shown:
        yield lambda count: None
        return
    with progress(total) as advance_one:

        def advance(count: int) -> None:
            for _ in range(count):
                advance_one()

        yield advance


def finish(args: argparse.Namespace, record: dict, folder: Path) -> None:
    """Write the rows to train on, the plot and the record, and print what they are."""
    answers = gather(folder)
    rows = {name: getattr(args, name) for name in OF_ROWS}
    record = write_results(folder, record, answers, rows=rows)
    counts, curve = record["counts"], record["curve"]
    first, last = curve[0], curve[-1]
    print(
        f"score {first['score']:.3f}, best of {last['n']} {last['score']:.3f}, at a KL of at most {last['kl_at_most']:.2f} "
        "nats per answer"
    )
    too_long = record.get("prompts_too_long", 0)
    if too_long:
        done = {"drop": "dropped", "cut": "cut to their end"}[args.long_prompts]
        print(f"{too_long} prompts are too long and were {done}")
    passes = record.get("passes_per_token", {})
    if passes:
        parts = [f"{name} {count:.1f}" for name, count in passes.items()]
        print(f"forward passes per token: {', '.join(parts)}")
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    print(", ".join(parts))
    for name, entry in record["files"].items():
        print(f"{folder / name}: {entry['rows']} rows")
    # A recipe would only say that the file is missing.
    if not record["files"]:
        print(
            "no answer can be taught: raise --max_completion_length if they are cut off, or lower --min_score"
        )


# ---- flags -------------------------------------------------------------------------------------------------------


def data_settings(args: argparse.Namespace) -> DataSettings:
    """The prompts as recipes/ppo.py reads them, all of them."""
    return DataSettings(
        dataset_name=args.dataset_name,
        dataset_config=args.dataset_config,
        dataset_train_split=args.dataset_train_split,
        dataset_test_split="",
        eval_fraction=0.0,
        columns=args.columns,
        dataset_limit=args.dataset_limit,
        skip_bad=args.skip_bad,
    )


def check_arguments(args: argparse.Namespace) -> None:
    """UserError for values that mean nothing, before anything is read."""
    if not args.reward_model and not args.reward_functions:
        raise UserError("no reward given: set --reward_model, --reward_functions, or both")
    for name in ("n", "max_completion_length", "max_prompt_length", "per_device_batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if not 1 <= args.keep <= args.n:
        raise UserError(f"--keep {args.keep} must be between 1 and --n {args.n}")
    if not 0 < args.temperature < math.inf:
        raise UserError(
            f"--temperature {args.temperature} must be > 0 and finite: at 0 all answers to a prompt are the same"
        )
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p {args.top_p} must be > 0 and at most 1, which keeps all tokens")
    if args.top_k < 0:
        raise UserError(f"--top_k {args.top_k} must be at least 0, which keeps all tokens")
    check_guiding_arguments(args)
    check_rows_and_calls(args)


def check_rows_and_calls(args: argparse.Namespace) -> None:
    """UserError for limits of rows, and of calls of reward functions, that mean nothing."""
    if not 0 <= args.min_margin < math.inf:
        raise UserError(f"--min_margin {args.min_margin} must be at least 0 and finite")
    if args.min_score is not None and not math.isfinite(args.min_score):
        raise UserError(f"--min_score {args.min_score} must be a finite number")
    if args.reward_timeout is not None and not args.reward_timeout > 0:
        raise UserError(f"--reward_timeout {args.reward_timeout} must be > 0 s")
    if args.reward_retries < 0:
        raise UserError(f"--reward_retries {args.reward_retries} must be at least 0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder or Hub id of the model that answers")
    add("--reward_model", nargs="+", default=[], metavar="RUN", help="reward models")
    add(
        "--reward_functions",
        nargs="+",
        default=[],
        metavar="MODULE:FUNCTION",
        help="Python rewards, as recipes/ppo.py takes them",
    )
    add(
        "--reward_weights",
        nargs="+",
        type=float,
        metavar="W",
        help="one each, reward models first [1 each]",
    )
    add("--reward_timeout", type=float, help="seconds that a call of a function may take")
    add("--reward_retries", type=int, default=0, help="further calls of one that failed [0]")
    add("--output", required=True, metavar="FOLDER", help="folder for the files")
    add_data_arguments(parser)
    add("--n", type=int, default=16, help="answers to each prompt [%(default)s]")
    add("--temperature", type=float, default=1.0, help="[%(default)s]")
    add("--top_p", type=float, default=1.0, help="1: all tokens [%(default)s]")
    add("--top_k", type=int, default=0, help="0: all tokens [%(default)s]")
    add_guiding_arguments(parser)
    add("--max_completion_length", type=int, default=64, help="in tokens [%(default)s]")
    add("--seed", type=int, default=0, help="of the sampling [%(default)s]")
    add(
        "--per_device_batch_size",
        type=int,
        default=64,
        help="answers sampled at a time [%(default)s]",
    )
    add(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="of the model that answers [%(default)s]",
    )
    add("--keep", type=int, default=1, help="best answers of a prompt in best.jsonl [%(default)s]")
    add("--min_score", type=float, help="drop demonstrations with a lower score")
    add(
        "--min_margin",
        type=float,
        default=0.0,
        help="drop rankings whose best and last answers differ by less [%(default)s]",
    )
    add("--keep_unended", action="store_true", help="keep answers without end-of-text")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the prompts, which are keys of recipes/ppo.py."""
    add = parser.add_argument
    add("--dataset_name", required=True, metavar="FILE", help="prompts: file, folder or Hub id")
    add("--dataset_config", help="configuration of a Hub data set")
    add("--dataset_train_split", default="train", help="split to read [%(default)s]")
    add("--columns", help="our name = their name, as in prompt=question")
    add("--dataset_limit", type=int, metavar="N", help="use the first N prompts only")
    add("--skip_bad", action="store_true", help="drop and count bad rows instead of stopping")
    add("--max_prompt_length", type=int, default=512, help="in tokens [%(default)s]")
    add(
        "--long_prompts",
        choices=["drop", "cut"],
        default="drop",
        help="longer prompts are dropped, or cut to their end; both are counted [%(default)s]",
    )
