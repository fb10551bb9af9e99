import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel

from rlhf.completions.score import RewardModelScorer
from rlhf.models.load import load_policy, load_reward_model, save
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import (
    AdapterModel,
    adapter,
    add_adapter_model,
    fingerprint,
    save_adapter,
)
from rlhf.models.parts import trunk_of
from rlhf.models.scores import sequence_scores, shift_scores
from rlhf.policy_gradient.memory import estimate_run_memory

IDS = torch.tensor([[11, 2, 0, 12, 3], [11, 5, 0, 12, 13], [4, 0, 13, 13, 13]])
MASK = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 2 + [False] * 3])
CENTRE = 0.75


@torch.no_grad()
def perturb(model):
    """As if it had been trained: LoRA's B matrices and a new head start at 0."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def scores(model):
    return sequence_scores(model.eval(), IDS, MASK)


@torch.no_grad()
def logits(policy):
    return policy.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def folders(tokenizer, make_policy, tmp_path_factory):
    """An SFT run, a reward run with LoRA from it (merged, its adapter beside it), and an SFT run of other weights."""
    root = tmp_path_factory.mktemp("trunk")
    for name, seed in (("sft", 0), ("other", 7)):
        save(
            make_policy(tokenizer, seed=seed, factor=3.0, hidden_size=32, context=32),
            tokenizer,
            root / name,
        )
    torch.manual_seed(3)
    reward = load_reward_model(str(root / "sft"), new_head=True)
    reward = perturb(add_lora(reward, task="SEQ_CLS", rank=2, alpha=4))
    save_adapter(reward, str(root / "reward"), centre=CENTRE)
    merged = reward.merge_and_unload()
    shift_scores(merged, CENTRE)
    save(merged, tokenizer, root / "reward")
    return root


@pytest.fixture
def policy(folders):
    return add_lora(load_policy(str(folders / "sft")), task="CAUSAL_LM", rank=2, alpha=4).eval()


@pytest.fixture
def make_one_trunk(folders, tokenizer, make_trainer):
    """A trainer with all four roles on one trunk."""

    def make(folder="run", **settings):
        torch.manual_seed(5)
        policy = add_lora(load_policy(str(folders / "sft")), task="CAUSAL_LM", rank=2, alpha=4)
        reward = add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
        value = add_adapter_model(policy, str(folders / "reward"), "value", trainable=True)
        scorer = RewardModelScorer(reward, tokenizer)
        trainer = make_trainer(folder, policy=policy, models={"value_model": value}, **settings)
        trainer.roles.rewards.scorers, trainer.roles.rewards.weights = (
            {"reward_model": scorer},
            {"reward_model": 1.0},
        )
        return trainer

    return make


def parts(model):
    """Names of an ActorCritic's parameters by whose they are."""
    found = {"default": set(), "value": set(), "reward": set(), "base": set()}
    for name in dict(model.named_parameters()):
        owner = next(
            (part for part in ("default", "value", "reward") if f".{part}." in name), "base"
        )
        found["value" if name.startswith("value_model") else owner].add(name)
    return found


# ---- adapters on and off ----


def test_the_context_restores_what_was_active_and_nests(folders, policy):
    add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
    perturb(policy)
    before = logits(policy)
    with adapter(policy, None):
        off = logits(policy)
        with adapter(policy, "reward"):
            reward = logits(policy)
            with adapter(policy, "default"):
                assert torch.equal(logits(policy), before)
            assert torch.equal(logits(policy), reward)
        assert torch.equal(logits(policy), off)
    assert torch.equal(logits(policy), before)
    assert (
        not torch.allclose(off, before)
        and not torch.allclose(off, reward)
        and not torch.allclose(before, reward)
    )
    with pytest.raises(KeyError), adapter(policy, None):
        raise KeyError
    assert torch.equal(logits(policy), before)


def test_the_context_leaves_gradients_as_they_are(folders, policy):
    value = add_adapter_model(policy, str(folders / "reward"), "value", trainable=True)
    before = [name for name, p in policy.named_parameters() if p.requires_grad]
    for name in (None, "value", "default"):
        with adapter(policy, name):
            assert [name for name, p in policy.named_parameters() if p.requires_grad] == before
    sequence_scores(value, IDS, MASK).sum().backward()
    assert all(p.grad is not None for p in value.adapter_parameters())
    assert all(p.grad is None for name, p in policy.named_parameters() if ".value." not in name)


