"""Weights packed in 4 or 8 bits: what is refused, and that training, memory and the saved model mean what they say."""

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlhf.models import quantized
from rlhf.models.kernels import store_frozen_matrices_in_bf16
from rlhf.models.load import load_policy, load_reward_model, save
from rlhf.models.lora import add_lora
from rlhf.models.memory import own_bytes, weight_bytes
from rlhf.models.precision import weights_dtype
from rlhf.models.quantized import check_quantization, is_quantized, keep_layout, merged
from rlhf.runs.settings import ModelSettings

IDS = torch.randint(2, 14, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def installed(monkeypatch):
    """As if bitsandbytes were installed: the checks come before it is used."""
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())


@pytest.fixture(scope="module")
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A tiny Qwen 3, whose linear layers have several blocks of 64 weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("qwen")
    save(Qwen3ForCausalLM(config), tokenizer, path)
    return str(path)


def with_lora(folder, bits="4bit", task="CAUSAL_LM"):
    """A packed model with LoRA matrices that do something."""
    load = load_policy
    options = {}
    if task == "SEQ_CLS":
        load, options = load_reward_model, {"new_head": True}
    model = add_lora(load(folder, quantization=bits, **options), task=task, rank=4, alpha=8)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "score.modules_to_save" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model.eval()


# ---- refused -----------------------------------------------------------------------------------------------------


def test_packed_weights_need_lora(installed, refused):
    message = refused(ModelSettings, load_in_4bit=True)
    assert "load_in_4bit: true" in message and "set use_peft: true too" in message
    both = refused(ModelSettings, load_in_4bit=True, load_in_8bit=True, use_peft=True)
    assert "drop one" in both


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch, refused):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    message = refused(ModelSettings, load_in_8bit=True, use_peft=True)
    assert "load_in_8bit: true needs bitsandbytes" in message
    assert "pip install 'rlhf[quant]'" in message


