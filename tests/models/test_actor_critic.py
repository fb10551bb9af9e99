import copy

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    OPTConfig,
    OPTForCausalLM,
)

from rlhf.models import actor_critic
from rlhf.models.actor_critic import (
    FORWARD_INPUTS,
    ActorCritic,
    ValueHead,
    frozen_copy,
    position_ids,
    reference_log_probs,
)
from rlhf.models.logits import describe_logits
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import adapter
from rlhf.models.parts import disable_dropout, hidden_size
from rlhf.models.scores import sequence_scores

T, F = True, False
VOCABULARY = 24  # of `make_architecture`
PROMPTS = [
    [11, 2, 0, 12],
    [11, 5, 3, 7, 0, 12],
    [4],
]  # the first two have an EOS (0) inside, as chat prompts do
COMPLETIONS = [[3, 4, 0], [0], [5, 6, 7, 8]]


def pad(prompts, completions, pad_token_id, left=0):
    """A batch with `left` more columns of padding than it needs."""
    width, length = max(map(len, prompts)) + left, max(map(len, completions))
    return {
        "prompt_ids": torch.tensor([[pad_token_id] * (width - len(row)) + row for row in prompts]),
        "prompt_mask": torch.tensor([[F] * (width - len(row)) + [T] * len(row) for row in prompts]),
        "completion_ids": torch.tensor(
            [row + [pad_token_id] * (length - len(row)) for row in completions]
        ),
        "mask": torch.tensor([[T] * len(row) + [F] * (length - len(row)) for row in completions]),
    }


@torch.no_grad()
def slow(policy, prompt, completion, temperature):
    """Log-probs of one row by the model's own forward: no padding, no mask, positions as it makes them."""
    logits = policy(input_ids=torch.tensor([prompt + completion])).logits[0] / temperature
    chosen = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return chosen[torch.arange(len(completion)), torch.tensor(completion)]


@pytest.fixture(params=["gpt2 + shared head", "gpt2 + value model", "llama + shared head"])
def model(request, tokenizer, make_policy, make_llama, make_reward_model):
    policy = make_llama(tokenizer) if request.param.startswith("llama") else make_policy(tokenizer)
    if "shared" in request.param:
        model = ActorCritic(policy, ValueHead(policy.config.hidden_size))
        torch.nn.init.normal_(model.value_head.weight)
    else:
        model = ActorCritic(policy, make_reward_model(tokenizer, seed=1))
    return model.eval()


@pytest.mark.parametrize("pad_token_id", [13, 0], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("left", [0, 5])
@torch.no_grad()
def test_invariant_01_a_row_is_the_same_alone_padded_and_in_a_mixed_batch(
    model, left, pad_token_id
):
    batch = pad(PROMPTS, COMPLETIONS, pad_token_id, left)
    together = model(**batch, temperature=0.7, entropy=True)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = model(**pad([prompt], [completion], pad_token_id), temperature=0.7, entropy=True)
        count = len(completion)
        expected = slow(model.policy, prompt, completion, 0.7)
        for found in (alone.log_probs[0], together.log_probs[row, :count]):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            together.values[row, :count], alone.values[0], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            together.entropy[row, :count], alone.entropy[0], atol=1e-5, rtol=1e-4
        )


@torch.no_grad()
def test_invariant_01_the_test_above_can_fail(make_policy, tokenizer):
    """Absolute positions counted from the padding would move the log-probs by far more than 1e-5."""
    policy = make_policy(tokenizer)
    batch = pad([[4]], [[5, 6]], 13, left=5)
    ids, mask = (
        torch.cat([batch[a], batch[b]], 1)
        for a, b in (("prompt_ids", "completion_ids"), ("prompt_mask", "mask"))
    )
    wrong = policy(
        input_ids=ids, attention_mask=mask.long(), position_ids=torch.arange(8)[None]
    ).logits[:, 5:7]
    wrong = torch.log_softmax(wrong, -1)[0, torch.arange(2), torch.tensor([5, 6])]
    assert (wrong - slow(policy, [4], [5, 6], 1.0)).abs().max() > 1e-2


