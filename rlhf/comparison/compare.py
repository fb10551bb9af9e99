"""Compare runs: each one answers the same held-out prompts, and the answers are measured.

Every run answers each prompt once, with the same random numbers, so differences come from the models. Intervals are
95 % over prompts: the normal approximation for means, Wilson's for values that are all 0 or 1 (it stays honest at 0 and
100 %), the delta method for perplexity. All runs are in memory at once. docs/metrics.md explains each number.

Read from top to bottom: build_report, the steps it calls in that order, then the statistics.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rlhf.algorithms.masking import masked_sum
from rlhf.completions.diversity import n_grams
from rlhf.completions.guided import Guide, GuideSettings, decode_by_value
from rlhf.completions.sample import SampledTokens, decode, uniform_numbers
from rlhf.completions.score import ScoringBatch, WeightedSum, column_names
from rlhf.data.chat import as_text, completion_text, encode_example, encode_prompt, same_encoding
from rlhf.data.padding import left_pad, right_pad
from rlhf.errors import UserError
from rlhf.models.actor_critic import reference_log_probs
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, freeze, stop_token_ids
from rlhf.models.precision import convert_for_answers
from rlhf.models.snapshots import model_folder
from rlhf.models.value_functions import guide_ilql, has_state_values, load_actor_critic
from rlhf.runs.processes import best_device
from rlhf.runs.record import RECORD, RunRecord
from rlhf.statistics import Z, wilson_interval

BATCH = 32  # rows per forward pass
SAMPLED, GREEDY, VALUES = "sampled", "greedy", "values"  # ways of decoding


@dataclass(frozen=True)
class ReportSettings:
    """Settings of sampling, and the number of samples that the report shows.

    seed: for sampling, and for choosing the prompts to show.
    temperature: must be > 0. KL compares the distributions at this temperature.
    max_completion_length: in tokens.
    greedy: add greedy completions to the sampled ones.
    value_coef, value_top_k: add completions that the value model of a PPO run guides, see `GuideSettings`. None: do not.
    samples: number of prompts to show side by side.
    precision: fp32 or bf16, of the weights of all runs.
    """

    seed: int = 0
    temperature: float = 1.0
    max_completion_length: int = 64
    greedy: bool = False
    value_coef: float | None = None
    value_top_k: int = 8
    samples: int = 10
    precision: str = "fp32"

    def __post_init__(self):
        if self.temperature <= 0:
            raise UserError(
                f"--temperature {self.temperature} must be > 0: use 1.0, or add --greedy for greedy answers"
            )

    def decodings(self, run: "ChatRun") -> list[str]:
        """The ways in which a run answers, each a column of the report."""
        names = [SAMPLED]
        if self.greedy:
            names.append(GREEDY)
        if self.value_coef is not None and has_state_values(run.path):
            names.append(VALUES)
        return names


@dataclass
class ChatRun:
    """A run that can chat: label, path it was loaded from, record (if it has one), model and tokenizer.

    advantage_coef: of the values of ILQL that guide the model; None for other runs.
    """

    label: str
    path: str
    record: RunRecord | None
    model: torch.nn.Module
    tokenizer: object
    advantage_coef: float | None = None

    @property
    def device(self) -> torch.device:
        # A plain module does not know its device. All parameters are on the same one.
        return next(self.model.parameters()).device

    @property
    def pad_token_id(self) -> int:
        return self.tokenizer.pad_token_id or 0  # any id will do: the mask excludes padding


@dataclass
class RunCompletions:
    """One run's completions, one per prompt.

    texts: decoded completions.
    prompt_ids: token ids of the prompts.
    ids: token ids of the completions, stop token included.
    ended: True where the run generated its stop token.
    """

    texts: list[str]
    prompt_ids: list[list[int]]
    ids: list[list[int]]
    ended: list[bool]


@dataclass
class Estimate:
    """A number estimated from n prompts with its 95 % interval; low and high are None if there is no interval."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass
