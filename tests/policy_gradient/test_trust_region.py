import copy

import pytest
import torch
from transformers import TrainerCallback

from rlhf.models.actor_critic import FORWARD_INPUTS
from rlhf.models.lora import add_lora
from rlhf.policy_gradient import trust_region

ONE = dict(
    algorithm="trpo", total_episodes=16
)  # one rollout: one step of the policy, four of the value model


def metrics(trainer):
    return [row for row in trainer.state.log_history if "policy_loss" in row]


def policy_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.policy.named_parameters()}


def changed(before, after):
    return {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}


class Watch(TrainerCallback):
    """Policy and value weights before training and after each optimiser step."""

    def __init__(self, trainer):
        self.trainer, self.policy, self.value = trainer, [], []
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        self.policy.append(policy_weights(self.trainer))
        self.value.append([p.detach().clone() for p in self.trainer.model.value_parameters()])

    on_step_end = on_train_begin


@torch.no_grad()
def logits_row_by_row(policy, batch, temperature):
    """The model's own forward on every completion by itself, (tokens, V): no padding, no mask, no chunks."""
    found = []
    for prompt, shown, completion, mask in zip(*(batch[name] for name in FORWARD_INPUTS)):
        prompt, completion = prompt[shown], completion[mask]
        logits = policy(input_ids=torch.cat([prompt, completion])[None]).logits[0] / temperature
        found.append(logits[len(prompt) - 1 : -1].double())
    return torch.cat(found)


def exact_kl(old, new):
    old, new = old.log_softmax(-1), new.log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean().item()


def remember_steps(trainer):
    """Copies of the policy around every trust-region step, and the micro-batches the step was made with."""
    kept, step = [], trainer.trust_region.step

    def remembering(policy, parameters, batches, args, *, total):
        before = copy.deepcopy(policy)
        found = step(policy, parameters, batches, args, total=total)
        kept.append((before, copy.deepcopy(policy), batches))
        return found

    trainer.trust_region.step = remembering
    return kept


# ---- what a step is ----


@pytest.mark.parametrize("max_kl", [0.01, 0.002])
def test_the_kl_of_a_step_is_what_is_logged_and_never_above_the_bound(make_trainer, max_kl):
    trainer = make_trainer(algorithm="trpo", max_kl=max_kl, temperature=0.7)
    steps = remember_steps(trainer)
    trainer.train()
    rows = metrics(trainer)
    assert len(rows) == len(steps) == 2
    for row, (before, after, batches) in zip(rows, steps, strict=True):
        assert sum(len(batch["mask"]) for batch in batches) == 16  # the step saw the whole rollout
        old, new = (
            torch.cat([logits_row_by_row(policy, b, 0.7) for b in batches])
            for policy in (before, after)
        )
        assert row["step_kl"] == pytest.approx(exact_kl(old, new), rel=1e-3)
        assert (
            0.1 * max_kl < row["step_kl"] <= max_kl
        )  # and not so timid that the bound says nothing
        assert 0 < row["step_fraction"] <= 1 and row["step_gain"] > 0


@pytest.mark.parametrize(
    "model_type",
    [
        "gemma2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("phi", "cohere", "granite")),
    ],
)
def test_the_kl_is_that_of_the_models_own_logits(make_trainer, make_architecture, model_type):
    """Phi's output layer has a bias, which the step moves. The others change the logits after it."""
    trainer = make_trainer(**ONE, policy=make_architecture(model_type))
    steps = remember_steps(trainer)
    trainer.train()
    ((before, after, batches),) = steps
    old = torch.cat([logits_row_by_row(before, batch, 1.0) for batch in batches])
    new = torch.cat([logits_row_by_row(after, batch, 1.0) for batch in batches])
    step_kl = metrics(trainer)[0]["step_kl"]
    assert step_kl == pytest.approx(exact_kl(old, new), rel=1e-3) and step_kl > 0


def test_the_gain_that_is_logged_is_the_surrogates(make_trainer):
    trainer = make_trainer(**ONE)
    steps = remember_steps(trainer)
    trainer.train()
    ((before, after, batches),) = steps
    gain = tokens = 0
    for batch in batches:
        chosen = batch["completion_ids"][batch["mask"]][:, None]
        old, new = (
            logits_row_by_row(p, batch, 1.0).log_softmax(-1).gather(-1, chosen)
            for p in (before, after)
        )
        advantages = batch["advantages"][batch["mask"]][:, None]
        gain, tokens = (
            gain + (advantages * ((new - old).exp() - 1)).sum().item(),
            tokens + len(chosen),
        )
    assert metrics(trainer)[0]["step_gain"] == pytest.approx(gain / tokens, rel=1e-3)


@pytest.mark.parametrize("kind", ["shared head", "value model"])
def test_every_parameter_changes(make_trainer, tokenizer, make_reward_model, kind):
    value_model = "shared" if kind == "shared head" else make_reward_model(tokenizer, seed=1)
    trainer = make_trainer(**ONE, models={"value_model": value_model})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not change"


