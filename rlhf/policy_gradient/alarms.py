"""Alarms of policy-gradient training: each says in one line, during the run, what a person would notice in the curves.

Every alarm is a pure function of the logged rows of the rollouts, oldest first. The first rollout, sampled before
anything was learned, is the baseline. Alarms only write to the terminal and to `alarms.jsonl`. Only `max_kl_stop` and
`runs.nonfinite` end a run. Nothing is saved for resuming: the rows are in the checkpoint's log history and are read
again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainerCallback

from rlhf.errors import UserError
from rlhf.runs.progress import append_jsonl
from rlhf.runs.record import cut_rows

ALARMS_FILE = "alarms.jsonl"
HOLD = 3  # rollouts in a row before an alarm begins, and before it ends: one bad rollout is chance
WINDOW = 3  # rollouts whose mean is compared: a single mean of 64 scores is mostly noise


# ---- conditions: (rows, metric, limit) -> the numbers for the alarm's sentence, or None -----------------------------


def increased_by_factor(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` times its baseline."""
    first, now = first_and_last(rows, metric)
    if now > limit * first > 0:  # a baseline of 0 has no multiples
        return numbers(first, now)
    return None


def decreased_by_factor(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is less than `limit` times its baseline."""
    first, now = first_and_last(rows, metric)
    if now < limit * first:
        return numbers(first, now)
    return None


def increased_by(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` above its baseline."""
    first, now = first_and_last(rows, metric)
    if now > first + limit:
        return numbers(first, now)
    return None


def decreased_by(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` below its baseline."""
    first, now = first_and_last(rows, metric)
    if now < first - limit:
        return numbers(first, now)
    return None


def is_above(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is above `limit`, whatever its baseline is."""
    first, now = first_and_last(rows, metric)
    if now > limit:
        return numbers(first, now) | {"limit": limit}
    return None


def is_not_finite(rows: list[dict], metric: str, limit: float) -> dict | None:
    """More than `limit` steps were skipped (`metric`), or a logged number is NaN or infinite."""
    skipped = rows[-1].get(metric, 0)
    not_finite = []
    for name, value in rows[-1].items():
        if isinstance(value, float) and not math.isfinite(value):
            not_finite.append(name)
    if skipped <= limit and not not_finite:
        return None
    names = ""
    if not_finite:
        names = f"; not finite: {', '.join(sorted(not_finite))}"
    return {"skipped": skipped, "names": names}


def kl_inefficient(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The score's gain over the baseline per sqrt(KL) is below `limit` times its best value so far.

    With d = sqrt(KL) the gold score of a policy trained by RL is d (alpha - beta log d). So gain / d decreases with
    log d, and where it is far below its best, more KL gains nothing and then harms (Gao et al. 2022, arXiv 2210.10760).
    Means of WINDOW rollouts are compared. A quotient below one nat is mostly noise and does not count, and neither does
    a shortfall within the noise.
    """
    pairs = rows_with_all(rows, metric, "score")
    windows = window_means(pairs[1:])  # without the baseline
    efficiencies = []  # (gain per sqrt(KL), sqrt(KL)) of each window
    for i, (kl, score) in enumerate(windows):
        is_last = i == len(windows) - 1
        if kl >= 1:
            gain = score - pairs[0][1]
            efficiencies.append((gain / math.sqrt(kl), math.sqrt(kl)))
        elif is_last:
            return None  # the newest window itself is below one nat
    if not efficiencies:
        return None
    # A rollout with a large score is not enough for an alarm: the shortfall must be more than the noise of the score.
    best, _ = max(efficiencies)
    now, distance = efficiencies[-1]
    shortfall = (limit * best - now) * distance  # in units of the score
    if best <= 0 or shortfall <= noise([score for _, score in pairs]):
        return None
    return {"now": now, "best": best, "kl": pairs[-1][0]}


def diverged(rows: list[dict], metric: str, limit: float) -> dict | None:
    """`metric`, a score that is not trained on, fell while the trained score rose.

    The fall from its best must be more than `limit` times its noise, and the rise of the trained score since then more
    than its own noise. Means of WINDOW rollouts are compared. No unit is needed: scores have neither a scale nor a zero.
    """
    pairs = rows_with_all(rows, metric, "score")
    if len(pairs) < 2 * WINDOW:
        return None
    windows = window_means(pairs)  # at least WINDOW + 1 of them
    watched, score = windows[-1]
    best_watched, score_then = max(windows)  # the trained score at the time of the best watched one
    watched_noise = noise([pair[0] for pair in pairs])
    score_noise = noise([pair[1] for pair in pairs])
    fall = best_watched - watched
    rise = score - score_then
    if fall > limit * watched_noise and rise > score_noise:
        return {
            "first": best_watched,
            "now": watched,
            "score_first": score_then,
            "score_now": score,
        }
    return None


def first_and_last(rows: list[dict], metric: str) -> tuple[float, float]:
    """The baseline and the newest value. A missing one is NaN, which makes every comparison false."""
    # A metric may be missing in the first rows, if it is not logged for every rollout.
    first = next((row[metric] for row in rows if metric in row), math.nan)
    return first, rows[-1].get(metric, math.nan)


def numbers(first: float, now: float) -> dict:
    """The numbers of most sentences."""
    factor = math.inf
    if first:
        factor = now / first
    return {"first": first, "now": now, "factor": factor}


def rows_with_all(rows: list[dict], *metrics: str) -> list[tuple[float, ...]]:
    """The metrics of the rows in which all are finite. [] if the newest row is not one of them."""
    complete = []
    is_complete = False
    for row in rows:
        values = tuple(row.get(name, math.nan) for name in metrics)
        is_complete = all(map(math.isfinite, values))
        if is_complete:
            complete.append(values)
    if not is_complete:
        return []
    return complete


def window_means(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of both columns over every WINDOW consecutive rows, oldest first."""
    means = []
    for start in range(len(pairs) - WINDOW + 1):
        first, second = zip(*pairs[start : start + WINDOW])
        means.append((mean(first), mean(second)))
    return means


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def noise(values: Sequence[float]) -> float:
    """The standard deviation of one rollout's mean: sqrt(mean of squared successive differences / 2).

    A slow trend does not enlarge it (von Neumann 1941).
    """
    differences = [b - a for a, b in zip(values, values[1:])]
    return math.sqrt(mean([difference**2 for difference in differences]) / 2)


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarm:
    """One row of the table.

    condition: f(rows, metric, limit), the numbers for `sentence`, or None where there is nothing to say.
    remedy: the advice to the user.
    source: the reason for the limit.
    hold: rollouts in a row after which the alarm begins, or ends.
    """

    name: str
    metric: str
    condition: Callable[[list[dict], str, float], dict | None]
    limit: float
    sentence: str
    remedy: str
    source: str
    hold: int = HOLD


ALARMS = (
    Alarm(
        "not_finite", "nonfinite_steps", is_not_finite, 0,
        "{skipped:.0f} updates were skipped because their loss or gradient was not finite{names}",
        "lower learning_rate, check the rewards for extreme scores, and train in float32 or bf16 rather than fp16",
        "a finite loss is never in doubt, so one step is enough",
        hold=1,
    ),
    Alarm(
        "longer", "completion_length", increased_by_factor, 1.5,
        "completions grew from {first:.0f} to {now:.0f} tokens (x{factor:.1f})",
        "compare scores at equal length; retrain the reward model on rankings where the longer answer loses, set "
        "missing_eos_penalty, or raise kl_coef",
        "length is the most common reward hack: most of RLHF's gain in score can be length (arXiv 2310.03716)",
    ),
    Alarm(
        "shorter", "completion_length", decreased_by_factor, 0.5,
        "completions shrank from {first:.0f} to {now:.0f} tokens (x{factor:.1f})",
        "read samples.jsonl; lower missing_eos_penalty, or raise kl_coef",
        "default: 0.5 x baseline, because a better style does not explain half the length",
    ),
    Alarm(
        "repetition", "repetition", increased_by, 0.1,
        "the share of repeated 4-grams in a completion rose from {first:.2f} to {now:.2f}",
        "read samples.jsonl; raise kl_coef, or add a reward function that penalises repetition",
        "0.006 in human text, 0.44 in greedy text of a plain language model (arXiv 1908.04319, table 2)",
    ),
    Alarm(
        "distinct_2", "distinct_2", decreased_by_factor, 0.5,
        "the share of distinct bigrams fell from {first:.2f} to {now:.2f}",
        "completions are becoming alike: raise kl_coef or entropy_coef, or lower learning_rate",
        "default: 0.5 x baseline; it falls a little by itself when completions get longer",
    ),
    Alarm(
        "unique_completions", "unique_completions", decreased_by_factor, 0.4,
        "the share of distinct completions fell from {first:.2f} to {now:.2f}",
        "mode collapse: raise kl_coef or entropy_coef, lower learning_rate, use more prompts",
        "default: 0.4 x baseline; in ten runs of the demo, which has few answers, it did not fall below 0.57",
    ),
    Alarm(
        "endless", "eos_rate", decreased_by, 0.2,
        "the share of completions that stop by themselves fell from {first:.2f} to {now:.2f}",
        "set missing_eos_penalty above the usual spread of scores, or raise max_completion_length if answers need it",
        "default: 0.2 below the baseline, one completion in five more is cut off; ten runs of the demo lost 0.03 at most",
    ),
    Alarm(
        "kl", "kl", is_above, 20.0,
        "KL to the reference is {now:.1f} nats per completion (above {limit:.0f})",
        "the policy is probably exploiting the reward model: raise kl_coef, set kl_target or max_kl_stop, or take an "
        "earlier checkpoint",
        "docs/metrics.md: above about 20 nats the text is usually broken; long completions tolerate more",
    ),
    Alarm(
        "kl_wasted", "kl", kl_inefficient, 0.5,
        "score gained per sqrt(KL) fell from {best:.2g} to {now:.2g}, at a KL of {kl:.1f} nats",
        "more KL buys no score: stop here, or raise kl_coef, lower learning_rate, or improve the reward model",
        "Gao et al. 2022 (arXiv 2210.10760): it falls with the logarithm of KL; half of the best is far below that",
    ),
    Alarm(
        "entropy", "entropy", decreased_by_factor, 0.25,
        "entropy fell from {first:.2f} to {now:.2f} nats per token",
        "the policy hardly explores: raise entropy_coef or kl_coef, or lower learning_rate",
        "default: 0.25 x baseline; ten runs of the demo kept three quarters",
    ),
    Alarm(
        "watched", "score_watched", diverged, 3.0,
        "the watched score fell from {first:.3g} to {now:.3g} while the trained one rose from {score_first:.3g} to "
        "{score_now:.3g}",
        "over-optimisation: take the checkpoint from before, raise kl_coef, or train the reward model on new rankings "
        "of this policy's completions",
        "Gao et al. 2022, figure 1: proxy and gold part; 3 standard errors, for the best of many is high by chance",
    ),
)  # fmt: skip


# ---- the state of the alarms, and the callback ----------------------------------------------------------------------


def is_rollout(logs: dict) -> bool:
    return "score" in logs and "kl" in logs


@dataclass
class AlarmState:
    """The rollouts so far and the active alarms.

    An alarm begins when its condition was met on `hold` rollouts in a row, and ends when it was not met on as many.

    table: the alarms. unit: the name of a row in messages.
    """

    table: tuple[Alarm, ...] = field(default_factory=lambda: ALARMS)
    unit: str = "rollout"
    rows: list[dict] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    # Rollouts in a row on which the condition of an alarm disagreed with `active`.
    streaks: dict[str, int] = field(default_factory=dict)

    def observe(self, row: dict) -> dict[str, str]:
        """Adds the next rollout. Returns {name: message} of the alarms that begin with it."""
        self.rows.append(row)
        messages = {}
        # A condition sees all rows, so an alarm does not depend on where a run was resumed.
        for alarm in self.table:
            values = alarm.condition(self.rows, alarm.metric, alarm.limit)
            if not self._changes(alarm, values is not None):
                continue
            self.active ^= {alarm.name}  # begins or ends
            if values is not None:
                sentence = alarm.sentence.format(**values)
                start = f"alarm at {self.unit} {len(self.rows)}"
                messages[alarm.name] = f"{start}: {sentence}: {alarm.remedy}"
        return messages

    def _changes(self, alarm: Alarm, is_met: bool) -> bool:
        """True on the rollout with which the alarm begins or ends."""
        if is_met == (alarm.name in self.active):
            self.streaks[alarm.name] = 0
            return False
        self.streaks[alarm.name] = self.streaks.get(alarm.name, 0) + 1
        if self.streaks[alarm.name] < alarm.hold:
            return False
        self.streaks[alarm.name] = 0
        return True


class AlarmCallback(TrainerCallback):
    """Prints each alarm once when it begins and appends it to `alarms.jsonl`.

    Also stops the run when the KL of a rollout is above `max_kl_stop` nats per completion (None: never). A rollout is
    logged after the updates made with it, so a run that stops has learned from that rollout too.
    """

    def __init__(self, *, max_kl_stop: float | None):
        self.max_kl_stop = max_kl_stop
        self.alarms = AlarmState()

    def on_train_begin(self, args, state, control, **kwargs):
        """Observes the rollouts of the resumed checkpoint again, and forgets what was written after it."""
        self.alarms = AlarmState()
        # Their messages are not printed again.
        for row in filter(is_rollout, state.log_history):
            self.alarms.observe(row)
        path = Path(args.output_dir) / ALARMS_FILE
        if state.is_world_process_zero:
            cut_rows(path, state.global_step)  # a resumed run makes the later steps again
        rows = self.alarms.rows
        # With the same limit the run would train one more rollout and stop again.
        if rows and self.is_beyond_limit(rows[-1]):
            raise UserError(
                f"the run stopped at this checkpoint, with a KL of {rows[-1]['kl']:.1f} nats per completion "
                f"above max_kl_stop={self.max_kl_stop:g}: raise max_kl_stop, or resume from an earlier checkpoint with "
                "a larger kl_coef"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_rollout(logs or {}):
            return
        for name, message in self.alarms.observe(logs).items():
            report_alarm(args, state, name, message)
        if self.is_beyond_limit(logs):
            control.should_training_stop = True
            message = (
                f"stopped after rollout {len(self.alarms.rows)}: its KL of {logs['kl']:.1f} nats per completion is "
                f"above max_kl_stop={self.max_kl_stop:g}: raise kl_coef or lower learning_rate, and use an earlier "
                "checkpoint"
            )
            report_alarm(args, state, "max_kl_stop", message)

    def is_beyond_limit(self, row: dict) -> bool:
        return self.max_kl_stop is not None and row["kl"] > self.max_kl_stop


def report_alarm(args, state, name: str, message: str) -> None:
    """Prints a message and appends it to the file, on the main process only."""
    if not state.is_world_process_zero:
        return
    from tqdm import tqdm

    tqdm.write(message)  # above the progress bar, which `print` would break
    row = {"step": state.global_step, "alarm": name, "message": message}
    append_jsonl(Path(args.output_dir) / ALARMS_FILE, row)