class Column:
    """One run with one way of decoding: completions, values (metric -> one number per prompt), and their summary."""

    label: str
    path: str
    decoding: str
    completions: list[str]
    values: dict[str, list[float]]
    metrics: dict[str, Estimate]

    @property
    def title(self) -> str:
        if self.decoding == "sampled":
            return self.label
        return f"{self.label} ({self.decoding})"


@dataclass
class Report:
    """Everything that a report shows.

    columns: in the order of the runs.
    prompts: as text.
    rewards: names of the score metrics.
    rates: metrics shown in per cent.
    samples: indices into prompts, to show side by side.
    """

    columns: list[Column]
    prompts: list[str]
    rewards: list[str]
    rates: list[str]
    samples: list[int]
    settings: dict
    notes: list[str] = field(default_factory=list)


# ---- report ------------------------------------------------------------------------------------------------------


def build_report(
    paths: Sequence[str],
    rows: list[dict],
    *,
    settings: ReportSettings = ReportSettings(),  # noqa: B008 (frozen)
    rewards: WeightedSum | None = None,
    text_rows: list[dict] | None = None,
) -> Report:
    """Sample and measure every run on the same prompts.

    paths: run folders or Hub ids. The last but one is the reference of KL and the opponent in win rates.
    rows: {"prompt", maybe "completion", other columns for the rewards}.
    rewards: scores the completions.
    text_rows: {"text"} for perplexity; by default the rows that have a "completion".
    """
    runs = load_runs(paths, settings.precision)
    prompt_rows = fitting(rows, runs, settings.max_completion_length)
    notes = comparability_notes(runs, len(rows), len(prompt_rows))
    if not text_rows:
        # A prompt-only file has no completions, and then there is no perplexity.
        text_rows = [row for row in prompt_rows if isinstance(row.get("completion"), str)]
    reference = None
    if len(runs) > 1:
        reference = runs[-2]

    columns = []
    for run in runs:
        # The columns of a run are neighbours in the tables.
        for decoding in settings.decodings(run):
            column = make_column(run, prompt_rows, decoding, settings, rewards, reference)
            # Perplexity does not depend on the decoding: once per run is enough.
            if text_rows and decoding == SAMPLED:
                notes += add_perplexity(column, run, text_rows)
            columns.append(column)

    score_names = [name for name in columns[0].values if name.startswith("score")]
    rates = rate_names(columns, score_names)
    add_estimates(columns, rates)
    add_win_rates(columns, score_names, [run.label for run in runs[-2:]])
    return Report(
        columns=columns,
        prompts=[as_text(row["prompt"]) for row in prompt_rows],
        rewards=score_names,
        rates=rates,
        samples=choose_samples(len(prompt_rows), settings),
        settings=shown_settings(settings, len(prompt_rows), rewards, reference),
        notes=notes,
    )


def load_runs(
    paths: Sequence[str], precision: str = "fp32", *, advantage_coef: float | None = None
) -> list[ChatRun]:
    """Load each run and give it a short, unique label. The values of ILQL runs guide them.

    advantage_coef: of their values, instead of what the runs say; 0 gives their policies without values.
    """
    runs: list[ChatRun] = []
    for path in paths:
        record = None
        folder = model_folder(path)
        if Path(folder, RECORD).is_file():
            record = RunRecord.load(folder)
        label = run_label(path, record)
        # A label that is taken gets a number: sft, sft 2, sft 3.
        same_label = sum(run.label.split(" ")[0] == label for run in runs)
        if same_label:
            label = f"{label} {same_label + 1}"
        tokenizer = load_tokenizer(path)
        if tokenizer.eos_token_id is None:  # an encoder, such as BERT: it cannot end an answer
            raise UserError(
                f"{path}: the tokenizer has no end-of-text token: give a run of a causal LM"
            )
        device = torch.device(best_device())
        model = convert_for_answers(freeze(load_policy(path)), precision, device)
        coef = guide_ilql(model, path, advantage_coef)
        runs.append(ChatRun(label, path, record, model, tokenizer, coef))
    return runs


