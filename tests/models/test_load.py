import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.utils import is_flash_attn_2_available

from rlhf.models.load import load_encoder, load_policy, load_reward_model, load_tokenizer, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import (
    UNLIMITED,
    context_length,
    disable_dropout,
    fit_embeddings,
    freeze,
    label_maps,
    stop_token_ids,
)
from rlhf.models.scores import score_centre, score_head, sequence_scores, shift_scores
from rlhf.models.scratch import new_policy

IDS = torch.tensor([[2, 3, 4, 0], [5, 6, 0, 13], [7, 0, 13, 13]])
MASK = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 2 + [False] * 2])


@torch.no_grad()
def scores(model):
    return sequence_scores(model.eval(), IDS, MASK)


@torch.no_grad()
def perturb(model):
    """Trained LoRA: its B matrices start at 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_invariant_04_score_is_read_at_the_last_real_token(tokenizer, make_reward_model):
    model = make_reward_model(tokenizer)
    found = scores(model)
    for row, length in enumerate(MASK.sum(1).tolist()):
        hidden = model.transformer(input_ids=IDS[row : row + 1, :length]).last_hidden_state
        torch.testing.assert_close(found[row], model.score(hidden[0, -1])[0], atol=1e-5, rtol=1e-4)


def test_invariant_02_score_does_not_depend_on_what_padding_is(tokenizer, make_reward_model):
    model = make_reward_model(tokenizer)
    before = scores(model)
    with torch.no_grad():
        eos_as_pad = sequence_scores(model, torch.where(MASK, IDS, 0), MASK)
    torch.testing.assert_close(eos_as_pad, before, atol=1e-5, rtol=1e-4)


def test_invariant_10_freeze_and_disable_dropout_reach_functional_dropout(tokenizer):
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
        max_position_embeddings=32, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    model = disable_dropout(OPTForCausalLM(config)).train()
    with torch.no_grad():
        first, second = (model(input_ids=IDS).logits for _ in range(2))
    assert torch.equal(first, second)
    frozen = freeze(model)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())


def test_invariant_22_a_fresh_reward_head_is_an_error_unless_asked_for(
    tokenizer, make_policy, tmp_path, refused
):
    save(make_policy(tokenizer), tokenizer, tmp_path / "policy")
    message = refused(load_reward_model, str(tmp_path / "policy"))
    assert (
        "no reward head" in message and "score.weight" in message and "recipes/reward.py" in message
    )
    fresh = load_reward_model(str(tmp_path / "policy"), new_head=True)
    assert not scores(fresh).any()


def test_invariant_29_a_saved_policy_gives_the_same_logits(
    tokenizer, make_policy, make_llama, tmp_path
):
    for name, policy in (("gpt2", make_policy(tokenizer)), ("llama", make_llama(tokenizer))):
        save(policy, tokenizer, tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=IDS).logits, policy(input_ids=IDS).logits)
        again = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (
            again.get_vocab() == tokenizer.get_vocab()
            and again.chat_template == tokenizer.chat_template
        )


def test_invariant_29_saving_a_lora_policy_merges_a_copy(tokenizer, make_policy, tmp_path):
    policy = perturb(add_lora(make_policy(tokenizer), task="CAUSAL_LM", rank=2, alpha=4)).eval()
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    with torch.no_grad():
        before = policy(input_ids=IDS).logits
        save(policy, tokenizer, tmp_path)
        assert [name for name, p in policy.named_parameters() if p.requires_grad] == trainable != []
        assert torch.equal(policy(input_ids=IDS).logits, before)
        torch.testing.assert_close(
            load_policy(str(tmp_path))(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4
        )


def test_an_adapter_folder_is_merged_into_its_base(tokenizer, make_policy, tmp_path):
    save(make_policy(tokenizer), tokenizer, tmp_path / "base")
    policy = perturb(
        add_lora(load_policy(str(tmp_path / "base")), task="CAUSAL_LM", rank=2, alpha=4)
    ).eval()
    policy.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(str(tmp_path / "adapter")).eval()
    assert not hasattr(loaded, "peft_config")
    with torch.no_grad():
        expected = policy(input_ids=IDS).logits
        torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_invariant_35_the_shift_is_exact_on_a_head_without_bias_and_survives_reload(
    tokenizer, make_reward_model, tmp_path
):
    model = make_reward_model(tokenizer)
    assert model.score.bias is None
    before = scores(model)
    shift_scores(model, -2.5)
    torch.testing.assert_close(scores(model), before - 2.5, atol=1e-4, rtol=0)
    save(model, tokenizer, tmp_path)
    torch.testing.assert_close(
        scores(load_reward_model(str(tmp_path))), scores(model), atol=1e-6, rtol=0
    )
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path
    )  # any loader, its own forward
    with torch.no_grad():
        own = plain(input_ids=IDS[:1]).logits[0, 0]
    torch.testing.assert_close(own, scores(model)[0], atol=1e-5, rtol=1e-4)


def test_invariant_35_lora_merge_gives_the_same_scores_before_and_after_the_shift(
    tokenizer, make_reward_model, tmp_path
):
    lora = perturb(add_lora(make_reward_model(tokenizer), task="SEQ_CLS", rank=2, alpha=4))
    before = scores(lora)
    save(lora, tokenizer, tmp_path / "merged")
    torch.testing.assert_close(
        scores(load_reward_model(str(tmp_path / "merged"))), before, atol=1e-4, rtol=1e-4
    )
    merged = lora.merge_and_unload()
    shift_scores(merged, 1.25)
    torch.testing.assert_close(scores(merged), before + 1.25, atol=1e-4, rtol=1e-4)


def test_invariant_35_lora_trains_and_saves_the_whole_head(tokenizer, make_reward_model):
    lora = add_lora(make_reward_model(tokenizer), task="SEQ_CLS", rank=2, alpha=4)
    assert score_head(lora).weight.requires_grad
    trainable = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert any("score" in name for name in trainable) and all(
        "lora" in n or "score" in n for n in trainable
    )


def test_invariant_35_a_head_with_a_bias_takes_the_shift(tokenizer, make_reward_model):
    model = make_reward_model(tokenizer)
    model.score = torch.nn.Linear(16, 1)
    before = scores(model)
    shift_scores(model, 3.0)
    torch.testing.assert_close(scores(model), before + 3.0, atol=1e-5, rtol=1e-4)


def test_new_tokens_get_room_and_special_tokens_are_told(plain_tokenizer, make_policy):
    from rlhf.data.chat import add_chat_template

    policy = make_policy(plain_tokenizer)
    count = len(plain_tokenizer)
    added = add_chat_template(plain_tokenizer)
    fit_embeddings(policy, plain_tokenizer)
    assert (
        policy.get_input_embeddings().num_embeddings == count + len(added) == len(plain_tokenizer)
    )
    assert policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
    for config in (policy.config, policy.generation_config):
        assert config.pad_token_id == plain_tokenizer.pad_token_id != plain_tokenizer.eos_token_id
        assert config.eos_token_id == plain_tokenizer.eos_token_id


def test_every_stop_token_of_the_generation_config_is_kept(tokenizer, make_policy, tmp_path):
    policy = make_policy(tokenizer)
    # Two control tokens, as in Llama 3. Id 3 is the word "b", and 999 is not in the vocabulary.
    end_of_turn = tokenizer.convert_tokens_to_ids("<|system|>")
    policy.generation_config.eos_token_id = [end_of_turn, 0, 3, 999]
    assert stop_token_ids(policy, tokenizer) == [0, end_of_turn]
    fit_embeddings(policy, tokenizer)
    save(policy, tokenizer, tmp_path / "run")
    saved = load_policy(str(tmp_path / "run"))
    assert saved.generation_config.eos_token_id == [0, end_of_turn]
    assert stop_token_ids(saved, tokenizer) == [0, end_of_turn]


def test_settings_of_generation_without_effect_do_not_keep_a_run_from_saving(
    tokenizer, make_policy, tmp_path
):
    """Llama 2 and Vicuna name a temperature without do_sample. transformers saves it only in a config that is as it was."""
    save(make_policy(tokenizer), tokenizer, tmp_path / "base")
    file = tmp_path / "base" / "generation_config.json"
    settings = {"temperature": 0.9, "top_p": 0.6, "length_penalty": 2.0, "output_scores": True}
    file.write_text(json.dumps(settings | {"eos_token_id": [0, 10], "repetition_penalty": 1.1}))
    policy = load_policy(str(tmp_path / "base"))
    fit_embeddings(policy, tokenizer)
    save(policy, tokenizer, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert not settings.keys() & saved.keys()
    assert saved["eos_token_id"] == [0, 10] and saved["repetition_penalty"] == 1.1
    file.write_text(json.dumps(settings | {"do_sample": True}))
    kept = load_policy(str(tmp_path / "base")).generation_config
    assert (kept.temperature, kept.top_p) == (0.9, 0.6)


def test_sizes_that_do_not_fit_name_the_nearest(tokenizer, refused):
    sizes = dict(hidden_size=16, layers=1, heads=5, context=8)
    assert "heads=4" in refused(new_policy, tokenizer, model_type="gpt2", **sizes)
    assert "gpt2" in refused(new_policy, tokenizer, model_type="bert", **sizes | {"heads": 4})


def test_context_length(tokenizer, make_policy):
    assert context_length(make_policy(tokenizer, context=48)) == 48


@pytest.mark.parametrize("load", [load_policy, load_reward_model, load_tokenizer])
def test_a_folder_without_a_model_is_named(load, tmp_path, refused):
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt" in refused(load, str(tmp_path))
    assert "no such model folder" in refused(load, str(tmp_path / "missing" / "deeper"))


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_attention_is_the_one_that_is_asked_for(load, tokenizer, make_policy, tmp_path):
    save(make_policy(tokenizer), tokenizer, tmp_path)
    new = {"new_head": True} if load is load_reward_model else {}
    for name in ("eager", "sdpa"):
        model = load(str(tmp_path), attn_implementation=name, **new)
        assert model.config._attn_implementation == name and model.attention_is_chosen
    assert not hasattr(load(str(tmp_path), **new), "attention_is_chosen")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fast", "use one of eager, sdpa, flash_attention_2"),
        ("kernels-community/flash-attn", "use one of eager"),  # code of the Hub
        ("flash_attention_2", "attn_implementation=flash_attention_2 does not work here: "),
        ("flex_attention", "attn_implementation=flex_attention does not work here: GPT2"),
    ],
)
def test_attention_that_does_not_work_is_one_line(
    name, said, tokenizer, make_policy, tmp_path, refused
):
    if name == "flash_attention_2" and is_flash_attn_2_available():
        pytest.skip("FlashAttention is installed")
    save(make_policy(tokenizer), tokenizer, tmp_path)
    message = refused(load_policy, str(tmp_path), attn_implementation=name)
    assert said in message and "\n" not in message


def test_lora_trains_a_pooler_whole_that_the_checkpoint_lacks(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    sizes = dict(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path)
    model = load_encoder(
        str(tmp_path), "AutoModelForSequenceClassification", labels=["x", "y"], new_head=True
    )
    before = model.bert.pooler.dense.weight.detach().clone()
    tuned = add_lora(model, task="SEQ_CLS", rank=2, alpha=4)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert any("pooler.modules_to_save" in name for name in trained)
    assert not any("pooler" in name and "lora" in name for name in trained)
    with torch.no_grad():
        next(
            p
            for n, p in tuned.named_parameters()
            if n in trained and "pooler" in n and "weight" in n
        ).add_(1.0)
    assert torch.equal(tuned.merge_and_unload().bert.pooler.dense.weight, before + 1)


@pytest.mark.parametrize(
    ("model_type", "new"),
    [
        ("albert", ("pooler", "classifier")),
        ("deberta-v2", ("pooler", "classifier")),
        ("distilbert", ("pre_classifier", "classifier")),
        ("electra", ("sequence_summary", "classifier")),
        ("roberta", ("pooler", "classifier")),
    ],
)
def test_lora_trains_whole_what_other_architectures_have_new_before_the_head(
    model_type, new, tmp_path
):
    from transformers import AutoConfig, AutoModelForMaskedLM

    sizes = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = AutoConfig.for_model(model_type, **sizes, intermediate_size=8)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    model = load_encoder(str(tmp_path), "AutoModelForMultipleChoice", new_head=True)
    tuned = add_lora(model, task="SEQ_CLS", rank=2, alpha=4)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    for module in new:
        assert any(f".{module}.modules_to_save." in name for name in trained), module
        assert not any(f".{module}." in name and "lora" in name for name in trained), module


def cut(path):
    """Keep the first half of a file, as an upload that was stopped leaves it."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def as_pickle(folder):
    """Replace a folder's safetensors by a pickle of the same tensors."""
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    return folder / "pytorch_model.bin"


