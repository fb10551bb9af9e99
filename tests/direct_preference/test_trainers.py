"""What every trainer must do: change what is trained and nothing else, resume, learn, and cut batches as it likes."""

import json

import pytest
import torch
from trl import DPOTrainer

from rlhf.algorithms.preference import PAIR_LOSSES
from rlhf.direct_preference.log_probs import (
    Answer,
    answer_batch,
    check_fused_layer,
    summed_log_probs,
)
from rlhf.models.actor_critic import reference_log_probs
from rlhf.models.logits import DECISION

SLOW = pytest.mark.slow
KINDS = pytest.mark.parametrize("kind", ["dpo", pytest.param("kto", marks=SLOW)])
LORA = pytest.mark.parametrize(
    "lora", [False, pytest.param(True, marks=SLOW)], ids=["full", "lora"]
)


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# ---- every trainer -----------------------------------------------------------------------------------------------


@KINDS
@LORA
def test_every_trainable_parameter_changes_and_no_other(make, kind, lora):
    trainer = make(kind=kind, lora=lora)
    before = weights(trainer)
    reference = trainer.ref_model and {
        n: p.clone() for n, p in trainer.ref_model.named_parameters()
    }
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        # No row is so long that it reads the last positions.
        if "wpe" in name or torch.equal(parameter, before[name]) != parameter.requires_grad:
            continue
        pytest.fail(
            f"{name}: trainable {parameter.requires_grad}, changed {parameter.requires_grad is False}"
        )
    assert any(parameter.requires_grad for parameter in trainer.model.parameters())
    assert (reference is None) == lora
    for name, parameter in trainer.ref_model.named_parameters() if reference else ():
        assert torch.equal(parameter, reference[name]) and not parameter.requires_grad


@KINDS
@LORA
def test_resumed_equals_uninterrupted(make, tmp_path, kind, lora):
    settings = dict(
        kind=kind, lora=lora, save_strategy="steps", save_steps=3, max_steps=6, logging_steps=2
    )
    whole, resumed = make("whole", **settings), make("resumed", **settings)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(whole)[1:] == losses(resumed)[-2:] and len(losses(whole)) == 3
    # A log between two checkpoints holds steps of both parts.
    for name in ("rewards/margins", "num_tokens", "logps/chosen"):
        assert logged(whole, name)[1:] == logged(resumed, name)[-2:], name
    for (name, first), second in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(first, second), name


@SLOW
@KINDS
def test_it_learns_the_preference(make, kind):
    trainer = make(kind=kind, num_train_epochs=10)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    metric = {"dpo": "eval_accuracy", "kto": "eval_auc"}[kind]
    assert before[metric] == 0.5 and before["eval_kl"] == 0  # policy and reference are the same
    assert after[metric] > 0.95 and after["eval_margin"] > 0.5
    words = [sample["completion"].split() for sample in trainer.samples]
    assert sum(answer[:1] == ["c"] for answer in words) >= 2


@SLOW
@KINDS
@LORA
def test_reference_log_probs_computed_before_give_the_same_training(make, kind, lora):
    trainers = []
    for precompute in (False, True):
        trainer = make(f"run {precompute}", kind, lora=lora, precompute_ref_log_probs=precompute)
        trainer.train()
        trainers.append(trainer)
    plain, precomputed = trainers
    assert losses(precomputed) == pytest.approx(losses(plain), rel=1e-5)
    assert precomputed.ref_model is None
    rewards = [value for values in plain.rewards() for value in values]
    same = [value for values in precomputed.rewards() for value in values]
    assert same == pytest.approx(rewards, abs=1e-4) and max(map(abs, rewards)) > 1e-3
    # Without LoRA there is no reference any more.
    assert ("eval_kl" in precomputed.evaluate()) == lora


@SLOW
@KINDS
def test_the_reference_of_lora_is_the_policy_without_its_adapter(make, kind):
    """It equals a frozen copy: losses, log-probs and weights."""
    lora = make("lora", kind, lora=True)
    copy = make("copy", kind, lora=True)
    # As the trainer without LoRA has it.
    copy.ref_model = make("plain", kind).ref_model
    assert lora.ref_model is None and set(lora.model.peft_config) == {"default"}
    lora.train()
    copy.train()
    assert losses(lora) == losses(copy)
    for (name, first), second in zip(
        lora.model.named_parameters(), copy.model.parameters(), strict=True
    ):
        assert torch.equal(first, second), name
    assert lora.evaluate()["eval_kl"] == pytest.approx(copy.evaluate()["eval_kl"], abs=1e-5)


@KINDS
def test_a_reference_of_another_model_counts(make, make_policy, tokenizer, kind):
    other = make_policy(tokenizer, factor=2.0, seed=5)
    trainer = make(kind=kind, ref_model=other)
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] != 0 and metrics["eval_margin"] != 0


