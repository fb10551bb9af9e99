import copy
import dataclasses
import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from rlhf.algorithms import ALGORITHMS
from rlhf.algorithms.losses import clipped_surrogate_loss
from rlhf.completions.score import RewardModelScorer
from rlhf.models.load import load_policy, save
from rlhf.models.lora import add_lora
from rlhf.models.scratch import new_policy
from rlhf.policy_gradient import alarms as guards
from rlhf.policy_gradient import update
from rlhf.runs.nonfinite import SKIPPED_AT_MOST
from rlhf.runs.record import read_jsonl

PROMPTS = [{"prompt": word} for word in "a b c d e f g h".split()]
SIXTEEN = dict(per_device_train_batch_size=16, epochs_per_rollout=1)  # one update per rollout
TEXTS = [
    [2, 3, 0],
    [4, 5, 6, 7, 8, 0],
    [9, 0],
    [5, 2, 9, 3, 0],
    [3] * 12,
    [6, 4, 0],
    [8, 7, 2, 0],
    [2] * 7 + [0],
]


def metrics(trainer):
    """Training logs without clock times."""
    rows = [row for row in trainer.state.log_history if "policy_loss" in row]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


class Watch(TrainerCallback):
    """The weights before training and after every optimiser step, by name, and the gradients each step took."""

    def __init__(self, trainer):
        self.trainer, self.weights, self.gradients = trainer, [], []
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        self.weights.append(weights(self.trainer))

    on_step_end = on_train_begin

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        named = self.trainer.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def moved(self, part):
        """For each step, whether any weight of the policy, or of the value model or head, changed."""
        return [
            any(
                not torch.equal(after[name], tensor)
                for name, tensor in before.items()
                if name.startswith(part)
            )
            for before, after in zip(self.weights, self.weights[1:])
        ]


def lora(tokenizer, make_policy):
    return add_lora(
        make_policy(tokenizer, factor=2.0, seed=1, context=32), task="CAUSAL_LM", rank=2, alpha=4
    )


# ---- prompts ----


@pytest.mark.parametrize(
    ("choice", "left", "said"), [("drop", 2, "dropped"), ("cut", 3, "cut to their end")]
)
def test_invariant_06_long_prompts_are_dropped_or_cut_and_counted(
    make_trainer, capsys, choice, left, said
):
    rows = [{"prompt": "a b c d e"}, {"prompt": "a"}, {"prompt": "b"}]
    trainer = make_trainer(rows=rows, max_prompt_length=6, long_prompts=choice)
    assert len(trainer.rollouts.prompts.ids) == len(trainer.rollouts.prompts.rows) == left
    assert (
        f"1 of 3 training prompts are longer than 6 tokens and were {said}"
        in capsys.readouterr().out
    )
    if choice == "cut":
        assert trainer.rollouts.prompts.ids[0] == [3, 4, 5, 6, 0, 12]  # its last six tokens


def test_invariant_06_prompt_and_completion_fit_the_context(make_trainer, refused):
    trainer = make_trainer(
        max_completion_length=26, rows=[{"prompt": "a"}, {"prompt": "a b c d e f"}]
    )
    assert trainer.args.prompt_limit(32) == 32 - 26 and [
        row["prompt"] for row in trainer.rollouts.prompts.rows
    ] == ["a"]
    trainer.rollouts.make(0)
    assert "every training prompt" in refused(make_trainer, max_completion_length=30)
    assert "no room for a prompt" in refused(make_trainer, max_completion_length=32)


# ---- before the first update ----


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "gspo"])
def test_invariant_08_before_the_first_update_of_each_rollout_nothing_has_moved(
    make_trainer, algorithm
):
    groups = dict(num_generations=4) if ALGORITHMS[algorithm].grouped else {}
    trainer = make_trainer(
        algorithm=algorithm,
        total_episodes=48,
        learning_rate=1e-2,
        temperature=0.7,
        **groups,
        **SIXTEEN,
    )
    trainer.train()
    assert len(metrics(trainer)) == 3
    for row in metrics(trainer):
        assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["first_ratio_error"] < 1e-5
        assert row["approx_kl"] == pytest.approx(0, abs=1e-7) and row["clip_fraction"] == 0
    assert metrics(trainer)[-1]["kl"] != 0  # and yet the policy has moved away from the reference


def test_invariant_08_later_updates_of_a_rollout_do_move(make_trainer):
    trainer = make_trainer(learning_rate=1e-2, total_episodes=16)
    trainer.train()
    row = metrics(trainer)[0]
    assert row["first_ratio_error"] < 1e-5 and row["approx_kl"] > 1e-4 and row["clip_fraction"] > 0


