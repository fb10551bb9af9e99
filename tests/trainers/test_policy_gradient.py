import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.models.load import add_lora, load_policy, new_policy, save
from rlhf.runs import read_jsonl
from rlhf.scoring import RewardModelScorer

PROMPTS = [{"prompt": word} for word in "a b c d e f g h".split()]
SIXTEEN = dict(per_device_train_batch_size=16, epochs_per_rollout=1)  # one update per rollout


def metrics(trainer):
    """Training logs without clock times."""
    rows = [row for row in trainer.state.log_history if "policy_loss" in row]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def lora(tokenizer, make_policy):
    return add_lora(make_policy(tokenizer, factor=2.0, seed=1, context=32), task="CAUSAL_LM", rank=2, alpha=4)


# ---- prompts ----


@pytest.mark.parametrize(("choice", "left", "said"), [("drop", 2, "left out"), ("cut", 3, "cut to their end")])
def test_ppo_md_06_long_prompts_are_dropped_or_cut_and_counted(make_trainer, capsys, choice, left, said):
    rows = [{"prompt": "a b c d e"}, {"prompt": "a"}, {"prompt": "b"}]
    trainer = make_trainer(rows=rows, max_prompt_length=6, long_prompts=choice)
    assert len(trainer.prompt_ids) == len(trainer.rows) == left
    assert f"1 of 3 training prompts are longer than 6 tokens and were {said}" in capsys.readouterr().out
    if choice == "cut":
        assert trainer.prompt_ids[0] == [3, 4, 5, 6, 0, 12]  # its last six tokens


def test_ppo_md_06_prompt_and_completion_fit_the_context(make_trainer, refused):
    trainer = make_trainer(max_completion_length=26, rows=[{"prompt": "a"}, {"prompt": "a b c d e f"}])
    assert trainer.prompt_limit == 32 - 26 and [row["prompt"] for row in trainer.rows] == ["a"]
    trainer.make_rollout(0)
    assert "every training prompt" in refused(make_trainer, max_completion_length=30)
    assert "no room for a prompt" in refused(make_trainer, max_completion_length=32)


# ---- before the first update ----


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_ppo_md_08_before_the_first_update_of_each_rollout_nothing_has_moved(make_trainer, algorithm):
    groups = dict(num_generations=4) if algorithm == "grpo" else {}
    trainer = make_trainer(
        algorithm=algorithm, total_episodes=48, learning_rate=1e-2, temperature=0.7, **groups, **SIXTEEN
    )
    trainer.train()
    assert len(metrics(trainer)) == 3
    for row in metrics(trainer):
        assert row["ratio"] == pytest.approx(1, abs=1e-5) and row["first_ratio_error"] < 1e-5
        assert row["approx_kl"] == pytest.approx(0, abs=1e-7) and row["clip_fraction"] == 0
    assert metrics(trainer)[-1]["kl"] != 0  # and yet the policy has moved away from the reference


def test_ppo_md_08_later_updates_of_a_rollout_do_move(make_trainer):
    trainer = make_trainer(learning_rate=1e-2, total_episodes=16)
    trainer.train()
    row = metrics(trainer)[0]
    assert row["first_ratio_error"] < 1e-5 and row["approx_kl"] > 1e-4 and row["clip_fraction"] > 0


@pytest.mark.parametrize("kind", ["full", "lora", "lora over a merged SFT adapter"])
def test_ppo_md_09_at_step_0_the_policy_is_the_reference(make_trainer, tokenizer, make_policy, tmp_path, kind):
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
    assert (trainer.ref_model is None) == (kind != "full")
    rollout = trainer.make_rollout(0)
    torch.testing.assert_close(rollout.ref_log_probs, rollout.log_probs, atol=1e-6, rtol=0)
    assert trainer.evaluate()["eval_kl"] == pytest.approx(0, abs=1e-6)
    reference = rollout.ref_log_probs[0, 0].item()
    trainer.train()
    after = trainer.evaluate()
    assert abs(after["eval_kl"]) > 1e-4
    batch = {k: getattr(rollout, k) for k in ("prompt_ids", "prompt_mask", "completion_ids", "mask")}
    assert trainer._reference(batch)[0, 0].item() == pytest.approx(reference, abs=1e-6)  # the reference stayed


