"""Steps and weights that are not finite, in every trainer.

A row is spoiled by one of its tokens, whose embedding is NaN in the forward pass: the row's loss is NaN, and so are all
gradients of its step.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
)
from trl import SFTConfig

from rlhf.errors import UserError
from rlhf.models.parts import disable_dropout
from rlhf.runs import nonfinite
from rlhf.runs.nonfinite import NonFiniteSteps
from rlhf.runs.progress import plot_curves
from rlhf.runs.row_numbers import NumberedCollator, NumberedRows, numbers_text
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer

SPOILED = 9  # the token "h" of the word tokenizer
# Two micro-batches of two rows are a step.
QUICK = dict(
    per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1, learning_rate=1e-2,
    lr_scheduler_type="constant", logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
    save_strategy="no", eval_strategy="no", seed=1,
)  # fmt: skip


class Weights(TrainerCallback):
    """The weights after every step, as one vector."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.vectors = [self.now()]
        trainer.add_callback(self)

    def now(self):
        return torch.cat([p.detach().flatten().clone() for p in self.trainer.model.parameters()])

    def on_step_end(self, *args, **kwargs):
        self.vectors.append(self.now())

    def moved(self) -> list[bool]:
        pairs = zip(self.vectors, self.vectors[1:], strict=False)
        return [not torch.equal(before, after) for before, after in pairs]


def spoil(model, token=SPOILED, value=math.nan):
    """The embedding of a token is not a number, in the forward pass."""

    def hook(module, inputs, output):
        bad = (inputs[0] == token).unsqueeze(-1)
        return output.masked_fill(bad, value)

    model.get_input_embeddings().register_forward_hook(hook)


def token_rows(count=12, bad=()):
    """Rows of three tokens; those of `bad` have the spoiled one."""
    rows = []
    for i in range(count):
        ids = [2 + i % 5, 2 + i % 3, 4]
        if i in bad:
            ids = [2, SPOILED, 4]
        rows.append({"input_ids": ids, "labels": list(ids)})
    return rows


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    return disable_dropout(GPT2LMHeadModel(config))


@pytest.fixture
def make_sft(recipe_module, tokenizer, tmp_path):
    def make(rows, folder="run", **settings):
        args = SFTConfig(output_dir=str(tmp_path / folder), bf16=False, **QUICK | settings)
        args.logging_nan_inf_filter = False
        return recipe_module("sft").DemonstrationTrainer(
            model=tiny_gpt2(),
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
        )

    return make


@pytest.fixture
def make_causal(recipe_module, tokenizer, tmp_path):
    def make(rows, folder="run", **settings):
        recipe = recipe_module("pretrain")
        tensors = []
        for row in rows:
            tensors.append({name: torch.tensor(column) for name, column in row.items()})
        args = recipe.PretrainConfig(output_dir=str(tmp_path / folder), **QUICK | settings)
        return recipe.CausalTrainer(
            model=tiny_gpt2(),
            args=args,
            train_dataset=tensors,
            eval_dataset=tensors,
            data_collator=recipe.PadRows(0),
            processing_class=tokenizer,
        )

    return make


@pytest.fixture
def make_encoder(tokenizer, tmp_path):
    def padded(rows):
        columns = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        return columns | {"labels": columns["labels"][:, 0] % 2}

    def make(rows, folder="run", **settings):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )  # fmt: skip
        model = disable_dropout(BertForSequenceClassification(config))
        args = EncoderConfig(output_dir=str(tmp_path / folder), **QUICK | settings)
        return EncoderTrainer(
            model=model,
            args=args,
            train=rows,
            data_collator=padded,
            processing_class=tokenizer,
        )

    return make


