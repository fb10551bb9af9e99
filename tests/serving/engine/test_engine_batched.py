"""The batch itself: rows that join and leave get the tokens that they get alone, for several architectures."""

import threading
import warnings

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from rlhf.models.parts import freeze
from rlhf.serving.engine.answers import Request
from rlhf.serving.engine.batched import (
    BatchedGenerator,
    GrowingLayer,
    can_batch,
    count_to_read,
    read_prompts,
)
from rlhf.serving.engine.models import ServedModel
from rlhf.serving.engine.plain import PlainGenerator
from rlhf.serving.engine.prompts import Prompt
from rlhf.serving.engine.requests import SamplingSettings

from ..conftest import make_tokenizer

LLAMA = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "llama": LlamaConfig(**LLAMA),  # grouped heads
    "qwen2": Qwen2Config(**LLAMA),
    "gemma": GemmaConfig(head_dim=16, **LLAMA),
    "opt": OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4),
    "neox": GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}
UNFIT = {
    "sliding window": MistralConfig(sliding_window=8, **LLAMA),
    "positions by length": Phi3Config(
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
        },
        **LLAMA,
    ),
    "recurrent": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4),
}


def make_model(config, tokenizer):
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # so that tokens differ clearly
    model = freeze(model)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def ask(ids, room, n=1, **settings):
    settings = SamplingSettings(**{"temperature": 0, "max_new_tokens": room} | settings)
    return Request("r", "m", Prompt(ids, 0, room), settings, n, streamed=False, seconds=60)


def tokens_of(request):
    return request.answers[0].tokens


def run(generator, *groups):
    """Each group of requests joins after three more steps."""
    served = generator.served
    for group in groups:
        answers = []
        for request in group:
            answers += request.begin(served.tokenizer, served.stop_tokens)
        generator.add(answers)
        for _ in range(3):
            if generator.answers:
                generator.step()
    while generator.answers:
        generator.step()


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(name, tokenizer):
    model = make_model(CONFIGS[name], tokenizer)
    assert can_batch(model)
    prompts = [[7, 8, 9, 10, 11], [20], [5, 6, 7, 5, 6, 7, 9], [30, 31], [40, 41, 42]]
    rooms = [12, 4, 9, 15, 1]
    requests = [ask(ids, room) for ids, room in zip(prompts, rooms, strict=True)]
    run(
        BatchedGenerator(ServedModel(model, tokenizer), 8),
        requests[:2],
        requests[2:4],
        requests[4:],
    )
    for request, ids, room in zip(requests, prompts, rooms, strict=True):
        row = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=room)[0]
        assert tokens_of(request) == row[len(ids) :].tolist()


@pytest.mark.parametrize("name", UNFIT)
def test_other_caches_are_served_one_by_one(name, tokenizer):
    model = make_model(UNFIT[name], tokenizer)
    assert not can_batch(model)
    request = ask([7, 8, 9], 6)
    run(PlainGenerator(ServedModel(model, tokenizer)), [request])
    row = model.generate(torch.tensor([[7, 8, 9]]), do_sample=False, max_new_tokens=6)[0]
    assert tokens_of(request) == row[3:].tolist()


def test_a_model_that_ignores_its_mask_is_not_batched(tokenizer):
    model = make_model(CONFIGS["gpt2"], tokenizer)
    forward = model.forward
    model.forward = lambda attention_mask=None, **inputs: forward(**inputs)
    assert not can_batch(model)


def test_sampled_tokens_are_those_of_the_plain_way(tokenizer):
    served = ServedModel(make_model(CONFIGS["llama"], tokenizer), tokenizer)
    settings = [
        dict(temperature=1.3, seed=1),
        dict(temperature=0.8, top_k=7, seed=2),
        dict(temperature=1.0, repetition_penalty=1.4, seed=3),
        dict(temperature=0, repetition_penalty=1.4),
    ]
    plain = [ask([7, 8, 9 + i], 10, **one) for i, one in enumerate(settings)]
    batched = [ask([7, 8, 9 + i], 10, **one) for i, one in enumerate(settings)]
    for request in plain:
        run(PlainGenerator(served), [request])
    run(BatchedGenerator(served, 8), batched[:1], batched[1:])
    assert list(map(tokens_of, batched)) == list(map(tokens_of, plain))
    assert len(set(map(str, map(tokens_of, plain)))) == 4


def test_a_request_that_breaks_the_model_fails_alone(tokenizer):
    model = make_model(CONFIGS["gpt2"], tokenizer)
    served = ServedModel(model, tokenizer)
    expected = ask([7, 8, 9], 10)
    run(BatchedGenerator(served, 8), [expected])
    forward = model.forward

    def picky(input_ids, **inputs):
        if bool((input_ids == 77).any()):
            raise RuntimeError("77")
        return forward(input_ids=input_ids, **inputs)

    model.forward = picky
    good, bad = ask([7, 8, 9], 10), ask([77, 8], 10)
    run(BatchedGenerator(served, 8), [good, bad])
    assert tokens_of(good) == tokens_of(expected) and good.error is None
    assert str(bad.error) == "77"


