"""The alarm of DPO on rows made by hand."""

from types import SimpleNamespace

import pytest

from rlhf.direct_preference.alarms import ALARMS, PairAlarms, both_fall
from rlhf.policy_gradient.alarms import AlarmState
from rlhf.runs.record import read_jsonl


def row(chosen, rejected, margin, step=0):
    logps = {"logps/chosen": chosen, "logps/rejected": rejected, "logps/ref_chosen": -20.0}
    return {"step": step, **logps, "logps/ref_rejected": -30.0, "rewards/margins": margin}


START = row(-20.0, -30.0, 0.0)


@pytest.mark.parametrize(
    ("last", "is_met"),
    [
        (row(-23.0, -40.0, 0.7), True),
        (row(-21.0, -40.0, 0.9), False),  # the chosen ones by less than a tenth
        (row(-23.0, -32.0, 0.7), False),  # the rejected ones
        (row(-15.0, -40.0, 1.5), False),  # the chosen ones rose
        (row(-23.0, -34.0, -0.1), False),  # no larger margin
    ],
)
def test_it_wants_both_to_fall_while_the_margin_grows(last, is_met):
    values = both_fall([START, last], "rewards/margins", 0.1)
    assert (values is not None) == is_met


def test_answers_that_are_all_but_certain_do_not_count():
    rows = [
        {**START, "logps/ref_chosen": -1.0},
        {**row(-1.3, -40.0, 0.5), "logps/ref_chosen": -1.0},
    ]
    assert both_fall(rows, "rewards/margins", 0.1) is None


def test_three_logs_in_a_row_begin_it_and_it_is_said_once():
    state = AlarmState(ALARMS, "log")
    said = [state.observe(item) for item in [START, *[row(-23.0, -40.0, 0.7)] * 5]]
    assert [len(messages) for messages in said] == [0, 0, 0, 1, 0, 0]
    message = said[3]["both_fall"]
    assert message.startswith("alarm at log 4: ") and "from -20.0 to -23.0 nats" in message


def test_the_callback_writes_a_row_and_a_resumed_run_does_not_repeat_it(tmp_path, capsys):
    args = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=True, global_step=4, log_history=[])
    alarms = PairAlarms()
    alarms.on_train_begin(args, state, None)
    rows = [START, *[row(-23.0, -40.0, 0.7)] * 3]
    for item in rows:
        alarms.on_log(args, state, None, logs=item)
    alarms.on_log(args, state, None, logs={"eval_loss": 1.0})
    (written,) = read_jsonl(tmp_path / "alarms.jsonl")
    assert written["alarm"] == "both_fall" and written["step"] == 4
    state.log_history = rows
    again = PairAlarms()
    again.on_train_begin(args, state, None)
    again.on_log(args, state, None, logs=rows[-1])
    assert len(read_jsonl(tmp_path / "alarms.jsonl")) == 1
