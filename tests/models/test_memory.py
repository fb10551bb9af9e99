"""Sizes are worked by hand, or counted from the tensors that exist; the estimate is never asked for its own answer."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import rlhf.models.memory as memory_module
from rlhf.models.actor_critic import CHUNK, ActorCritic, ValueHead, trunk_of
from rlhf.models.kernels import store_frozen_matrices_in_bf16, use_fast_kernels
from rlhf.models.lora import add_lora
from rlhf.models.memory import (
    GB,
    Memory,
    cache_bytes,
    estimate_memory,
    free_memory,
    layer_bytes,
    own_bytes,
)
from rlhf.models.parts import disable_dropout
from rlhf.runs.settings import read_config

PPO = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "ppo"
H, L, V, CONTEXT = 8, 2, 10, 16
SIZES = dict(n_embd=H, n_layer=L, n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)
RUN = dict(
    ema=False,
    micro_batch=2,
    rollout_batch=4,
    prompt_length=3,
    completion_length=5,
    chunk=2048,
    computes_in_16_bit=False,
)
# GPT-2, tied output layer: a layer has 12 h^2 + 13 h parameters, the final norm 2 h, the embeddings (V + context) h
PARAMETERS = L * (12 * H * H + 13 * H) + 2 * H + (V + CONTEXT) * H


def gpt2(vocabulary=V, context=CONTEXT, **sizes):
    config = GPT2Config(**SIZES | sizes, vocab_size=vocabulary, n_positions=context)
    return disable_dropout(GPT2LMHeadModel(config))


def fast(model, *, attention):
    """With the kernels of a trainer, but the attention asked for."""
    use_fast_kernels(model, device=torch.device("cpu"), longest=10)
    trunk_of(model).set_attn_implementation(attention)
    return model


def reward_model():
    return disable_dropout(
        GPT2ForSequenceClassification(
            GPT2Config(**SIZES, vocab_size=V, n_positions=CONTEXT, num_labels=1)
        )
    )


def trainable(*models):
    return [p for model in models for p in model.parameters() if p.requires_grad]


def test_a_tiny_gpt2_by_hand():
    policy, head, reference = gpt2(), nn.Linear(H, 1), gpt2().requires_grad_(False)
    found = estimate_memory(
        {"policy": policy, "reference": reference, "value head": head, "reward model": None},
        trainable=trainable(policy, head), **RUN | {"ema": True},
    )  # fmt: skip
    learned = 4 * (PARAMETERS + H + 1)
    assert found.weights == {
        "policy": 4 * PARAMETERS,
        "reference": 4 * PARAMETERS,
        "value head": 4 * (H + 1),
    }
    assert found.optimizer == 2 * learned and found.ema == learned
    assert found.update == {
        "gradients": learned,
        "activations": 2
        * (3 + 5)
        * L
        * H
        * 72,  # rows x tokens x layers x width x bytes; the head has no layers
        "logits": 2 * 5 * V * 20,
    }
    assert found.rollout == {
        "keys and values": 2 * L * 4 * (3 + 5) * H * 4,
        "prompts' forward, or next tokens": 4 * max(3 * H * 40, V * 12),
    }
    assert found.needed == found.optimizer + found.ema + max(
        sum(found.rollout.values()), sum(found.update.values())
    )
    assert found.total == 4 * (2 * PARAMETERS + H + 1) + found.needed


def test_logits_are_made_a_chunk_at_a_time():
    policy = gpt2()
    assert (
        estimate_memory({"policy": policy}, trainable=[], **RUN | {"chunk": 4}).update["logits"]
        == 4 * V * 20
    )


def test_a_value_model_of_its_own_keeps_activations_too():
    policy, critic = gpt2(), reward_model()
    alone = estimate_memory({"policy": policy}, trainable=trainable(policy), **RUN)
    both = estimate_memory(
        {"policy": policy, "value model": critic}, trainable=trainable(policy, critic), **RUN
    )
    assert both.update["activations"] == 2 * alone.update["activations"]
    frozen = estimate_memory(
        {"policy": policy, "reward model": critic}, trainable=trainable(policy), **RUN
    )
    assert frozen.update == alone.update and frozen.optimizer == alone.optimizer


def test_lora_learns_its_matrices_only():
    policy = add_lora(gpt2(), task="CAUSAL_LM", rank=2, alpha=4)
    found = estimate_memory(
        {"policy": policy, "reference": None}, trainable=trainable(policy), **RUN
    )
    matrices = (
        L * 2 * ((H + 3 * H) + (H + H) + (H + 4 * H) + (4 * H + H))
    )  # rank x (in + out) of a layer's four
    assert found.weights == {"policy": 4 * (PARAMETERS + matrices)}
    assert found.update["gradients"] == 4 * matrices and found.optimizer == 8 * matrices


def test_a_shared_trunk_is_counted_once():
    policy, critic = gpt2(), reward_model()
    critic.transformer = policy.transformer
    found = estimate_memory(
        {"policy": policy, "value model": critic, "again": policy}, trainable=[], **RUN
    )
    assert found.weights == {"policy": 4 * PARAMETERS, "value model": 4 * H, "again": 0}


def test_sixteen_bits():
    policy = gpt2()
    fp32 = estimate_memory({"policy": policy}, trainable=trainable(policy), **RUN)
    autocast = estimate_memory(
        {"policy": policy}, trainable=trainable(policy), **RUN | {"computes_in_16_bit": True}
    )
    matrices = L * 12 * H * H + (V + CONTEXT) * H
    assert autocast.weights == fp32.weights and autocast.optimizer == fp32.optimizer
    assert autocast.update["activations"] == fp32.update["activations"] * 40 / 72
    assert autocast.update["16-bit copies of the weights"] == 2 * matrices
    assert autocast.rollout["keys and values"] == fp32.rollout["keys and values"] / 2
    half = copy.deepcopy(policy).bfloat16()
    halved = estimate_memory({"policy": half}, trainable=trainable(half), **RUN)
    assert (
        halved.weights["policy"] == fp32.weights["policy"] / 2
        and halved.optimizer == fp32.optimizer / 2
    )
    assert halved.update["activations"] == fp32.update["activations"] / 2


def test_matrices_in_bf16_count_with_the_originals_that_are_kept():
    model = gpt2().requires_grad_(False)
    linear = L * 12 * H * H  # without biases and embeddings
    biases = L * 9 * H  # of these layers: 3 h, h, 4 h and h
    store_frozen_matrices_in_bf16(model, keep_originals=True)
    weights = own_bytes(model, set())
    assert weights == 4 * PARAMETERS + 2 * (linear + biases)


def test_grouped_heads_cache_less(make_llama, tokenizer):
    found = estimate_memory({"policy": make_llama(tokenizer)}, trainable=[], **RUN)
    assert (
        found.rollout["keys and values"] == 2 * 2 * 4 * (3 + 5) * 1 * 8 * 4
    )  # one of two heads of width 8 is cached


def test_models_that_are_not_in_memory_yet_can_be_estimated():
    with torch.device("meta"):
        policy = gpt2()
    assert estimate_memory({"policy": policy}, trainable=trainable(policy), **RUN).weights == {
        "policy": 4 * PARAMETERS
    }


# ---- against what tensors really take ----


def medium():
    return gpt2(vocabulary=2000, context=64, n_embd=64, n_layer=4, n_head=4)


def test_weights_gradients_and_optimizer_are_what_one_step_leaves():
    policy, reference = medium(), medium().requires_grad_(False)
    model = ActorCritic(policy, ValueHead(policy.config.hidden_size))

    optimizer = torch.optim.AdamW(trainable(model))
    ids, mask = torch.randint(1, 2000, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    seen = model(ids, mask, ids, mask, temperature=1.0)
    (seen.log_probs.sum() + seen.values.sum()).backward()
    optimizer.step()
    tensors = [*model.parameters(), *reference.parameters(), *(p.grad for p in model.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    measured = sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())
    found = estimate_memory(
        {"policy": policy, "reference": reference, "value head": model.value_head},
        trainable=trainable(model),
        **RUN,
    )
    assert sum(found.weights.values()) + found.update[
        "gradients"
    ] + found.optimizer == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activations_are_what_the_forward_keeps(lora, autocast, attention):
    """Counted from the saved tensors; under autocast without the copies of the weights, which are counted by themselves."""
    model = add_lora(medium(), task="CAUSAL_LM", rank=4, alpha=8) if lora else medium()
    fast(model, attention=attention)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(1, 2000, (8, 64))
    with (
        saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        trunk_of(model.train())(input_ids=ids, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    measured -= 2 * 4 * 12 * 64 * 64 if autocast else 0
    assert 0.85 < 8 * 64 * layer_bytes(model, 64, computes_in_16_bit=autocast) / measured < 1.15


# ---- what is said ----


def test_the_table_and_the_warning():
    gb = 2**30
    memory = Memory(
        weights={"policy": gb},
        optimizer=2 * gb,
        ema=0,
        rollout={"keys and values": gb},
        update={"gradients": 3 * gb},
    )
    assert (memory.needed, memory.total) == (5 * gb, 6 * gb)
    table = memory.table()
    assert "policy, weights" in table and "EMA" not in table
    assert [line.split()[-1] for line in table.splitlines()] == [
        "GB",
        "1.000",
        "2.000",
        "1.000",
        "3.000",
        "6.000",
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert memory.warning(5 * gb) is None
    warning = memory.warning(4 * gb)
    assert "needs about 5.00 GB" in warning and "4.00 GB are free" in warning
    assert (
        "per_device_train_batch_size" in warning
        and "use_peft" in warning
        and "value_model: shared" in warning
    )


def test_where_the_rollout_is_the_peak_the_remedy_is_another():
    memory = Memory(
        weights={}, optimizer=0, ema=0, rollout={"keys and values": 10}, update={"gradients": 3}
    )
    warning = memory.warning(5)
    assert "max_completion_length" in warning and "per_device_train_batch_size" not in warning


def test_the_warning_says_which_keys_to_lower_and_to_what():
    """Spare: 20 - 4. A sampled row takes 6: 2 fit. An updated row takes 3, and the gradients 5: 3 fit."""
    memory = Memory(
        weights={}, optimizer=4, ema=0, rollout={"keys and values": 24},
        update={"gradients": 5, "activations": 24}, sampling_batch=4, micro_batch=8,
    )  # fmt: skip
    warning = memory.warning(20)
    assert "per_device_sampling_batch_size: 2 " in warning
    # 8 = 4 times 2, and no multiple of 3
    assert (
        "per_device_train_batch_size: 2 (with 4 times the gradient_accumulation_steps)" in warning
    )
    assert "smaller max_completion_length" in memory.warning(9)
    assert "smaller per_device_train_batch_size" in memory.warning(11)


@pytest.mark.parametrize(("free", "rows"), [(4, 1), (20, 2), (24 + 4, 3), (2**20, 3)])
def test_the_sampling_batch_takes_most_of_the_spare_memory(free, rows):
    """A row takes 6 of 0.8 (free - 4): 0, 2.1, 3.2 and many rows fit, and the rollout has 3."""
    memory = Memory(
        weights={}, optimizer=4, ema=0, rollout={"all": 24}, update={}, sampling_batch=4
    )
    assert memory.fitting_sampling_batch(free, most=3) == rows


def test_plain_texts_count_in_the_update():
    """8 texts of 4 tokens keep 4 * 8 tokens' activations more, and their logits are more positions than the completions'."""
    policy = gpt2()
    alone = estimate_memory({"policy": policy}, trainable=trainable(policy), **RUN)
    texts = RUN | {"texts": 8, "text_length": 4}
    both = estimate_memory({"policy": policy}, trainable=trainable(policy), **texts)
    assert both.update["activations"] - alone.update["activations"] == 4 * 8 * L * H * 72
    assert both.update["logits"] == 8 * 4 * V * 20 and alone.update["logits"] == 2 * 5 * V * 20


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    policy = gpt2()
    run = RUN | {"checkpointing": True}
    found = estimate_memory({"policy": policy}, trainable=trainable(policy), **run)
    assert found.update["activations"] == 2 * (3 + 5) * (L * H * 4 + H * 72)


# ---- a committed config ----


def test_instructgpts_yaml_fits_what_its_header_names():
    """GPT-2 large in all four roles on 80 GB, counted without a single weight."""
    config = read_config(PPO / "instructgpt.yaml")
    prompt, completion = config["max_prompt_length"], config["max_completion_length"]
    assert prompt + completion <= 1024  # GPT-2's context
    assert prompt > 100  # long_prompts: drop leaves none out that is usual
    sizes = GPT2Config(n_embd=1280, n_layer=36, n_head=20, num_labels=1)
    with torch.device("meta"):
        policy, reference = GPT2LMHeadModel(sizes), GPT2LMHeadModel(sizes)
        value, reward = GPT2ForSequenceClassification(sizes), GPT2ForSequenceClassification(sizes)
    assert 0.77e9 < policy.num_parameters() < 0.78e9
    for frozen in (reference, reward):
        store_frozen_matrices_in_bf16(frozen.requires_grad_(False))
    found = estimate_memory(
        {"policy": policy, "value model": value, "reference": reference, "reward model": reward},
        trainable=[*policy.parameters(), *value.parameters()],
        ema=True,
        micro_batch=config["per_device_train_batch_size"],
        rollout_batch=config["per_device_sampling_batch_size"],
        prompt_length=prompt,
        completion_length=completion,
        chunk=CHUNK,
        computes_in_16_bit=True,
        texts=config["per_device_train_batch_size"] * config["ptx_per_episode"],
        text_length=512,  # TEXT_LENGTH of recipes/ppo.py
    )
    assert found.total == pytest.approx(58 * GB, rel=0.02)  # as its header says
    micro_batches = config["gradient_accumulation_steps"]
    assert config["per_device_train_batch_size"] * micro_batches == 64  # the paper's minibatch


# ---- free memory ----


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(line of /proc/self/cgroup, folder -> files): control groups of a machine with plenty of memory."""
    own = tmp_path / "own"
    monkeypatch.setattr(memory_module, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory_module, "OWN_GROUPS", own)

    def groups(line, **folders):
        own.write_text(line)
        for name, files in folders.items():
            folder = tmp_path / "cgroup" / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(text)

    return groups


