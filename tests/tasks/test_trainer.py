"""What EncoderTrainer adds to transformers.Trainer; the recipes' tests run it whole."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    TrainerControl,
)

from rlhf.models.parts import disable_dropout
from rlhf.tasks.trainer import (
    EarlyStopping,
    EncoderConfig,
    EncoderTrainer,
    LengthSampler,
    items,
    should_split_by_length,
)


def padded(rows: list[dict]) -> dict:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    labels = torch.tensor([row["labels"] for row in rows])
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": mask,
        "labels": labels,
    }


LENGTHS = [3, 9, 1, 7, 7, 2, 9, 4, 5, 6, 8]


def small_trainer(folder, best_metric="loss", rows=None, **settings):
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    model = BertForSequenceClassification(BertConfig(**sizes))
    rows = rows or [{"input_ids": [2, 3 + i], "labels": i % 2} for i in range(8)]
    quiet = dict(
        use_cpu=True, report_to="none", save_strategy="no", eval_strategy="no", disable_tqdm=True
    )
    settings = dict(per_device_train_batch_size=4, num_train_epochs=1) | quiet | settings
    args = EncoderConfig(output_dir=str(folder), **settings)
    return EncoderTrainer(
        model=model, args=args, train=rows, metrics=(best_metric,), data_collator=padded
    )


def test_an_order_has_every_row_once_and_is_a_function_of_seed_and_epoch():
    sampler = LengthSampler(LENGTHS, group=3, seed=5)
    first = list(sampler)
    assert sorted(first) == list(range(11)) and first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and sorted(second) == list(range(11))
    assert list(LengthSampler(LENGTHS, group=3, seed=6)) != first


def test_rows_of_a_group_have_neighbouring_lengths_and_the_longest_come_first():
    order = [LENGTHS[row] for row in LengthSampler(LENGTHS, group=3, seed=5, pool=8)]
    groups = [sorted(order[i : i + 3], reverse=True) for i in range(0, 11, 3)]
    assert groups[0] == [9, 9, 8] and groups[-1] == [2, 1]  # the short group stands last
    assert sorted(map(tuple, groups[1:3])) == [(5, 4, 3), (7, 7, 6)]


def test_an_update_by_chance_has_its_rows_by_length():
    order = list(LengthSampler(LENGTHS * 20, group=10, seed=5))
    groups = [[(LENGTHS * 20)[row] for row in order[i : i + 10]] for i in range(0, 220, 10)]
    assert all(group == sorted(group, reverse=True) for group in groups)
    assert min(max(group) - min(group) for group in groups) > 3  # long and short ones in each


def test_rows_of_uneven_length_are_read_in_two_parts(tmp_path):
    assert should_split_by_length([3, 30] * 16, 8) and not should_split_by_length([30] * 32, 8)
    assert not should_split_by_length([3, 30] * 16, 1)
    rows = [{"input_ids": [2] + [3 + i] * (1 + i % 5 * 3), "labels": i % 2} for i in range(10)]
    trainer = small_trainer(tmp_path, rows=rows)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (
        2,
        2,
    )
    read = []
    trainer.model.bert.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    assert trainer.train().global_step == 3  # of 4, 4 and 2 rows
    assert [size for size, _ in read] == [2, 2, 2, 2, 2] and read[0][1] > read[1][1]
    plain = small_trainer(
        tmp_path / "grouped", rows=rows, train_sampling_strategy="group_by_length"
    )
    assert (plain.args.per_device_train_batch_size, plain.args.gradient_accumulation_steps) == (
        4,
        1,
    )


def test_an_update_is_the_mean_over_its_rows_however_they_are_parted(tmp_path):
    """Six rows are one update of batches of 8, and its parts have four and two of them."""
    rows = [{"input_ids": [2] + [3 + i] * (1 + i % 3 * 6), "labels": i % 2} for i in range(6)]
    quiet = dict(
        rows=rows,
        per_device_train_batch_size=8,
        bf16=False,
        learning_rate=1e-2,
        optim="sgd",
        max_grad_norm=0,
    )
    weights = []
    for strategy in ("random", "group_by_length"):
        trainer = small_trainer(tmp_path / strategy, train_sampling_strategy=strategy, **quiet)
        disable_dropout(trainer.model)
        trainer.train()
        weights.append((trainer.args.gradient_accumulation_steps, trainer.model.state_dict()))
    (parts, first), (whole, second) = weights
    assert (parts, whole) == (2, 1)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_items_are_rows_or_labelled_tokens():
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert (
        items({"input_ids": ids, "labels": torch.tensor([0, 1])}) == items({"input_ids": ids}) == 2
    )
    assert items({"input_ids": ids, "labels": torch.tensor([[0, -100, 1], [-100, -100, 2]])}) == 3
    assert items({"input_ids": ids, "labels": torch.zeros(2, 3)}) == 2  # three labels of each row


def test_the_head_has_its_own_learning_rate(tmp_path):
    trainer = small_trainer(tmp_path, learning_rate=1e-5, head_learning_rate=1e-2, weight_decay=0.1)
    trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    assert rates.keys() == set(names.values())
    assert rates["classifier.weight"] == rates["bert.pooler.dense.weight"] == (1e-2, 0.1)
    assert rates["classifier.bias"] == (1e-2, 0.0)
    assert rates["bert.encoder.layer.0.output.dense.weight"] == (1e-5, 0.1)
    assert rates["bert.embeddings.LayerNorm.bias"] == (1e-5, 0.0)


def test_the_schedule_keeps_the_ratio_of_the_two_rates(tmp_path):
    trainer = small_trainer(
        tmp_path, learning_rate=1e-3, head_learning_rate=1e-2, lr_scheduler_type="linear"
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {
        name: (p - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()
    }
    # Adam's first steps are as large as the rate: two steps, the second at half of it
    assert moved["classifier.weight"] == pytest.approx(1.5e-2, rel=0.35)
    assert moved["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(1.5e-3, rel=0.35)


def test_an_unknown_metric_is_refused_before_training(tmp_path, refused):
    assert "use one of loss" in refused(small_trainer, tmp_path, metric_for_best_model="bleu")


def test_consistency_reads_a_row_twice_while_training_only(tmp_path):
    trainer = small_trainer(tmp_path)
    batch = {"input_ids": torch.tensor([[2, 3], [2, 4]]), "labels": torch.tensor([0, 1])}
    read = []
    trainer.model.bert.encoder.register_forward_pre_hook(
        lambda module, args: read.append(len(args[0]))
    )
    plain = trainer.compute_loss(trainer.model.eval(), batch).item()
    trainer.consistency_coef = 10.0
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == plain
    disable_dropout(trainer.model.train())
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(
        plain
    )  # two equal answers cost nothing
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    torch.manual_seed(0)
    dropped = trainer.compute_loss(trainer.model, batch).item()
    trainer.consistency_coef = 1e-9
    torch.manual_seed(0)
    assert dropped > trainer.compute_loss(trainer.model, batch).item()
    assert read == [2, 2, 4, 4, 4]


@pytest.mark.parametrize(
    ("metric", "higher"), [("accuracy", True), ("f1", True), ("masked_loss", False), ("mse", False)]
)
def test_a_loss_by_any_name_is_better_when_it_is_lower(tmp_path, metric, higher):
    assert small_trainer(tmp_path, best_metric=metric).args.greater_is_better is higher


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, True),
        ({"eval_strategy": "no", "save_strategy": "no"}, False),
        ({"eval_strategy": "epoch", "save_strategy": "no"}, False),
        (
            {
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 10,
                "save_steps": 10,
            },
            True,
        ),
        (
            {
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 10,
                "save_steps": 20,
            },
            False,  # the best may be the evaluation between two checkpoints
        ),
        (
            {
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 20,
                "save_steps": 10,
            },
            False,
        ),
        (
            {
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "logging_steps": 7,
                "save_steps": 20,
            },
            False,
        ),
    ],
)
def test_the_best_checkpoint_is_kept_where_each_is_judged(tmp_path, settings, kept):
    args = EncoderConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)
    assert args.load_best_model_at_end is kept


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_has_ended_makes_no_other_step_when_it_is_resumed(tmp_path, accumulation):
    """The last checkpoint may be in the middle of an epoch; transformers' Trainer makes one step more from there."""
    settings = dict(max_steps=1, save_strategy="steps", save_steps=1, per_device_train_batch_size=2)
    settings["gradient_accumulation_steps"] = accumulation
    first = small_trainer(tmp_path, **settings)
    first.train()
    resumed = small_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 1
    for expected, parameter in zip(
        first.model.parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(expected, parameter)


def test_an_early_stop_holds_when_the_run_is_resumed(tmp_path):
    callback = EarlyStopping(2)
    state = SimpleNamespace(
        stateful_callbacks={"EarlyStopping": {"attributes": {"early_stopping_patience_counter": 2}}}
    )
    settings = dict(
        metric_for_best_model="loss", eval_strategy="epoch", load_best_model_at_end=True
    )
    args = SimpleNamespace(**settings)
    for patience, stops in ((2, True), (3, False)):
        control = TrainerControl()
        callback.early_stopping_patience = patience
        callback.on_train_begin(args, state, control)
        assert control.should_training_stop is stops


@pytest.mark.parametrize("tied", [True, False])
def test_an_output_layer_of_its_own_is_saved(tmp_path, tied):
    """transformers names the layers of a class that can share weights, whether this model's do or not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=50, intermediate_size=16, tie_word_embeddings=tied, pad_token_id=0, **sizes
    )
    model = BertForMaskedLM(config)
    row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    args = EncoderConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = EncoderTrainer(model=model, args=args, train=[row], evaluation=[row])
    trainer.model.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path)
    decoder = loaded.cls.predictions.decoder.weight
    assert torch.equal(decoder, model.cls.predictions.decoder.weight)