@torch.no_grad()
def test_invariant_02_eos_gets_a_log_prob_and_a_value_when_pad_is_eos(model):
    seen = model(**pad([PROMPTS[0], PROMPTS[2]], [[3, 0], [0]], 0), temperature=1.0, entropy=True)
    assert (seen.log_probs[0, :2] < 0).all() and seen.log_probs[1, 0] < 0
    assert seen.values[0, 1] != 0 and seen.values[1, 0] != 0
    assert (
        seen.log_probs[1, 1] == seen.values[1, 1] == seen.entropy[1, 1] == 0
    )  # padding, although its id is EOS


@torch.no_grad()
def test_invariant_03_tokens_outside_the_mask_change_nothing(model):
    batch = pad(PROMPTS, COMPLETIONS, 13, left=1)
    before = model(**batch, temperature=1.0, entropy=True)
    batch["completion_ids"] = torch.where(batch["mask"], batch["completion_ids"], 6)
    batch["prompt_ids"] = torch.where(batch["prompt_mask"], batch["prompt_ids"], 9)
    after = model(**batch, temperature=1.0, entropy=True)
    for name in ("log_probs", "values", "entropy"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-6, rtol=0)


@torch.no_grad()
def test_invariant_07_temperature_reaches_policy_and_reference(tokenizer, make_policy):
    policy = make_policy(tokenizer)
    batch = pad(PROMPTS, COMPLETIONS, 13)
    for temperature in (0.5, 1.0):
        seen = ActorCritic(policy, None)(**batch, temperature=temperature)
        reference = reference_log_probs(frozen_copy(policy), batch, temperature=temperature)
        torch.testing.assert_close(reference, seen.log_probs)
        expected = slow(policy, PROMPTS[2], COMPLETIONS[2], temperature)
        torch.testing.assert_close(reference[2], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_invariant_22_first_values_of_the_reward_model_are_its_scores_of_the_text_so_far(
    tokenizer, make_policy, make_reward_model
):
    reward_model = make_reward_model(tokenizer)
    model = ActorCritic(make_policy(tokenizer), reward_model).eval()
    values = model(**pad(PROMPTS, COMPLETIONS, 13), temperature=1.0).values
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        for t in range(len(completion)):
            ids = torch.tensor([prompt + completion[:t]])
            score = sequence_scores(reward_model, ids, torch.ones_like(ids).bool())
            torch.testing.assert_close(values[row, t], score[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shared_head_starts_at_0_and_no_critic_gives_no_values(tokenizer, make_policy):
    batch = pad(PROMPTS, COMPLETIONS, 13)
    assert not ActorCritic(make_policy(tokenizer), ValueHead(16))(
        **batch, temperature=1.0
    ).values.any()
    model = ActorCritic(make_policy(tokenizer), None)
    assert model(**batch, temperature=1.0).values is None and model.value_parameters() == []


@torch.no_grad()
def test_invariant_11_a_bf16_policy_gives_fp32_log_probs_and_values(tokenizer, make_policy):
    model = ActorCritic(make_policy(tokenizer).to(torch.bfloat16), ValueHead(16))
    seen = model(**pad(PROMPTS, COMPLETIONS, 13), temperature=1.0, entropy=True)
    assert seen.log_probs.dtype == seen.values.dtype == seen.entropy.dtype == torch.float32


def test_invariant_10_dropout_is_off_in_train_mode_too(
    tokenizer, make_policy, make_llama, make_reward_model
):
    batch = pad(PROMPTS, COMPLETIONS, 13)
    for policy in (make_policy(tokenizer), make_llama(tokenizer)):
        model = ActorCritic(policy, make_reward_model(tokenizer)).train()
        first, second = (model(**batch, temperature=1.0).log_probs for _ in range(2))
        assert not torch.equal(first, second)  # these models do have dropout
        disable_dropout(model).train()
        first, second = (model(**batch, temperature=1.0) for _ in range(2))
        assert torch.equal(first.log_probs, second.log_probs) and torch.equal(
            first.values, second.values
        )


def test_policy_and_value_parameters_are_all_and_apart(model):
    policy, value = model.policy_parameters(), model.value_parameters()
    assert {id(p) for p in policy} | {id(p) for p in value} == {id(p) for p in model.parameters()}
    assert not {id(p) for p in policy} & {id(p) for p in value}


def test_an_encoder_cannot_be_a_value_model(tokenizer, make_policy, refused):
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=20, num_labels=1, **sizes)
    )
    assert "value_model: shared" in refused(ActorCritic, make_policy(tokenizer), bert)


def test_positions_by_hand():
    mask = torch.tensor([[F, F, T, T, T], [T, T, T, F, F]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]


@pytest.mark.parametrize("model_type", ["cohere", "gemma2", "granite"])
@torch.no_grad()
def test_log_probs_are_those_of_logits_that_are_changed_after_the_output_layer(
    make_architecture, model_type
):
    """Policy, reference and plain text: each by the model's own forward, row by row."""
    policy = make_architecture(model_type)
    batch = pad(PROMPTS, COMPLETIONS, 13, left=2)
    outputs = ActorCritic(policy, None)(**batch, temperature=0.7)
    inputs = {name: batch[name] for name in FORWARD_INPUTS}
    reference = reference_log_probs(policy, inputs, temperature=0.7)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = slow(policy, prompt, completion, 0.7)
        for log_probs in (outputs.log_probs, reference):
            found = log_probs[row, : len(completion)]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    ids = torch.tensor([PROMPTS[1]])
    text = ActorCritic(policy, None).text_log_probs(ids, torch.ones_like(ids).bool())
    expected = slow(policy, PROMPTS[1][:1], PROMPTS[1][1:], 1.0)
    torch.testing.assert_close(text[0], expected, atol=1e-5, rtol=1e-4)


def test_gradients_through_changed_logits_are_those_of_the_model(make_architecture, monkeypatch):
    """Also in chunks that are computed again in the backward pass."""
    monkeypatch.setattr(actor_critic, "CHUNK", 2)
    policy = make_architecture("gemma2")
    prompt, completion = PROMPTS[0], COMPLETIONS[0]
    log_probs = ActorCritic(policy, None)(**pad([prompt], [completion], 13), temperature=1.0)[0]
    log_probs.sum().backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
    policy.zero_grad()
    logits = policy(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits, -1)[torch.arange(3), torch.tensor(completion)]
    chosen.sum().backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_a_cap_that_the_logits_are_far_from_is_noticed(make_architecture):
    """Small weights leave logits of 0.01, on which a cap of 3 does nothing yet."""
    policy = make_architecture("gemma2")
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1e-3)
    assert describe_logits(policy) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_way_to_the_logits_is_the_same_in_half_precision(make_architecture, dtype):
    assert describe_logits(make_architecture("llama").to(dtype)) is None
    assert describe_logits(make_architecture("granite").to(dtype)) is not None


def test_a_model_whose_logits_are_not_those_of_its_states_is_refused(make_architecture, refused):
    policy = make_architecture("llama")
    layer = torch.nn.Linear(VOCABULARY, VOCABULARY)
    forward = policy.forward

    def other_logits(*args, input_ids, **kwargs):
        output = forward(*args, input_ids=input_ids, **kwargs)
        output.logits = output.logits + layer(
            torch.nn.functional.one_hot(input_ids, VOCABULARY).float()
        )
        return output

    policy.forward = other_logits  # they depend on the token besides the state
    assert "cannot be computed from its hidden states" in refused(ActorCritic, policy, None)


def test_the_value_head_fits_states_of_another_size_than_the_models(make_policy):
    """OPT-350m projects its states before the output layer."""
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, word_embed_proj_dim=8, ffn_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=48, do_layer_norm_before=False,
    )  # fmt: skip
    policy = OPTForCausalLM(config)
    assert hidden_size(policy) == 8
    model = ActorCritic(policy, ValueHead(hidden_size(policy)))
    values = model(**pad(PROMPTS, COMPLETIONS, 13), temperature=1.0).values
    assert values.shape == (3, 4)


@torch.no_grad()
def test_with_lora_policy_and_reference_use_the_models_own_logits(make_architecture):
    """The reference is the policy without its adapter, as with share_trunk."""
    base = make_architecture("gemma2")
    policy = add_lora(copy.deepcopy(base), task="CAUSAL_LM", rank=2, alpha=4).eval()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = pad(PROMPTS[:1], COMPLETIONS[:1], 13)
    log_probs = ActorCritic(policy, None)(**batch, temperature=0.7).log_probs[0]
    expected = slow(policy, PROMPTS[0], COMPLETIONS[0], 0.7)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=1e-4)
    with adapter(policy, None):
        reference = reference_log_probs(policy, batch, temperature=0.7)[0]
    expected = slow(base, PROMPTS[0], COMPLETIONS[0], 0.7)
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=1e-4)
    assert (reference - log_probs).abs().max() > 1e-3