@pytest.mark.parametrize("name", ["DEEPSPEED", "FSDP"])
def test_weights_that_are_split_cannot_be_packed(installed, monkeypatch, refused, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    message = refused(check_quantization, "4bit", use_peft=True)
    assert "start with ddp.yaml" in message


def test_gpt2_and_encoders_are_not_packed(installed, tokenizer, make_policy, tmp_path, refused):
    save(make_policy(tokenizer), tokenizer, tmp_path)
    message = refused(load_policy, str(tmp_path), quantization="4bit")
    assert "load_in_4bit is not for gpt2 models" in message
    settings = ModelSettings(load_in_4bit=True, use_peft=True)
    assert "this is an encoder" in refused(settings.encoder_options)
    assert settings.load_options()["quantization"] == "4bit"
    assert "quantization" not in ModelSettings().load_options()


@pytest.mark.parametrize("bits", [None, "4bit", "8bit"])
def test_a_checkpoint_that_came_packed_is_not_trained(
    bitsandbytes, folder, tmp_path, refused, bits
):
    """It would keep its own bits whatever the key says, and on some CPUs pass no gradient back."""
    load_policy(folder, quantization="4bit").save_pretrained(tmp_path)
    if bits:
        message = refused(load_policy, str(tmp_path), quantization=bits)
    else:
        settings = ModelSettings(use_peft=True)
        message = refused(settings.with_lora, load_policy(str(tmp_path)), task="CAUSAL_LM")
        refused(ModelSettings().with_lora, load_policy(str(tmp_path)), task="CAUSAL_LM")
    assert "packed already" in message and "in full precision" in message


def test_a_checkpoint_that_came_packed_is_known_by_its_config(folder, refused):
    config = Qwen3Config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    message = refused(quantized.check_can_be_quantized, config, folder, "8bit")
    assert "packed already" in message


def test_unmerged_lora_is_not_loaded_packed(folder, tmp_path, refused):
    add_lora(load_policy(folder), task="CAUSAL_LM", rank=2, alpha=4).save_pretrained(tmp_path)
    message = refused(load_policy, str(tmp_path), quantization="4bit")
    assert "holds LoRA matrices" in message and "drop load_in_4bit" in message


# ---- computed ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_was_trained(bitsandbytes, folder, tokenizer, tmp_path):
    model = with_lora(folder)
    assert is_quantized(model)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        save(model, tokenizer, tmp_path)
        saved = load_policy(str(tmp_path)).eval()
        torch.testing.assert_close(saved(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
        # The LoRA matrices and the packing both change the numbers.
        assert (load_policy(folder).eval()(input_ids=IDS).logits - expected).abs().max() > 0.1
    assert not is_quantized(saved) and is_quantized(model)
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}


def test_the_head_of_a_reward_model_is_not_packed(bitsandbytes, folder):
    model = with_lora(folder, task="SEQ_CLS")
    scores = model(input_ids=IDS).logits
    torch.testing.assert_close(merged(model)(input_ids=IDS).logits, scores, atol=1e-4, rtol=1e-4)
    assert scores.std() > 0.01
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in learned)
    assert all("lora_" in name or "score" in name for name in learned)


def test_gradients_after_an_answer_are_those_of_the_unpacked_model(bitsandbytes, folder):
    """bitsandbytes repacks a matrix at the first answer on some CPUs, and then passes no gradient back."""
    model = with_lora(folder)
    with torch.no_grad():
        model(input_ids=IDS)  # an answer, as in a rollout
    model(input_ids=IDS, labels=IDS).loss.backward()
    packed = dict(model.named_parameters())
    # The same model with plain matrices: LoRA on the unpacked base.
    base = merged(
        add_lora(load_policy(folder, quantization="4bit"), task="CAUSAL_LM", rank=1, alpha=1)
    )
    plain = add_lora(base, task="CAUSAL_LM", rank=4, alpha=8).eval()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(packed[name])
    plain(input_ids=IDS, labels=IDS).loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(packed[name].grad, parameter.grad, atol=1e-4, rtol=1e-3)


def test_a_row_does_not_depend_on_its_batch(bitsandbytes, folder):
    model = with_lora(folder)
    with torch.no_grad():
        together = model(input_ids=IDS).logits[:1]
        torch.testing.assert_close(model(input_ids=IDS[:1]).logits, together)


def test_memory_and_dtype_are_those_of_packed_weights(bitsandbytes, folder):
    full, packed = load_policy(folder), load_policy(folder, quantization="4bit")
    linear = 0
    for name, module in full.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            linear += module.weight.numel()
    # Half a byte each instead of four, and a scale of four bytes for 64 of them.
    difference = own_bytes(full, set()) - own_bytes(packed, set())
    assert difference == linear * (4 - 0.5) - linear / 64 * 4
    assert weights_dtype(packed) == torch.float32 and weight_bytes(packed) == 4


def test_packed_matrices_stay_packed_under_bf16(bitsandbytes, folder):
    model = with_lora(folder)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(input_ids=IDS).logits
        store_frozen_matrices_in_bf16(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, before)
    stored = [parameter.dtype for parameter in model.parameters()]
    assert torch.uint8 in stored


def test_trl_does_not_round_the_lora_matrices(bitsandbytes, folder, tokenizer, tmp_path):
    """Its trainers convert them to bf16 where the model says that it is packed."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": [2, 3, 4], "labels": [2, 3, 4]}])
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False)
    trainer = SFTTrainer(with_lora(folder), args, train_dataset=rows, processing_class=tokenizer)
    learned = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert learned and {parameter.dtype for parameter in learned} == {torch.float32}


def test_the_layout_is_kept_by_name():
    class Linear4bit(nn.Linear):
        support_avx512bf16_for_cpu = True

    model = nn.Sequential(Linear4bit(2, 2), nn.Linear(2, 2))
    keep_layout(model)
    assert model[0].support_avx512bf16_for_cpu is False
    assert not hasattr(model[1], "support_avx512bf16_for_cpu")


def test_eight_bits_are_near(bitsandbytes, folder):
    full, packed = load_policy(folder).eval(), load_policy(folder, quantization="8bit").eval()
    with torch.no_grad():
        difference = full(input_ids=IDS).logits - packed(input_ids=IDS).logits
    assert 0 < difference.abs().max() < 0.2