@pytest.fixture
def make_ranker(tokenizer, make_reward_model, tmp_path):
    from rlhf.reward_model.trainer import RewardConfig, RewardTrainer

    def make(rows, folder="run", **settings):
        rankings = []
        for row in rows:
            other = [3, 3, 3]
            rankings.append({"input_ids": [row["input_ids"], other], "ranks": [0, 1]})
        args = RewardConfig(output_dir=str(tmp_path / folder), **QUICK | settings)
        return RewardTrainer(
            model=disable_dropout(make_reward_model(tokenizer)),
            tokenizer=tokenizer,
            args=args,
            train_rows=rankings,
            eval_rows=None,
        )

    return make


MAKERS = ("make_sft", "make_causal", "make_encoder", "make_ranker")


@pytest.fixture(params=MAKERS)
def make(request):
    return request.getfixturevalue(request.param)


def rows_of_steps(trainer) -> list[list[int]]:
    """Wraps the trainer so that the rows of its steps are kept, as its data loader gives them."""
    steps = []
    keep_step = trainer.keep_step

    def keep(norms):
        steps.append(sorted(sum(trainer.step_rows, [])))
        return keep_step(norms)

    trainer.keep_step = keep
    return steps


# ---- a step ----


def test_a_nan_row_skips_its_step_which_is_counted_and_named(make, capsys):
    trainer = make(token_rows(bad={5}))
    spoil(trainer.model)
    weights, steps = Weights(trainer), rows_of_steps(trainer)
    trainer.train()

    assert len(steps) == 3 and sorted(sum(steps, [])) == list(range(12))
    (bad_step,) = [number for number, rows in enumerate(steps) if 5 in rows]
    assert weights.moved() == [number != bad_step for number in range(3)]
    for state in trainer.optimizer.optimizer.state.values():
        assert state["step"] == 2  # Adam has seen two steps
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row.get("nonfinite_steps", 0) for row in logs] == [
        int(number == bad_step) for number in range(3)
    ]
    assert all(math.isfinite(row["loss"]) for row in logs)

    printed = capsys.readouterr().out
    assert printed.count("skipped") == 1
    assert f"step {bad_step + 1} skipped: the loss of training rows " in printed
    named = printed.partition("training rows ")[2].partition(" is not finite")[0]
    others = printed.partition("other rows: ")[2].partition(")")[0]
    named, others = json.loads(f"[{named}]"), json.loads(f"[{others}]")
    assert 5 in named and len(named) == 2  # of its micro-batch
    assert sorted(named + others) == steps[bad_step]


def final_weights(trainer, spoiled=True):
    if spoiled:
        spoil(trainer.model)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("maker", [pytest.param("make_sft", marks=pytest.mark.slow), "make_causal"])
def test_the_result_is_that_of_a_run_without_the_rows_of_the_skipped_step(maker, request):
    make = request.getfixturevalue(maker)
    rows = token_rows(bad={5})
    with_bad = final_weights(make(rows, "with", train_sampling_strategy="sequential"))
    good = rows[:4] + rows[8:]  # without the second step
    without = final_weights(make(good, "without", train_sampling_strategy="sequential"))
    assert torch.equal(with_bad, without)