@pytest.mark.parametrize(
    "kind",
    ["full", pytest.param("lora", marks=pytest.mark.slow), "lora over a merged SFT adapter"],
)
def test_invariant_09_at_step_0_the_policy_is_the_reference(
    make_trainer, tokenizer, make_policy, tmp_path, kind
):
    policy = make_policy(tokenizer, factor=3.0, context=32)
    if kind == "lora over a merged SFT adapter":
        save(policy, tokenizer, tmp_path / "base")
        sft = add_lora(load_policy(str(tmp_path / "base")), task="CAUSAL_LM", rank=2, alpha=4)
        for name, parameter in sft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        sft.save_pretrained(tmp_path / "adapter")
        policy = load_policy(str(tmp_path / "adapter"))
    if kind != "full":
        policy = add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4)
    trainer = make_trainer(policy=policy, eval_rows=PROMPTS, learning_rate=1e-2)
    assert (trainer.roles.ref_model is None) == (kind != "full")
    rollout = trainer.rollouts.make(0)
    torch.testing.assert_close(rollout.ref_log_probs, rollout.log_probs, atol=1e-6, rtol=0)
    assert trainer.evaluate()["eval_kl"] == pytest.approx(0, abs=1e-6)
    reference = rollout.ref_log_probs[0, 0].item()
    trainer.train()
    after = trainer.evaluate()
    assert abs(after["eval_kl"]) > 1e-4
    batch = {
        k: getattr(rollout, k) for k in ("prompt_ids", "prompt_mask", "completion_ids", "mask")
    }
    stayed = trainer.rollouts.reference(trainer.model.policy, batch)[0, 0].item()
    assert stayed == pytest.approx(reference, abs=1e-6)


def test_invariant_10_dropout_is_off_in_all_four_models(
    make_trainer, tokenizer, make_policy, make_reward_model
):
    policy = make_policy(tokenizer, context=32).train()
    trainer = make_trainer(
        policy=policy, models={"value_model": make_reward_model(tokenizer, seed=1).train()}
    )
    scorer = RewardModelScorer(make_reward_model(tokenizer).train(), tokenizer)
    for model in (
        trainer.model.policy,
        trainer.model.value_model,
        trainer.roles.ref_model,
        scorer.model,
    ):
        rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        assert rates and not any(rates)
    assert policy.config.resid_pdrop == 0.1  # the saved config keeps its own


# ---- rewards ----


def test_invariant_15_fixed_mode_leaves_the_coefficient_alone_and_adaptive_mode_moves_it(
    make_trainer,
):
    fixed = make_trainer(kl_coef=0.3, learning_rate=1e-2)
    fixed.train()
    assert [row["kl_coef"] for row in metrics(fixed)] == [0.3, 0.3]
    adaptive = make_trainer("other", kl_coef=0.3, kl_target=6.0, kl_horizon=100, **SIXTEEN)
    adaptive.train()
    found = [
        row["kl_coef"] for row in metrics(adaptive)
    ]  # the first rollout has KL 0: error clipped at -0.2
    assert found == pytest.approx([0.3, 0.3 * (1 - 0.2 * 16 / 100)])


def test_invariant_05_penalty_reaches_the_score(make_trainer):
    plain, penalised = (
        make_trainer(str(p), missing_eos_penalty=p).rollouts.make(0) for p in (0.0, 2.0)
    )
    assert 0 < plain.ended.sum() < 16
    torch.testing.assert_close(plain.scores - penalised.scores, 2.0 * ~plain.ended)


def test_a_reward_model_can_score_and_estimate_values(make_trainer, tokenizer, make_reward_model):
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    trainer.roles.rewards.scorers = {
        "reward_model": RewardModelScorer(make_reward_model(tokenizer), tokenizer)
    }
    trainer.roles.rewards.weights = {"reward_model": 1.0}
    trainer.train()
    assert all(torch.isfinite(torch.tensor(row["value_loss"])) for row in metrics(trainer))


