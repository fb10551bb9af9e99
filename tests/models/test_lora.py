import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf.data.chat import add_chat_template
from rlhf.models.load import load_policy, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import fit_embeddings


def raw_model(kind: str, vocabulary: int):
    """A model whose embeddings have a spread and a mean of their own, as those of a pretrained model have."""
    torch.manual_seed(0)
    if kind == "gpt2":  # tied
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, n_positions=32)
        )
    else:
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            layer.weight.normal_(mean=0.1, std=0.3)
    return model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_frozen_embeddings_of_new_tokens_have_the_scale_of_the_others(
    kind, plain_tokenizer, tmp_path
):
    old = len(plain_tokenizer)
    model = raw_model(kind, old)
    added = add_chat_template(plain_tokenizer)
    fit_embeddings(model, plain_tokenizer)
    lora = add_lora(model, task="CAUSAL_LM", rank=2, alpha=4)
    save(lora, plain_tokenizer, tmp_path)
    loaded = load_policy(str(tmp_path))
    for layer in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
        norms = layer.weight.detach().norm(dim=1)
        new, others = norms[old:], norms[:old]
        assert len(new) == len(added) == 4
        assert (new > others.min() / 2).all() and (new < 2 * others.max()).all()
        # Roles must be told apart.
        assert torch.pdist(layer.weight[old:].detach()).min() > others.mean() / 2


def test_the_draw_is_the_same_in_every_run(plain_tokenizer):
    old = len(plain_tokenizer)
    models = [raw_model("gpt2", old), raw_model("gpt2", old)]
    add_chat_template(plain_tokenizer)
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        fit_embeddings(model, plain_tokenizer)
        add_lora(model, task="CAUSAL_LM", rank=2, alpha=4)
    first, second = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(first, second)


def test_full_training_draws_new_tokens_as_transformers_does(plain_tokenizer):
    model = raw_model("gpt2", len(plain_tokenizer))
    old = len(plain_tokenizer)
    add_chat_template(plain_tokenizer)
    fit_embeddings(model, plain_tokenizer)
    assert model.get_input_embeddings().weight[old:].std() < 0.03  # initializer_range is 0.02
