import copy
import json

import pytest
import torch
from transformers.activations import NewGELUActivation

from rlhf.models.actor_critic import reference_log_probs
from rlhf.models.kernels import (
    SHORT,
    original_matrices,
    store_frozen_matrices_in_bf16,
    use_differentiable_attention,
    use_fast_kernels,
)
from rlhf.models.load import load_policy, load_reward_model, save
from rlhf.models.parts import freeze
from rlhf.models.scores import sequence_scores

IDS = torch.tensor([[11, 2, 0, 12, 3, 4], [11, 5, 0, 12, 13, 13]])
MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
BATCH = {
    "prompt_ids": torch.tensor([[11, 2, 0, 12], [13, 13, 5, 12]]),
    "prompt_mask": torch.tensor([[True] * 4, [False, False, True, True]]),
    "completion_ids": torch.tensor([[3, 4, 0], [6, 0, 13]]),
    "mask": torch.tensor([[True, True, True], [True, True, False]]),
}
CPU = torch.device("cpu")


def new_gelus(model):
    return sum(isinstance(module, NewGELUActivation) for module in model.modules())


def output(model):
    """What is used of the model: log-probs of a causal LM, scores of a reward model."""
    if hasattr(model, "score"):
        return sequence_scores(model, IDS, MASK)
    return reference_log_probs(model, BATCH, temperature=0.7)


@pytest.fixture(params=["language model", "reward model"])
def model(request, tokenizer, make_policy, make_reward_model):
    make = make_policy if request.param == "language model" else make_reward_model
    return make(tokenizer, factor=4.0) if request.param == "language model" else make(tokenizer)


def test_fast_kernels_change_neither_outputs_nor_gradients(model):
    fast = copy.deepcopy(model)
    use_fast_kernels(fast, device=CPU, longest=32)
    assert new_gelus(model) == 2 and new_gelus(fast) == 0
    assert (model.config._attn_implementation, fast.config._attn_implementation) == (
        "sdpa",
        "eager",
    )
    first, second = output(model), output(fast)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-5)
    for found in (first, second):
        (found.sum() / 100).backward()
    compared = 0
    for (name, slow), quick in zip(model.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(
            quick.grad, slow.grad, atol=1e-5, rtol=1e-4, msg=lambda t, n=name: f"{n}: {t}"
        )
        compared += bool(slow.grad.abs().max() > 1e-3)
    assert compared > 20  # gradients of some size, not zeros


def test_long_rows_keep_their_attention(model):
    use_fast_kernels(model, device=CPU, longest=SHORT + 1)
    assert model.config._attn_implementation == "sdpa" and new_gelus(model) == 0
    use_fast_kernels(model, device=torch.device("cuda"), longest=8)
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_was_asked_for_is_kept(model, tokenizer, tmp_path, refused):
    save(model, tokenizer, tmp_path)
    load = load_reward_model if hasattr(model, "score") else load_policy
    for name in ("sdpa", "eager"):
        chosen = load(str(tmp_path), attn_implementation=name)
        use_fast_kernels(chosen, device=CPU, longest=32)
        assert chosen.config._attn_implementation == name and new_gelus(chosen) == 0
    use_differentiable_attention(chosen)  # eager
    chosen = load(str(tmp_path), attn_implementation="sdpa")
    assert "second derivative" in refused(use_differentiable_attention, chosen)
    use_differentiable_attention(model)  # nobody chose its attention
    assert model.config._attn_implementation == "eager"


def test_the_config_on_disk_says_nothing_of_kernels(model, tokenizer, tmp_path):
    use_fast_kernels(model, device=CPU, longest=32)
    save(model, tokenizer, tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text)["activation_function"] == "gelu_new"
    assert "eager" not in text and "attn_implementation" not in text
    loaded = type(model).from_pretrained(tmp_path)
    assert new_gelus(loaded) == 2 and loaded.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_halved_matrices_give_the_same_bits_under_autocast(model):
    freeze(model)
    full = output(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = output(model)
    size = sum(p.nbytes for p in model.parameters())
    store_frozen_matrices_in_bf16(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(output(model), before)
    assert not torch.equal(before, full)  # autocast was at work
    blocks = sum(p.nbytes for p in model.transformer.h.parameters())
    assert sum(p.nbytes for p in model.parameters()) < 0.65 * size and blocks < size / 2
    named = dict(model.named_parameters())
    assert named["transformer.h.0.mlp.c_fc.weight"].dtype == torch.bfloat16
    for name, parameter in named.items():
        if "wte" in name or "wpe" in name or "ln_" in name:
            assert parameter.dtype == torch.float32, name


@torch.no_grad()
def test_original_matrices_are_back_within_the_context_only(model):
    freeze(model)
    full = {name: p.clone() for name, p in model.named_parameters()}
    store_frozen_matrices_in_bf16(model, keep_originals=True)
    halves = dict(model.named_parameters())
    for _ in range(2):
        with original_matrices(model):
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, full[name]), name
            copied = copy.deepcopy(model)
        assert dict(copied.named_parameters()).keys() == full.keys()
        for name, parameter in model.named_parameters():
            assert parameter is halves[name], name
    assert halves["transformer.h.0.mlp.c_fc.weight"].dtype == torch.bfloat16