def test_an_exception_in_a_shared_step_costs_nobody_his_answer(tokenizer):
    model = make_model(CONFIGS["gpt2"], tokenizer)
    served = ServedModel(model, tokenizer)
    expected = [ask([7, 8, 9], 10), ask([5], 8)]
    run(BatchedGenerator(served, 8), expected)
    forward, calls = model.forward, []

    def failing_once(**inputs):
        output = forward(**inputs)  # the cache has changed when it fails
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return output

    model.forward = failing_once
    requests = [ask([7, 8, 9], 10), ask([5], 8)]
    run(BatchedGenerator(served, 8), requests)
    assert list(map(tokens_of, requests)) == list(map(tokens_of, expected))


def test_the_batch_is_as_wide_as_its_longest_row(tokenizer):
    """Rows that come and go for ever must not make it grow."""
    generator = BatchedGenerator(ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer), 4)
    served, widths = generator.served, []
    for i in range(40):
        generator.add(ask([7, 8, 9], 12 if i % 2 else 8).begin(tokenizer, served.stop_tokens))
        for _ in range(4):
            generator.step()
        if generator.rows:
            widths.append(generator.rows.width)
    assert max(widths) <= 15


def test_keys_and_values_outgrow_their_buffer():
    layer = GrowingLayer()
    keys, values = (
        torch.arange(300.0).view(1, 1, 300, 1),
        torch.arange(300.0).view(1, 1, 300, 1) * 2,
    )
    for start, stop in ((0, 5), (5, 6), (6, 200), (200, 201), (201, 300)):
        shown = layer.update(keys[:, :, start:stop], values[:, :, start:stop])
        assert torch.equal(shown[0], keys[:, :, :stop]) and torch.equal(
            shown[1], values[:, :, :stop]
        )
        assert layer.get_seq_length() == stop


def test_the_batch_takes_no_more_than_its_memory(tokenizer, monkeypatch):
    model = make_model(CONFIGS["gpt2"], tokenizer)
    generator = BatchedGenerator(ServedModel(model, tokenizer), 100)
    assert generator.bytes_per_token == 2 * 2 * 32 * 4
    generator.add(ask([7, 8, 9], 29).begin(tokenizer, []))
    monkeypatch.setattr(
        "rlhf.serving.engine.batched.CACHE_BYTES", 4 * 32 * generator.bytes_per_token
    )
    joining = ask([7], 10).begin(tokenizer, []) + ask([7], 10).begin(tokenizer, [])
    assert generator.has_room(ask([7], 31), joining)
    assert not generator.has_room(ask([7], 32), joining)  # a longer row widens all


def test_prompts_share_a_prefill_without_too_much_padding(tokenizer, monkeypatch):
    generator = BatchedGenerator(ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer), 8)
    sizes = []

    def recorded(model, prompts, *rest):
        sizes.append([len(ids) for ids in prompts])
        return read_prompts(model, prompts, *rest)

    monkeypatch.setattr("rlhf.serving.engine.batched.read_prompts", recorded)
    monkeypatch.setattr("rlhf.serving.engine.batched.PREFILL_TOKENS", 40)
    requests = [ask([7] * length, 3) for length in (30, 5, 6, 21, 7)]
    generator.add([answer for one in requests for answer in one.begin(tokenizer, [])])
    assert sizes == [[30], [5, 6, 7], [21]]


@pytest.mark.parametrize(
    "lengths, count",
    [
        ([5], 1),
        ([5, 50, 200], 3),  # 255 tokens: too few to care
        ([100, 110, 120], 3),  # 360 for 330
        ([100, 100, 100, 300], 3),  # 1200 for 600
        ([2000, 2000, 2000], 2),
    ],
)
def test_prompts_of_like_length_are_read_together(lengths, count):
    assert count_to_read(lengths) == count


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_long_prompt_is_read_in_parts_while_others_write(name, tokenizer, monkeypatch):
    model = make_model(CONFIGS[name], tokenizer)
    served = ServedModel(model, tokenizer)
    prompts = [[7, 8, 9], [5 + i for i in range(60)], [4, 6], [9 + i for i in range(40)]]
    expected = [ask(ids, 12) for ids in prompts]
    for request in expected:
        run(BatchedGenerator(served, 8), [request])
    monkeypatch.setattr("rlhf.serving.engine.batched.STEP_TOKENS", 10)
    lengths = lengths_read(model, monkeypatch)
    generator = BatchedGenerator(served, 8)
    first, long, short, late = [ask(ids, 12) for ids in prompts]
    generator.add(first.begin(tokenizer, []))
    generator.step()
    generator.add(long.begin(tokenizer, []) + short.begin(tokenizer, []))
    generator.add(late.begin(tokenizer, []))
    generator.step()
    assert len(tokens_of(first)) == 3 and not tokens_of(long)
    assert tokens_of(short)  # it does not wait for all of the long one
    while generator.busy:
        generator.step()
    assert list(map(tokens_of, (first, long, short, late))) == list(map(tokens_of, expected))
    assert max(lengths) == 10 and not generator.parts


