"""Alarms of policy-gradient training: what a person would notice in the curves, said in one line while the run goes on.

Everything is a pure function of the rows that are logged of the rollouts, oldest first. The first rollout, sampled
before anything was learned, is the baseline. Alarms change nothing but the terminal and `alarms.jsonl`; only
`max_kl_stop` and `NonFiniteSteps` end a run. Nothing is saved for resuming: the rows stand in the checkpoint's log history
and are read again.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from rlhf.errors import UserError
from rlhf.runs.progress import append_jsonl
from rlhf.runs.record import read_jsonl

ALARMS_FILE = "alarms.jsonl"
HOLD = 3  # rollouts in a row before an alarm begins, and before it counts as over: one bad rollout is chance
WINDOW = 3  # rollouts whose mean is compared where scores decide: a single mean of 64 scores is mostly noise

# ---- what is logged of a rollout's completions ---------------------------------------------------------------------


# ---- when an alarm holds: (rows, metric, limit) -> the numbers for its sentence, or None ----------------------------


def grown(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` times its baseline."""
    first, now = ends(rows, metric)
    return numbers(first, now) if now > limit * first > 0 else None


def shrunk(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is less than `limit` times its baseline."""
    first, now = ends(rows, metric)
    return numbers(first, now) if now < limit * first else None


def risen(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` above its baseline."""
    first, now = ends(rows, metric)
    return numbers(first, now) if now > first + limit else None


def fallen(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is more than `limit` below its baseline."""
    first, now = ends(rows, metric)
    return numbers(first, now) if now < first - limit else None


def above(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The metric is above `limit`, whatever it was before."""
    first, now = ends(rows, metric)
    return numbers(first, now) | {"limit": limit} if now > limit else None


def not_finite(rows: list[dict], metric: str, limit: float) -> dict | None:
    """More than `limit` steps were skipped (`metric`), or some logged number is NaN or infinite."""
    skipped = rows[-1].get(metric, 0)
    names = [
        name
        for name, value in rows[-1].items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if skipped > limit or names:
        return {
            "skipped": skipped,
            "names": f"; not finite: {', '.join(sorted(names))}" if names else "",
        }
    return None


def wasted(rows: list[dict], metric: str, limit: float) -> dict | None:
    """The score's gain over the baseline per sqrt(KL) is below `limit` times the best it has been.

    With d = sqrt(KL) the gold score of a policy trained by RL is d (alpha - beta log d): gain / d falls with log d, and
    where it has fallen far, more KL is spent for nothing, then harms (Gao et al. 2022, arXiv 2210.10760). Means of
    WINDOW rollouts; below one nat the quotient is mostly noise and is left out, and so is a shortfall within the noise.
    """
    pairs = paired(rows, metric, "score")
    paces = []  # (gain per sqrt(KL), sqrt(KL)) of each window
    for end in range(WINDOW + 1, len(pairs) + 1):
        kl, score = (mean(column) for column in zip(*pairs[end - WINDOW : end]))
        if kl >= 1:
            paces.append(((score - pairs[0][1]) / math.sqrt(kl), math.sqrt(kl)))
        elif end == len(pairs):
            return None
    if not paces:
        return None
    (best, _), (now, distance) = max(paces), paces[-1]
    shortfall = (limit * best - now) * distance
    if best <= 0 or shortfall <= noise([score for _, score in pairs]):
        return None
    return {"now": now, "best": best, "kl": pairs[-1][0]}


def parted(rows: list[dict], metric: str, limit: float) -> dict | None:
    """`metric`, a score that is not trained on, has fallen from its best by more than `limit` times its noise, while
    the trained score has risen by more than its own. Means of WINDOW rollouts.

    Noise is the standard deviation of one rollout's mean: sqrt(mean of squared successive differences / 2), which a
    slow trend does not enlarge (von Neumann 1941). No unit is needed: scores have neither a scale nor a zero.
    """
    pairs = paired(rows, metric, "score")
    if len(pairs) < 2 * WINDOW:
        return None
    windows = [
        [mean(column) for column in zip(*pairs[end - WINDOW : end])]
        for end in range(WINDOW, len(pairs) + 1)
    ]
    watched, score = windows[-1]
    best, then = max(windows)  # the best watched score, and the trained score of that time
    watched_noise, score_noise = (noise(column) for column in zip(*pairs))
    if best - watched > limit * watched_noise and score - then > score_noise:
        return {"first": best, "now": watched, "score_first": then, "score_now": score}
    return None


def ends(rows: list[dict], metric: str) -> tuple[float, float]:
    """Baseline and newest value; NaN, which no comparison holds for, where one is not there."""
    first = next((row[metric] for row in rows if metric in row), math.nan)
    return first, rows[-1].get(metric, math.nan)


def numbers(first: float, now: float) -> dict:
    return {"first": first, "now": now, "factor": now / first if first else math.inf}


def paired(rows: list[dict], *metrics: str) -> list[tuple[float, ...]]:
    """The metrics of all rows; [] unless the newest row has them."""
    found = [tuple(row.get(name, math.nan) for name in metrics) for row in rows]
    return (
        [pair for pair in found if all(map(math.isfinite, pair))]
        if all(map(math.isfinite, found[-1]))
        else []
    )


def mean(values) -> float:
    return sum(values) / len(values)


def noise(values) -> float:
    return math.sqrt(mean([(b - a) ** 2 for a, b in zip(values, values[1:])]) / 2)


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarm:
    """holds(rows, metric, limit) gives the numbers of `sentence`, or None; hold: rollouts in a row it takes to begin
    and to end; remedy: what to do; source: why this limit."""

    name: str
    metric: str
    holds: Callable[[list[dict], str, float], dict | None]
    limit: float
    sentence: str
    remedy: str
    source: str
    hold: int = HOLD


ALARMS = (
    Alarm(
        "not_finite", "nonfinite_steps", not_finite, 0,
        "{skipped:.0f} updates were skipped because their loss or gradient was not finite{names}",
        "lower learning_rate, check the rewards for extreme scores, and train in float32 or bf16 rather than fp16",
        "a finite loss is never in doubt, so one step is enough",
        hold=1,
    ),
    Alarm(
        "longer", "completion_length", grown, 1.5,
        "completions grew from {first:.0f} to {now:.0f} tokens (x{factor:.1f})",
        "compare scores at equal length; retrain the reward model on rankings where the longer answer loses, set "
        "missing_eos_penalty, or raise kl_coef",
        "length is the most common reward hack: most of RLHF's gain in score can be length (arXiv 2310.03716)",
    ),
    Alarm(
        "shorter", "completion_length", shrunk, 0.5,
        "completions shrank from {first:.0f} to {now:.0f} tokens (x{factor:.1f})",
        "read samples.jsonl; lower missing_eos_penalty, or raise kl_coef",
        "the same, the other way: half is beyond what a better style explains",
    ),
    Alarm(
        "repetition", "repetition", risen, 0.1,
        "the share of repeated 4-grams in a completion rose from {first:.2f} to {now:.2f}",
        "read samples.jsonl; raise kl_coef, or add a reward function that punishes repetition",
        "0.006 in human text, 0.44 in greedy text of a plain language model (arXiv 1908.04319, table 2)",
    ),
    Alarm(
        "distinct_2", "distinct_2", shrunk, 0.5,
        "different bigrams fell from {first:.2f} to {now:.2f} of all",
        "the completions become alike: raise kl_coef or entropy_coef, or lower learning_rate",
        "house rule: half; it falls a little by itself when completions grow",
    ),
    Alarm(
        "unique_completions", "unique_completions", shrunk, 0.4,
        "different completions fell from {first:.2f} to {now:.2f} of all",
        "mode collapse: raise kl_coef or entropy_coef, lower learning_rate, use more prompts",
        "house rule: ten runs of the demo, whose answers are few, fell to 0.57 at most",
    ),
    Alarm(
        "endless", "eos_rate", fallen, 0.2,
        "completions that stop by themselves fell from {first:.2f} to {now:.2f}",
        "set missing_eos_penalty above the usual spread of scores, or raise max_completion_length if answers need it",
        "house rule: one completion in five more is cut off; ten runs of the demo lost 0.03 at most",
    ),
    Alarm(
        "kl", "kl", above, 20.0,
        "KL to the reference is {now:.1f} nats per completion (above {limit:.0f})",
        "the score is likely being exploited: raise kl_coef, set kl_target or max_kl_stop, take an earlier checkpoint",
        "docs/metrics.md: above some 20 nats the text is usually broken; long completions bear more",
    ),
    Alarm(
        "kl_wasted", "kl", wasted, 0.5,
        "score gained per sqrt(KL) fell from {best:.2g} to {now:.2g}, at a KL of {kl:.1f} nats",
        "more KL buys no score: stop here, or raise kl_coef, lower learning_rate, or improve the reward model",
        "Gao et al. 2022 (arXiv 2210.10760): it falls with the logarithm of KL; half of the best is far below that",
    ),
    Alarm(
        "entropy", "entropy", shrunk, 0.25,
        "entropy fell from {first:.2f} to {now:.2f} nats per token",
        "the policy hardly explores: raise entropy_coef or kl_coef, or lower learning_rate",
        "house rule: a quarter of the first; ten runs of the demo kept three quarters",
    ),
    Alarm(
        "watched", "score_watched", parted, 3.0,
        "the watched score fell from {first:.3g} to {now:.3g} while the trained one rose from {score_first:.3g} to "
        "{score_now:.3g}",
        "over-optimisation: take the checkpoint from before, raise kl_coef, or train the reward model on new rankings "
        "of this policy's completions",
        "Gao et al. 2022, figure 1: proxy and gold part; 3 standard errors, for the best of many is high by chance",
    ),
)  # fmt: skip


# ---- watching -------------------------------------------------------------------------------------------------------


def is_rollout(logs: dict) -> bool:
    return "score" in logs and "kl" in logs


@dataclass
class AlarmState:
    """Alarms begin when they have held on `hold` rollouts in a row and end when they have not for as many."""

    rows: list[dict] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    streaks: dict[str, int] = field(
        default_factory=dict
    )  # rollouts in a row that speak against `active`

    def observe(self, row: dict) -> dict[str, str]:
        """Take in the next rollout; the alarms that begin with it: name -> message."""
        self.rows.append(row)
        begun = {}
        for alarm in ALARMS:
            found = alarm.holds(self.rows, alarm.metric, alarm.limit)
            changes = (found is not None) != (alarm.name in self.active)
            self.streaks[alarm.name] = self.streaks.get(alarm.name, 0) + 1 if changes else 0
            if self.streaks[alarm.name] < alarm.hold:
                continue
            self.streaks[alarm.name] = 0
            self.active ^= {alarm.name}
            if found is not None:
                sentence = alarm.sentence.format(**found)
                begun[alarm.name] = f"alarm at rollout {len(self.rows)}: {sentence}: {alarm.remedy}"
        return begun


class AlarmCallback(TrainerCallback):
    """Says each alarm once when it begins, keeps it in `alarms.jsonl`, and stops the run when the KL of a rollout is
    above `max_kl_stop` nats per completion (None: never).

    A rollout is logged after the updates made with it: a run that stops has learned from that rollout too.
    """

    def __init__(self, *, max_kl_stop: float | None):
        self.max_kl_stop = max_kl_stop
        self.watch = AlarmState()

    def on_train_begin(self, args, state, control, **kwargs):
        """Look again at the rollouts of the checkpoint that is resumed; forget what was written after it."""
        self.watch = AlarmState()
        for row in filter(is_rollout, state.log_history):
            self.watch.observe(row)
        path = Path(args.output_dir) / ALARMS_FILE
        if state.is_world_process_zero and path.exists():
            kept = [row for row in read_jsonl(path) if row["step"] <= state.global_step]
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept),
                encoding="utf-8",
            )
        if self.watch.rows and self.beyond(self.watch.rows[-1]):
            raise UserError(
                f"the run stopped at this checkpoint, with a KL of {self.watch.rows[-1]['kl']:.1f} nats per completion "
                f"above max_kl_stop={self.max_kl_stop:g}: raise max_kl_stop, or resume from an earlier checkpoint with "
                "a larger kl_coef"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not is_rollout(logs or {}):
            return
        for name, message in self.watch.observe(logs).items():
            self.say(args, state, name, message)
        if self.beyond(logs):
            control.should_training_stop = True
            self.say(
                args, state, "max_kl_stop",
                f"stopped after rollout {len(self.watch.rows)}: its KL of {logs['kl']:.1f} nats per completion is "
                f"above max_kl_stop={self.max_kl_stop:g}: raise kl_coef or lower learning_rate, and take a checkpoint "
                "from before",
            )  # fmt: skip

    def beyond(self, row: dict) -> bool:
        return self.max_kl_stop is not None and row["kl"] > self.max_kl_stop

    def say(self, args, state, name: str, message: str) -> None:
        if state.is_world_process_zero:
            from tqdm import tqdm

            tqdm.write(message)  # above the progress bar
            row = {"step": state.global_step, "alarm": name, "message": message}
            append_jsonl(Path(args.output_dir) / ALARMS_FILE, row)


class NonFiniteSteps:
    """Counts the optimiser steps that were skipped because their loss or gradient was not finite.

    `in_a_row` belongs into the checkpoint: a resumed run then stops where the uninterrupted one does. `found` must be
    the same on all processes, or some would step and others not.
    """

    def __init__(self, limit: int, output_dir: str):
        self.limit, self.output_dir = limit, output_dir
        self.in_a_row = 0
        self.since_log = 0

    def count(self, found: bool) -> None:
        """Note one step; the step that makes it `limit` skipped ones in a row is a UserError."""
        self.in_a_row = self.in_a_row + 1 if found else 0
        self.since_log += found
        if self.in_a_row >= self.limit:
            last = get_last_checkpoint(self.output_dir) if Path(self.output_dir).is_dir() else None
            resume = (
                f"continue from the last checkpoint: --resume_from_checkpoint {last}"
                if last
                else "start again (there is no checkpoint; save_every makes some)"
            )
            raise UserError(
                f"{self.in_a_row} updates in a row had a loss or gradient that is not finite; none was applied. Lower "
                "learning_rate or max_grad_norm, train in float32 or bf16, look for extreme scores in samples.jsonl, "
                f"then {resume}"
            )

    def take(self) -> int:
        """`nonfinite_steps`: skipped steps since this was last asked."""
        taken, self.since_log = self.since_log, 0
        return taken