def run_label(path: str, record: RunRecord | None) -> str:
    """The recipe, the algorithm for policy-gradient runs, "base" for pretraining; without a record, the folder."""
    if record is None:
        return Path(path).name
    if record.recipe == "pretrain":
        return "base"
    if record.recipe == "ppo":  # recipes/ppo.py runs every policy-gradient algorithm
        return record.config.get("algorithm", "ppo")
    return record.recipe


def fitting(rows: list[dict], runs: list[ChatRun], max_completion_length: int) -> list[dict]:
    """The rows whose prompt leaves room for a completion in every run, so that all runs answer the same rows."""

    def fits(row: dict, run: ChatRun) -> bool:
        prompt_length = len(encode_prompt(run.tokenizer, row["prompt"]))
        return prompt_length + max_completion_length <= context_length(run.model)

    fitting_rows = []
    for row in rows:
        if all(fits(row, run) for run in runs):
            fitting_rows.append(row)
    if not fitting_rows:
        shortest = min(context_length(run.model) for run in runs)
        raise UserError(
            f"no prompt leaves room for {max_completion_length} tokens of completion in the context of every run "
            f"(the shortest is {shortest} tokens): use a smaller --max_completion_length"
        )
    return fitting_rows


def comparability_notes(runs: list[ChatRun], total: int, fitting: int) -> list[str]:
    """Notes on dropped prompts and on tokenizers that differ. total, fitting: numbers of prompts."""
    notes = []
    for run in runs:
        if run.advantage_coef is not None:
            notes.append(
                f"{run.label} decodes with its values, at advantage_coef {run.advantage_coef:g}; KL and perplexity are of "
                "what it decodes from"
            )
    if fitting < total:
        notes.append(f"{total - fitting} of {total} prompts are too long and were dropped")
    last = runs[-1].tokenizer
    # Comparing with one tokenizer is enough, because encoding alike is transitive.
    if not all(same_encoding(run.tokenizer, last) for run in runs):
        notes.append(
            "the tokenizers differ: lengths and perplexities count different tokens, and KL is omitted (-)"
        )
    return notes


def make_column(
    run: ChatRun,
    rows: list[dict],
    decoding: str,
    settings: ReportSettings,
    rewards: WeightedSum | None,
    reference: ChatRun | None,
) -> Column:
    """Generate the run's completions and measure them. The metrics hold only distinct_1 and distinct_2 so far."""
    options = {
        "seed": settings.seed,
        "temperature": settings.temperature,
        "max_completion_length": settings.max_completion_length,
        "greedy": decoding == GREEDY,
    }
    if decoding == VALUES:
        options["guided"] = guided_by_values(run, settings)
    completions = generate(run, rows, **options)
    if decoding != SAMPLED:
        reference = None  # KL is an expectation over samples of the policy
    values = measure(
        run,
        completions,
        rows,
        rewards=rewards,
        reference=reference,
        temperature=settings.temperature,
    )
    # One NaN would make a mean NaN without saying where it came from.
    check_finite(values, run.label)
    metrics = {}
    for n in (1, 2):
        share = distinct(completions.texts, n)
        if share is not None:
            # The share is of all texts together: it has no value per prompt, and so no interval.
            metrics[f"distinct_{n}"] = Estimate(share, None, None, len(rows))
    return Column(run.label, run.path, decoding, completions.texts, values, metrics)


def add_perplexity(column: Column, run: ChatRun, rows: list[dict]) -> list[str]:
    """Add the perplexity of the rows to the column's metrics; returns a note if some rows were too long."""
    estimate, too_long = perplexity(run, rows)
    if estimate:
        column.metrics["perplexity"] = estimate
    if too_long:
        return [
            f"{run.label}: {too_long} of {len(rows)} texts are too long for perplexity and were dropped"
        ]
    return []


