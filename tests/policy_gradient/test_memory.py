"""The memory plan of a run, and the committed configs that name a machine."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf.models.actor_critic import CHUNK
from rlhf.models.kernels import store_frozen_matrices_in_bf16
from rlhf.models.memory import GB, estimate_memory
from rlhf.policy_gradient import memory
from rlhf.policy_gradient.memory import estimate_run_memory, plan_memory
from rlhf.runs.settings import read_config

PPO = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "ppo"


def test_a_run_that_fits_samples_all_rows_at_once(make_trainer):
    trainer = make_trainer()
    table = plan_memory(trainer)
    assert trainer.args.per_device_sampling_batch_size >= trainer.args.rollout_batch_size
    assert "at a time" not in table.replace("at one time", "") and "keys and values" in table


def test_a_run_that_does_not_fit_samples_fewer_rows_at_a_time(make_trainer, monkeypatch):
    trainer = make_trainer()
    whole = estimate_run_memory(trainer)
    # The optimizer's moments, and room for half of the rollout
    free = whole.optimizer + whole.rollout_total // 2
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    said = plan_memory(trainer)
    rows = trainer.args.per_device_sampling_batch_size
    assert 1 <= rows < memory.rows_per_process(trainer)
    assert f"{rows} of {memory.rows_per_process(trainer)} completions are sampled at a time" in said
    assert estimate_run_memory(trainer).rollout_total <= whole.rollout_total // 2
    trainer.train()  # the rollouts are made so


def test_a_number_that_is_given_is_kept(make_trainer):
    trainer = make_trainer(per_device_sampling_batch_size=1)
    plan_memory(trainer)
    assert trainer.args.per_device_sampling_batch_size == 1
    assert estimate_run_memory(trainer).sampling_batch == 1


def test_a_sampling_batch_of_nothing_is_refused(make_trainer, refused):
    assert "at least 1" in refused(make_trainer, per_device_sampling_batch_size=0)


def test_plain_texts_are_counted(make_trainer):
    texts = [[2, 3, 0], [4, 5, 6, 7, 8, 0], [9, 0]]
    with_texts = make_trainer(ptx_coef=0.5, ptx_per_episode=4, models={"texts": texts})
    without = make_trainer()
    more = estimate_run_memory(with_texts).update["activations"]
    more -= estimate_run_memory(without).update["activations"]
    config = with_texts.roles.policy.config
    rows = with_texts.args.per_device_train_batch_size * 4
    per_layer = 72 * config.hidden_size
    if config._attn_implementation == "eager":
        per_layer += 4 * config.num_attention_heads * 6  # probabilities over the longest text
    assert more == rows * 6 * config.num_hidden_layers * per_layer


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
