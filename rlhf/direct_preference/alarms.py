"""The alarm of DPO and KTO: the margin grows because all answers become unlikely, the chosen ones more slowly.

The margin is all that DPO's loss sees. So the policy may give the mass of both answers to texts that nobody has ranked
(Pal et al. 2024, arXiv 2402.13228; Razin et al. 2024, arXiv 2410.08847). The states and the file are those of PPO's alarms.
"""

from pathlib import Path

from transformers import TrainerCallback

from rlhf.policy_gradient.alarms import (
    ALARMS_FILE,
    HOLD,
    Alarm,
    AlarmState,
    report_alarm,
)
from rlhf.runs.record import cut_rows

CHOSEN, REJECTED, MARGIN = "logps/chosen", "logps/rejected", "rewards/margins"
OF_REFERENCE = {CHOSEN: "logps/ref_chosen", REJECTED: "logps/ref_rejected"}
FALL = 0.1  # of the log-prob under the reference
SMALLEST_FALL = 0.5  # nats: a tenth of an answer that is all but certain is nothing


def both_fall(rows: list[dict], metric: str, limit: float) -> dict | None:
    """Chosen and rejected answers are less likely than under the reference, and the margin has grown.

    limit: the fall of a log-prob, as a share of its size under the reference on the same answers, which differ from batch to
    batch.
    """
    row = rows[-1]
    falls = []
    for name, reference in OF_REFERENCE.items():
        needed = max(limit * abs(row[reference]), SMALLEST_FALL)
        falls.append(row[reference] - row[name] > needed)
    if not all(falls) or row[metric] <= rows[0][metric]:
        return None
    return {
        "chosen": row[CHOSEN],
        "ref_chosen": row[OF_REFERENCE[CHOSEN]],
        "rejected": row[REJECTED],
        "ref_rejected": row[OF_REFERENCE[REJECTED]],
        "margin": row[metric],
    }


ALARMS = (
    Alarm(
        "both_fall",
        MARGIN,
        both_fall,
        FALL,
        "the margin of the rewards is {margin:.3g}, while chosen answers fell from {ref_chosen:.1f} to {chosen:.1f} nats "
        "and rejected ones from {ref_rejected:.1f} to {rejected:.1f}",
        "the policy learns to say something else than either: raise beta, lower learning_rate, train fewer epochs, or learn "
        "the chosen answers by sft first (read samples.jsonl)",
        "default: a tenth; on the demo with three times its learning rate it came before the answers broke",
        hold=HOLD,
    ),
)


class PairAlarms(TrainerCallback):
    """Prints the alarm once when it begins and appends it to `alarms.jsonl`."""

    def __init__(self):
        self.alarms = AlarmState(ALARMS, "log")

    def on_train_begin(self, args, state, control, **kwargs):
        """Observes the logs of the resumed checkpoint again, and forgets what was written after it."""
        self.alarms = AlarmState(ALARMS, "log")
        for row in state.log_history:
            if MARGIN in row:
                self.alarms.observe(row)
        if state.is_world_process_zero:
            cut_rows(Path(args.output_dir) / ALARMS_FILE, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if MARGIN in (logs or {}):
            for name, message in self.alarms.observe(logs).items():
                report_alarm(args, state, name, message)
