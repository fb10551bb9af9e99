import dataclasses

import pytest
from transformers import TrainingArguments

from rlhf.algorithms import ALGORITHMS
from rlhf.policy_gradient.config import PolicyGradientConfig


@pytest.fixture
def config(tmp_path):
    def config(**settings):
        return PolicyGradientConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings
        )

    return config


SIZES = dict(
    rollout_batch_size=32,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    total_episodes=64,
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout_batch_size": 30}, ["rollout_batch_size=30", "multiple of 8", "use 24 or 32"]),
        ({"rollout_batch_size": 4}, ["use 8"]),
        ({"total_episodes": 50}, ["total_episodes=50", "multiple of 32", "use 32 or 64"]),
        ({"total_episodes": 0}, ["use 32"]),
        # 8 per step and groups of 3: 32 and 40 would fail again
        (
            {"algorithm": "grpo", "num_generations": 3},
            ["multiple of 24", "use 24 or 48", "num_generations 3"],
        ),
        ({"algorithm": "rloo"}, ["num_generations=1", ">= 2"]),
        ({"num_generations": 2}, ["num_generations=2", "rloo, grpo, dr_grpo, dapo, gspo", "set 1"]),
        ({"algorithm": "pp"}, ["'pp'", *ALGORITHMS]),
        ({"temperature": 0.0}, ["temperature=0.0"]),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_every": 1}, ["too noisy", "linear"]),
        ({"long_prompts": "skip"}, ["'skip'", "drop or cut"]),
        ({"clip_range": -0.2}, ["clip_range=-0.2", ">= 0"]),
        (
            {"algorithm": "dapo", "num_generations": 4, "clip_range_high": -0.1},
            ["clip_range_high=-0.1", ">= 0"],
        ),
        # Ignored, it would look like a setting of the run.
        (
            {"clip_range_high": 0.3},
            ["clip_range_high=0.3", "ppo does not use it", "dapo, gspo", "leave it unset"],
        ),
    ],
)
def test_invariant_21_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(
    config, refused, settings, said
):
    message = refused(config, **SIZES | settings)
    assert all(part in message for part in said), message


def test_invariant_21_what_an_error_recommends_is_accepted(config):
    for size in (24, 48):
        sizes = SIZES | {"rollout_batch_size": size, "total_episodes": size}
        config(algorithm="grpo", num_generations=3, **sizes)


def test_steps_by_hand(config):
    args = config(**SIZES, epochs_per_rollout=3, save_every=1, eval_every=2)
    assert args.mini_batch_size == 8 and args.steps_per_rollout == 12 and args.max_steps == 24
    assert args.logging_steps == args.save_steps == 12 and args.eval_steps == 24


def test_epochs_are_the_algorithms_own(config):
    for name, algorithm in ALGORITHMS.items():
        args = config(algorithm=name, num_generations=2 if algorithm.grouped else 1, **SIZES)
        assert args.epochs_per_rollout == algorithm.epochs


def test_invariant_23_defaults(config):
    args = config()
    assert (args.adam_epsilon, args.lr_scheduler_type) == (1e-5, "constant_with_warmup")
    assert (args.clip_range, args.kl_coef, args.temperature, args.gamma) == (0.2, 0.02, 1.0, 1.0)


def test_at_most_30_fields_of_our_own_each_explained():
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    own = [f for f in dataclasses.fields(PolicyGradientConfig) if f.name not in inherited]
    assert len(own) <= 30
    assert all(f.metadata.get("help") for f in own)


def test_the_clip_ranges_are_the_algorithms_own(config):
    def ranges(**settings):
        args = config(**settings)
        return args.clip_range, args.clip_range_high

    grouped = {"num_generations": 4}
    assert ranges() == (0.2, None)
    assert ranges(algorithm="dapo", **grouped) == (0.2, 0.28)
    assert ranges(algorithm="gspo", **grouped) == (3e-4, 4e-4)
    assert ranges(algorithm="gspo", clip_range=0.1, **grouped) == (0.1, 4e-4)