def rate_names(columns: list[Column], score_names: list[str]) -> list[str]:
    """The metrics whose values are 0 or 1 in every column."""
    names = []
    for name in score_names:
        if all(is_rate(column.values[name]) for column in columns):
            names.append(name)
    return [*names, "eos_rate"]  # always a rate, even if no run stopped


def add_estimates(columns: list[Column], rates: list[str]) -> None:
    """Summarise the values of each column as metrics."""
    for column in columns:
        for name, values in column.values.items():
            if name in rates:
                column.metrics[name] = rate_estimate(values)
            else:
                column.metrics[name] = mean_estimate(values)


def add_win_rates(columns: list[Column], score_names: list[str], compared: list[str]) -> None:
    """Compare the last run with the one before it, for each way of decoding that both have. compared: their labels."""
    for decoding in (SAMPLED, GREEDY, VALUES):
        both = [one for one in columns if one.decoding == decoding and one.label in compared]
        if len(both) < 2:  # a single run has no opponent
            continue
        opponent, last = both
        for name in score_names:
            wins = win_rate(last.values[name], opponent.values[name])
            # Ties count half, and Wilson's interval is for zeros and ones only.
            if is_rate(wins):
                estimate = rate_estimate(wins)
            else:
                estimate = mean_estimate(wins)
            last.metrics[f"win_rate{name.removeprefix('score')}"] = estimate


def choose_samples(prompts: int, settings: ReportSettings) -> list[int]:
    """Indices of the prompts to show, drawn by the seed."""
    count = max(0, min(settings.samples, prompts))
    # A generator of its own leaves the global random state alone.
    return sorted(random.Random(settings.seed).sample(range(prompts), count))


def shown_settings(
    settings: ReportSettings,
    prompts: int,
    rewards: WeightedSum | None,
    reference: ChatRun | None,
) -> dict:
    """The settings as they are written to report.json."""
    shown = {
        "seed": settings.seed,
        "prompts": prompts,
        "temperature": settings.temperature,
        "max_completion_length": settings.max_completion_length,
        "precision": settings.precision,
        "weights": {},
        "reference": None,
    }
    if settings.value_coef is not None:
        shown |= {"value_coef": settings.value_coef, "value_top_k": settings.value_top_k}
    if rewards:
        shown["weights"] = rewards.weights
    if reference:
        shown["reference"] = reference.label
    return shown


# ---- one run -----------------------------------------------------------------------------------------------------


def generate(
    run: ChatRun,
    rows: list[dict],
    *,
    seed: int,
    temperature: float,
    max_completion_length: int,
    greedy: bool = False,
    guided: Callable[[list[list[int]], Tensor], SampledTokens] | None = None,
) -> RunCompletions:
    """One completion per row. The random numbers depend only on the seed and the row's index, never on the run.

    guided: f(prompt ids, random numbers) draws the tokens, instead of the policy alone.
    """
    # (N, max_completion_length) for all N rows, before they are split into batches
    uniforms = uniform_numbers(len(rows), max_completion_length, seed=seed, stream=0)
    prompt_ids = [encode_prompt(run.tokenizer, row["prompt"]) for row in rows]
    ids: list[list[int]] = []
    ended: list[bool] = []
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        if guided is not None:
            decoded = guided(prompt_ids[batch], uniforms[batch])
        else:
            padded, mask = left_pad(prompt_ids[batch], run.pad_token_id)  # (B, P)
            decoded = decode(
                run.model,
                padded.to(run.device),
                mask.to(run.device),
                stop_token_ids=stop_token_ids(run.model, run.tokenizer),
                max_completion_length=max_completion_length,
                temperature=temperature,
                uniforms=None if greedy else uniforms[batch],
            )
        # ids, mask (B, T): the mask drops the padding behind the stop token.
        for row, counts in zip(decoded.ids.cpu(), decoded.mask.cpu(), strict=True):
            ids.append(row[counts].tolist())
        ended += decoded.ended.tolist()
    texts = []
    for row, has_ended in zip(ids, ended, strict=True):
        texts.append(completion_text(run.tokenizer, row, ended=has_ended))
    return RunCompletions(texts, prompt_ids, ids, ended)