def test_weights_in_a_pickle_of_tensors_load(tokenizer, make_llama, tmp_path):
    model = make_llama(tokenizer)
    save(model, tokenizer, tmp_path)
    as_pickle(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        assert torch.equal(load_policy(str(tmp_path)).eval()(input_ids=IDS).logits, expected)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tokenizer, make_llama, tmp_path, refused):
    save(make_llama(tokenizer), tokenizer, tmp_path)
    path = as_pickle(tmp_path)
    trace = tmp_path / "was_run"

    class Code:
        def __reduce__(self):
            return trace.mkdir, ()

    torch.save({"weight": Code()}, path)
    message = refused(load_policy, str(tmp_path))
    assert "cannot be loaded as AutoModelForCausalLM" in message and "pytorch_model.bin" in message
    assert not trace.exists()


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_a_cut_file_is_one_line(tokenizer, make_llama, tmp_path, refused, form):
    save(make_llama(tokenizer), tokenizer, tmp_path)
    cut(as_pickle(tmp_path) if form == "pickle" else tmp_path / "model.safetensors")
    assert "cannot be loaded as AutoModelForCausalLM" in refused(load_policy, str(tmp_path))


@pytest.mark.parametrize("dtype", ["auto", "fp32", "int8"])
def test_a_dtype_that_is_none_of_ours_is_refused(tokenizer, make_policy, tmp_path, refused, dtype):
    save(make_policy(tokenizer), tokenizer, tmp_path)
    message = refused(load_policy, str(tmp_path), dtype=dtype)
    assert dtype in message and "float32, bfloat16, float16" in message