def test_with_lora_only_its_matrices_move(make_trainer, tokenizer, make_policy):
    policy = add_lora(
        make_policy(tokenizer, factor=2.0, seed=1, context=32), task="CAUSAL_LM", rank=2, alpha=4
    )
    trainer = make_trainer(
        algorithm="trpo", policy=policy
    )  # two rollouts: A has no gradient while B is 0
    before = policy_weights(trainer)
    trainer.train()
    assert changed(before, policy_weights(trainer)) == {name for name in before if "lora_" in name}
    assert all(0 < row["step_kl"] <= 0.01 for row in metrics(trainer))


def test_the_optimiser_moves_the_value_model_alone(make_trainer):
    trainer = make_trainer(**ONE)
    trainer.train()
    state = trainer.optimizer.state
    assert not any(p in state for p in trainer.model.policy_parameters())
    assert all(state[p]["step"] == 4 for p in trainer.model.value_parameters())


def test_a_refused_step_leaves_the_policy_bit_for_bit(make_trainer, monkeypatch):
    def refuse(measure, **settings):
        measure(1.0)
        measure(0.8)
        return 0.0, 0.0, 0.0

    monkeypatch.setattr(trust_region, "line_search", refuse)
    trainer = make_trainer(**ONE)
    watch = Watch(trainer)
    trainer.train()
    assert all(not changed(watch.policy[0], weights) for weights in watch.policy)
    assert not torch.equal(watch.value[-1][0], watch.value[0][0])
    assert metrics(trainer)[0]["step_fraction"] == metrics(trainer)[0]["step_kl"] == 0


def test_a_bound_that_no_step_can_keep_is_refused_by_the_search_itself(make_trainer, monkeypatch):
    monkeypatch.setattr(
        trust_region, "step_length", lambda *args, **settings: 1e4
    )  # all ten fractions are far outside
    trainer = make_trainer(**ONE)
    watch = Watch(trainer)
    trainer.train()
    assert not changed(watch.policy[0], watch.policy[-1])
    assert metrics(trainer)[0]["step_fraction"] == 0


# ---- what is the policy's and what the value model's ----


def test_epochs_after_the_first_move_only_the_value_model(make_trainer):
    trainer = make_trainer(algorithm="trpo")
    watch = Watch(trainer)
    trainer.train()
    assert trainer.args.steps_per_rollout == 4 and len(watch.policy) == 9
    moved = [bool(changed(before, after)) for before, after in zip(watch.policy, watch.policy[1:])]
    assert moved == [True, False, False, False] * 2
    for before, after in zip(watch.value, watch.value[1:]):
        assert not any(torch.equal(*pair) for pair in zip(before, after))


def test_a_shared_heads_loss_does_not_move_the_trunk(make_trainer):
    found = []
    for value_coef in (0.0, 5.0):
        trainer = make_trainer(str(value_coef), **ONE, value_coef=value_coef)
        head = trainer.model.value_head.weight
        torch.nn.init.constant_(head, 0.5)  # a head of 0 would pass no gradient on
        begun = head.detach().clone()
        trainer.train()
        found.append((policy_weights(trainer), torch.equal(head, begun)))
    assert not changed(found[0][0], found[1][0])
    assert [still for _, still in found] == [True, False]


# ---- sizes and settings ----


def test_invariant_20_accumulating_4_times_4_equals_16(make_trainer, monkeypatch):
    monkeypatch.setattr(
        trust_region, "FISHER_SHARE", 1
    )  # a tenth of four micro-batches is not a tenth of one
    runs = []
    for size in (16, 4):
        trainer = make_trainer(str(size), algorithm="trpo", per_device_train_batch_size=size)
        groups = [{"params": g["params"], "lr": 0.1} for g in trainer.optimizer.param_groups]
        trainer.optimizer = torch.optim.SGD(groups)
        assert trainer.rollouts.make(0).mask.sum(1).unique().numel() > 1
        trainer.train()
        runs.append(trainer)
    one, four = runs
    for (name, first), second in zip(
        one.model.named_parameters(), four.model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            second, first, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for first, second in zip(metrics(one), metrics(four), strict=True):
        for name in ("step_kl", "step_gain", "step_fraction", "value_loss", "policy_loss"):
            assert second[name] == pytest.approx(first[name], rel=5e-3, abs=1e-6), (
                name
            )  # ten solver steps amplify rounding


def test_accumulation_is_set_so_that_a_step_sees_the_whole_rollout(make_trainer, refused):
    args = make_trainer(**ONE, per_device_train_batch_size=2).args
    assert (args.gradient_accumulation_steps, args.steps_per_rollout, args.max_steps) == (8, 4, 4)
    assert make_trainer(**ONE, gradient_accumulation_steps=2).args.gradient_accumulation_steps == 4
    message = refused(make_trainer, algorithm="trpo", rollout_batch_size=18, total_episodes=36)
    assert "rollout_batch_size=18 must be a multiple of 4" in message and "use 16 or 20" in message


@pytest.mark.parametrize("settings", [{"ptx_coef": 1.0}, {"entropy_coef": 0.1}])
def test_other_objectives_are_refused(make_trainer, refused, settings):
    message = refused(make_trainer, **ONE, models={"texts": [[2, 3]]}, **settings)
    assert (
        "trpo maximises the surrogate alone" in message
        and "ptx_coef and entropy_coef to 0" in message
    )