def guided_by_values(
    run: ChatRun, settings: ReportSettings
) -> Callable[[list[list[int]], Tensor], SampledTokens]:
    """f(prompt ids, random numbers): decoding with the value model of a PPO run, for `generate`."""
    guide = Guide(
        load_actor_critic(run.model, run.tokenizer, run.path),
        pad_token_id=run.pad_token_id,
        temperature=settings.temperature,
    )
    options = GuideSettings(
        top_k=settings.value_top_k,
        stop_token_ids=tuple(stop_token_ids(run.model, run.tokenizer)),
        max_completion_length=settings.max_completion_length,
        value_coef=settings.value_coef,
        gamma=discount(run.path),
    )
    return lambda prompt_ids, uniforms: decode_by_value(
        guide, prompt_ids, options, uniforms=uniforms
    )


def discount(path: str) -> float:
    """gamma of the PPO run whose values are used; a record holds only what differs from the default of 1."""
    folder = Path(model_folder(path))
    if not (folder / RECORD).is_file():
        return 1.0
    return float(RunRecord.load(folder).config.get("gamma", 1.0))


def measure(
    run: ChatRun,
    completions: RunCompletions,
    rows: list[dict],
    *,
    rewards: WeightedSum | None,
    reference: ChatRun | None,
    temperature: float,
) -> dict[str, list[float]]:
    """Measure a run's completions: metric -> one number per prompt.

    KL(run || reference) is computed only if there is a reference whose tokenizer encodes text alike. It is an estimate
    only if the completions were sampled.
    """
    values: dict[str, list[float]] = {}
    if rewards:
        values |= score_values(run, completions, rows, rewards)
    if reference and same_encoding(run.tokenizer, reference.tokenizer):
        ids = (completions.prompt_ids, completions.ids)
        log_probs = summed_log_probs(run, *ids, temperature=temperature)
        ref_log_probs = summed_log_probs(reference, *ids, temperature=temperature)
        pairs = zip(log_probs, ref_log_probs, strict=True)
        values["kl"] = [log_prob - ref_log_prob for log_prob, ref_log_prob in pairs]
    values["completion_length"] = [float(len(row)) for row in completions.ids]
    values["eos_rate"] = [float(ended) for ended in completions.ended]
    return values


def score_values(
    run: ChatRun, completions: RunCompletions, rows: list[dict], rewards: WeightedSum
) -> dict[str, list[float]]:
    """Each reward as score_<name>; their weighted sum comes first, as "score", if there are several."""
    completed = ScoringBatch(
        prompts=[row["prompt"] for row in rows],
        completions=completions.texts,
        columns={name: [row.get(name) for row in rows] for name in column_names(rows)},
        tokenizer=run.tokenizer,
        prompt_ids=completions.prompt_ids,
        completion_ids=completions.ids,
    )
    total, parts = rewards(completed)
    values = {}
    # The sum of a single reward would be the same column again, except for its weight.
    if len(parts) > 1:
        values["score"] = total.tolist()
    for name, part in parts.items():
        values[f"score_{name}"] = part.tolist()
    return values


def check_finite(values: dict[str, list[float]], label: str) -> None:
    for name, column in values.items():
        bad = sum(not math.isfinite(value) for value in column)
        if bad:
            raise UserError(
                f"{label}: {name}: {bad} of {len(column)} values are not finite: check the weights for NaN"
            )