@pytest.mark.parametrize(
    ("maker", "workers"),
    [("make_sft", 0), pytest.param("make_causal", 1, marks=pytest.mark.slow)],
)
def test_workers_and_a_resumed_epoch_keep_the_numbers_of_the_rows(
    maker, workers, request, tmp_path
):
    make = request.getfixturevalue(maker)
    settings = dict(
        save_strategy="steps", save_steps=1, save_total_limit=3, dataloader_num_workers=workers
    )
    whole = make(token_rows(), "run", **settings)
    steps = rows_of_steps(whole)
    whole.train()
    resumed = make(token_rows(), "again", **settings)
    steps_after = rows_of_steps(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert steps_after == steps[1:]
    assert sorted(sum(steps, [])) == list(range(12))


def test_rows_of_a_stream_have_no_numbers(make_causal, capsys):
    class Stream(IterableDataset):
        def __iter__(self):
            for row in token_rows(bad={5}):
                yield {name: torch.tensor(column) for name, column in row.items()}

    trainer = make_causal(token_rows(), max_steps=3)
    trainer.train_dataset = Stream()
    spoil(trainer.model)
    trainer.train()
    assert "step 2 skipped: the loss is not finite\n" in capsys.readouterr().out


def test_packed_rows_are_named_by_their_packs(make_sft, capsys):
    trainer = make_sft(token_rows(bad={5}), packing=True, max_length=6)
    spoil(trainer.model)
    trainer.train()
    packs = [
        sum(row["input_ids"], []) if False else row["input_ids"] for row in trainer.train_dataset
    ]
    (bad,) = [number for number, ids in enumerate(packs) if SPOILED in ids]
    named = capsys.readouterr().out.partition("training rows ")[2].partition(" is not finite")[0]
    assert bad in json.loads(f"[{named}]")


def test_ten_in_a_row_end_the_run_with_the_rows_and_the_checkpoint(make, refused, tmp_path):
    # The first four rows are good, but encoders have an order of their own.
    rows = token_rows(60, bad=range(60))
    trainer = make(rows)
    spoil(trainer.model)
    weights = Weights(trainer)
    message = refused(trainer.train)
    assert message.startswith("10 updates in a row had a loss or gradient that is not finite")
    assert "The last: the loss of training rows " in message and "learning_rate" in message
    assert "no checkpoint with finite weights" in message
    assert weights.moved() == [False] * 9  # the tenth ends before its callbacks


def test_an_infinite_gradient_under_a_finite_loss_is_named_too(make_causal, capsys):
    trainer = make_causal(token_rows())
    calls = iter(range(10**6))
    parameter = next(trainer.model.parameters())
    # The gradient of the third micro-batch, which is of the second step.
    parameter.register_hook(lambda grad: grad * math.inf if next(calls) == 2 else grad)
    weights = Weights(trainer)
    trainer.train()
    assert weights.moved() == [True, False, True]
    assert "step 2 skipped: the gradient of training rows " in capsys.readouterr().out


def test_a_loss_that_is_not_finite_skips_the_step_although_its_gradient_is_finite(make_causal):
    trainer = make_causal(token_rows())
    compute_loss = trainer.compute_loss
    calls = iter(range(10**6))

    def infinite_once(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        return loss + math.inf if next(calls) == 3 else loss

    trainer.compute_loss = infinite_once
    weights = Weights(trainer)
    trainer.train()
    assert weights.moved() == [True, False, True]


def test_without_clipping_steps_are_watched_too(make_causal):
    trainer = make_causal(token_rows(bad={5}), max_grad_norm=0.0)
    spoil(trainer.model)
    assert final_weights(trainer, spoiled=False).isfinite().all()


def test_an_overflow_that_the_scaler_of_fp16_can_undo_is_no_error(make_causal, capsys):
    class Scaler:
        scale = 4.0

        def is_enabled(self):
            return True

        def get_scale(self):
            return self.scale

    trainer = make_causal(token_rows())
    trainer.create_optimizer()
    trainer.step_losses, trainer.step_rows = [torch.tensor(1.0)], [[3, 4]]
    trainer.accelerator.scaler = Scaler()
    assert not trainer.keep_step([torch.tensor(math.inf)])
    assert trainer.nonfinite.in_a_row == 0 and capsys.readouterr().out == ""
    trainer.accelerator.scaler.scale = 1.0
    assert not trainer.keep_step([torch.tensor(math.inf)])
    assert trainer.nonfinite.in_a_row == 1 and "rows 3, 4" in capsys.readouterr().out


@pytest.mark.parametrize("restore", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_count_in_a_row_is_in_the_checkpoint(make_causal, refused, tmp_path, restore):
    settings = dict(
        save_strategy="steps", save_steps=6, restore_callback_states_from_checkpoint=restore
    )
    first = make_causal(token_rows(32, bad=range(32)), **settings)
    spoil(first.model)
    first.args.max_steps = 6
    first.train()
    state = json.loads((tmp_path / "run/checkpoint-6/trainer_state.json").read_text())
    assert state["stateful_callbacks"]["NonFiniteSteps"]["attributes"]["in_a_row"] == 6
    second = make_causal(token_rows(32, bad=range(32)), "again", **settings)
    spoil(second.model)
    second.args.max_steps = 20
    message = refused(second.train, resume_from_checkpoint=str(tmp_path / "run/checkpoint-6"))
    assert "10 updates in a row" in message and second.state.global_step == 9


# ---- weights ----


def test_a_model_that_is_not_finite_is_refused_before_the_first_step(make, refused):
    trainer = make(token_rows())
    name, parameter = next(iter(trainer.model.named_parameters()))
    with torch.no_grad():
        parameter[0] = math.nan
    message = refused(trainer.train)
    assert "the model that training starts from has weights that are not finite" in message
    assert name in message and trainer.state.global_step == 0


def test_trained_weights_that_are_not_finite_are_no_silent_result(make_causal, refused, tmp_path):
    trainer = make_causal(token_rows(), save_strategy="steps", save_steps=1, save_total_limit=3)

    class Overflow(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    trainer.model.transformer.wpe.weight[3] = math.inf  # no row is so long

    trainer.add_callback(Overflow())
    message = refused(trainer.train)
    assert (
        "the trained model, which is not saved, has weights that are not finite in 1 tensors"
        in message
    )
    assert "transformer.wpe.weight" in message
    # Those of the steps 2 and 3 hold the number too.
    assert f"--resume_from_checkpoint {tmp_path / 'run' / 'checkpoint-1'}" in message


def test_the_newest_checkpoint_with_finite_weights_is_named(tmp_path):
    for step, value in ((8, 1.0), (16, 2.0), (24, math.nan)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"a": torch.tensor([0.0, value])}, folder / "model.safetensors")
    assert nonfinite.last_finite_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-16")
    (tmp_path / "checkpoint-16" / "model.safetensors").write_bytes(b"torn")
    assert nonfinite.last_finite_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-8")


# ---- evaluations ----


class SpoiledEvaluation(TrainerCallback):
    """Spoils the token 4 of the rows while the model is evaluated for the first time."""

    def __init__(self, model):
        self.evaluations = 0
        model.get_input_embeddings().register_forward_hook(self.hook)
        self.model = model

    def hook(self, module, inputs, output):
        if self.model.training or self.evaluations:
            return output
        return output.masked_fill((inputs[0] == 4).unsqueeze(-1), math.nan)

    def on_evaluate(self, *args, **kwargs):
        self.evaluations += 1


def test_an_evaluation_that_is_not_finite_is_logged_and_never_the_best(make_causal, tmp_path):
    settings = dict(eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2)
    trainer = make_causal(token_rows(), **settings, load_best_model_at_end=True)
    trainer.add_callback(SpoiledEvaluation(trainer.model))
    trainer.train()
    first, second = (row for row in trainer.state.log_history if "eval_loss" in row)
    assert math.isnan(first["eval_loss"]) and math.isfinite(second["eval_loss"])
    assert trainer.state.best_global_step == second["step"] == 6


@pytest.mark.parametrize(
    ("metrics", "is_best"),
    [
        ({"eval_loss": math.nan, "eval_accuracy": 0.9}, False),  # of answers that NaN gave
        ({"eval_loss": 1.0, "eval_accuracy": math.inf}, False),
        ({"eval_loss": 1.0, "eval_accuracy": 0.9}, True),
        ({"eval_accuracy": 0.9}, True),
    ],
)
def test_a_metric_picks_only_where_all_is_finite(make_causal, metrics, is_best):
    trainer = make_causal(token_rows())
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = "accuracy", True
    assert trainer._determine_best_metric(metrics, None) == is_best


def test_a_curve_with_numbers_that_are_not_finite_is_drawn(tmp_path):
    rows = [{"step": step, "loss": value, "eval_loss": math.nan, "grad_norm": math.inf}
            for step, value in enumerate([1.0, math.nan, math.inf, 0.5])]  # fmt: skip
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (path,) = plot_curves(tmp_path)
    assert path.stat().st_size > 1000


# ---- rows and their numbers ----


def test_rows_are_read_and_collated_as_without_their_numbers():
    rows = Dataset.from_list([{"a": i} for i in range(5)])
    items = NumberedRows(rows).__getitems__([4, 1])
    assert items == [(4, {"a": 4}), (1, {"a": 1})] and NumberedRows(rows)[2] == (2, {"a": 2})
    batch = NumberedCollator(lambda rows: {"a": [row["a"] for row in rows]})(items)
    assert batch == {"a": [4, 1], "row_numbers": [4, 1]}


def test_many_numbers_are_shortened():
    assert numbers_text([5, 3, 3]) == "3, 5"
    assert numbers_text(range(70)).endswith("62, 63 and 6 more")


# ---- the counter ----


def test_not_finite_steps_are_counted_and_the_run_stops_after_so_many_in_a_row(tmp_path):
    steps = NonFiniteSteps(limit=3, output_dir=str(tmp_path))
    for found in (True, True, False, True, True):
        steps.count(found)
    assert steps.take() == 4 and steps.take() == 0
    for name in ("checkpoint-8", "checkpoint-16", "plots"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as caught:
        steps.count(True)
    assert "3 updates in a row" in str(caught.value) and "learning_rate" in str(caught.value)
    assert f"--resume_from_checkpoint {tmp_path / 'checkpoint-16'}" in str(caught.value)


@pytest.mark.parametrize("folder", ["", "not/there"])
def test_without_a_checkpoint_the_error_says_so(tmp_path, refused, folder):
    steps = NonFiniteSteps(limit=1, output_dir=str(tmp_path / folder))
    assert "there is no checkpoint" in refused(steps.count, True)


def test_the_count_in_a_row_can_be_resumed(tmp_path, refused):
    steps = NonFiniteSteps(limit=3, output_dir=str(tmp_path))
    steps.in_a_row = 2
    assert "3 updates" in refused(steps.count, True)


# ---- several processes ----

SCRIPT = """
import json, math, os, sys
sys.path.insert(0, sys.argv[1])
import torch
from test_nonfinite import QUICK, spoil, tiny_gpt2, token_rows, Weights
from transformers import Trainer, TrainingArguments
from rlhf.runs.trainer import RunTrainer

class CausalTrainer(RunTrainer, Trainer):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        # The gradient of this loss is finite, and only one process knows that the loss is not.
        if self.args.process_index == 1 and self.state.global_step == 2:
            return loss + math.inf
        return loss

def collate(rows):
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

args = TrainingArguments(
    output_dir=sys.argv[2], train_sampling_strategy="sequential", logging_nan_inf_filter=False, **QUICK
)
trainer = CausalTrainer(
    model=tiny_gpt2(), args=args, train_dataset=token_rows(32, bad={12}), data_collator=collate
)
spoil(trainer.model)
weights = Weights(trainer)
trainer.train()
result = {"moved": weights.moved(), "sum": weights.now().double().sum().item()}
result["in_a_row"] = trainer.nonfinite.in_a_row
with open(f"{sys.argv[2]}/{args.process_index}.json", "w") as file:
    json.dump(result, file)
"""


@pytest.mark.slow
def test_processes_skip_together_and_name_the_rows_of_all(launch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    folder = tmp_path / "run"
    folder.mkdir()
    done = launch(script, here, folder, capture_output=True, text=True)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["moved"] == [True, False, False, True]
    # A step has eight rows, two micro-batches of two on each process, which take turns.
    assert "step 2 skipped: the loss of training rows 12, 13 is not finite" in done.stdout
    assert "(the step's other rows: 8, 9, 10, 11, 14, 15)" in done.stdout
    assert "step 3 skipped: the loss of training rows 18, 19, 22, 23 is not finite" in done.stdout
    assert done.stdout.count("skipped") == 2