@KINDS
@LORA
def test_invariant_38_log_probs_are_those_of_ppo(make, tokenizer, kind, lora):
    """Of every answer, in batches with padding: trl's fused layer, and the model's own logits through our formulas."""
    trainer = make(kind=kind, lora=lora)
    trainer.train()
    answers = []
    for row in trainer.eval_rows:
        answers += trainer.answers_of(row)
    model = trainer.model.eval()
    with torch.no_grad():
        ours = summed_log_probs(model, answer_batch(answers, tokenizer.pad_token_id, "cpu"))
    for answer, value in zip(answers, ours.tolist(), strict=True):
        ids = torch.tensor([answer.ids])
        start = len(answer.ids) - answer.length
        batch = {"prompt_ids": ids[:, :start], "completion_ids": ids[:, start:]}
        batch["prompt_mask"] = torch.ones_like(batch["prompt_ids"], dtype=torch.bool)
        batch["mask"] = torch.ones_like(batch["completion_ids"], dtype=torch.bool)
        with torch.no_grad():
            expected = reference_log_probs(model, batch, temperature=1.0).sum().item()
        assert value == pytest.approx(expected, abs=1e-4)
        assert answer.ids[-1] == tokenizer.eos_token_id  # EOS is a part of it


def test_a_model_whose_logits_the_fused_layer_does_not_know_is_refused(
    make_policy, tokenizer, refused, make
):
    model = make().model
    answer = Answer([2, 3, 4, 0], 2)
    check_fused_layer(model, answer, tokenizer.pad_token_id)
    model.__dict__[DECISION] = "own forward pass"
    head = model.lm_head
    head.register_forward_hook(lambda module, inputs, output: output * 3)
    message = refused(check_fused_layer, model, answer, tokenizer.pad_token_id)
    assert "GPT2LMHeadModel" in message and "rlhf ppo" in message


@KINDS
def test_samples_of_each_evaluation_are_kept_with_their_step(make, tmp_path, kind):
    trainer = make(kind=kind, max_steps=2, eval_strategy="steps", eval_steps=2)
    trainer.evaluate()
    trainer.train()
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [0] * 3 + [2] * 3
    assert [row["prompt"] for row in rows] == ["a", "b", "d"] * 2
    assert {"completion", "completion_length", "ended", "kl"} <= rows[0].keys()
    assert all(1 <= row["completion_length"] <= 4 for row in rows)


@KINDS
def test_layouts_that_split_the_weights_are_refused(make, refused, monkeypatch, kind):
    monkeypatch.setattr("rlhf.direct_preference.trainer.is_plain", lambda accelerator: False)
    assert "do not run under DeepSpeed or FSDP yet" in refused(make, kind=kind)


# ---- DPO ---------------------------------------------------------------------------------------------------------


def loss_of(trainer, indices):
    """The loss of a batch of rows of the training set, as in an evaluation."""
    rows = [trainer.train_dataset[i] for i in indices]
    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()


def test_invariant_37_the_loss_by_hand(make):
    """Two rankings with 2 and 3 ordered pairs: the mean of two means."""
    trainer = make(max_steps=3)
    trainer.train()
    rewards = trainer.rewards()[:2]
    assert [row["ranks"] for row in trainer.eval_rows[:2]] == [[0, 1, 1], [0, 1, 2]]
    means = []
    for values, pairs in zip(rewards, ([(0, 1), (0, 2)], [(0, 1), (0, 2), (1, 2)]), strict=True):
        margins = torch.tensor([values[better] - values[worse] for better, worse in pairs])
        means.append(-torch.nn.functional.logsigmoid(margins).mean().item())
    assert means[0] != pytest.approx(means[1], rel=1e-3)
    assert loss_of(trainer, [0, 1]) == pytest.approx(sum(means) / 2, rel=1e-5)


def test_invariant_37_one_forward_per_answer(make):
    trainer = make()
    seen = []
    trainer.model.transformer.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output.last_hidden_state))
    )
    loss_of(trainer, [0, 1])
    assert seen == [6]


@SLOW
@pytest.mark.parametrize("cut", [(2, 4), (4, 2)], ids=["2x4", "4x2"])
def test_the_gradient_of_a_step_does_not_depend_on_how_its_batch_is_cut(make, cut, ranking_rows):
    rows_per_batch, batches = cut
    options = dict(
        rows=ranking_rows(8), max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0.0
    )
    whole = make("whole", per_device_train_batch_size=8, **options)
    parts = make(
        "parts",
        per_device_train_batch_size=rows_per_batch,
        gradient_accumulation_steps=batches,
        **options,
    )
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for (name, first), second in zip(
        whole.model.named_parameters(), parts.model.parameters(), strict=True
    ):
        torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4, msg=name)