def test_ppo_md_10_dropout_is_off_in_all_four_models(make_trainer, tokenizer, make_policy, make_reward_model):
    policy = make_policy(tokenizer, context=32).train()
    trainer = make_trainer(policy=policy, models={"value_model": make_reward_model(tokenizer, seed=1).train()})
    scorer = RewardModelScorer(make_reward_model(tokenizer).train(), tokenizer)
    for model in (trainer.model.policy, trainer.model.value_model, trainer.ref_model, scorer.model):
        rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        assert rates and not any(rates)
    assert policy.config.resid_pdrop == 0.1  # the saved config keeps its own


# ---- rewards ----


def test_ppo_md_15_fixed_mode_leaves_the_coefficient_alone_and_adaptive_mode_moves_it(make_trainer):
    fixed = make_trainer(kl_coef=0.3, learning_rate=1e-2)
    fixed.train()
    assert [row["kl_coef"] for row in metrics(fixed)] == [0.3, 0.3]
    adaptive = make_trainer("other", kl_coef=0.3, kl_target=6.0, kl_horizon=100, **SIXTEEN)
    adaptive.train()
    found = [row["kl_coef"] for row in metrics(adaptive)]  # the first rollout has KL 0: error clipped at -0.2
    assert found == pytest.approx([0.3, 0.3 * (1 - 0.2 * 16 / 100)])


def test_ppo_md_05_penalty_reaches_the_score(make_trainer):
    plain, penalised = (make_trainer(str(p), missing_eos_penalty=p).make_rollout(0) for p in (0.0, 2.0))
    assert 0 < plain.ended.sum() < 16
    torch.testing.assert_close(plain.scores - penalised.scores, 2.0 * ~plain.ended)


def test_a_reward_model_can_score_and_estimate_values(make_trainer, tokenizer, make_reward_model):
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    trainer.rewards.scorers = {"reward_model": RewardModelScorer(make_reward_model(tokenizer), tokenizer)}
    trainer.rewards.weights = {"reward_model": 1.0}
    trainer.train()
    assert all(torch.isfinite(torch.tensor(row["value_loss"])) for row in metrics(trainer))


# ---- updates ----


@pytest.mark.parametrize("settings", [{}, {"algorithm": "grpo", "num_generations": 4}, {"algorithm": "reinforce"}])
def test_ppo_md_20_accumulating_4_times_4_equals_16(make_trainer, settings):
    """Completions have unequal lengths, so a mean over micro-batches would weigh tokens differently. SGD: Adam would
    hide a wrong scale of the gradient."""
    runs = []
    for name, sizes in {"one": (16, 1), "four": (4, 4)}.items():
        batch = dict(per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1])
        trainer = make_trainer(name, max_grad_norm=1e9, **batch, **settings)
        groups = [{"params": g["params"], "lr": 0.1} for g in trainer.optimizer.param_groups]
        trainer.optimizer = torch.optim.SGD(groups)
        assert trainer.make_rollout(0).mask.sum(1).unique().numel() > 1
        trainer.train()
        runs.append((weights(trainer), metrics(trainer)))
    assert len(runs[0][1]) == 2
    assert_same(runs[0][0], runs[1][0], atol=1e-5, rtol=1e-5)
    for one, four in zip(runs[0][1], runs[1][1], strict=True):
        assert four == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_ppo_md_21_rollouts_go_through_all_prompts_evenly(make_trainer):
    """Eight prompts, two of them per rollout of two groups of eight: four rollouts hold each prompt once."""
    seen = Counter()

    def score(prompts, completions, **columns):
        seen.update(prompts)
        return [0.0] * len(prompts)

    trainer = make_trainer(score=score, algorithm="rloo", num_generations=8, total_episodes=64)
    for index in range(4):
        trainer.make_rollout(index)
    assert set(seen.values()) == {8} and len(seen) == 8


def test_groups_stand_next_to_each_other(make_trainer):
    trainer = make_trainer(algorithm="rloo", num_generations=4)
    prompts = [tuple(row.tolist()) for row in trainer.make_rollout(0).prompt_ids]
    assert all(len(set(prompts[i : i + 4])) == 1 for i in range(0, 16, 4)) and len(set(prompts)) == 4