def test_invariant_09_with_all_adapters_off_the_model_is_the_base_exactly(folders, policy):
    add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
    perturb(policy)
    base = load_policy(str(folders / "sft"))
    with adapter(policy, None):
        assert torch.equal(logits(policy), logits(base))
    assert not torch.allclose(logits(policy), logits(base))


# ---- the reward model and the value model ----


def test_invariant_35_the_adapter_scores_as_the_merged_reward_model_does(folders, policy):
    merged = load_reward_model(str(folders / "reward"))
    reward = add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
    torch.testing.assert_close(scores(reward), scores(merged), atol=1e-5, rtol=0)
    assert scores(merged).std() > 0.1  # they differ, so that agreement says something
    assert (
        json.loads((folders / "reward" / "adapter" / "trunk.json").read_text())["centre"] == CENTRE
    )
    assert reward.score.bias.item() == CENTRE


def test_invariant_22_a_value_adapter_begins_as_the_reward_model(folders, policy):
    perturb(policy)  # whatever the policy has learned
    reward = add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
    value = add_adapter_model(policy, str(folders / "reward"), "value", trainable=True)
    assert torch.equal(scores(value), scores(reward))
    perturb(value.score)
    assert not torch.allclose(scores(value), scores(reward))  # a copy, not the same head
    assert not any(p.requires_grad for p in reward.adapter_parameters())
    assert all(p.requires_grad for p in value.adapter_parameters())


def test_adding_an_adapter_leaves_the_policy_alone(folders, policy):
    perturb(policy)
    before = logits(policy)
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    add_adapter_model(policy, str(folders / "reward"), "reward", trainable=False)
    assert torch.equal(logits(policy), before)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trainable != []


def test_another_base_is_refused_by_name(folders, refused):
    policy = add_lora(load_policy(str(folders / "other")), task="CAUSAL_LM", rank=2, alpha=4)
    message = refused(add_adapter_model, policy, str(folders / "reward"), "reward", trainable=False)
    assert f"another base ({folders / 'sft'})" in message and "same SFT run" in message


@pytest.mark.parametrize("policy_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reward_dtype", ["float32", "bfloat16"])
def test_the_same_base_is_known_in_every_precision_and_scores(
    folders, tokenizer, tmp_path, refused, policy_dtype, reward_dtype
):
    torch.manual_seed(3)
    reward = load_reward_model(str(folders / "sft"), new_head=True, dtype=reward_dtype)
    reward = perturb(add_lora(reward, task="SEQ_CLS", rank=2, alpha=4))
    save_adapter(reward, str(tmp_path), centre=CENTRE)
    expected = scores(reward) + CENTRE
    policies = {}
    for name in ("sft", "other"):
        policy = load_policy(str(folders / name), dtype=policy_dtype)
        policies[name] = add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4).eval()
    shared = add_adapter_model(policies["sft"], str(tmp_path), "reward", trainable=False)
    # bf16 has three digits
    torch.testing.assert_close(scores(shared), expected, atol=0.1, rtol=0.05)
    message = refused(
        add_adapter_model, policies["other"], str(tmp_path), "reward", trainable=False
    )
    assert "another base" in message


def test_a_run_without_an_adapter_is_refused(folders, policy, refused):
    message = refused(add_adapter_model, policy, str(folders / "sft"), "reward", trainable=False)
    assert f"{folders / 'sft'} holds no adapter/" in message and "use_peft: true" in message


def test_the_fingerprint_knows_the_base_through_lora_and_notices_one_number(folders, policy):
    base = load_policy(str(folders / "sft"))
    found = fingerprint(trunk_of(base))
    assert (
        fingerprint(trunk_of(perturb(policy)))
        == found
        != fingerprint(trunk_of(load_policy(str(folders / "other"))))
    )
    with torch.no_grad():
        trunk_of(base).h[1].ln_2.bias[3] += 1e-4
    assert fingerprint(trunk_of(base)) != found