# trl's own trainer, on the same pairs.
SETTINGS = {"robust": {"label_smoothing": 0.2}, "exo_pair": {"label_smoothing": 0.01}}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_on_pairs_the_loss_and_the_logs_are_those_of_trl(
    make, ranking_rows, make_policy, tokenizer, name
):
    pairs = []
    for row in ranking_rows(6):
        pairs.append({**row, "completions": row["completions"][:2], "ranks": [0, 1]})
    other = make_policy(tokenizer, factor=2.0, seed=5)
    trainer = make(rows=pairs, ref_model=other, loss_type=[name], **SETTINGS.get(name, {}))
    ours = loss_of(trainer, range(6))
    our_logs = {key: values[-1] for key, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    batch = trl_batch(trainer, range(6), tokenizer.pad_token_id)
    with torch.no_grad():
        theirs = DPOTrainer._compute_loss(trainer, trainer.model, batch, False).item()
    assert ours == pytest.approx(theirs, rel=1e-5)
    their_logs = trainer._metrics["eval"]
    for key in (
        "rewards/chosen",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        assert our_logs[key] == pytest.approx(their_logs[key][-1], rel=1e-4, abs=1e-6), key


def trl_batch(trainer, indices, pad_token_id):
    """A batch of pairs as trl's own collator makes it."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = []
    for i in indices:
        row = trainer.train_dataset[i]
        (first, second), (one, other) = row["input_ids"], row["lengths"]
        rows.append(
            {
                "prompt_ids": first[:-one],
                "chosen_ids": first[-one:],
                "rejected_ids": second[-other:],
            }
        )
    return DataCollatorForPreference(pad_token_id=pad_token_id)(rows)


def test_several_losses_are_a_weighted_sum(make):
    single = {}
    for name in ("sigmoid", "hinge"):
        trainer = make(name, loss_type=[name], max_steps=2)
        single[name] = loss_of(trainer, range(4))
    both = make("both", loss_type=["sigmoid", "hinge"], loss_weights=[0.5, 2.0])
    assert loss_of(both, range(4)) == pytest.approx(0.5 * single["sigmoid"] + 2 * single["hinge"])


# ---- KTO ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_kto_by_hand(make, make_policy, tokenizer):
    """Equation 7 of its paper, with the KL of the batch's mismatched answers: 0 where their mean is below it."""
    other = make_policy(tokenizer, factor=2.0, seed=5)
    trainer = make(kind="kto", ref_model=other, desirable_weight=1.0, undesirable_weight=0.5)
    count = 6
    rewards = [reward for (reward,) in trainer.rewards()][:count]
    kls = []
    for row in trainer.eval_rows[:count]:
        answer = Answer(row["prompt_ids"] + row["KL_completion_ids"], len(row["KL_completion_ids"]))
        batch = answer_batch([answer], tokenizer.pad_token_id, "cpu")
        kls.append((trainer.policy_log_probs(batch) - trainer.reference_log_probs(batch)).item())
    kl = max(0.0, sum(kls) / count)
    expected = 0.0
    for row, reward in zip(trainer.eval_rows, rewards):
        value = torch.tensor(reward - trainer.beta * kl)
        gain = torch.sigmoid(value) if row["label"] else torch.sigmoid(-value)
        expected += (1.0 if row["label"] else 0.5) * (1 - gain.item()) / count
    assert loss_of(trainer, range(count)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_apo_needs_no_kl(make, make_policy, tokenizer):
    other = make_policy(tokenizer, factor=2.0, seed=5)
    trainer = make(kind="kto", ref_model=other, loss_type="apo_zero_unpaired")
    expected = 0.0
    for row, (reward,) in zip(trainer.eval_rows[:6], trainer.rewards()):
        value = torch.tensor(reward).sigmoid().item()
        expected += (1 - value if row["label"] else value) / 6
    assert loss_of(trainer, range(6)) == pytest.approx(expected, rel=1e-5)


@SLOW
@KINDS
@LORA
def test_the_best_checkpoint_is_what_is_kept(make, tmp_path, kind, lora):
    """Its metric is that of a new evaluation of the model that the training leaves."""
    options = dict(
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, max_steps=6
    )
    metric = {"dpo": "accuracy", "kto": "auc"}[kind]
    trainer = make(kind=kind, lora=lora, load_best_model_at_end=True, **options)
    trainer.train()
    best = trainer.state.best_metric
    values = logged(trainer, f"eval_{metric}")
    assert best == max(values) and trainer.state.best_model_checkpoint.startswith(str(tmp_path))
    assert trainer.evaluate()[f"eval_{metric}"] == pytest.approx(best)