# ---- updates ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"algorithm": "grpo", "num_generations": 4}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "dr_grpo", "num_generations": 4}, marks=pytest.mark.slow),
        {"algorithm": "dapo", "num_generations": 4},
        pytest.param({"algorithm": "gspo", "num_generations": 4}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "reinforce"}, marks=pytest.mark.slow),
        {"ptx_coef": 0.5, "ptx_per_episode": 2, "models": {"texts": TEXTS}},
    ],
    ids=["ppo", "grpo", "dr_grpo", "dapo", "gspo", "reinforce", "ppo-ptx"],
)
def test_invariant_20_24_accumulating_4_times_4_equals_16(make_trainer, settings):
    """Completions have unequal lengths, so a mean over micro-batches would weigh tokens differently. SGD: Adam would
    hide a wrong scale of the gradient."""
    runs = []
    for name, sizes in {"one": (16, 1), "four": (4, 4)}.items():
        batch = dict(per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
        trainer = make_trainer(name, max_grad_norm=1e9, **batch, **settings)
        groups = [{"params": g["params"], "lr": 0.1} for g in trainer.optimizer.param_groups]
        trainer.optimizer = torch.optim.SGD(groups)
        assert trainer.rollouts.make(0).mask.sum(1).unique().numel() > 1
        trainer.train()
        runs.append((weights(trainer), metrics(trainer)))
    assert len(runs[0][1]) == 2
    assert_same(runs[0][0], runs[1][0], atol=1e-5, rtol=1e-5)
    for one, four in zip(runs[0][1], runs[1][1], strict=True):
        assert four == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_invariant_21_rollouts_go_through_all_prompts_evenly(make_trainer):
    """Eight prompts, two of them per rollout of two groups of eight: four rollouts hold each prompt once."""
    seen = Counter()

    def score(prompts, completions, **columns):
        seen.update(prompts)
        return [0.0] * len(prompts)

    trainer = make_trainer(score=score, algorithm="rloo", num_generations=8, total_episodes=64)
    for index in range(4):
        trainer.rollouts.make(index)
    assert set(seen.values()) == {8} and len(seen) == 8


def test_groups_stand_next_to_each_other(make_trainer):
    trainer = make_trainer(algorithm="rloo", num_generations=4)
    prompts = [tuple(row.tolist()) for row in trainer.rollouts.make(0).prompt_ids]
    assert (
        all(len(set(prompts[i : i + 4])) == 1 for i in range(0, 16, 4)) and len(set(prompts)) == 4
    )


def test_invariant_23_policy_and_value_gradients_are_clipped_and_logged_apart(
    make_trainer, tokenizer, make_reward_model
):
    trainer = make_trainer(max_grad_norm=0.5, models={"value_model": make_reward_model(tokenizer)})
    inner = trainer.model
    for parameters, size in ((inner.policy_parameters(), 3.0), (inner.value_parameters(), 40.0)):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        parameters[0].grad.view(-1)[0] = size
    assert float(trainer._clip_grad_norm(inner)) == pytest.approx(3.0)
    assert float(trainer.update_metrics.common["grad_norm_policy"]) == pytest.approx(3.0)
    assert float(trainer.update_metrics.common["grad_norm_value"]) == pytest.approx(40.0)
    for parameters in (inner.policy_parameters(), inner.value_parameters()):
        assert parameters[0].grad.view(-1)[0].item() == pytest.approx(0.5, rel=1e-4)
    trainer.train()
    for row in metrics(trainer):
        assert row["grad_norm_policy"] > 0 and row["grad_norm_value"] > 0 and "grad_norm" not in row


def test_invariant_23_optimiser_and_schedule(make_trainer):
    logs = []
    for name, sizes in {"one": (8, 1), "two": (4, 2)}.items():
        trainer = make_trainer(
            name, learning_rate=1e-3, value_learning_rate=5e-3, lr_scheduler_type="linear", warmup_steps=4,
            per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1],
        )  # fmt: skip
        groups = trainer.optimizer.param_groups
        assert [(g["lr"], g["eps"]) for g in groups] == [(1e-3, 1e-5), (5e-3, 1e-5)]
        trainer.train()
        logs.append([row["learning_rate"] for row in metrics(trainer)])
    # 16 steps, 4 of warm-up; logged after steps 8 and 16: the rates that steps 8 and 16 used, or are about to
    assert logs[0] == logs[1] and logs[0][0] == pytest.approx(1e-3 * (16 - 7) / 12, rel=0.15)
    assert logs[0][1] < 1e-3 * 2 / 12


