"""Drawing tokens for a batch of answers with settings of their own, against transformers' own steps."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf.completions.sample import sample_tokens
from rlhf.serving.engine.answers import StopStrings
from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.engine.sampling import choose_tokens, keep_likely, token_logprobs

NO_ROW = torch.zeros(1, 0, dtype=torch.long)


def answer(number: float = 0.5, tokens=(), prompt=(1, 2), **settings):
    uniforms = torch.full((8,), number, dtype=torch.float64)
    return SimpleNamespace(
        settings=SamplingSettings(**settings),
        uniforms=uniforms,
        tokens=list(tokens),
        prompt_ids=list(prompt),
    )


def logits_of(rows: int, size: int, scale: float = 3.0):
    generator = torch.Generator().manual_seed(rows * size)
    return torch.randn(rows, size, generator=generator) * scale


@pytest.mark.parametrize("top_k", [0, 1, 5, 700, 5000])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("scale", [0.01, 3.0])  # flat: most tokens are needed for the mass
def test_the_same_tokens_stay_as_in_transformers(top_k, top_p, scale):
    scores = logits_of(3, 2000, scale)
    expected = scores
    if top_k:
        expected = TopKLogitsWarper(top_k)(NO_ROW, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(NO_ROW, expected)
    kept = keep_likely(scores, top_k=torch.tensor([top_k] * 3), top_p=torch.tensor([top_p] * 3))
    different = torch.isfinite(kept) != torch.isfinite(expected)
    # Sums of probabilities round in another order: one token at the edge may differ.
    assert different.sum(-1).max() <= 1


def test_each_row_is_drawn_by_its_own_settings():
    logits = logits_of(4, 300)
    answers = [
        answer(temperature=0),
        answer(0.3, temperature=2.0, top_p=0.9),
        answer(0.8, temperature=0.7, top_k=4, top_p=1.0, repetition_penalty=1.5, prompt=[5, 7]),
        answer(0.1, temperature=1.0, top_p=1.0),
    ]
    expected = [int(logits[0].argmax())]
    for row, one in zip(logits[1:], answers[1:], strict=True):
        settings, scores = one.settings, row.unsqueeze(0)
        if settings.repetition_penalty != 1:
            seen = torch.tensor([one.prompt_ids])
            scores = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)(seen, scores)
        scores = TemperatureLogitsWarper(settings.temperature)(NO_ROW, scores)
        if settings.top_k:
            scores = TopKLogitsWarper(settings.top_k)(NO_ROW, scores)
        if settings.top_p < 1:
            scores = TopPLogitsWarper(settings.top_p)(NO_ROW, scores)
        expected += sample_tokens(scores, one.uniforms[:1], temperature=1.0).tolist()
    assert choose_tokens(logits, answers) == expected
    alone = [choose_tokens(logits[i : i + 1], [answers[i]])[0] for i in range(4)]
    assert alone == expected


def test_greedy_heeds_the_repetition_penalty():
    logits = torch.tensor([[1.0, 3.0, 2.9, -1.0]])
    plain, penalised = answer(temperature=0), answer(temperature=0, repetition_penalty=1.2)
    assert choose_tokens(logits, [plain]) == [1]
    penalised.tokens = [1]  # 3.0 / 1.2 = 2.5; token 2 of the prompt: 2.9 / 1.2 = 2.42
    assert choose_tokens(logits, [penalised]) == [1]
    penalised.prompt_ids = []
    assert choose_tokens(logits, [penalised]) == [2]
    assert logits.tolist() == torch.tensor([[1.0, 3.0, 2.9, -1.0]]).tolist()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_that_holds_no_numbers_spoils_no_other(broken):
    logits = logits_of(3, 50)
    good = choose_tokens(logits, [answer(temperature=0)] * 3)
    logits[1, 7] = broken
    tokens = choose_tokens(logits, [answer(temperature=0)] * 3)
    assert tokens == [good[0], None, good[2]]


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-39, 1e-5])
def test_the_smallest_temperatures_are_greedy(temperature):
    logits = logits_of(6, 50)
    answers = [answer(i / 6, temperature=temperature) for i in range(6)]
    assert choose_tokens(logits, answers) == logits.argmax(-1).tolist()


def test_logprobs_by_hand():
    logits = torch.tensor([1.0, 2.0, 4.0]).log()
    value, top = token_logprobs(logits, 0, 2)
    assert value == pytest.approx(-1.945910, abs=1e-5)  # log 1/7
    assert [token for token, _ in top] == [2, 1]
    assert [p for _, p in top] == pytest.approx([-0.559616, -1.252763], abs=1e-5)


@pytest.mark.parametrize(
    "stops, pieces, shown, hit",
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", ""], True),
        (["END"], ["a E", "N", "O b"], ["a ", "", "ENO b"], False),
        (["aab"], ["aa", "ab"], ["", "a"], True),
        (["x", "yz"], ["ayz", "x"], ["a", ""], True),
        ([], ["a", "b"], ["a", "b"], False),
        (["\n\n"], ["a\n", "\n"], ["a", ""], True),
    ],
)
def test_text_is_held_back_only_while_it_may_be_a_stop_string(stops, pieces, shown, hit):
    text = StopStrings(stops)
    assert [text.feed(piece) for piece in pieces] == shown
    assert text.hit == hit and text.rest() == ""
