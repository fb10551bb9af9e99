"""Keys of transformers.Trainer that the reward model's trainer reads."""

import pytest
import torch
from accelerate import Accelerator, DistributedType
from transformers import AutoModelForSequenceClassification
from transformers.optimization import Adafactor

from rlhf.models.lora import add_lora
from rlhf.models.parts import disable_dropout
from rlhf.reward_model.trainer import TRAINABLE

ROWS = [
    {"prompt": prompt, "completions": ["c c c", "c d c", "d d c"], "ranks": [0, 1, 2]}
    for prompt in "abdefgha"
]


@pytest.fixture
def make(tokenizer, make_reward_model, make_reward_trainer):
    def make(folder="run", *, lora=False, **settings):
        model = disable_dropout(make_reward_model(tokenizer))
        if lora:
            torch.manual_seed(2)
            model = add_lora(model, task="SEQ_CLS", rank=2, alpha=4)
        return make_reward_trainer(model, ROWS, folder, **{"learning_rate": 1e-2} | settings)

    return make


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_activations_give_the_same_gradients(make, lora):
    runs = {}
    for enabled in (False, True):
        trainer = make(f"run {enabled}", lora=lora, max_steps=1, gradient_checkpointing=enabled)
        gradients, passes = {}, []

        def keep(model, trainer=trainer, gradients=gradients):
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = parameter.grad.clone()
            return torch.tensor(1.0)

        trainer._clip_grad_norm = keep
        layer = next(m for n, m in trainer.model.named_modules() if n.endswith("h.0"))
        layer.attn.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        trainer.train()
        runs[enabled] = gradients, len(passes)
    (plain, once), (checkpointed, twice) = runs[False], runs[True]
    assert (once, twice) == (1, 2)
    assert plain.keys() == checkpointed.keys() and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_the_saved_model_is_the_best_checkpoints(make, tmp_path, monkeypatch, lora):
    """The accuracy falls after the second of four evaluations, whatever the model does."""
    accuracies = iter([0.5, 0.9, 0.7, 0.6])
    monkeypatch.setattr(
        "rlhf.reward_model.trainer.ranking_report",
        lambda scores, rows: {"accuracy": next(accuracies), "loss": 1.0},
    )
    trainer = make(
        lora=lora, max_steps=4, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True,
    )  # fmt: skip
    assert trainer.args.metric_for_best_model == "accuracy" and trainer.args.greater_is_better
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    best = torch.load(tmp_path / "run" / "checkpoint-2" / TRAINABLE, weights_only=True)
    last = torch.load(tmp_path / "run" / "checkpoint-4" / TRAINABLE, weights_only=True)
    parameters = dict(trainer.model.model.named_parameters())
    for name, tensor in best.items():
        assert torch.equal(parameters[name], tensor), name
    assert any(not torch.equal(best[name], tensor) for name, tensor in last.items())
    trainer.save_model()
    final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "checkpoint-2")
    for (name, tensor), other in zip(final.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_metric_that_no_evaluation_gives_is_named(make, refused):
    steps = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    settings = steps | dict(load_best_model_at_end=True, metric_for_best_model="f1")
    assert "metric_for_best_model=f1: use one of accuracy" in refused(make, **settings)
    lower = make(load_best_model_at_end=True, metric_for_best_model="loss", **steps)
    assert lower.args.greater_is_better is False


def test_the_best_checkpoint_is_refused_where_weights_are_sliced(make, refused, monkeypatch):
    kind = property(lambda accelerator: DistributedType.FSDP)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    steps = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    assert "does not work under FSDP" in refused(make, load_best_model_at_end=True, **steps)


@pytest.mark.slow
def test_noise_in_the_embeddings_and_another_optimizer(make):
    plain, noisy = make("plain", max_steps=2), make("noisy", max_steps=2, neftune_noise_alpha=5.0)
    for trainer in (plain, noisy):
        trainer.train()
    first, second = weights(plain), weights(noisy)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    trainer = make("adafactor", max_steps=1, optim="adafactor")
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, Adafactor)


def test_reentrant_checkpointing_is_refused(make, refused):
    message = refused(
        make, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}
    )
    assert "use_reentrant" in message