def test_an_adapters_parameters_are_its_own_whatever_the_layers_are_called(tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        is_decoder=True,
    )
    policy = add_lora(
        BertLMHeadModel(config), task="CAUSAL_LM", rank=2, alpha=4
    )  # its only adapter is "default"
    found = {
        id(p) for p in AdapterModel(policy, "value", torch.zeros(1, 16), 0.0).adapter_parameters()
    }
    assert not found & {id(p) for p in policy.parameters()}


# ---- training ----


def test_invariant_28_training_moves_policy_and_value_adapters_and_nothing_else(make_one_trunk):
    trainer = make_one_trunk(learning_rate=1e-2)
    model = trainer.model
    rollout = trainer.rollouts.make(0)
    assert trainer.roles.ref_model is None and torch.equal(
        rollout.log_probs, rollout.ref_log_probs
    )  # KL exactly 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    reward_scores = scores(trainer.roles.rewards.scorers["reward_model"].model)
    with adapter(model.policy, None):
        reference = logits(model.policy)
    trainer.train()

    after, owned = dict(model.named_parameters()), parts(model)
    for part, moves in {"default": True, "value": True, "reward": False, "base": False}.items():
        assert owned[part]
        for name in owned[part]:
            assert torch.equal(before[name], after[name]) != moves, (
                f"{name} {'stood still' if moves else 'moved'}"
            )
    assert torch.equal(scores(trainer.roles.rewards.scorers["reward_model"].model), reward_scores)
    later = trainer.rollouts.make(1)
    assert later.log_probs.ne(later.ref_log_probs).any()
    with adapter(model.policy, None):
        assert torch.equal(logits(model.policy), reference)


def test_policy_and_value_parameters_are_disjoint_and_complete(make_one_trunk):
    model = make_one_trunk().model
    policy, value = (
        {id(p) for p in part} for part in (model.policy_parameters(), model.value_parameters())
    )
    names, owned = {id(p): name for name, p in model.named_parameters()}, parts(model)
    assert not policy & value
    assert policy | value == {id(p) for p in model.parameters() if p.requires_grad}
    assert {names[p] for p in policy} == owned["default"] and {names[p] for p in value} == owned[
        "value"
    ]
    assert {"value_model.score.weight", "value_model.score.bias"} < owned["value"]


def test_memory_four_roles_take_little_more_than_one(make_one_trunk, folders):
    trainer = make_one_trunk()
    models = [trainer.model, *(scorer.model for scorer in trainer.roles.rewards.scorers.values())]
    storages = {p.data_ptr(): p.nbytes for model in models for p in model.parameters()}
    base = sum(p.nbytes for p in load_policy(str(folders / "sft")).parameters())
    assert base < sum(storages.values()) < 1.5 * base
    assert base < sum(estimate_run_memory(trainer).weights.values()) < 1.5 * base


def test_invariant_29_what_is_saved_is_a_plain_policy_and_the_value_adapter(
    make_one_trunk, tmp_path
):
    trainer = make_one_trunk(learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert "model.safetensors" in names and "adapter_config.json" not in names
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    torch.testing.assert_close(logits(loaded), logits(trainer.model.policy), atol=1e-4, rtol=1e-4)
    with adapter(trainer.model.policy, None):
        assert not torch.allclose(logits(loaded), logits(trainer.model.policy), atol=1e-2)

    saved = load_file(tmp_path / "run" / "value_model" / "value_adapter.safetensors")
    assert isinstance(trainer.model.value_model, AdapterModel)
    expected = {id(p): p for p in trainer.model.value_parameters()}.values()
    assert len(saved) == len(expected)
    assert sum(t.double().sum().item() for t in saved.values()) == pytest.approx(
        sum(p.double().sum().item() for p in expected)
    )


def test_invariant_27_resumed_equals_uninterrupted(make_one_trunk, tmp_path):
    settings = dict(
        total_episodes=64, save_every=2, epochs_per_rollout=1, per_device_train_batch_size=8
    )
    whole, resumed = (make_one_trunk(name, **settings) for name in ("whole", "resumed"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == whole.state.global_step == 8
    for (name, first), second in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(first, second), name
    last = [
        {
            name: value
            for name, value in trainer.state.log_history[-2].items()
            if "second" not in name
        }
        for trainer in (whole, resumed)
    ]
    assert "policy_loss" in last[0] and last[0] == last[1]