@pytest.mark.parametrize("how", ["cancel", "failure"])
def test_a_long_prompt_that_ends_early_leaves_nothing(how, tokenizer, monkeypatch):
    served = ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer)
    monkeypatch.setattr("rlhf.serving.engine.batched.STEP_TOKENS", 10)
    generator = BatchedGenerator(served, 8)
    request = ask([5 + i for i in range(60)], 12)
    generator.add(request.begin(tokenizer, []))
    assert generator.busy and generator.parts
    if how == "cancel":
        request.stop.set()
    else:
        monkeypatch.setattr(served.model, "forward", lambda **inputs: 1 / 0)
    for _ in range(3):
        generator.step()
    assert request.done and not generator.busy and not generator.parts


def test_several_answers_to_one_prompt_read_it_once(tokenizer, monkeypatch):
    served = ServedModel(make_model(CONFIGS["llama"], tokenizer), tokenizer)
    expected = [ask([7, 8, 9, 10], 6, temperature=1.0, seed=3, n=n) for n in (1, 4)]
    for request in expected:
        run(PlainGenerator(served), [request])
    rows = []

    def recorded(model, prompts, *rest):
        rows.append(len(prompts))
        return read_prompts(model, prompts, *rest)

    monkeypatch.setattr("rlhf.serving.engine.batched.read_prompts", recorded)
    requests = [ask([7, 8, 9, 10], 6, temperature=1.0, seed=3, n=n) for n in (1, 4)]
    run(BatchedGenerator(served, 8), requests)
    assert rows == [1]
    for request, wanted in zip(requests, expected, strict=True):
        texts = [answer.tokens for answer in wanted.answers]
        assert [answer.tokens for answer in request.answers] == texts


def test_no_warning_of_an_old_name_at_each_step(tokenizer):
    served = ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(BatchedGenerator(served, 8), [ask([7, 8, 9], 4)])


def test_a_cancelled_row_leaves_and_the_others_stay(tokenizer):
    served = ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer)
    expected, stays, goes = ask([7, 8, 9], 10), ask([7, 8, 9], 10), ask([5, 5], 10)
    run(BatchedGenerator(served, 8), [expected])
    generator = BatchedGenerator(served, 8)
    threading.Timer(0, goes.stop.set).run()
    run(generator, [stays], [goes])
    assert tokens_of(stays) == tokens_of(expected)
    assert goes.answers[0].finish == "cancelled"


# ---- the next turn of a conversation -----------------------------------------------------------------------------


def lengths_read(model, monkeypatch):
    """The number of new tokens of each forward pass."""
    lengths, forward = [], model.forward

    def recorded(input_ids, **inputs):
        lengths.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model, "forward", recorded)
    return lengths


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_next_turn_reads_only_what_is_new(name, tokenizer, monkeypatch):
    model = make_model(CONFIGS[name], tokenizer)
    served = ServedModel(model, tokenizer)
    generator = BatchedGenerator(served, 8)
    first = ask(list(range(10, 50)), 6)
    run(generator, [first])
    history = first.prompt.ids + tokens_of(first)
    nexts = [ask([*history, 60, 61, 62], 6), ask([*history[:44], 70], 6)]  # and a branch
    expected = [ask(request.prompt.ids, 6) for request in nexts]
    run(BatchedGenerator(served, 8, reuse=False), expected)
    lengths = lengths_read(model, monkeypatch)
    run(generator, nexts)
    assert lengths[:2] == [4, 1]  # the newest token of an answer was never read
    assert list(map(tokens_of, nexts)) == list(map(tokens_of, expected))
    again = ask(first.prompt.ids, 6)  # the same question again: its last token gives the first one
    run(generator, [again])
    assert tokens_of(again) == tokens_of(first)


def test_few_conversations_are_kept(tokenizer, monkeypatch):
    monkeypatch.setattr("rlhf.serving.engine.prefixes.KEPT", 3)
    generator = BatchedGenerator(ServedModel(make_model(CONFIGS["gpt2"], tokenizer), tokenizer), 8)
    for start in range(6):
        run(generator, [ask([start + i for i in range(30)], 3)])
    kept = generator.prefixes.kept
    assert [prefix.ids[0] for prefix in kept] == [3, 4, 5]
    assert len(kept[0].ids) == 32  # the last token was never read
    # What continues one takes its place.
    run(generator, [ask([*kept[0].ids, 99], 3)])
    assert [prefix.ids[0] for prefix in generator.prefixes.kept] == [4, 5, 3]
    monkeypatch.setattr("rlhf.serving.engine.prefixes.KEPT_BYTES", 0)
    run(generator, [ask([start + i for i in range(30)], 3)])
    assert not generator.prefixes.kept
