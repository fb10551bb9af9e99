"""Several runs answer the same held-out prompts: what each says, and every number that follows from it.

Every run answers each prompt once, with the same random numbers, so differences are the models' own. Intervals are 95 %
over prompts: the normal approximation for means, Wilson's for values that are all 0 or 1 (it stays honest at 0 and
100 %), the delta method for perplexity. All runs are in memory at once. What each number means: docs/metrics.md.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rlhf.algorithms.masking import masked_sum
from rlhf.completions.sample import decode, uniform_numbers
from rlhf.completions.score import ScoringBatch, WeightedSum
from rlhf.data.chat import as_text, encode_example, encode_prompt, same_encoding
from rlhf.data.chat import decode as decode_text
from rlhf.data.padding import left_pad
from rlhf.errors import UserError
from rlhf.models.actor_critic import reference_log_probs
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, freeze
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, RunRecord
from rlhf.statistics import Z, wilson_interval

BATCH = 32  # rows per forward pass


@dataclass
class ChatRun:
    """A run that can answer: its label, where it was loaded from, its record where it has one, model and tokenizer."""

    label: str
    path: str
    record: RunRecord | None
    model: torch.nn.Module
    tokenizer: object


@dataclass
class Answers:
    """One completion per prompt: texts, prompt_ids and ids (stop token included), ended: stopped by itself."""

    texts: list[str]
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    ended: list[bool]


@dataclass
class Estimate:
    """A number over n prompts and its 95 % interval; low and high are None where there is none."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass
class Column:
    """One run under one way of decoding: completions, values (metric -> one number per prompt), and their summary."""

    label: str
    path: str
    decoding: str
    completions: list[str]
    values: dict[str, list[float]]
    metrics: dict[str, Estimate]

    @property
    def title(self) -> str:
        return self.label if self.decoding == "sampled" else f"{self.label} ({self.decoding})"


@dataclass
class Report:
    """columns in the order of the runs; rates: metrics in per cent; samples: indices into prompts."""

    columns: list[Column]
    prompts: list[str]
    rewards: list[str]
    rates: list[str]
    samples: list[int]
    settings: dict
    notes: list[str] = field(default_factory=list)


# ---- numbers -----------------------------------------------------------------------------------------------------


def mean_estimate(values: Sequence[float]) -> Estimate:
    """mean +- 1.96 s / sqrt(n): the normal approximation."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = Z * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Estimate(mean, mean - half, mean + half, n)


def rate_estimate(values: Sequence[float]) -> Estimate:
    """Share of ones among zeros and ones, with Wilson's interval."""
    n, p = len(values), sum(values) / len(values)
    return Estimate(p, *wilson_interval(p, n), n)


