"""Reward functions that misbehave: each ends in one line that names the rows, or does no harm."""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import threading
import time

import numpy
import pytest
import torch

from rlhf.completions import functions
from rlhf.completions.functions import CallLimits, FunctionScorer
from rlhf.completions.rollout import Prompts
from rlhf.completions.score import RewardModelScorer, ScoringBatch, WeightedSum, load_scorers


def batch_of(*completions, **columns):
    prompts = [f"ask {text}" for text in completions]
    names = [f"training row {10 + i}" for i in range(len(completions))]
    return ScoringBatch(prompts, list(completions), columns, row_names=names)


TWO = batch_of("one", "two")


def returning(value, **limits):
    return FunctionScorer(lambda prompts, completions: value, "mine", CallLimits(**limits))


class Rude:
    def __float__(self):
        raise RuntimeError("no")


# ---- what comes back ----


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned NoneType and not a list of numbers (TypeError): None"),
        ([1.0], "returned 1 scores for 2 completions"),
        ([1.0] * 5, "returned 5 scores for 2 completions"),
        (itertools.count(), "returned 3 scores for 2 completions"),
        ([1.0, float("nan")], "1 score is not a finite number: training row 11: 'two' -> nan (prompt 'ask two')"),
        ([float("inf"), 0], "training row 10: 'one' -> inf"),
        ([1e39, 0], "training row 10: 'one' -> 1e+39"),  # more than fp32 holds
        ([10**400, 0], "training row 10: 'one' -> 1000"),
        (["1", 0], "training row 10: 'one' -> '1'"),
        ([1.0, None], "training row 11: 'two' -> None"),
        ([1.0, [1.0, 2.0]], "training row 11: 'two' -> [1.0, 2.0]"),
        ([1.0, Rude()], "training row 11: 'two' -> <"),
        ([1.0, 1j], "training row 11: 'two' -> 1j"),
        ({0.5: "a", 1.5: "b"}, "returned dict and not a list of numbers"),
        ({0.5, 1.5}, "returned set and not a list of numbers"),
        ("12", "returned str and not a list of numbers"),
        (0.5, "returned float and not a list of numbers"),
        (torch.tensor(0.5), "returned no list of numbers (TypeError"),
        (torch.ones(2, 2), "2 scores are not finite numbers: training row 10: 'one' -> tensor([1., 1.])"),
        (torch.ones(3), "returned 3 scores for 2 completions"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_numbers_is_refused_with_its_rows(returned, said, refused):
    message = refused(returning(returned), TWO)
    assert message.startswith("reward function mine") and said in message


@pytest.mark.parametrize(
    "returned",
    [
        (1, 0),
        [True, False],
        numpy.array([1, 0]),
        torch.tensor([[1.0], [0.0]]),
        iter([1.0, 0.0]),
        [torch.tensor(1.0), numpy.float64(0)],
        range(1, -1, -1),
    ],
)
def test_numbers_of_all_kinds_are_scores(returned):
    assert returning(returned)(TWO).tolist() == [1.0, 0.0]


def test_an_error_within_a_generator_is_told_as_any_other(refused):
    def mine(prompts, completions):
        return (1 / 0 for _ in completions)

    message = refused(FunctionScorer(mine, "mine"), TWO)
    assert "reward function mine raised ZeroDivisionError" in message


def test_an_async_function_is_refused_with_the_remedy(refused, recwarn):
    async def mine(prompts, completions):
        return [1.0, 0.0]

    message = refused(FunctionScorer(mine, "mine"), TWO)
    assert "async" in message and "asyncio.run" in message
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]
    plain = FunctionScorer(lambda *texts: asyncio.run(mine(*texts)), "plain")
    assert plain(TWO).tolist() == [1.0, 0.0]


def test_an_error_names_the_rows_and_the_line(refused):
    def mine(prompts, completions):
        raise KeyError("answers")

    message = refused(FunctionScorer(mine, "mine"), batch_of(*"abcdefg"))
    assert "raised KeyError: 'answers' (test_functions.py:" in message
    assert "training row 10, training row 11, " in message and "and 2 more" in message
    assert "the first prompt is 'ask a'" in message


def test_a_reward_model_that_gives_nan_names_the_rows(make_reward_model, tokenizer, refused):
    scorer = RewardModelScorer(make_reward_model(tokenizer), tokenizer)
    scorer.score = lambda rows: torch.tensor([0.5, float("nan")])
    message = refused(scorer, TWO)
    assert "the reward model: 1 score is not a finite" in message and "training row 11" in message


def test_a_sum_that_overflows_is_refused(refused):
    rewards = WeightedSum({"mine": returning([1e38, 0])}, [100.0])
    assert "the weighted sum of the rewards: 1 score is" in refused(rewards, TWO)


def test_rows_have_the_numbers_they_have_in_the_data():
    prompts = Prompts(rows=[{}, {}, {}], ids=[[1], [2], [3]], numbers=[4, 7, 9], name="training")
    chosen = prompts.choose([2, 0, 0])
    assert chosen.row_names() == ["training row 9", "training row 4", "training row 4"]
    assert chosen.ids == [[3], [1], [1]]


def test_a_rollout_with_a_bad_score_names_the_row_of_the_data(make_trainer, refused):
    def mine(prompts, completions, **columns):
        return [float("nan") if prompt == "e" else 1.0 for prompt in prompts]

    rows = [{"prompt": "a b c d e f g h a b c d e f g h a b c d e f g h a"}, {"prompt": "e"}]
    trainer = make_trainer(rows=[*rows, {"prompt": "b"}], score=mine, long_prompts="drop")
    message = refused(trainer.rollouts.make, 0)
    assert "training row 1: " in message and "-> nan (prompt 'e')" in message