@pytest.mark.parametrize("kind", ["full, value model", "full, shared head", "lora, shared head"])
def test_every_trainable_parameter_changes_and_no_other(
    make_trainer, tokenizer, make_policy, make_reward_model, kind
):
    policy = lora(tokenizer, make_policy) if kind.startswith("lora") else None
    value_model = make_reward_model(tokenizer, seed=1) if "value model" in kind else "shared"
    trainer = make_trainer(policy=policy, models={"value_model": value_model})
    before = weights(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if torch.equal(parameter, before[name]) == parameter.requires_grad:
            pytest.fail(
                f"{name} {'did not change' if parameter.requires_grad else 'is frozen and changed'}"
            )


def test_invariant_28_reference_and_reward_model_never_change(
    make_trainer, tokenizer, make_reward_model
):
    reward_model = make_reward_model(tokenizer)
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    scorer = RewardModelScorer(reward_model, tokenizer)
    trainer.roles.rewards.scorers, trainer.roles.rewards.weights = (
        {"reward_model": scorer},
        {"reward_model": 1.0},
    )
    frozen = (trainer.roles.ref_model, scorer.model)
    before = [{name: p.clone() for name, p in model.named_parameters()} for model in frozen]
    trainer.train()
    for model, kept in zip(frozen, before, strict=True):
        assert_same(kept, dict(model.named_parameters()), atol=0, rtol=0)
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not {p.data_ptr() for p in trainer.roles.ref_model.parameters()} & {
        p.data_ptr() for p in trainer.model.parameters()
    }


@pytest.mark.slow
def test_a2c_is_ppo_without_standardising_in_one_update_per_rollout(make_trainer, monkeypatch):
    """With one epoch of one mini-batch the ratio is 1: nothing is clipped, and the surrogate has a2c's gradient."""
    runs = {}
    for name in ("a2c", "ppo", "ppo without standardising"):
        if name.endswith("standardising"):
            monkeypatch.setitem(
                ALGORITHMS, "ppo", dataclasses.replace(ALGORITHMS["ppo"], normalize=None)
            )
        runs[name] = make_trainer(name, algorithm=name.split()[0], total_episodes=48, **SIXTEEN)
        runs[name].train()
    a2c, ppo, plain = map(weights, runs.values())
    assert_same(a2c, plain, atol=1e-6, rtol=0)
    assert max((ppo[name] - tensor).abs().max() for name, tensor in a2c.items()) > 1e-4


# ---- gradients by hand ----


def by_hand(model, rollout):
    """PPO's loss, its value loss and the entropy at ratio 1, each a mean over tokens: row by row with the model's own
    forward, without padding, masks or chunks. And the log-probs that stand for the old ones."""
    tokens, sums = rollout.mask.sum(), [0.0, 0.0, 0.0]
    for row in range(len(rollout)):
        prompt, mask = rollout.prompt_ids[row][rollout.prompt_mask[row]], rollout.mask[row]
        completion = rollout.completion_ids[row][mask]
        hidden = model.policy.transformer(
            input_ids=torch.cat([prompt, completion])[None]
        ).last_hidden_state[0]
        before = hidden[len(prompt) - 1 : -1]
        distribution = model.policy.lm_head(before).log_softmax(-1)
        chosen = distribution.gather(-1, completion[:, None])[:, 0]
        sums[0] += -(
            (chosen - rollout.log_probs[row][mask]).exp() * rollout.advantages[row][mask]
        ).sum()
        sums[1] += ((model.value_head(before)[:, 0] - rollout.returns[row][mask]) ** 2 / 2).sum()
        sums[2] += -(distribution.exp() * distribution).sum()
    return [part / tokens for part in sums]


def gradients(model, loss):
    found = torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, materialize_grads=True
    )
    return {
        name: gradient for (name, _), gradient in zip(model.named_parameters(), found, strict=True)
    }


def one_step(make_trainer, folder="run", **settings):
    """A trainer with a value head that is not 0, its model and rollout before the one step it makes, and the step."""
    trainer = make_trainer(
        folder,
        total_episodes=16,
        epochs_per_rollout=1,
        gradient_accumulation_steps=4,
        max_grad_norm=1e9,
        **settings,
    )
    torch.nn.init.constant_(trainer.model.value_head.weight, 0.1)
    model, rollout = copy.deepcopy(trainer.model), trainer.rollouts.make(0)
    watch = Watch(trainer)
    trainer.train()
    assert trainer.state.global_step == len(watch.gradients) == 1
    return trainer, model, rollout, watch.gradients[0]