def is_rate(values: Sequence[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def check_finite(values: dict[str, list[float]], label: str) -> None:
    for name, column in values.items():
        if bad := sum(not math.isfinite(value) for value in column):
            raise UserError(
                f"{label}: {name}: {bad} of {len(column)} values are not finite numbers; do the weights hold NaN?"
            )


def win_rate(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Per prompt: 1 where the first run scores higher, 0 where lower, 1/2 for a tie.

    The same completion gets scores that differ in the last digits when it stands in another batch: that is a tie.
    """
    pairs = zip(first, second, strict=True)
    return [
        0.5 if math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) else float(a > b) for a, b in pairs
    ]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams / all n-grams of lower-cased words (arXiv 1510.03055); None when no text has n words."""
    words = [text.lower().split() for text in texts]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def perplexity(run: ChatRun, rows: list[dict]) -> tuple[Estimate | None, int]:
    """exp(mean negative log-probability per token) of text, or of completions given their prompts; rows too long.

    exp of a ratio of sums, r = sum_i nll_i / sum_i tokens_i, whose variance is about
    n / (n - 1) * sum_i (nll_i - r tokens_i)^2 / (sum_i tokens_i)^2.
    """
    limit, prompts, targets = context_length(run.model), [], []
    for row in rows:
        ids, mask = encode_example(run.tokenizer, row)
        start = max(1, mask.index(True))  # the first token of a plain text has nothing before it
        if start < len(ids) <= limit:
            prompts.append(ids[:start])
            targets.append(ids[start:])
    if not prompts:
        return None, len(rows)
    losses = [-value for value in summed_log_probs(run, prompts, targets, temperature=1.0)]
    n, tokens = len(losses), sum(map(len, targets))
    rate = sum(losses) / tokens
    if not math.isfinite(rate):
        raise UserError(
            f"{run.label}: perplexity is not a finite number: do the weights of this run hold NaN?"
        )
    if n < 2:
        return Estimate(math.exp(rate), None, None, n), len(rows) - n
    spread = sum(
        (loss - rate * len(target)) ** 2 for loss, target in zip(losses, targets, strict=True)
    )
    half = Z * math.sqrt(spread * n / (n - 1)) / tokens
    return Estimate(math.exp(rate), math.exp(rate - half), math.exp(rate + half), n), len(rows) - n


@torch.no_grad()
def summed_log_probs(
    run: ChatRun, prompts: list[list[int]], targets: list[list[int]], *, temperature: float
):
    """log p(target | prompt) of each row, summed over its tokens."""
    device, sums = next(run.model.parameters()).device, []
    for start in range(0, len(prompts), BATCH):
        prompt_ids, prompt_mask = left_pad(
            prompts[start : start + BATCH], run.tokenizer.pad_token_id or 0
        )
        ids, mask = left_pad(
            [row[::-1] for row in targets[start : start + BATCH]], run.tokenizer.pad_token_id or 0
        )
        batch = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask}
        batch |= {"completion_ids": ids.flip(1), "mask": mask.flip(1)}  # right-padded
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        sums += masked_sum(
            reference_log_probs(run.model, batch, temperature=temperature), batch["mask"], 1
        ).tolist()
    return sums


# ---- runs -> report ----------------------------------------------------------------------------------------------


def load_runs(paths: Sequence[str]) -> list[ChatRun]:
    """Runs with a short, unique label each: the recipe, its algorithm for PPO and its kin, "base" for pretraining."""
    runs: list[ChatRun] = []
    for path in paths:
        record = RunRecord.load(path) if Path(path, RECORD).is_file() else None
        label = Path(path).name
        if record:
            label = {"pretrain": "base", "ppo": record.config.get("algorithm", "ppo")}.get(
                record.recipe, record.recipe
            )
        others = sum(run.label.split(" ")[0] == label for run in runs)
        label = f"{label} {others + 1}" if others else label
        tokenizer = load_tokenizer(path)
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{path}: its tokenizer has no end-of-text token: give the run of a causal LM"
            )
        runs.append(
            ChatRun(label, path, record, freeze(load_policy(path)).to(best_device()), tokenizer)
        )
    return runs


def fitting(rows: list[dict], runs: list[ChatRun], max_completion_length: int) -> list[dict]:
    """The rows whose prompt leaves room for a completion in every run, so that all answer the same ones."""

    def fits(row: dict, run: ChatRun) -> bool:
        return len(
            encode_prompt(run.tokenizer, row["prompt"])
        ) + max_completion_length <= context_length(run.model)

    kept = [row for row in rows if all(fits(row, run) for run in runs)]
    if not kept:
        raise UserError(
            f"no prompt and {max_completion_length} tokens of completion fit the context of every run "
            f"({min(context_length(run.model) for run in runs)} tokens): use a smaller --max_completion_length"
        )
    return kept


def generate(
    run: ChatRun,
    rows: list[dict],
    *,
    seed: int,
    temperature: float,
    max_completion_length: int,
    greedy: bool = False,
) -> Answers:
    """One completion per row. The random numbers depend on the seed and the row's place only, never on the run."""
    uniforms = uniform_numbers(len(rows), max_completion_length, seed=seed, stream=0)
    prompt_ids = [encode_prompt(run.tokenizer, row["prompt"]) for row in rows]
    device, ids, ended = next(run.model.parameters()).device, [], []
    for start in range(0, len(rows), BATCH):
        padded, mask = left_pad(prompt_ids[start : start + BATCH], run.tokenizer.pad_token_id or 0)
        done = decode(
            run.model,
            padded.to(device),
            mask.to(device),
            eos_token_id=run.tokenizer.eos_token_id,
            max_completion_length=max_completion_length,
            temperature=temperature,
            uniforms=None if greedy else uniforms[start : start + BATCH],
        )
        ids += [
            row[kept].tolist() for row, kept in zip(done.ids.cpu(), done.mask.cpu(), strict=True)
        ]
        ended += done.ended.tolist()
    return Answers([decode_text(run.tokenizer, row) for row in ids], prompt_ids, ids, ended)


def measure(
    run: ChatRun,
    answers: Answers,
    rows: list[dict],
    *,
    rewards: WeightedSum | None,
    reference: ChatRun | None,
    temperature: float,
) -> dict[str, list[float]]:
    """Metric -> one number per prompt. KL(run || reference) only of samples, and only if both read ids alike."""
    values: dict[str, list[float]] = {}
    if rewards:
        columns = {name for row in rows for name in row if name not in ("prompt", "completion")}
        total, parts = rewards(
            ScoringBatch(
                prompts=[row["prompt"] for row in rows],
                completions=answers.texts,
                columns={name: [row.get(name) for row in rows] for name in sorted(columns)},
                tokenizer=run.tokenizer,
                prompt_ids=answers.prompt_ids,
                completion_ids=answers.ids,
            )
        )
        values = {f"score_{name}": part.tolist() for name, part in parts.items()}
        if len(parts) > 1:
            values = {"score": total.tolist(), **values}
    if reference and same_encoding(run.tokenizer, reference.tokenizer):
        pair = (run, reference)
        own, theirs = (
            summed_log_probs(r, answers.prompt_ids, answers.ids, temperature=temperature)
            for r in pair
        )
        values["kl"] = [a - b for a, b in zip(own, theirs, strict=True)]
    values["completion_length"] = [float(len(row)) for row in answers.ids]
    values["eos_rate"] = [float(ended) for ended in answers.ended]
    return values


def build_report(
    paths: Sequence[str],
    rows: list[dict],
    *,
    rewards: WeightedSum | None = None,
    text_rows: list[dict] | None = None,
    samples: int = 10,
    seed: int = 0,
    temperature: float = 1.0,
    max_completion_length: int = 64,
    greedy: bool = False,
) -> Report:
    """rows: {"prompt", maybe "completion", ...}; text_rows: {"text"} for perplexity instead of the rows' completions.

    The reference of KL and the opponent in win rates is the run before the last. greedy: greedy completions too.
    """
    if temperature <= 0:
        raise UserError(
            f"--temperature {temperature} must be > 0: 1.0 is usual; --greedy adds greedy answers"
        )
    runs = load_runs(paths)
    kept = fitting(rows, runs, max_completion_length)
    notes = [f"{len(rows) - len(kept)} of {len(rows)} prompts are too long and were left out"] * (
        len(kept) < len(rows)
    )
    if not all(same_encoding(run.tokenizer, runs[-1].tokenizer) for run in runs):
        notes.append(
            "the tokenizers differ: lengths and perplexities count different tokens, KL is left out (-)"
        )
    known = text_rows or [row for row in kept if isinstance(row.get("completion"), str)]
    reference, columns = runs[-2] if len(runs) > 1 else None, []
    ways = {"temperature": temperature, "max_completion_length": max_completion_length}
    for run in runs:
        for way in ("sampled", "greedy")[: 1 + greedy]:
            answers = generate(run, kept, seed=seed, greedy=way == "greedy", **ways)
            compared = reference if way == "sampled" else None  # KL is an expectation over samples
            values = measure(
                run, answers, kept, rewards=rewards, reference=compared, temperature=temperature
            )
            check_finite(values, run.label)
            metrics = {}
            for n in (1, 2):
                if (share := distinct(answers.texts, n)) is not None:
                    metrics[f"distinct_{n}"] = Estimate(share, None, None, len(kept))
            if known and way == "sampled":
                found, long = perplexity(run, known)
                metrics |= {"perplexity": found} if found else {}
                if long:
                    notes.append(
                        f"{run.label}: {long} of {len(known)} texts are too long for perplexity, left out"
                    )
            columns.append(Column(run.label, run.path, way, answers.texts, values, metrics))
    names = [name for name in columns[0].values if name.startswith("score")]
    rates = [
        *(name for name in names if all(is_rate(column.values[name]) for column in columns)),
        "eos_rate",
    ]
    for column in columns:
        for name, values in column.values.items():
            column.metrics[name] = rate_estimate(values) if name in rates else mean_estimate(values)
    for way in ("sampled", "greedy"):
        last = [column for column in columns if column.decoding == way][-2:]
        for name in names if len(last) == 2 else ():
            wins = win_rate(last[1].values[name], last[0].values[name])
            interval = rate_estimate if is_rate(wins) else mean_estimate  # ties are halves
            last[1].metrics[f"win_rate{name.removeprefix('score')}"] = interval(wins)
    shown = sorted(random.Random(seed).sample(range(len(kept)), max(0, min(samples, len(kept)))))
    settings = {
        "seed": seed,
        "prompts": len(kept),
        **ways,
        "weights": rewards.weights if rewards else {},
    }
    settings["reference"] = reference.label if reference else None
    titles = [as_text(row["prompt"]) for row in kept]
    return Report(columns, titles, names, rates, shown, settings, notes)
