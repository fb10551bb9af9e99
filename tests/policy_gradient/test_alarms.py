"""Alarms on made-up rows whose numbers decide them by hand, and on real runs of a tiny model."""

import math
import random
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from rlhf.completions.diversity import distinct_n, repetition
from rlhf.policy_gradient.alarms import (
    ALARMS,
    HOLD,
    AlarmCallback,
    AlarmState,
    noise,
)
from rlhf.runs.record import read_jsonl

STILL = dict(
    score=0.0, kl=0.5, completion_length=30.0, eos_rate=0.9, unique_completions=0.9, distinct_2=0.6, repetition=0.02,
    entropy=2.0, score_watched=0.0, nonfinite_steps=0,
)  # fmt: skip


def rows(*changes):
    return [STILL | change for change in changes]


def begun(history):
    """[(rollout, alarm)] in the order in which they begin."""
    watch = AlarmState()
    return [(place, name) for place, row in enumerate(history, 1) for name in watch.observe(row)]


# ---- distinct_n, repetition ----


def test_distinct_n_by_hand():
    assert distinct_n([[1, 2, 3], [1, 2]], 2) == 2 / 3  # 12 23 | 12
    assert distinct_n([[1, 2, 3], [1, 2]], 1) == 3 / 5
    assert distinct_n([[5, 5, 5, 5]], 2) == 1 / 3
    assert distinct_n([[1], []], 2) == 1.0  # no bigram, nothing repeats