def test_invariant_24_one_step_takes_the_sum_of_both_gradients(make_trainer):
    """Each of the 8 texts stands beside 4 of the 16 x 2: a mean over the tokens of all of them, whatever their order."""
    settings = dict(ptx_coef=0.7, ptx_per_episode=2, models={"texts": TEXTS})
    trainer, model, rollout, found = one_step(make_trainer, **settings)
    policy_loss, value_loss, _ = by_hand(model, rollout)
    losses = [
        torch.nn.functional.cross_entropy(
            model.policy(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum"
        )
        for ids in map(torch.tensor, TEXTS)
    ]
    text_loss = sum(losses) / sum(len(ids) - 1 for ids in TEXTS)
    ppo, language = gradients(model, policy_loss + 0.1 * value_loss), gradients(model, text_loss)
    assert_same(
        {name: ppo[name] + 0.7 * language[name] for name in ppo}, found, atol=1e-5, rtol=1e-3
    )
    assert not all(torch.allclose(ppo[name], found[name], atol=1e-3, rtol=1e-2) for name in ppo)
    assert all(state["step"] == 1 for state in trainer.optimizer.state.values())
    assert metrics(trainer)[0]["ptx_loss"] == pytest.approx(text_loss.item(), rel=1e-4)


def test_the_entropy_bonus_has_a_gradient(make_trainer):
    _, model, rollout, found = one_step(make_trainer, entropy_coef=0.5)
    policy_loss, value_loss, entropy = by_hand(model, rollout)
    assert_same(
        gradients(model, policy_loss + 0.1 * value_loss - 0.5 * entropy),
        found,
        atol=1e-5,
        rtol=1e-3,
    )
    without = gradients(model, policy_loss + 0.1 * value_loss)
    assert not all(
        torch.allclose(without[name], found[name], atol=1e-3, rtol=1e-2) for name in without
    )


def test_the_entropy_bonus_raises_the_entropy(make_trainer):
    last = []
    for coefficient in (0.0, 1.0):
        trainer = make_trainer(
            str(coefficient), entropy_coef=coefficient, total_episodes=64, **SIXTEEN
        )
        trainer.train()
        last.append(metrics(trainer)[-1]["entropy"])
    assert last[1] > last[0] + 0.02


# ---- plain text, averaged weights, warm-up of the value model ----


def test_invariant_24_a_coefficient_of_0_is_the_run_without_text(make_trainer, refused):
    runs = {}
    for name, coefficient, texts in (
        ("without", 0.0, None),
        ("zero", 0.0, TEXTS),
        ("half", 0.5, TEXTS),
    ):
        trainer = make_trainer(name, ptx_coef=coefficient, models={"texts": texts}, **SIXTEEN)
        trainer.train()
        runs[name] = weights(trainer), metrics(trainer)
    assert_same(runs["without"][0], runs["zero"][0], atol=0, rtol=0)
    assert runs["without"][1] == runs["zero"][1] and "ptx_loss" not in runs["zero"][1][0]
    assert "ptx_loss" in runs["half"][1][0]
    assert not torch.equal(
        *(runs[name][0]["policy.transformer.wte.weight"] for name in ("zero", "half"))
    )
    assert "ptx_coef=0.5 needs plain text" in refused(make_trainer, ptx_coef=0.5)


def test_invariant_24_every_text_is_used_evenly(make_trainer):
    trainer = make_trainer(ptx_coef=0.5, ptx_per_episode=3, models={"texts": TEXTS})
    seen = Counter(
        tuple(ids)
        for place in range(16)
        for ids in trainer.get_train_dataloader().texts_with(place)
    )
    assert set(seen.values()) == {16 * 3 // 8} and len(seen) == 8


def test_invariant_24_a_text_longer_than_the_context_is_refused(make_trainer, refused):
    assert "33" in refused(lambda: make_trainer(ptx_coef=0.5, models={"texts": [[2] * 33]}).train())


@pytest.mark.parametrize("kind", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_invariant_25_the_average_is_the_recursion_over_rollouts(
    make_trainer, tokenizer, make_policy, tmp_path, kind
):
    policy = lora(tokenizer, make_policy) if kind == "lora" else None
    trainer = make_trainer(
        policy=policy,
        ema_decay=0.8,
        total_episodes=48,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
    )
    watch = Watch(trainer)
    trainer.train()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    names = [names[id(p)] for p in trainer.model.policy_parameters()]
    expected = {name: watch.weights[0][name] for name in names}
    assert trainer.args.steps_per_rollout == 8 and len(watch.weights) == 25
    for after in watch.weights[8::8]:
        expected = {name: 0.8 * tensor + 0.2 * after[name] for name, tensor in expected.items()}
    assert_same(
        expected, dict(zip(names, trainer.average.tensors, strict=True)), atol=1e-6, rtol=1e-5
    )

    before = weights(trainer)
    trainer.save_model()
    assert_same(
        before, weights(trainer), atol=0, rtol=0
    )  # the averaged weights were there for the saving alone
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            parameter.copy_(expected.get(name, parameter))
        ids = torch.tensor([[11, 2, 0, 12, 5]])
        loaded = (
            AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "ema")
            .eval()(input_ids=ids)
            .logits
        )
        last = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()(input_ids=ids).logits
        torch.testing.assert_close(
            trainer.model.policy.eval()(input_ids=ids).logits, loaded, atol=1e-4, rtol=1e-4
        )
    assert (loaded - last).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("ppo", "shared head"), ("ppo", "value model"), ("trpo", "shared head")]
)
def test_while_the_value_model_warms_up_the_policy_stands_still(
    make_trainer, tokenizer, make_reward_model, algorithm, kind
):
    value_model = "shared" if kind == "shared head" else make_reward_model(tokenizer, seed=1)
    trainer = make_trainer(
        algorithm=algorithm, value_warmup_rollouts=2, total_episodes=48, per_device_train_batch_size=16,
        epochs_per_rollout=2, weight_decay=0.1, models={"value_model": value_model},
    )  # fmt: skip
    watch = Watch(trainer)
    trainer.train()
    assert watch.moved("policy") == [False] * 4 + [True, algorithm == "ppo"]
    assert watch.moved("value") == [True] * 6
    logged = [row for row in trainer.state.log_history if "value_loss" in row]
    assert [("policy_loss" in row, row["kl"]) for row in logged[:2]] == [
        (False, 0)
    ] * 2 and "policy_loss" in logged[2]


