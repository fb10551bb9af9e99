"""The Trainer's keys that count optimiser steps, on the boundaries of rollouts. Here a rollout is 4 steps, a run 8."""

from types import SimpleNamespace

import pytest

from rlhf.policy_gradient.checkpoints import check_steps
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.runs.checkpoint_clock import minutes_between_checkpoints

SIZES = dict(rollout_batch_size=16, per_device_train_batch_size=4, epochs_per_rollout=1)


@pytest.fixture
def config(tmp_path):
    def config(**settings):
        return PolicyGradientConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, **SIZES | settings
        )

    return config


@pytest.mark.parametrize(
    ("given", "minutes"),
    [
        ({}, 10.0),
        ({"save_every": 2}, 10.0),
        ({"save_every": 0}, 0.0),
        ({"save_strategy": "no"}, 0.0),
        ({"save_every": 0, "save_strategy": "steps", "save_steps": 8}, 0.0),
    ],
)
def test_checkpoints_by_time_unless_none_are_wanted(config, given, minutes):
    args = config(total_episodes=64, **given)
    assert minutes_between_checkpoints(SimpleNamespace(), args) == minutes


def test_max_steps_says_how_many_episodes(config):
    args = config(max_steps=12)
    assert (args.max_steps, args.total_episodes) == (12, 48)
    args = config(max_steps=12, total_episodes=48)  # they agree
    assert (args.max_steps, args.total_episodes) == (12, 48)
    assert config().total_episodes == 2048


def test_steps_of_the_trainer_and_rollouts_of_ours_are_the_same(config):
    ours = config(total_episodes=64, save_every=2, eval_every=1)
    steps = dict(save_strategy="steps", save_steps=8, eval_strategy="steps", eval_steps=4)
    trainers = config(total_episodes=64, **steps)
    for args in (ours, trainers):
        assert (args.save_strategy, args.save_steps) == ("steps", 8)
        assert (args.eval_strategy, args.eval_steps) == ("steps", 4)
        assert args.logging_steps == 4
    config(total_episodes=64, save_every=2, eval_every=1, **steps)  # both, in agreement
    # Without save_strategy too, as in any Trainer; a share of the run's 16 steps; at each log
    assert config(total_episodes=64, save_steps=8).save_strategy == "steps"
    assert config(total_episodes=64, save_steps=0.5).save_steps == 8
    assert config(total_episodes=64, eval_strategy="steps").eval_steps == 4
    for args in (config(), config(save_strategy="no", eval_strategy="no")):
        assert args.save_strategy == args.eval_strategy == "no"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 3}, ["max_steps=3", "multiple of 4", "use 4"]),
        ({"max_steps": 6}, ["use 4 or 8"]),
        (
            {"max_steps": 8, "total_episodes": 64},
            ["max_steps=8 means total_episodes=32", "total_episodes=64 is given"],
        ),
        ({"save_steps": 6}, ["save_steps=6", "multiple of 4", "use 4 or 8"]),
        ({"eval_steps": 2}, ["eval_steps=2", "use 4"]),
        ({"eval_steps": 4.5}, ["eval_steps=4.5", "whole number"]),
        ({"save_every": 1, "save_steps": 8}, ["save_steps=8 is 2 rollouts, and save_every=1"]),
        ({"save_strategy": "no", "save_every": 1}, ["save_strategy=no and save_every=1"]),
        ({"save_strategy": "epoch"}, ["save_strategy='epoch'", "no or steps or best"]),
        ({"eval_strategy": "epoch"}, ["eval_strategy='epoch'", "no or steps"]),
        ({"save_strategy": "steps"}, ["needs save_every", "multiple of 4"]),
        ({"save_strategy": "best"}, ["needs evaluations"]),
        ({"load_best_model_at_end": True, "save_every": 1}, ["needs evaluations"]),
        (
            {"load_best_model_at_end": True, "eval_every": 1, "save_every": 2},
            ["checkpoint of each evaluation", "save_every: 1"],
        ),
        (
            {
                "load_best_model_at_end": True,
                "eval_every": 1,
                "save_every": 1,
                "metric_for_best_model": "kl",
            },
            ["metric_for_best_model=kl", "greater_is_better"],
        ),
    ],
)
def test_steps_in_the_middle_of_a_rollout_and_contradictions_are_refused(
    config, refused, settings, said
):
    message = refused(config, **settings)
    assert all(part in message for part in said), message


@pytest.mark.parametrize("metric", [None, "score", "eval_score", "score_help"])
def test_more_of_a_score_is_better(config, metric):
    best = dict(load_best_model_at_end=True, eval_every=1, save_every=1)
    args = config(metric_for_best_model=metric, **best)
    assert args.metric_for_best_model == (metric or "score").removeprefix("eval_")
    assert args.greater_is_better is True and args.load_best_model_at_end is True


@pytest.mark.parametrize("algorithm", ["reinforce", "a2c", "rloo"])
def test_without_a_ratio_a_rollout_is_read_once(config, refused, algorithm):
    groups = {"num_generations": 4} if algorithm == "rloo" else {}
    message = refused(config, algorithm=algorithm, epochs_per_rollout=4, **groups)
    assert "epochs_per_rollout=4" in message and "no probability ratio" in message
    config(algorithm=algorithm, **groups)


def test_activation_checkpointing_is_refused_where_it_cannot_work(config, refused):
    message = refused(config, algorithm="trpo", gradient_checkpointing=True)
    assert "gradient_checkpointing=True: trpo needs a second derivative" in message
    reentrant = {"use_reentrant": True}
    message = refused(config, gradient_checkpointing=True, gradient_checkpointing_kwargs=reentrant)
    assert "use_reentrant" in message
    assert config(gradient_checkpointing=True).activation_checkpointing is True


def test_a_checkpoint_of_rollouts_with_other_steps_is_refused(tmp_path, refused):
    """16 steps would be taken for the end of 4 rollouts, where they were 2."""
    (tmp_path / "trainer_state.json").write_text('{"global_step": 16}')
    check_steps(str(tmp_path), {"rollouts": 2}, 8)
    message = refused(check_steps, str(tmp_path), {"rollouts": 2}, 4)
    assert "16 optimiser steps after 2 rollouts" in message and "epochs_per_rollout" in message