# ---- what it does to its surroundings ----


def test_a_function_that_changes_its_arguments_changes_copies():
    prompts = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]
    batch = ScoringBatch(prompts, ["one", "two"], {"facts": [["x"], ["y"]]})

    def mine(prompts, completions, facts):
        scores = [float(len(fact)) for fact in facts]
        prompts[0].append({"role": "assistant", "content": "oh"})
        for fact in facts:
            fact.append("more")
        prompts.clear()
        completions.clear()
        facts.clear()
        return scores

    scorer = FunctionScorer(mine, "mine")
    assert scorer(batch).tolist() == scorer(batch).tolist() == [1.0, 1.0]
    assert batch.prompts[0] == [{"role": "user", "content": "hi"}]
    assert batch.completions == ["one", "two"] and batch.columns == {"facts": [["x"], ["y"]]}


@pytest.mark.parametrize("timeout", [None, 60])
def test_random_numbers_and_the_working_folder_are_put_back(tmp_path, timeout):
    drawn = []

    def mine(prompts, completions):
        drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
        random.seed(1)
        numpy.random.seed(1)
        torch.manual_seed(1)
        os.chdir(tmp_path)
        torch.set_grad_enabled(True)
        print("noise")
        return [1.0, 0.0]

    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    folder = os.getcwd()
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(5)
    expected = draw()
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(5)
    scorer = FunctionScorer(mine, "mine", CallLimits(timeout=timeout))
    with torch.no_grad():
        scorer(TWO)
        assert not torch.is_grad_enabled()
    assert draw() == expected and os.getcwd() == folder
    # Its own numbers are a function of the texts: the same for a run that was resumed, others for other texts.
    scorer(TWO)
    scorer(batch_of("one", "three"))
    assert drawn[0] == drawn[1] != drawn[2]


# ---- limits ----


@pytest.fixture
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(functions.time, "sleep", waits.append)
    return waits


def test_a_call_that_takes_too_long_is_abandoned(refused):
    released = threading.Event()

    def mine(prompts, completions):
        released.wait(30)
        return [1.0, 0.0]

    started = time.time()
    message = refused(FunctionScorer(mine, "mine", CallLimits(timeout=0.2)), TWO)
    released.set()
    assert time.time() - started < 5
    assert "mine took longer than reward_timeout, 0.2 s" in message and "training row 10" in message


def test_a_call_within_its_time_is_as_without_a_limit(refused):
    def mine(prompts, completions):
        assert not torch.is_grad_enabled()
        return [float(len(text)) for text in completions]

    assert FunctionScorer(mine, "mine", CallLimits(timeout=60))(TWO).tolist() == [3.0, 3.0]

    def leave(prompts, completions):
        sys.exit(3)

    scorer = FunctionScorer(leave, "leave", CallLimits(timeout=60, retries=5))
    assert "leave raised SystemExit: 3" in refused(scorer, TWO)  # and is not tried again


def test_a_call_that_fails_is_tried_again(no_waiting, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    calls = iter(range(10))

    def mine(prompts, completions):
        if next(calls) < 2:
            completions.clear()
            raise ConnectionError("no answer")
        return [1.0] * len(completions)

    scorer = FunctionScorer(mine, "mine", CallLimits(retries=2))
    assert scorer(TWO).tolist() == [1.0, 1.0]
    assert no_waiting == [1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "mine raised ConnectionError: no answer" in lines[0]
    assert lines[0].endswith("(call 1 of 3): again in 1 s")


def test_the_last_failure_tells_all_reasons(no_waiting, refused):
    errors = iter([ConnectionError("busy"), ConnectionError("busy"), KeyError("score")])

    def mine(prompts, completions):
        raise next(errors)

    message = refused(FunctionScorer(mine, "mine", CallLimits(retries=2)), TWO)
    assert "failed 3 times: raised ConnectionError: busy" in message
    assert message.count("busy") == 1 and "KeyError: 'score'" in message
    assert "training row 10" in message


def test_a_bad_result_is_not_tried_again(no_waiting, refused):
    assert "not a finite number" in refused(returning([float("nan"), 0], retries=3), TWO)
    assert no_waiting == []


def test_waits_double_up_to_a_minute(no_waiting, refused):
    def mine(prompts, completions):
        raise ConnectionError

    refused(FunctionScorer(mine, "mine", CallLimits(retries=8)), TWO)
    assert no_waiting == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_keys_reach_the_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "limited_rewards.py").write_text("def f(prompts, completions): return [0.0]\n")
    limits = CallLimits(timeout=2.0, retries=3)
    (scorer,) = load_scorers([], ["limited_rewards:f"], limits=limits).values()
    assert scorer.limits == limits


ENDS = """
import re, sys, time
from rlhf.completions.functions import CallLimits, FunctionScorer
from rlhf.completions import functions
from rlhf.completions.score import ScoringBatch
functions.GRACE = 1

def mine(prompts, completions):
    {body}

FunctionScorer(mine, "mine", CallLimits(timeout=1))(ScoringBatch(["a"], ["b"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("time.sleep(600)", "took longer than reward_timeout, 1 s"),
        # The regular expression never lets another thread run: the watchdog says where it is.
        ("re.match('(a*)*b', 'a' * 60)", "in mine"),
    ],
)
def test_the_process_ends_within_seconds_of_the_time_out(body, said):
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(body=body)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and said in done.stderr
    assert time.time() - started < 40  # most of it is the import