def test_while_the_value_model_warms_up_plain_text_does_not_move_the_policy_either(make_trainer):
    trainer = make_trainer(
        value_warmup_rollouts=1, ptx_coef=0.5, models={"texts": TEXTS}, **SIXTEEN
    )
    watch = Watch(trainer)
    trainer.train()
    assert watch.moved("policy") == [False, True]


# ---- what is not finite ----


def spoil(trainer, updates):
    """The policy loss of these updates (counted from 0) is NaN."""
    calls = iter(range(10**6))

    def spoilt(ratio, advantages, clip_range):
        losses = clipped_surrogate_loss(ratio, advantages, clip_range=clip_range)
        return losses * float("nan") if next(calls) in updates else losses

    trainer.algorithm = dataclasses.replace(trainer.algorithm, policy_loss=spoilt)
    return Watch(trainer)


def test_invariant_25_a_step_that_is_not_finite_is_left_out_counted_and_logged(
    make_trainer, tmp_path
):
    trainer = make_trainer(
        total_episodes=48, epochs_per_rollout=1, per_device_train_batch_size=8, weight_decay=0.1
    )
    watch = spoil(trainer, updates={3})  # two updates per rollout: the second of the second rollout
    trainer.train()
    for part in ("policy", "value"):
        assert watch.moved(part) == [True, True, True, False, True, True]
    assert [row["nonfinite_steps"] for row in metrics(trainer)] == [0, 1, 0]
    row = metrics(trainer)[1]
    for name in (
        "policy_loss",
        "value_loss",
        "ratio",
        "entropy",
        "grad_norm_policy",
        "grad_norm_value",
    ):
        assert torch.tensor(row[name]).isfinite() and row[name] != 0, (
            name
        )  # of the update that was made
    (alarm,) = [
        row for row in read_jsonl(tmp_path / "run" / "alarms.jsonl") if row["alarm"] == "not_finite"
    ]
    assert alarm["step"] == 4 and "1 updates were skipped" in alarm["message"]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_invariant_25_a_step_left_out_does_not_spoil_the_loss_of_later_rollouts(make_trainer):
    trainer = make_trainer(total_episodes=48, **SIXTEEN)
    spoil(trainer, updates={1})
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 3 and torch.tensor(losses).isfinite().all()


def test_invariant_25_a_rollout_whose_every_step_is_left_out_is_logged(make_trainer, monkeypatch):
    losses = iter([float("nan"), 1.0])
    monkeypatch.setattr(
        update,
        "value_loss",
        lambda values, returns: (values - returns) ** 2 * next(losses),
    )
    trainer = make_trainer(value_warmup_rollouts=2, **SIXTEEN)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "score" in row]
    assert [(row["step"], row["nonfinite_steps"]) for row in rows] == [(1, 1), (2, 0)]


def test_invariant_25_the_run_stops_after_so_many_in_a_row(make_trainer, refused):
    trainer = make_trainer(total_episodes=64)  # 16 updates per rollout
    watch = spoil(trainer, updates=set(range(7)) | set(range(8, 100)))
    message = refused(trainer.train)
    assert f"{SKIPPED_AT_MOST} updates in a row" in message
    assert watch.moved("") == [False] * 7 + [True] + [False] * (SKIPPED_AT_MOST - 1)


def test_a_skipped_update_names_the_rows_of_the_data(make_trainer, capsys):
    too_long = {"prompt": "a b c d e f g h " * 4}
    rows = [too_long, {"prompt": "b"}, too_long, {"prompt": "c"}]
    trainer = make_trainer(total_episodes=16, rows=rows, long_prompts="drop", **SIXTEEN)
    spoil(trainer, updates={0})
    trainer.train()
    assert "step 1 skipped: the loss of training rows 1, 3 is not finite" in capsys.readouterr().out


def test_without_clipping_steps_are_still_watched_and_logged(make_trainer):
    trainer = make_trainer(max_grad_norm=0.0, total_episodes=16, **SIXTEEN)
    trainer.train()
    assert (
        metrics(trainer)[0]["grad_norm_policy"] > 0 and metrics(trainer)[0]["nonfinite_steps"] == 0
    )


def test_max_kl_stop_ends_the_run(make_trainer, tmp_path):
    trainer = make_trainer(total_episodes=64, learning_rate=1e-2, max_kl_stop=1e-3, **SIXTEEN)
    trainer.train()
    kls = [row["kl"] for row in metrics(trainer)]
    assert len(kls) == trainer.state.global_step < 4
    assert kls[-1] > 1e-3 and all(kl <= 1e-3 for kl in kls[:-1])
    assert [row["alarm"] for row in read_jsonl(tmp_path / "run" / "alarms.jsonl")] == [
        "max_kl_stop"
    ]