def perplexity(run: ChatRun, rows: list[dict]) -> tuple[Estimate | None, int]:
    """Perplexity of texts, or of completions given their prompts: exp(mean negative log-probability per token).

    Returns (estimate or None if no row fits the context, number of rows that are too long).
    """
    limit = context_length(run.model)
    prompts, targets = [], []
    for row in rows:
        ids, mask = encode_example(run.tokenizer, row)
        start = max(1, mask.index(True))  # the first token of a plain text has nothing before it
        if start < len(ids) <= limit:
            prompts.append(ids[:start])
            targets.append(ids[start:])
    if not prompts:
        return None, len(rows)
    # Perplexity is a property of the model, so its own distribution counts, not the sampling temperature.
    log_probs = summed_log_probs(run, prompts, targets, temperature=1.0)
    losses = [-log_prob for log_prob in log_probs]
    lengths = [len(target) for target in targets]
    if not math.isfinite(sum(losses)):
        raise UserError(f"{run.label}: perplexity is not finite: check the weights for NaN")
    return perplexity_estimate(losses, lengths), len(rows) - len(losses)


@torch.no_grad()
def summed_log_probs(
    run: ChatRun, prompts: list[list[int]], targets: list[list[int]], *, temperature: float
) -> list[float]:
    """log p(target | prompt) of each row, summed over its tokens."""
    sums: list[float] = []
    for start in range(0, len(prompts), BATCH):
        prompt_ids, prompt_mask = left_pad(prompts[start : start + BATCH], run.pad_token_id)
        ids, mask = right_pad(targets[start : start + BATCH], run.pad_token_id)
        batch = {
            "prompt_ids": prompt_ids.to(run.device),  # (B, P)
            "prompt_mask": prompt_mask.to(run.device),
            "completion_ids": ids.to(run.device),  # (B, T)
            "mask": mask.to(run.device),
        }
        log_probs = reference_log_probs(run.model, batch, temperature=temperature)  # (B, T)
        sums += masked_sum(log_probs, batch["mask"], 1).tolist()
    return sums


# ---- statistics --------------------------------------------------------------------------------------------------


def mean_estimate(values: Sequence[float]) -> Estimate:
    """mean +- 1.96 s / sqrt(n): the normal approximation."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:  # one value has no spread
        return Estimate(mean, None, None, n)
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    half = Z * math.sqrt(variance / n)
    return Estimate(mean, mean - half, mean + half, n)


def rate_estimate(values: Sequence[float]) -> Estimate:
    """Share of ones among zeros and ones, with Wilson's interval."""
    n = len(values)
    share = sum(values) / n
    low, high = wilson_interval(share, n)
    return Estimate(share, low, high, n)


def perplexity_estimate(losses: Sequence[float], lengths: Sequence[int]) -> Estimate:
    """exp of a ratio of sums, r = sum_i loss_i / sum_i length_i, with the delta method's interval.

    losses: negative log-probability of each text; lengths: its tokens. The variance of r is about
    n / (n - 1) * sum_i (loss_i - r length_i)^2 / (sum_i length_i)^2.
    """
    n = len(losses)
    tokens = sum(lengths)
    rate = sum(losses) / tokens
    if n < 2:
        return Estimate(math.exp(rate), None, None, n)
    pairs = zip(losses, lengths, strict=True)
    squares = sum((loss - rate * length) ** 2 for loss, length in pairs)
    half = Z * math.sqrt(squares * n / (n - 1)) / tokens
    # The interval is symmetric in the exponent, so its low end stays above 0.
    return Estimate(math.exp(rate), math.exp(rate - half), math.exp(rate + half), n)


def is_rate(values: Sequence[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def win_rate(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Per prompt: 1 where the first run scores higher, 0 where lower, 1/2 for a tie."""
    wins = []
    for a, b in zip(first, second, strict=True):
        # In another batch the same completion gets a score that differs in the last digits: that is a tie.
        if math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6):
            wins.append(0.5)
        else:
            wins.append(float(a > b))
    return wins


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams / all n-grams of lower-cased words (arXiv 1510.03055); None if no text has n words.

    completions.diversity.distinct_n counts token ids. Words compare runs whose tokenizers differ.
    """
    grams = []
    for text in texts:
        # Per text, so that no n-gram reaches from one completion into the next.
        words = text.lower().split()
        grams += n_grams(words, n)
    if not grams:
        return None
    return len(set(grams)) / len(grams)
