import sys

import pytest
import torch

from rlhf.completions.score import (
    FunctionScorer,
    RewardModelScorer,
    ScoringBatch,
    WeightedSum,
    load_scorers,
)
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.models.load import save

PROMPTS, TEXTS = ["a", "b c d", [{"role": "user", "content": "e"}]], ["a b", "", "c d e f"]


@torch.no_grad()
def slow(model, ids):
    """The score at the last token of one row, without padding."""
    return model.score(
        model.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    ).item()


def trained_on(tokenizer):
    return [
        encode_prompt(tokenizer, p) + encode_completion(tokenizer, c)
        for p, c in zip(PROMPTS, TEXTS, strict=True)
    ]


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(refused, weight):
    scorers = {"length": FunctionScorer(lambda prompts, completions: [1.0], "length")}
    assert "of length must be a finite number" in refused(WeightedSum, scorers, [weight])


def test_invariant_04_text_is_scored_exactly_as_it_was_trained(tokenizer, make_reward_model):
    scorer = RewardModelScorer(make_reward_model(tokenizer), tokenizer, batch_size=2)
    found = scorer(ScoringBatch(PROMPTS, TEXTS))
    assert found.tolist() == pytest.approx(
        [slow(scorer.model, ids) for ids in trained_on(tokenizer)], abs=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_invariant_04_the_policys_own_ids_are_scored_at_their_last_token(
    eos_is_pad, make_reward_model, batch_size
):
    """A completion that was cut off has no EOS, and none is invented; pad == EOS hides nothing."""
    scorer = RewardModelScorer(make_reward_model(eos_is_pad), eos_is_pad, batch_size=batch_size)
    prompts, completions = [[11, 2, 0, 12], [11, 3, 0, 12], [4]], [[5, 0], [5, 6, 7], [0]]
    batch = ScoringBatch(
        PROMPTS, ["?"] * 3, tokenizer=eos_is_pad, prompt_ids=prompts, completion_ids=completions
    )
    expected = [slow(scorer.model, p + c) for p, c in zip(prompts, completions, strict=True)]
    assert scorer(batch).tolist() == pytest.approx(expected, abs=1e-5)


def test_invariant_04_another_tokenizer_gets_the_text_again_with_its_own_template(
    tokenizer, bytes_tokenizer, make_reward_model
):
    scorer = RewardModelScorer(make_reward_model(bytes_tokenizer), bytes_tokenizer)
    ids = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    batch = ScoringBatch(
        PROMPTS, TEXTS, tokenizer=tokenizer, prompt_ids=ids, completion_ids=[[2, 3, 0], [0], [4]]
    )
    expected = [slow(scorer.model, row) for row in trained_on(bytes_tokenizer)]
    assert scorer(batch).tolist() == pytest.approx(expected, abs=1e-4)


def test_invariant_28_the_reward_model_is_frozen_without_dropout(tokenizer, make_reward_model):
    scorer = RewardModelScorer(make_reward_model(tokenizer).train(), tokenizer)
    assert not scorer.model.training and not any(p.requires_grad for p in scorer.model.parameters())
    scorer.model.train()
    assert torch.equal(scorer(ScoringBatch(PROMPTS, TEXTS)), scorer(ScoringBatch(PROMPTS, TEXTS)))


def test_too_long_for_the_reward_model_is_said(tokenizer, make_reward_model, refused):
    scorer = RewardModelScorer(make_reward_model(tokenizer), tokenizer)
    assert "at most 48 tokens" in refused(scorer, ScoringBatch(["a"], ["b " * 60]))


# ---- functions and sums ----


def shout(prompts, completions, **columns):
    return [completion.count("a") for completion in completions]


def test_invariant_32_weighted_sum_keeps_each_part():
    def given(prompts, completions, *, bonus):
        return bonus

    rewards = WeightedSum(
        {"shout": FunctionScorer(shout, "shout"), "given": FunctionScorer(given, "given")},
        [2.0, -1.0],
    )
    scores, parts = rewards(ScoringBatch(["x", "y"], ["aa", "b"], {"bonus": [0.5, 1.0]}))
    assert scores.tolist() == [3.5, -1.0]
    assert {name: part.tolist() for name, part in parts.items()} == {
        "shout": [2.0, 0.0],
        "given": [0.5, 1.0],
    }


def test_invariant_32_weights_are_1_by_default_and_must_fit(refused):
    scorer = FunctionScorer(shout, "shout")
    assert WeightedSum({"shout": scorer})(ScoringBatch(["x"], ["aa"]))[0].tolist() == [2.0]
    assert "2 numbers for 1 rewards (shout)" in refused(WeightedSum, {"shout": scorer}, [1.0, 2.0])
    assert "reward_model_path" in refused(WeightedSum, {})


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 scores for 2 completions"),
        ([1.0, float("nan")], "1 score is not a finite number: row 1: 'two' -> nan"),
        ([None, 1.0], "row 0: 'one' -> None"),
        (None, "TypeError"),
    ],
)
def test_invariant_32_what_a_function_returns_is_checked_and_the_row_named(returned, said, refused):
    scorer = FunctionScorer(lambda prompts, completions, **columns: returned, "mine")
    message = refused(scorer, ScoringBatch(["x", "y"], ["one", "two"]))
    assert "mine" in message and said in message


def test_invariant_32_an_exception_in_a_function_is_told_with_its_name(refused):
    def broken(prompts, completions):
        raise KeyError("answers")

    assert "reward function broken raised KeyError" in refused(
        FunctionScorer(broken, "broken"), ScoringBatch(["x"], ["y"])
    )


def test_invariant_32_functions_are_loaded_by_module_and_name(tmp_path, monkeypatch, refused):
    for module in ("first_rewards", "second_rewards"):
        (tmp_path / f"{module}.py").write_text(
            "def score(prompts, completions, **columns):\n    return [1.0]\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scorers = load_scorers([], ["first_rewards:score", "second_rewards:score"])
    assert list(scorers) == [
        "score",
        "second_rewards:score",
    ]  # neither takes the place of the other
    assert "twice" in refused(load_scorers, [], ["first_rewards:score"] * 3)
    for path, said in (
        ("score", "module:function"),
        ("nowhere:score", "nowhere"),
        ("first_rewards:other", "other"),
    ):
        assert said in refused(load_scorers, [], [path])


def test_invariant_32_several_reward_models(tokenizer, make_reward_model, tmp_path):
    for place in range(2):
        save(make_reward_model(tokenizer, seed=place), tokenizer, tmp_path / str(place))
    scorers = load_scorers([str(tmp_path / "0"), str(tmp_path / "1")], [])
    assert list(scorers) == ["reward_model", "reward_model_2"]
    scores, parts = WeightedSum(scorers, [0.5, 2.0])(ScoringBatch(PROMPTS, TEXTS))
    torch.testing.assert_close(scores, 0.5 * parts["reward_model"] + 2.0 * parts["reward_model_2"])
    assert not torch.allclose(*parts.values())