def test_ppo_md_23_policy_and_value_gradients_are_clipped_and_logged_apart(make_trainer, tokenizer, make_reward_model):
    trainer = make_trainer(max_grad_norm=0.5, models={"value_model": make_reward_model(tokenizer)})
    inner = trainer.model
    for parameters, size in ((inner.policy_parameters(), 3.0), (inner.value_parameters(), 40.0)):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        parameters[0].grad.view(-1)[0] = size
    assert float(trainer._clip_grad_norm(inner)) == pytest.approx(3.0)
    assert float(trainer._sums["update_grad_norm_policy"]) == pytest.approx(3.0)
    assert float(trainer._sums["update_grad_norm_value"]) == pytest.approx(40.0)
    for parameters in (inner.policy_parameters(), inner.value_parameters()):
        assert parameters[0].grad.view(-1)[0].item() == pytest.approx(0.5, rel=1e-4)
    trainer.train()
    for row in metrics(trainer):
        assert row["grad_norm_policy"] > 0 and row["grad_norm_value"] > 0 and "grad_norm" not in row


def test_ppo_md_23_optimiser_and_schedule(make_trainer):
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
def test_every_trainable_parameter_changes_and_no_other(make_trainer, tokenizer, make_policy, make_reward_model, kind):
    policy = lora(tokenizer, make_policy) if kind.startswith("lora") else None
    value_model = make_reward_model(tokenizer, seed=1) if "value model" in kind else "shared"
    trainer = make_trainer(policy=policy, models={"value_model": value_model})
    before = weights(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if torch.equal(parameter, before[name]) == parameter.requires_grad:
            pytest.fail(f"{name} {'did not change' if parameter.requires_grad else 'is frozen and changed'}")


def test_ppo_md_28_reference_and_reward_model_never_change(make_trainer, tokenizer, make_reward_model):
    reward_model = make_reward_model(tokenizer)
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    scorer = RewardModelScorer(reward_model, tokenizer)
    trainer.rewards.scorers, trainer.rewards.weights = {"reward_model": scorer}, {"reward_model": 1.0}
    frozen = (trainer.ref_model, scorer.model)
    before = [{name: p.clone() for name, p in model.named_parameters()} for model in frozen]
    trainer.train()
    for model, kept in zip(frozen, before, strict=True):
        assert_same(kept, dict(model.named_parameters()), atol=0, rtol=0)
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not {p.data_ptr() for p in trainer.ref_model.parameters()} & {
        p.data_ptr() for p in trainer.model.parameters()
    }


# ---- the same run again, and a resumed one ----


def test_ppo_md_26_same_seed_same_run(make_trainer):
    trainers = [make_trainer(str(place), seed=seed) for place, seed in enumerate((5, 5, 6))]
    for trainer in trainers:
        trainer.train()
        torch.manual_seed(99)  # what else draws numbers must not matter
    assert metrics(trainers[0]) == metrics(trainers[1]) != metrics(trainers[2])
    assert_same(weights(trainers[0]), weights(trainers[1]), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_ppo_md_27_resumed_equals_uninterrupted(make_trainer, tokenizer, make_policy, tmp_path, kind):
    def start(folder):
        policy = lora(tokenizer, make_policy) if kind == "lora" else None
        return make_trainer(
            folder, policy=policy, eval_rows=PROMPTS, total_episodes=64, save_every=2, eval_every=1, kl_target=0.5,
            kl_horizon=50, learning_rate=3e-3, lr_scheduler_type="linear", warmup_steps=3,
        )  # fmt: skip

    whole = start("whole")
    whole.train()
    resumed = start("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-32"))
    assert resumed.state.global_step == whole.state.global_step == 64
    assert_same(weights(whole), weights(resumed), atol=0, rtol=0)
    assert metrics(resumed)[-2:] == metrics(whole)[-2:]
    assert whole.kl_coef == resumed.kl_coef != 0.02
    after = [row for row in read_jsonl(tmp_path / "whole" / "samples.jsonl") if row["step"] > 32]
    assert after and read_jsonl(tmp_path / "resumed" / "samples.jsonl") == after


def test_ppo_md_27_a_folder_that_is_no_checkpoint_is_named(make_trainer, tmp_path, refused):
    (tmp_path / "checkpoint-3").mkdir()
    trainer = make_trainer()
    assert "policy_gradient.json is missing" in refused(trainer._load_from_checkpoint, str(tmp_path / "checkpoint-3"))


# ---- what is kept ----


def test_ppo_md_29_the_saved_policy_gives_the_same_logits(make_trainer, tokenizer, tmp_path):
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


def test_ppo_md_29_the_value_model_and_its_head_are_saved(make_trainer, tokenizer, make_reward_model, tmp_path):
    trainer = make_trainer(models={"value_model": make_reward_model(tokenizer)})
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "value_model")
    assert_same(dict(trainer.model.value_model.named_parameters()), dict(loaded.named_parameters()), atol=0, rtol=0)