def test_repetition_by_hand():
    assert repetition([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(
        1 / 5
    )  # 1234 2341 3412 4123 1234
    assert repetition([[1, 2, 3, 1, 2, 3]]) == 1 / 4  # under 8 tokens 3-grams: 123 231 312 123
    assert repetition([[7] * 9]) == pytest.approx(5 / 6)
    assert repetition([list(range(20))]) == repetition([[1]]) == repetition([[]]) == 0
    assert repetition([[7] * 9, list(range(20))]) == pytest.approx(
        5 / 12
    )  # a mean over completions, not over their tokens


# ---- each alarm: just inside, just outside ----


@pytest.mark.parametrize(
    ("name", "sound", "bad", "said"),
    [
        (
            "longer",
            dict(completion_length=45.0),
            dict(completion_length=64.0),
            "grew from 30 to 64 tokens (x2.1)",
        ),
        (
            "shorter",
            dict(completion_length=15.0),
            dict(completion_length=12.0),
            "shrank from 30 to 12 tokens (x0.4)",
        ),
        ("repetition", dict(repetition=0.11), dict(repetition=0.13), "rose from 0.02 to 0.13"),
        ("distinct_2", dict(distinct_2=0.3), dict(distinct_2=0.29), "fell from 0.60 to 0.29"),
        (
            "unique_completions",
            dict(unique_completions=0.37),
            dict(unique_completions=0.35),
            "fell from 0.90 to 0.35",
        ),
        ("endless", dict(eos_rate=0.71), dict(eos_rate=0.69), "fell from 0.90 to 0.69"),
        ("kl", dict(kl=20.0), dict(kl=20.5), "20.5 nats per completion (above 20)"),
        ("entropy", dict(entropy=0.5), dict(entropy=0.49), "fell from 2.00 to 0.49 nats"),
    ],
)
def test_an_alarm_of_one_metric(name, sound, bad, said):
    assert begun(rows({}, sound, sound, sound, sound)) == []
    watch = AlarmState()
    messages = [watch.observe(row) for row in rows({}, bad, bad, bad, bad)]
    assert [list(found) for found in messages] == [[], [], [], [name], []]  # on the third, and once
    remedy = next(alarm.remedy for alarm in ALARMS if alarm.name == name)
    assert messages[3][name].startswith("alarm at rollout 4: ") and said in messages[3][name]
    assert messages[3][name].endswith(remedy) and "\n" not in messages[3][name]


def test_two_bad_rollouts_are_chance_and_an_alarm_ends_before_it_comes_back():
    bad, good = dict(completion_length=60.0), {}
    assert begun(rows(good, bad, bad, good, bad, bad, good)) == []
    flickering = rows(good, *[bad] * HOLD, good, bad, good, good, *[bad] * HOLD)
    assert begun(flickering) == [
        (4, "longer")
    ]  # never HOLD good ones in a row: still the same alarm
    cleared = rows(good, *[bad] * HOLD, *[good] * HOLD, *[bad] * HOLD)
    assert begun(cleared) == [(4, "longer"), (10, "longer")]


def test_a_number_that_is_not_finite_is_an_alarm_at_once():
    watch = AlarmState()
    watch.observe(STILL)
    assert "2 updates were skipped" in watch.observe(STILL | {"nonfinite_steps": 2})["not_finite"]
    assert begun(rows({}, dict(entropy=math.nan), {}, dict(loss=math.inf))) == [
        (2, "not_finite"),
        (4, "not_finite"),
    ]
    watch = AlarmState()
    assert (
        "not finite: entropy, score"
        in watch.observe(STILL | dict(score=math.nan, entropy=math.inf))["not_finite"]
    )


def test_metrics_that_are_not_logged_set_nothing_off():
    assert begun([{"score": float(place), "kl": 0.1 * place} for place in range(20)]) == []
    assert begun(rows(*[dict(completion_length=0.0, repetition=0.0)] * 5)) == []  # a baseline of 0


def test_score_for_sqrt_kl_is_sound_and_less_is_an_alarm():
    """score = sqrt(kl) is the law; a score that stands still has half the pace at four times the KL."""
    law = [dict(kl=0.5 * step, score=math.sqrt(0.5 * step)) for step in range(30)]
    assert begun(rows(*law)) == []
    stuck = [dict(kl=kl, score=min(math.sqrt(kl), 2.0)) for kl in [0.0] + [4.0] * 20 + [15.0] * 5]
    assert begun(rows(*stuck)) == []  # 2 / sqrt(15) is still above half of 2 / sqrt(4)
    stuck = [dict(kl=kl, score=min(math.sqrt(kl), 2.0)) for kl in [0.0] + [4.0] * 20 + [25.0] * 5]
    # the first window of only 25 ends at rollout 24: 2 / 5 < 1 / 2, a shortfall of 0.5 in the score, noise 0.3
    assert begun(rows(*stuck)) == [(24, "kl"), (26, "kl_wasted")]


def test_a_shortfall_within_the_noise_of_the_score_is_none():
    """The best of many noisy quotients is high by chance, above all where the first score was low by chance."""
    for seed in range(10):
        random.seed(seed)
        law = [
            dict(kl=0.15 * step, score=math.sqrt(0.15 * step) + random.gauss(0, 0.5))
            for step in range(60)
        ]
        assert begun(rows(*law)) == []


def test_noise_by_hand_and_of_a_trend():
    assert noise([0, 2, 0, 2]) == math.sqrt(2)
    assert noise([1, 2, 3, 4]) == math.sqrt(1 / 2)


def test_the_watched_score_falls_while_the_trained_one_rises():
    random.seed(0)

    def run(gold):
        return rows(
            *[
                dict(
                    score=0.1 * t + random.gauss(0, 0.05),
                    score_watched=gold(t) + random.gauss(0, 0.05),
                )
                for t in range(30)
            ]
        )

    assert begun(run(lambda t: 0.05 * t)) == []  # both rise
    assert begun(run(lambda t: 0.0)) == []  # it stays where it was
    turned = begun(
        run(lambda t: 0.08 * t - 0.004 * t * t)
    )  # best at rollout 10, back at its first value at 20
    assert [name for _, name in turned] == ["watched"] and 14 <= turned[0][0] <= 20
    both_fall = run(lambda t: -0.1 * t)
    for row in both_fall:
        row["score"] = -row["score"]
    assert begun(both_fall) == []  # a run that fails, and no exploited reward


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_sets_nothing_off(seed):
    random.seed(seed)
    history = [
        {
            name: value * random.gauss(1, 0.05) + random.gauss(0, 0.01)
            for name, value in STILL.items()
        }
        for _ in range(200)
    ]
    for row in history:
        row |= {
            "nonfinite_steps": 0,
            "score": random.gauss(0, 1),
            "score_watched": random.gauss(0, 1),
        }
    assert begun(history) == []


# ---- the callback ----


def callback(folder, history=(), **settings):
    guards = AlarmCallback(**{"max_kl_stop": None} | settings)
    args = SimpleNamespace(output_dir=str(folder))
    state = TrainerState(global_step=2 * len(history), is_world_process_zero=True)
    state.log_history = [{"step": 2 * place, **row} for place, row in enumerate(history, 1)]
    control = TrainerControl()
    guards.on_train_begin(args, state, control)
    return guards, args, state, control


def feed(parts, history):
    guards, args, state, control = parts
    for row in history:
        state.global_step += 2
        guards.on_log(args, state, control, logs={"eval_score": 1.0, "eval_kl": 99.0})  # no rollout
        guards.on_log(args, state, control, logs=row)
    return control


LONG = rows({}, *[dict(completion_length=64.0)] * 5, *[{}] * 3, *[dict(eos_rate=0.1)] * 4)


def test_alarms_are_printed_and_kept(tmp_path, capsys):
    control = feed(callback(tmp_path), LONG)
    written = read_jsonl(tmp_path / "alarms.jsonl")
    assert [(row["step"], row["alarm"]) for row in written] == [(8, "longer"), (24, "endless")]
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed == [row["message"] for row in written] and printed[1].startswith(
        "alarm at rollout 12: "
    )
    assert not control.should_training_stop


def test_other_processes_are_silent(tmp_path, capsys):
    parts = callback(tmp_path)
    parts[2].is_world_process_zero = False
    assert not feed(parts, LONG).should_training_stop
    assert capsys.readouterr().out == "" and not (tmp_path / "alarms.jsonl").exists()


@pytest.mark.parametrize("resumed_at", range(1, len(LONG)))
def test_a_resumed_run_has_the_alarms_of_the_uninterrupted_one(tmp_path, resumed_at):
    """It is cut off two rollouts after the checkpoint: what these said is forgotten and said again."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    feed(callback(tmp_path / "whole"), LONG)
    feed(callback(tmp_path / "cut"), LONG[: resumed_at + 2])
    feed(callback(tmp_path / "cut", history=LONG[:resumed_at]), LONG[resumed_at:])
    assert (tmp_path / "cut" / "alarms.jsonl").read_text() == (
        tmp_path / "whole" / "alarms.jsonl"
    ).read_text()


def test_the_run_stops_when_the_kl_is_too_large(tmp_path, capsys):
    assert not feed(callback(tmp_path, max_kl_stop=6.0), rows(dict(kl=6.0))).should_training_stop
    assert feed(callback(tmp_path, max_kl_stop=6.0), rows({}, dict(kl=6.5))).should_training_stop
    assert (
        "stopped after rollout 2: its KL of 6.5 nats per completion is above max_kl_stop=6:"
        in capsys.readouterr().out
    )
    assert read_jsonl(tmp_path / "alarms.jsonl")[0]["alarm"] == "max_kl_stop"


def test_a_run_that_stopped_is_not_resumed_with_the_same_limit(tmp_path, refused):
    history = rows({}, dict(kl=6.5))
    message = refused(callback, tmp_path, history=history, max_kl_stop=6.0)
    assert "a KL of 6.5 nats" in message and "raise max_kl_stop" in message
    callback(tmp_path, history=history, max_kl_stop=7.0)


def settled(trainer):
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in trainer.state.log_history
    ]


@pytest.mark.slow
def test_a_real_run_is_the_same_with_guards_and_stops_by_kl(make_trainer, tmp_path, capsys):
    settings = dict(total_episodes=64, learning_rate=3e-2, kl_coef=0.0)
    plain, guarded, stopped = (
        make_trainer(name, **settings) for name in ("plain", "guarded", "stopped")
    )
    guarded.add_callback(AlarmCallback(max_kl_stop=None))
    plain.train()
    guarded.train()
    drop = {"train_runtime", "total_flos"}
    assert [r for r in settled(plain) if not drop & set(r)] == [
        r for r in settled(guarded) if not drop & set(r)
    ]

    kls = [row["kl"] for row in plain.state.log_history if "kl" in row]
    assert kls[1] > kls[0] + 0.1
    stopped.add_callback(AlarmCallback(max_kl_stop=kls[1] - 0.05))
    stopped.train()
    assert [row["kl"] for row in stopped.state.log_history if "kl" in row] == kls[:2]
    assert stopped.state.global_step == 2 * stopped.args.steps_per_rollout
    assert "stopped after rollout 2" in capsys.readouterr().out


def test_every_alarm_has_its_words():
    assert len({alarm.name for alarm in ALARMS}) == len(ALARMS)
    for alarm in ALARMS:
        assert alarm.remedy and alarm.source and alarm.condition.__doc__