# ---- the same run again, and a resumed one ----


def test_invariant_26_same_seed_same_run(make_trainer):
    trainers = [make_trainer(str(place), seed=seed) for place, seed in enumerate((5, 5, 6))]
    for trainer in trainers:
        trainer.train()
        torch.manual_seed(99)  # what else draws numbers must not matter
    assert metrics(trainers[0]) == metrics(trainers[1]) != metrics(trainers[2])
    assert_same(weights(trainers[0]), weights(trainers[1]), atol=0, rtol=0)


RESUMED = {
    "ppo-ptx, average": dict(ptx_coef=0.5, ema_decay=0.8, models={"texts": TEXTS}),
    "trpo, average": dict(algorithm="trpo", ema_decay=0.8),
    "warm-up": dict(value_warmup_rollouts=3),  # resumed in the middle of it
    "lora, average": dict(ema_decay=0.8),  # the reference is the policy without its adapter
    "grpo": dict(algorithm="grpo", num_generations=4),
}


RESUMED_FAST = ("ppo-ptx, average", "lora, average")
RESUMED_SLOW = [name for name in RESUMED if name not in RESUMED_FAST]


@pytest.mark.parametrize(
    "kind", [*RESUMED_FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in RESUMED_SLOW)]
)
def test_invariant_27_resumed_equals_uninterrupted(
    make_trainer, tokenizer, make_policy, tmp_path, monkeypatch, kind
):
    """Weights, metrics, samples, averaged weights, and an alarm that needs the rollouts of before."""
    longer = next(alarm for alarm in guards.ALARMS if alarm.name == "longer")
    monkeypatch.setattr(
        guards, "ALARMS", (dataclasses.replace(longer, metric="episodes", limit=1.0),)
    )

    def start(folder):
        policy = lora(tokenizer, make_policy) if kind.startswith("lora") else None
        return make_trainer(
            folder, policy=policy, eval_rows=PROMPTS, total_episodes=64, save_every=2, eval_every=1, kl_target=0.5,
            kl_horizon=50, learning_rate=3e-3, lr_scheduler_type="linear", warmup_steps=3, epochs_per_rollout=2,
            per_device_train_batch_size=8, **RESUMED[kind],
        )  # fmt: skip

    whole = start("whole")
    whole.train()
    whole.save_model()
    middle = whole.state.global_step // 2
    resumed = start("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{middle}"))
    resumed.save_model()
    assert resumed.state.global_step == whole.state.global_step == 4 * whole.args.steps_per_rollout
    assert_same(weights(whole), weights(resumed), atol=0, rtol=0)
    first, second = (
        [
            {n: v for n, v in row.items() if "second" not in n}
            for row in t.state.log_history
            if "score" in row
        ]
        for t in (whole, resumed)
    )
    assert len(first) == 4 and first == second
    assert whole.rollouts.kl_coef == resumed.rollouts.kl_coef != 0.02
    for name in ("samples.jsonl", "alarms.jsonl"):
        after = [row for row in read_jsonl(tmp_path / "whole" / name) if row["step"] > middle]
        assert after and read_jsonl(tmp_path / "resumed" / name) == after, name
    assert "average" in kind or whole.average is None
    if "average" in kind:
        first, second = (
            load_file(tmp_path / name / "ema" / "model.safetensors")
            for name in ("whole", "resumed")
        )
        assert_same(first, second, atol=0, rtol=0)
        last = load_file(tmp_path / "whole" / "model.safetensors")
        assert any(not torch.equal(tensor, last[name]) for name, tensor in first.items())


def test_invariant_27_a_folder_that_is_no_checkpoint_is_named(make_trainer, tmp_path, refused):
    (tmp_path / "checkpoint-3").mkdir()
    trainer = make_trainer()
    assert "policy_gradient.json is missing" in refused(
        trainer._load_from_checkpoint, str(tmp_path / "checkpoint-3")
    )


# ---- what is kept ----


def test_invariant_29_the_saved_policy_gives_the_same_logits(make_trainer, tokenizer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([[11, 2, 0, 12, 5]])
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()(input_ids=ids).logits
        torch.testing.assert_close(
            loaded, trainer.model.policy.eval()(input_ids=ids).logits
        )  # other kernels, same weights
    head = load_file(tmp_path / "run" / "value_model" / "value_head.safetensors")
    assert torch.equal(head["weight"], trainer.model.value_head.weight)


def test_invariant_29_the_value_model_and_its_head_are_saved(
    make_trainer, tokenizer, make_reward_model, tmp_path
):
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "value_model")
    assert_same(
        dict(trainer.model.value_model.named_parameters()),
        dict(loaded.named_parameters()),
        atol=0,
        rtol=0,
    )


