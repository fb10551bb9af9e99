"""What is tried before the first step of a policy-gradient run, and that trying it changes nothing."""

import random
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf.completions.functions import CallLimits, kept_surroundings
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum
from rlhf.errors import UserError
from rlhf.policy_gradient.checks import (
    EVALUATED,
    check_before_training,
    check_roles,
    try_function,
)


def test_a_function_is_tried_as_a_rollout_calls_it():
    """Three prompts, the completions of each next to each other, and the columns that any row has."""
    calls = []

    def remember(prompts, completions, **columns):
        calls.append((prompts, completions, columns))
        return [0.0] * len(prompts)

    chat = [{"role": "user", "content": "c"}]
    rows = [
        {"prompt": "a", "completion": "right", "topic": 1},
        {"prompt": "b"},
        {"prompt": chat},
        {"prompt": "never tried"},
    ]
    try_function(FunctionScorer(remember, "remember"), rows, [{"prompt": "e", "level": 2}], group=2)
    prompts, completions, columns = calls[0]
    assert len(calls) == 1
    assert prompts == ["a", "a", "b", "b", chat, chat]
    assert completions[:4] == ["right", "right", "b", "b"]
    assert all("c" in completion for completion in completions[4:])
    assert columns == {"topic": [1, 1, None, None, None, None], "level": [None] * 6}


def test_a_function_that_changes_its_rows_changes_a_copy():
    def spoil(prompts, completions, *, topic):
        topic[0].append("changed")
        return [1.0] * len(prompts)

    rows = [{"prompt": "a", "topic": ["b"]}]
    try_function(FunctionScorer(spoil, "spoil"), rows, [], group=1)
    assert rows == [{"prompt": "a", "topic": ["b"]}]


def test_a_function_that_returns_no_number_is_refused():
    scorer = FunctionScorer(lambda prompts, completions: [None] * len(prompts), "none")
    with pytest.raises(UserError, match="none: 1 score is not a finite number"):
        try_function(scorer, [{"prompt": "a"}], [], group=1)


def test_the_trial_keeps_to_the_limits_of_the_calls(tmp_path, monkeypatch):
    """A service that fails once does not end the run there, if it would not later."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "services.py").write_text(
        "calls = []\n"
        "def flaky(prompts, completions, **columns):\n"
        "    calls.append(prompts)\n"
        "    if len(calls) == 1:\n"
        "        raise ConnectionError('down')\n"
        "    return [0.0] * len(prompts)\n"
    )
    settings = SimpleNamespace(
        ptx_dataset_name="texts",
        reward_model_path=[],
        reward_functions=["services:flaky"],
        reward_weights=None,
        watch_reward_model_path=None,
        value_model="shared",
        call_limits=lambda: CallLimits(retries=1),
    )
    args = SimpleNamespace(algorithm="ppo", num_generations=1)
    splits = SimpleNamespace(train=[{"prompt": "a"}], eval=[])
    check_roles(settings, args, splits)
    monkeypatch.delitem(sys.modules, "services")
    settings.call_limits = CallLimits
    with pytest.raises(UserError, match="ConnectionError: down .*while it scored training row 0"):
        check_roles(settings, args, splits)


def test_what_is_tried_moves_no_random_numbers():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    with kept_surroundings(seed=0):
        draw()
    assert draw() == expected
    seed()
    scorer = FunctionScorer(lambda prompts, completions: [sum(draw())], "draw")
    try_function(scorer, [{"prompt": "a"}], [], group=1)
    assert draw() == expected


def test_a_reward_model_is_tried_with_the_longest_prompt(
    make_trainer, make_reward_model, tokenizer
):
    """It reads 48 tokens. The policy reads 32, so a longer context of the policy is what could be too long for it."""
    trainer = make_trainer(max_completion_length=6)
    scorer = RewardModelScorer(make_reward_model(tokenizer), tokenizer)
    trainer.roles.rewards = WeightedSum({"reward_model": scorer})
    longest = max(map(len, trainer.rollouts.prompts.ids))
    training = trainer.model.training
    check_before_training(trainer)
    assert trainer.model.training == training
    scorer.limit = longest + 6
    check_before_training(trainer)
    scorer.limit = longest + 5
    with pytest.raises(
        UserError, match=f"longest prompt has {longest}, .* max_prompt_length to {longest - 1}"
    ):
        check_before_training(trainer)


def test_the_best_metric_is_one_that_an_evaluation_gives(make_trainer):
    trainer = make_trainer(eval_rows=[{"prompt": "a"}, {"prompt": "b"}])
    measured = {name.removeprefix("eval_") for name in trainer.evaluate()}
    assert measured == {*EVALUATED, "score_score"}
    for name in measured:
        trainer.args.metric_for_best_model = name
        check_before_training(trainer)
    trainer.args.metric_for_best_model = "accuracy"
    with pytest.raises(UserError, match="metric_for_best_model=accuracy: use one of score, "):
        check_before_training(trainer)