def test_free_memory_is_that_of_the_container(groups):
    """Limit 1000, used 700, of which 200 are file cache: 500 left. The job around it has less: 2000 - 1900."""
    stat = {"memory.stat": "anon 5\ninactive_file 200\n"}
    inner = {"memory.max": "1000\n", "memory.current": "700\n"} | stat
    groups("0::/job/own\n", job__own=inner)
    assert free_memory(torch.device("cpu")) == 500
    outer = {"memory.max": "2000\n", "memory.current": "2100\n"} | stat
    groups("0::/job/own\n", job=outer)
    assert free_memory(torch.device("cpu")) == 100
    groups("0::/job/own\n", job__own={"memory.max": "max\n"}, job={"memory.max": "max\n"})
    assert free_memory(torch.device("cpu")) > 2**20


def test_free_memory_is_that_of_a_container_of_version_1(groups):
    """A container sees its own group as the root, and a path that is the machine's."""
    files = {
        "memory.limit_in_bytes": "1000",
        "memory.usage_in_bytes": "950",
        "memory.stat": "total_inactive_file 50",
    }
    groups("5:cpu,cpuacct:/x\n4:memory:/docker/1234\n0::/\n", memory=files)
    assert free_memory(torch.device("cpu")) == 100


def test_free_memory_is_a_plausible_number():
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4_text", "mamba"])
def test_models_without_heads_or_with_a_config_inside_have_an_estimate(
    make_architecture, model_type
):
    model = make_architecture(model_type)
    assert layer_bytes(model, 10, computes_in_16_bit=False) > 0
    has_keys = model_type != "mamba"
    assert (cache_bytes(model, computes_in_16_bit=False) > 0) == has_keys