def test_invariant_29_a_checkpoint_in_the_middle_of_a_lora_run_does_not_end_its_learning(
    make_trainer, tokenizer, make_policy
):
    trainer = make_trainer(policy=lora(tokenizer, make_policy), save_every=1)
    trainer.train()
    assert trainer.model.policy_parameters()
    assert metrics(trainer)[1]["grad_norm_policy"] > 0 and metrics(trainer)[1]["approx_kl"] > 0


@pytest.mark.parametrize("count", [1, 3, 7])
def test_invariant_30_an_evaluation_set_of_any_size(make_trainer, tmp_path, count):
    trainer = make_trainer(eval_rows=PROMPTS[:count], per_device_eval_batch_size=2)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second and first["eval_score"] >= 0
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in PROMPTS[:count]] * 2
    assert set(samples[0]) == {"step", "prompt", "completion", "score", "kl"}
    assert first["eval_score"] == pytest.approx(sum(row["score"] for row in samples) / len(samples))


def test_invariant_30_without_evaluation_prompts_training_goes_on_and_evaluating_says_why_not(
    make_trainer, refused
):
    trainer = make_trainer()
    trainer.train()
    assert "no evaluation prompts" in refused(trainer.evaluate)


def test_invariant_30_what_is_logged(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    logged = [row for row in rows if "policy_loss" in row]
    expected = (
        "loss score score_std score_score kl kl_coef episodes completion_length eos_rate entropy approx_kl ratio "
        "clip_fraction value_loss value_mean return_mean explained_variance grad_norm_policy grad_norm_value"
    ).split()
    assert len(logged) == 2 and all(set(expected) <= set(row) for row in logged)
    assert all(row["entropy"] >= 0 for row in logged) and [row["episodes"] for row in logged] == [
        16,
        32,
    ]
    json.dumps(rows, allow_nan=False)


def test_invariant_30_loss_is_policy_loss_plus_weighted_value_loss_and_entropy(make_trainer):
    trainer = make_trainer(value_coef=0.5, entropy_coef=0.1, gradient_accumulation_steps=2)
    trainer.train()
    for row in metrics(trainer):
        expected = row["policy_loss"] + 0.5 * row["value_loss"] - row["entropy_bonus"]
        assert row["loss"] == pytest.approx(expected, abs=1e-4)


# ---- learning ----


def learner(make_trainer, tokenizer, algorithm, seed, **settings):
    torch.manual_seed(seed)
    policy = new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=1, heads=2, context=32)
    defaults = dict(
        total_episodes=64 * 15, rollout_batch_size=64, per_device_train_batch_size=16, learning_rate=1e-2, kl_coef=0.0,
        num_generations=4 if ALGORITHMS[algorithm].grouped else 1, per_device_eval_batch_size=64,
        max_completion_length=4, max_kl=0.1,
    )  # fmt: skip
    return make_trainer(
        policy=policy, eval_rows=PROMPTS * 4, algorithm=algorithm, seed=seed, **defaults | settings
    )


def learns(make_trainer, tokenizer, algorithm, seed):
    trainer = learner(make_trainer, tokenizer, algorithm, seed)
    assert trainer.evaluate()["eval_score"] < 0.3
    trainer.train()
    assert trainer.evaluate()["eval_score"] > 0.9


def test_invariant_31_ppo_learns_to_say_this_token(make_trainer, tokenizer):
    learns(make_trainer, tokenizer, "ppo", 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_invariant_31_every_algorithm_learns_to_say_this_token(
    make_trainer, tokenizer, algorithm, seed
):
    learns(make_trainer, tokenizer, algorithm, seed)


@pytest.mark.slow
def test_invariant_31_a_huge_kl_coef_keeps_the_policy_still(
    make_trainer, tokenizer, make_reward_model
):
    """The rate falls to 0: whitening makes the steps of a noisy policy as large as those of one that learns."""
    settings = dict(
        total_episodes=64 * 8, learning_rate=2e-3, lr_scheduler_type="linear", value_clip_range=0.2
    )
    free, held = (
        learner(
            make_trainer,
            tokenizer,
            "ppo",
            0,
            kl_coef=coef,
            models={"value_model": make_reward_model(tokenizer)},
            **settings,
        )
        for coef in (0.0, 1000.0)
    )
    before = held.evaluate()["eval_score"]
    free.train()
    held.train()
    after = held.evaluate()
    assert abs(after["eval_kl"]) < 0.1 and abs(after["eval_score"] - before) < 0.1
    assert free.evaluate()["eval_kl"] > 1 and free.evaluate()["eval_score"] > 0.5