def test_ppo_md_29_a_checkpoint_in_the_middle_of_a_lora_run_does_not_end_its_learning(
    make_trainer, tokenizer, make_policy
):
    trainer = make_trainer(policy=lora(tokenizer, make_policy), save_every=1)
    trainer.train()
    assert trainer.model.policy_parameters()
    assert metrics(trainer)[1]["grad_norm_policy"] > 0 and metrics(trainer)[1]["approx_kl"] > 0


@pytest.mark.parametrize("count", [1, 3, 7])
def test_ppo_md_30_an_evaluation_set_of_any_size(make_trainer, tmp_path, count):
    trainer = make_trainer(eval_rows=PROMPTS[:count], per_device_eval_batch_size=2)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second and first["eval_score"] >= 0
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in PROMPTS[:count]] * 2
    assert set(samples[0]) == {"step", "prompt", "completion", "score", "kl"}
    assert first["eval_score"] == pytest.approx(sum(row["score"] for row in samples) / len(samples))


def test_ppo_md_30_without_evaluation_prompts_training_goes_on_and_evaluating_says_why_not(make_trainer, refused):
    trainer = make_trainer()
    trainer.train()
    assert "no evaluation prompts" in refused(trainer.evaluate)


def test_ppo_md_30_what_is_logged(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    logged = [row for row in rows if "policy_loss" in row]
    expected = (
        "loss score score_std score_score kl kl_coef episodes completion_length eos_rate entropy approx_kl ratio "
        "clip_fraction value_loss value_mean return_mean explained_variance grad_norm_policy grad_norm_value"
    ).split()
    assert len(logged) == 2 and all(set(expected) <= set(row) for row in logged)
    assert all(row["entropy"] >= 0 for row in logged) and [row["episodes"] for row in logged] == [16, 32]
    json.dumps(rows, allow_nan=False)


def test_ppo_md_30_loss_is_policy_loss_plus_weighted_value_loss_and_entropy(make_trainer):
    trainer = make_trainer(value_coef=0.5, entropy_coef=0.1, gradient_accumulation_steps=2)
    trainer.train()
    for row in metrics(trainer):
        expected = row["policy_loss"] + 0.5 * row["value_loss"] - 0.1 * row["entropy"]
        assert row["loss"] == pytest.approx(expected, abs=1e-4)


# ---- learning ----


def learner(make_trainer, tokenizer, algorithm, seed, **settings):
    torch.manual_seed(seed)
    policy = new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=1, heads=2, context=32)
    defaults = dict(
        total_episodes=64 * 15, rollout_batch_size=64, per_device_train_batch_size=16, learning_rate=1e-2, kl_coef=0.0,
        num_generations=4 if algorithm in ("rloo", "grpo") else 1, per_device_eval_batch_size=64,
        max_completion_length=4,
    )  # fmt: skip
    return make_trainer(policy=policy, eval_rows=PROMPTS * 4, algorithm=algorithm, seed=seed, **defaults | settings)


def learns(make_trainer, tokenizer, algorithm, seed):
    trainer = learner(make_trainer, tokenizer, algorithm, seed)
    assert trainer.evaluate()["eval_score"] < 0.3
    trainer.train()
    assert trainer.evaluate()["eval_score"] > 0.9


def test_ppo_md_31_ppo_learns_to_say_this_token(make_trainer, tokenizer):
    learns(make_trainer, tokenizer, "ppo", 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["reinforce", "a2c", "ppo", "rloo", "grpo"])
def test_ppo_md_31_every_algorithm_learns_to_say_this_token(make_trainer, tokenizer, algorithm, seed):
    learns(make_trainer, tokenizer, algorithm, seed)


def test_ppo_md_31_a_huge_kl_coef_keeps_the_policy_still(make_trainer, tokenizer, make_reward_model):
    """The rate falls to 0: whitening makes the steps of a noisy policy as large as those of one that learns."""
    settings = dict(total_episodes=64 * 8, learning_rate=2e-3, lr_scheduler_type="linear", value_clip_range=0.2)
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
