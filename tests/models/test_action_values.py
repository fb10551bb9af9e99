"""The heads of ILQL: rows of a batch, the guided policy, and their file."""

import pytest
import torch
from torch import nn

from rlhf.completions.sample import decode, uniform_numbers
from rlhf.data.padding import left_pad, right_pad
from rlhf.models.action_values import (
    ActionValueHeads,
    ImplicitQ,
    check_can_guide,
    guided,
    load_heads,
    save_heads,
)
from rlhf.models.actor_critic import last_states, reference_log_probs
from rlhf.models.parts import trunk_of

PROMPTS = [[2, 3, 4], [5], [6, 7]]
COMPLETIONS = [[3, 0], [4, 5, 6, 0], [2, 2, 0]]


@pytest.fixture
def policy(tokenizer, make_policy):
    return make_policy(tokenizer, factor=2.0, seed=1)


@pytest.fixture
def heads(policy):
    """Heads with values that matter: fresh ones give 0."""
    torch.manual_seed(5)
    made = ActionValueHeads(16, policy.get_output_embeddings().out_features)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def batch_of(prompts, completions) -> dict:
    prompt_ids, prompt_mask = left_pad(prompts, 0)
    ids, mask = right_pad(completions, 0)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": ids,
        "mask": mask,
    }


@torch.no_grad()
def test_rows_of_a_batch_equal_rows_alone(policy, heads):
    model = ImplicitQ(policy, heads, values_move_trunk=True)
    together = model(**batch_of(PROMPTS, COMPLETIONS))
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = model(**batch_of([prompt], [completion]))
        length = len(completion)
        for name, value in alone._asdict().items():
            of_row = getattr(together, name)[..., i, :length]
            assert torch.allclose(of_row, value[..., 0, :], atol=1e-5), name
            assert (getattr(together, name)[..., i, length:] == 0).all(), name


@torch.no_grad()
def test_the_outputs_are_those_of_the_heads_at_the_state_before_each_token(policy, heads):
    model = ImplicitQ(policy, heads, values_move_trunk=True)
    outputs = model(**batch_of([PROMPTS[0]], [COMPLETIONS[0]]))
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    states = last_states(trunk_of(policy), ids, torch.ones_like(ids, dtype=torch.bool))[0, 2:4]
    for t, token in enumerate(COMPLETIONS[0]):
        first, second = (function(states[t]) for function in heads.quality)
        assert outputs.quality[0, 0, t].item() == pytest.approx(first[token].item(), abs=1e-4)
        log_probs = torch.log_softmax(second, -1)[token]
        assert outputs.quality_log_probs[1, 0, t].item() == pytest.approx(
            log_probs.item(), abs=1e-4
        )
        smaller = heads.smaller_quality(states[t])[token]
        assert outputs.target[0, t].item() == pytest.approx(smaller.item(), abs=1e-4)
        assert outputs.values[0, t].item() == pytest.approx(
            heads.values(states[t]).item(), abs=1e-4
        )


def decoded(policy, uniforms):
    ids, mask = left_pad(PROMPTS, 0)
    return decode(
        policy,
        ids,
        mask,
        stop_token_ids=(0,),
        max_completion_length=6,
        temperature=1.0,
        uniforms=uniforms,
    )


@torch.no_grad()
def test_without_weight_the_guided_policy_is_the_policy_bit_for_bit(policy, heads):
    uniforms = uniform_numbers(len(PROMPTS), 6, seed=0, stream=0)
    batch = batch_of(PROMPTS, COMPLETIONS)
    plain, log_probs = (
        decoded(policy, uniforms),
        reference_log_probs(policy, batch, temperature=1.0),
    )
    with guided(policy, heads, 0.0):
        assert torch.equal(decoded(policy, uniforms).ids, plain.ids)
        assert torch.equal(reference_log_probs(policy, batch, temperature=1.0), log_probs)
    with guided(policy, heads, 4.0):
        assert not torch.equal(decoded(policy, uniforms).ids, plain.ids)
    # And nothing is left of it.
    assert torch.equal(reference_log_probs(policy, batch, temperature=1.0), log_probs)


@torch.no_grad()
def test_the_guided_policy_is_pi_times_the_exponential_of_the_advantage(policy, heads):
    ids = torch.tensor([PROMPTS[0]])
    logits = policy(ids).logits[0, -1]
    state = last_states(trunk_of(policy), ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
    first, second = (function(state) for function in heads.target_quality)
    advantage = torch.minimum(first, second) - heads.value(state)
    expected = torch.softmax(logits, -1) * (3 * advantage).exp()
    with guided(policy, heads, 3.0):
        probabilities = torch.softmax(policy(ids).logits[0, -1], -1)
    assert torch.allclose(probabilities, expected / expected.sum(), atol=1e-5)


def test_fresh_heads_guide_nothing_and_their_copies_are_not_trained(policy):
    fresh = ActionValueHeads(16, 12)
    states = torch.randn(3, 16)
    assert (fresh.smaller_quality(states) == 0).all() and (fresh.values(states) == 0).all()
    assert not any(p.requires_grad for p in fresh.target_quality.parameters())
    fresh.update_targets(1.0)
    for copy, original in zip(fresh.target_quality.parameters(), fresh.quality.parameters()):
        assert torch.equal(copy, original)


def test_the_file_gives_back_heads_and_weight_and_fits_one_policy(
    policy, heads, tokenizer, make_policy, tmp_path, refused
):
    save_heads(tmp_path, heads, 2.5)
    loaded, coef = load_heads(tmp_path, policy, 16)
    assert coef == 2.5
    states = torch.randn(3, 16)
    assert torch.equal(loaded.smaller_quality(states), heads.smaller_quality(states))
    other = make_policy(tokenizer, hidden_size=8)
    assert "put together from two runs" in refused(load_heads, tmp_path, other, 8)


def test_a_model_that_changes_its_logits_afterwards_is_refused(refused):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0,
    )  # fmt: skip
    assert "changes the logits after its output layer" in refused(
        check_can_guide, Gemma2ForCausalLM(config).eval()
    )