def test_a_classifier_is_no_reward_model(tokenizer, tmp_path, refused):
    labels = label_maps(["bad", "poor", "fair", "good", "great"])
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=16, **labels)
    save(GPT2ForSequenceClassification(config), tokenizer, tmp_path)
    message = refused(load_reward_model, str(tmp_path))
    assert "a classifier with 5 labels (bad, poor, fair, ...)" in message
    assert load_reward_model(str(tmp_path), new_head=True).num_labels == 1


def test_a_reward_model_is_no_policy(tokenizer, make_reward_model, tmp_path, refused):
    """GPT-2's output layer is its embeddings, so that no weight is missing."""
    save(make_reward_model(tokenizer), tokenizer, tmp_path)
    message = refused(load_policy, str(tmp_path))
    assert "GPT2ForSequenceClassification" in message and "recipes/sft.py" in message


def test_context_length_of_a_model_with_names_of_its_own(make_architecture):
    assert context_length(make_architecture("mpt")) == 64  # max_seq_len
    assert context_length(make_architecture("gemma3")) == 64  # in its text_config
    assert context_length(make_architecture("mamba")) == UNLIMITED


def test_text_does_not_train_what_reads_images(make_architecture, tokenizer, tmp_path):
    save(make_architecture("gemma3"), tokenizer, tmp_path)
    model = load_policy(str(tmp_path))
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"vision_tower", "multi_modal_projector"}
    learned = add_lora(model, task="CAUSAL_LM", rank=2, alpha=4)
    names = [name for name, p in learned.named_parameters() if p.requires_grad]
    assert names and all(".language_model." in name for name in names)


