"""Reward functions of the user that cannot be loaded or called: one line that names the file."""

import sys

import pytest

from rlhf.completions.rollout import samples
from rlhf.completions.score import FunctionScorer, ScoringBatch


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def module(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return tmp_path / f"{name}.py"

    return module


def test_a_file_that_is_not_python_is_named_with_its_line(module, refused):
    module("broken_rewards", "def mine(prompts, completions:\n    return 1\n")
    message = refused(FunctionScorer.load, "broken_rewards:mine")
    assert (
        "'broken_rewards:mine': SyntaxError" in message and "broken_rewards.py, line 1" in message
    )


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "1 / 0\n"])
def test_a_file_that_raises_when_imported_is_named(module, refused, text):
    path = module("leaving_rewards", text)
    message = refused(FunctionScorer.load, "leaving_rewards:mine")
    assert "'leaving_rewards:mine': " in message and str(path) in message
    sys.modules.pop("leaving_rewards", None)


def test_the_file_that_was_read_is_named_where_it_lacks_the_function(module, refused):
    path = module("other_rewards", "def mine(prompts, completions):\n    return [1.0]\n")
    assert f"(in {path})" in refused(FunctionScorer.load, "other_rewards:yours")


def test_a_function_that_leaves_the_program_does_not_end_the_run_as_done(refused):
    def leave(prompts, completions, **columns):
        sys.exit(0)

    message = refused(FunctionScorer(leave, "leave"), ScoringBatch(["a"], ["b"]))
    assert "reward function leave raised SystemExit: 0" in message


@pytest.mark.parametrize("name", ["std", "watched", "step"])
def test_a_name_of_another_number_is_refused(module, refused, name):
    module("named_rewards", f"def {name}(prompts, completions):\n    return [1.0]\n")
    assert f"another number of the name '{name}'" in refused(
        FunctionScorer.load, f"named_rewards:{name}"
    )


def test_a_reward_called_score_leaves_the_score_of_a_sample_alone(make_trainer, tokenizer):
    trainer = make_trainer(eval_rows=[{"prompt": "a"}])  # its only reward is called score
    rollout = trainer.rollouts.make_for_evaluation()
    rollout.parts["score"] = rollout.scores + 5
    sample = samples(rollout, [{"prompt": "a"}], tokenizer)[0]
    assert sample["score"] == float(rollout.scores[0])
