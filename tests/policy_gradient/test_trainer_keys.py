"""Keys of transformers.Trainer that policy gradients read: optim, gradient_checkpointing, load_best_model_at_end, ..."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.optimization import Adafactor

from rlhf.models.load import load_reward_model, save
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import add_adapter_model, save_adapter
from rlhf.policy_gradient import checkpoints

PROMPTS = [{"prompt": word} for word in "abc"]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def lora_policy(tokenizer, make_policy):
    return add_lora(
        make_policy(tokenizer, factor=2.0, context=32), task="CAUSAL_LM", rank=2, alpha=4
    )


# ---- optim ----


def test_the_default_optimizer_is_fused_adamw(make_trainer):
    trainer = make_trainer(weight_decay=0.1, adam_beta2=0.95, value_learning_rate=1e-2)
    groups = trainer.optimizer.param_groups
    expected = torch.optim.AdamW(
        [
            {"params": trainer.model.policy_parameters(), "lr": 1e-3},
            {"params": trainer.model.value_parameters(), "lr": 1e-2},
        ],
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.1,
        fused=True,
    )
    assert type(trainer.optimizer) is torch.optim.AdamW
    for group, wanted in zip(groups, expected.param_groups, strict=True):
        for name in ("lr", "betas", "eps", "weight_decay", "fused", "amsgrad"):
            assert group[name] == wanted[name], name
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted["params"]]


def test_optim_is_the_optimizer_that_steps(make_trainer, refused):
    trainer = make_trainer(optim="adafactor", value_learning_rate=1e-2, total_episodes=16)
    assert isinstance(trainer.optimizer, Adafactor)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-2]
    before = weights(trainer)
    trainer.train()
    changed = [name for name, p in weights(trainer).items() if not torch.equal(p, before[name])]
    assert len(changed) == len(before)
    message = refused(make_trainer, optim="galore_adamw", optim_target_modules="attn")
    assert "optim=galore_adamw cannot have a group of parameters each" in message


# ---- steps ----


def test_save_steps_and_max_steps_of_any_trainer_work(make_trainer, tmp_path):
    """16 completions in mini-batches of 4, read four times: 16 steps a rollout."""
    trainer = make_trainer(
        total_episodes=None,
        max_steps=32,
        save_strategy="steps",
        save_steps=16,
        epochs_per_rollout=4,
    )
    trainer.train()
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert names == ["checkpoint-16", "checkpoint-32"]
    assert trainer.args.total_episodes == 32 and trainer.state.global_step == 32


def test_episodes_are_those_that_were_sampled(make_trainer):
    trainer = make_trainer(total_episodes=64, max_kl_stop=1e-9, learning_rate=1e-2)
    trainer.train()
    sampled = trainer.args.episodes_after(trainer.state.global_step)
    logged = [row["episodes"] for row in trainer.state.log_history if "episodes" in row]
    assert sampled == logged[-1] < 64


def test_evaluations_without_rows_are_refused_before_the_first_step(make_trainer, refused):
    message = refused(make_trainer, eval_every=1)
    assert "eval_every=1: there are no evaluation prompts" in message


# ---- activation checkpointing ----


@pytest.fixture
def one_trunk(tokenizer, make_policy, tmp_path):
    """The policy and the value model as adapters of one trunk, the same ones at each call."""
    save(make_policy(tokenizer, factor=2.0, context=32), tokenizer, tmp_path / "sft")
    torch.manual_seed(3)
    reward = load_reward_model(str(tmp_path / "sft"), new_head=True)
    reward = add_lora(reward, task="SEQ_CLS", rank=2, alpha=4)
    with torch.no_grad():
        for name, parameter in reward.named_parameters():
            if "lora_B" in name or "score" in name:  # 0 at first, and then adapters change nothing
                torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(reward, str(tmp_path / "reward"), centre=0.0)

    def one_trunk():
        torch.manual_seed(4)
        policy = lora_policy(tokenizer, make_policy)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        value = add_adapter_model(policy, str(tmp_path / "reward"), "value", trainable=True)
        return {"policy": policy, "models": {"value_model": value}}

    return one_trunk


@pytest.mark.parametrize("kind", ["value model", "shared head, lora", "one trunk"])
def test_checkpointed_activations_give_the_same_gradients(
    make_trainer, make_policy, make_reward_model, tokenizer, one_trunk, kind
):
    """Of a whole update, with and without. On one trunk a layer must be computed again with the adapter of its pass."""

    def parts():
        if kind == "one trunk":
            return one_trunk()
        if kind == "value model":
            return {"models": {"value_model": make_reward_model(tokenizer)}}
        return {"policy": lora_policy(tokenizer, make_policy)}

    gradients = {}
    for enabled in (False, True):
        trainer = make_trainer(
            f"run {enabled}", total_episodes=16, epochs_per_rollout=1, per_device_train_batch_size=16,
            gradient_checkpointing=enabled, **parts(),
        )  # fmt: skip
        kept, recomputed = {}, []

        def keep(trainer=trainer, kept=kept):
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    kept[name] = parameter.grad.clone()

        original = trainer._clip_grad_norm

        def clip(model, keep=keep, original=original):
            keep()
            return original(model)

        trainer._clip_grad_norm = clip
        layer = next(m for n, m in trainer.model.policy.named_modules() if n.endswith("h.0"))
        layer.attn.register_forward_pre_hook(lambda *_, seen=recomputed: seen.append(1))
        trainer.train()
        gradients[enabled] = kept, len(recomputed)
    plain, checkpointed = gradients[False], gradients[True]
    assert checkpointed[1] > plain[1]  # it was on
    assert plain[0].keys() == checkpointed[0].keys()
    assert any("lora_A.value" in name for name in plain[0]) == (kind == "one trunk")
    for name, gradient in plain[0].items():
        assert gradient.abs().sum() > 0 or "lora_A" in name or "bias" in name or "score" in name
        torch.testing.assert_close(checkpointed[0][name], gradient, atol=1e-7, rtol=1e-5)


# ---- the best checkpoint ----


@pytest.mark.parametrize("kind", ["value model", "lora"])
def test_the_saved_model_is_the_best_checkpoints(
    make_trainer, make_policy, make_reward_model, tokenizer, tmp_path, kind
):
    """The score falls after the second of four rollouts, whatever the policy does."""
    calls = []

    def falling(prompts, completions, **columns):
        evaluation = len(completions) == len(PROMPTS)
        if evaluation:
            calls.append(1)
        scores = {1: 0.0, 2: 1.0}  # of the evaluations
        return [
            scores.get(len(calls), -1.0) if evaluation else float(i)
            for i in range(len(completions))
        ]

    parts = {"models": {"value_model": make_reward_model(tokenizer)}}
    if kind == "lora":
        parts = {"policy": lora_policy(tokenizer, make_policy)}
    trainer = make_trainer(
        total_episodes=64, epochs_per_rollout=1, per_device_train_batch_size=16, learning_rate=1e-2, score=falling,
        eval_rows=PROMPTS, eval_every=1, save_every=1, load_best_model_at_end=True, save_total_limit=1, ema_decay=0.5,
        **parts,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = load_file(tmp_path / "run" / "checkpoint-2" / checkpoints.WEIGHTS)
    trained = checkpoints.trainable(trainer.model)
    assert best.keys() == trained.keys()
    for name, tensor in best.items():
        assert torch.equal(trained[name], tensor), name
    trainer.save_model()
    for folder in ("", "ema"):
        final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / folder)
        kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2" / folder)
        for (name, tensor), other in zip(final.named_parameters(), kept.parameters(), strict=True):
            assert torch.equal(tensor, other), (folder, name)
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_metric"] == 1.0


def test_a_metric_that_no_evaluation_gives_is_named(make_trainer, refused):
    trainer = make_trainer(
        eval_rows=PROMPTS, eval_every=1, save_every=1, load_best_model_at_end=True,
        metric_for_best_model="score_help", total_episodes=16,
    )  # fmt: skip
    message = refused(trainer.evaluate)
    assert "metric_for_best_model=score_help: use one of score, score_std, kl" in message