@pytest.mark.parametrize("model_type", ["gpt_bigcode", "bloom", "opt", "mixtral", "falcon"])
def test_disable_dropout_finds_it_under_every_name(make_architecture, model_type):
    """attn_dropout, hidden_dropout, layerdrop, router_jitter_noise; Falcon reads its config at every pass."""
    model = disable_dropout(make_architecture(model_type)).train()
    with torch.no_grad():
        passes = [model(input_ids=IDS).logits for _ in range(3)]
    assert torch.equal(passes[0], passes[1]) and torch.equal(passes[0], passes[2])


def test_disable_dropout_leaves_the_config_on_disk(make_architecture, tokenizer, tmp_path):
    model = disable_dropout(make_architecture("falcon"))
    save(model, tokenizer, tmp_path)
    assert load_policy(str(tmp_path)).config.hidden_dropout == model.config.hidden_dropout == 0.3
    again = copy.deepcopy(model).train()
    again.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, again(input_ids=IDS).logits)


def test_a_new_head_has_not_the_centre_of_the_old_one(tokenizer, make_reward_model, tmp_path):
    """A regression that began from a Llama reward model gave every number with its centre subtracted."""
    model = make_reward_model(tokenizer)
    model.config.score_centre = 0.7
    save(model, tokenizer, tmp_path)
    reward = load_reward_model(str(tmp_path), new_head=True)
    head = "AutoModelForSequenceClassification"
    regression = load_encoder(str(tmp_path), head, labels=["score"], new_head=True)
    assert score_centre(load_reward_model(str(tmp_path))) == 0.7
    assert score_centre(reward) == score_centre(regression) == 0.0
