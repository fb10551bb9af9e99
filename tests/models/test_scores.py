import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf.models.actor_critic import ActorCritic
from rlhf.models.load import load_policy, load_reward_model, save
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import add_adapter_model, save_adapter
from rlhf.models.scores import (
    scale_scores,
    score_centre,
    score_head,
    sequence_scores,
    shift_scores,
)

IDS = torch.tensor([[11, 2, 0, 12, 3], [11, 5, 0, 12, 13], [4, 0, 13, 13, 13]])
MASK = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3])
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
# Kinds whose head has no bias -> options of their config, and whether a weight can hold the shift.
DECODERS = {
    "llama": (SIZES | dict(num_key_value_heads=1), False),
    "qwen2": (SIZES | dict(num_key_value_heads=1), False),
    "gemma": (SIZES | dict(num_key_value_heads=1, head_dim=8), False),
    "mistral": (SIZES | dict(num_key_value_heads=1), False),
    "phi3": (SIZES | dict(num_key_value_heads=1), False),
    "olmo2": (SIZES | dict(num_key_value_heads=1), False),
    "smollm3": (SIZES | dict(num_key_value_heads=1), False),
    "mpt": (dict(d_model=16, n_heads=2, n_layers=2, max_seq_len=64), False),
    "opt": (SIZES | dict(ffn_dim=32, word_embed_proj_dim=16), True),  # its norm is in its decoder
    "gpt_neox": (SIZES, True),
    "bert": (SIZES, True),
}


def tiny(kind, tokenizer, auto=AutoModelForSequenceClassification):
    torch.manual_seed(0)
    special = dict(
        vocab_size=len(tokenizer), pad_token_id=13, eos_token_id=0, bos_token_id=0, num_labels=1
    )
    model = auto.from_config(AutoConfig.for_model(kind, **special, **DECODERS[kind][0]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model.eval()


@torch.no_grad()
def scores(model):
    return sequence_scores(model.eval(), IDS, MASK)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_kind_of_model_keeps_its_centre_when_saved(kind, tokenizer, tmp_path):
    model = tiny(kind, tokenizer).train()
    before = scores(model)
    assert before.std() > 1e-3
    stored_in = shift_scores(model, -2.5)
    in_weights = DECODERS[kind][1]
    assert (stored_in == "score_centre in config.json") != in_weights
    torch.testing.assert_close(scores(model), before - 2.5, atol=1e-4, rtol=1e-4)
    save(model, tokenizer, tmp_path)
    loaded = load_reward_model(str(tmp_path))
    torch.testing.assert_close(scores(loaded), before - 2.5, atol=1e-4, rtol=1e-4)

    # What a plain user of transformers computes, with the one line of the model card.
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logit = plain(input_ids=IDS[:1]).logits[0, 0]
    if in_weights:
        assert getattr(plain.config, "score_centre", None) is None
    else:
        assert plain.config.score_centre == 2.5
        logit = logit - plain.config.score_centre
    torch.testing.assert_close(logit, before[0] - 2.5, atol=1e-4, rtol=1e-4)


def test_shifts_add_up_and_scale_with_the_scores(tokenizer):
    model = tiny("llama", tokenizer)
    before = scores(model)
    shift_scores(model, 3.0)
    scale_scores(model, 0.5)
    shift_scores(model, -1.0)
    torch.testing.assert_close(scores(model), before * 0.5 + 0.5, atol=1e-4, rtol=1e-4)
    assert score_centre(model) == -0.5


def test_a_head_of_zeros_keeps_its_centre(tokenizer, make_reward_model):
    model = make_reward_model(tokenizer)
    torch.nn.init.zeros_(model.score.weight)
    assert shift_scores(model, 1.0) == "score_centre in config.json"
    assert scores(model).tolist() == [1.0, 1.0, 1.0]


def test_weights_of_two_bytes_that_would_round_the_shift_away_leave_it_to_the_config(
    tokenizer, make_reward_model
):
    model = make_reward_model(tokenizer).bfloat16()
    bias = model.transformer.ln_f.bias
    with torch.no_grad():
        bias.fill_(100.0)  # of eight bits of precision, none is left for 0.001
    before = scores(model)
    assert shift_scores(model, 1e-2) == "score_centre in config.json"
    assert (bias == 100).all()
    torch.testing.assert_close(scores(model), before + 1e-2)


def test_the_value_model_begins_with_the_centred_scores(tokenizer):
    reward = tiny("llama", tokenizer)
    shift_scores(reward, -2.5)
    expected = scores(reward)[0]
    critic = ActorCritic(reward, reward)  # the policy is not read
    prompt, completion = IDS[:1, :2], IDS[:1, 2:]
    counts = torch.ones_like(completion).bool()
    with torch.no_grad():
        # The value of the state before a token that would follow: the score of all tokens before it.
        longer = torch.cat([completion, completion[:, :1]], dim=1)
        mask = torch.cat([counts, counts[:, :1]], dim=1)
        values = critic.values(None, (prompt, torch.ones_like(prompt).bool(), longer, mask))
    torch.testing.assert_close(values[0, -1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_one_reward_model_has_one_scale_with_and_without_a_shared_trunk(kind, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    save(tiny(kind, tokenizer, AutoModelForCausalLM), tokenizer, tmp_path / "sft")
    torch.manual_seed(3)
    base = load_reward_model(str(tmp_path / "sft"), new_head=True)
    reward = add_lora(base, task="SEQ_CLS", rank=2, alpha=4)
    with torch.no_grad():
        for parameter in reward.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    save_adapter(reward, str(tmp_path / "reward"), centre=0.75)
    merged = reward.merge_and_unload()
    shift_scores(merged, 0.75)
    save(merged, tokenizer, tmp_path / "reward")

    policy = load_policy(str(tmp_path / "sft"))
    policy = add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4).eval()
    shared = add_adapter_model(policy, str(tmp_path / "reward"), "reward", trainable=False)
    alone = load_reward_model(str(tmp_path / "reward"))
    torch.testing.assert_close(scores(shared), scores(alone), atol=1e-4, rtol=1e-4)
    assert score_head(alone).bias is None
