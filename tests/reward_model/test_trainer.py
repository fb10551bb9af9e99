import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rlhf.data.splits import split_rows
from rlhf.models.load import load_reward_model
from rlhf.models.lora import add_lora
from rlhf.models.parts import disable_dropout
from rlhf.reward_model.metrics import plot_ranking_report, ranking_report
from rlhf.reward_model.rankings import collate_rankings, encode_rankings
from rlhf.reward_model.step_mean import count_ordered
from rlhf.reward_model.trainer import RewardTrainer
from rlhf.statistics import correlation

EOS = 0


def rankings(count=12):
    """More c's are better; two of the three answers of every third prompt tie."""
    rows = []
    for place in range(count):
        prompt = "abdefgh"[place % 7] + " " + "abdefgh"[place // 7]
        completions, ranks = ["c c c", "c d c", "d d c"], [0, 1, 1 if place % 3 == 0 else 2]
        shift = place % 3
        rows.append(
            {
                "prompt": prompt,
                "completions": completions[shift:] + completions[:shift],
                "ranks": ranks[shift:] + ranks[:shift],
            }
        )
    return rows


@pytest.fixture
def make(tokenizer, make_reward_model, make_reward_trainer):
    def make(folder="run", *, lora=False, rows=None, **settings):
        model = disable_dropout(make_reward_model(tokenizer))
        torch.nn.init.zeros_(model.score.weight)
        model = add_lora(model, task="SEQ_CLS", rank=2, alpha=4) if lora else model
        settings = {"learning_rate": 3e-3} | settings
        return make_reward_trainer(model, rows or rankings(), folder, **settings)

    return make


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


# ---- rows ----


def test_invariant_34_eos_closes_every_completion(tokenizer):
    encoded, long = encode_rankings(tokenizer, rankings(3), max_length=40)
    assert long == 0 and len(encoded) == 3
    for row in encoded:
        for ids, length in zip(row["input_ids"], row["lengths"], strict=True):
            assert (
                ids[-1] == EOS and length == 4 and ids[-5] == 12
            )  # three words and EOS after <|assistant|>


def test_invariant_34_the_split_is_by_prompt_never_by_pair():
    rows = [
        {"prompt": f"p{place // 3}", "completions": ["x", "y"], "ranks": [0, 1]}
        for place in range(90)
    ]
    train, test = split_rows(rows, 0.3, seed=0)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert len(train) + len(test) == 90 and len(test) % 3 == 0 and 9 <= len(test) <= 45


def test_long_completions_are_left_out_and_counted(tokenizer, refused):
    rows = [
        {"prompt": "a", "completions": ["b", "b " * 30, "c"], "ranks": [0, 1, 2]},
        {"prompt": "a", "completions": ["b", "b " * 30], "ranks": [0, 1]},
    ]
    encoded, long = encode_rankings(tokenizer, rows, max_length=10)
    assert (
        long == 2
        and [row["places"] for row in encoded] == [[0, 2]]
        and encoded[0]["ranks"] == [0, 2]
    )
    assert "max_length=3" in refused(encode_rankings, tokenizer, rows, max_length=3)


def test_batch_by_hand():
    rows = [
        {"input_ids": [[5, 0], [5, 6, 0], [0]], "ranks": [1, 0, 1]},
        {"input_ids": [[7, 0], [0]], "ranks": [0, 1]},
    ]
    batch = collate_rankings(rows, 13)
    assert batch["input_ids"].tolist() == [
        [5, 0, 13],
        [5, 6, 0],
        [0, 13, 13],
        [7, 0, 13],
        [0, 13, 13],
    ]
    assert batch["mask"].sum(1).tolist() == [2, 3, 1, 2, 1]
    assert batch["ranks"].tolist() == [[1, 0, 1], [0, 1, 0]]
    assert batch["valid"].tolist() == [[True, True, True], [True, True, False]]


def test_invariant_02_pad_equal_to_eos_still_counts_eos():
    mask = collate_rankings([{"input_ids": [[5, 0], [5, 6, 0]], "ranks": [0, 1]}], 0)["mask"]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


# ---- training ----


def test_invariant_33_one_forward_per_completion_and_the_loss_by_hand(make):
    trainer = make()
    calls = []
    trainer.model.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    rows = [
        {"input_ids": [[5, 0], [6, 0], [7, 0]], "ranks": [0, 1, 2]},
        {"input_ids": [[5, 0], [6, 0]], "ranks": [0, 0]},
    ]
    batch = collate_rankings(rows, 13)
    loss = trainer.compute_loss(trainer.model, batch)
    assert calls == [5]
    assert loss.item() == pytest.approx(
        math.log(2), rel=1e-5
    )  # the head is 0; the prompt of ties does not count


def test_invariant_33_accumulating_equals_one_batch(make):
    rows = rankings(8)
    one = make("one", rows=rows, per_device_train_batch_size=8, num_train_epochs=3)
    two = make(
        "two",
        rows=rows,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=3,
    )
    one.train()
    two.train()
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for (name, first), second in zip(
        one.model.named_parameters(), two.model.parameters(), strict=True
    ):
        torch.testing.assert_close(
            second, first, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "cut", [(2, 4), pytest.param((4, 2), marks=pytest.mark.slow)], ids=["2x4", "4x2"]
)
def test_the_gradient_of_a_step_does_not_depend_on_how_its_batch_is_cut(make, cut):
    """Three of eight prompts have ties alone, and the parts have unequal numbers of them."""
    rows = rankings(8)
    for index in (0, 1, 5):
        rows[index]["ranks"] = [0, 0, 0]
    rows_per_batch, batches = cut
    # One step without momentum: the weights move by the gradient.
    options = dict(
        rows=rows, max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant"
    )
    options |= dict(max_grad_norm=0.0, data_seed=3)
    whole = make("whole", per_device_train_batch_size=8, **options)
    parts = make(
        "parts",
        per_device_train_batch_size=rows_per_batch,
        gradient_accumulation_steps=batches,
        **options,
    )
    whole.train()
    parts.train()
    head, expected = parts.model.model.score.weight, whole.model.model.score.weight
    assert expected.norm() > 0.1
    torch.testing.assert_close(head, expected, atol=1e-5, rtol=1e-5)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


def test_prompts_with_an_ordered_pair_are_counted_without_the_padding():
    rows = [
        {"input_ids": [[5, 0], [6, 0], [7, 0]], "ranks": [1, 1, 1]},
        {"input_ids": [[5, 0], [6, 0]], "ranks": [2, 2]},  # padded with rank 0
        {"input_ids": [[5, 0], [6, 0]], "ranks": [1, 0]},
    ]
    assert count_ordered(collate_rankings(rows, 13)) == 1


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_trainable_parameter_changes_and_no_other(make, lora):
    trainer = make(lora=lora)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if torch.equal(parameter, before[name]) == parameter.requires_grad:
            pytest.fail(
                f"{name} {'did not change' if parameter.requires_grad else 'is frozen and changed'}"
            )


def test_it_learns_the_ranking(make):
    trainer = make(num_train_epochs=8)
    assert trainer.evaluate()["eval_accuracy"] == 0.5  # all scores are 0
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.95 and metrics["eval_loss"] < 0.5


@pytest.mark.parametrize(
    "lora", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"]
)
def test_resumed_equals_uninterrupted(make, tmp_path, lora):
    settings = dict(lora=lora, save_strategy="steps", save_steps=3, num_train_epochs=2)
    whole, resumed = make("whole", **settings), make("resumed", **settings)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(whole)[3:] == losses(resumed)[-3:] and len(losses(whole)) == 6
    for (name, first), second in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(first, second), name


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_invariant_35_what_is_saved_is_a_plain_folder_with_its_head(
    make, tokenizer, tmp_path, lora
):
    trainer = make(lora=lora)
    trainer.train()
    rows = trainer.eval_dataset
    before = [value for values in trainer.scores(rows) for value in values]
    trainer.save_model()
    loaded = RewardTrainer(
        model=load_reward_model(str(tmp_path / "run")),
        tokenizer=tokenizer,
        args=trainer.args,
        train_rows=rows,
        eval_rows=rows,
    )
    after = [value for values in loaded.scores(rows) for value in values]
    assert after == pytest.approx(before, abs=1e-4)
    assert [
        value for values in trainer.scores(rows) for value in values
    ] == before  # saving changed nothing
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert plain.config.num_labels == 1 and plain.score.weight.any()


@pytest.mark.parametrize("count", [1, 3, 7])
def test_scores_of_any_number_of_rows_keep_their_order(make, count):
    trainer = make(num_train_epochs=1)
    trainer.train()
    rows = trainer.eval_dataset[:count]
    together = trainer.scores(rows)
    alone = [trainer.scores([row])[0] for row in rows]
    for first, second in zip(together, alone, strict=True):
        assert first == pytest.approx(second, abs=1e-5)


# ---- report ----


def row(ranks, lengths):
    completions = [f"answer {place}" for place in range(len(ranks))]
    return {
        "ranks": ranks, "lengths": lengths, "places": list(range(len(ranks))),
        "row": {"prompt": "q", "completions": completions},
    }  # fmt: skip


def test_invariant_36_report_by_hand():
    """Margins 1 (gap 1), -1 (gap 2), -2 (gap 1) in the first row, none in the second, 0 (gap 1) in the third."""
    rows = [row([0, 1, 2], [2, 1, 3]), row([0, 0], [1, 1]), row([1, 0], [1, 1])]
    scores = [[2.0, 1.0, 3.0], [0.5, 0.5], [0.5, 0.5]]
    report = ranking_report(scores, rows)
    assert report["pairs"] == 4 and report["prompts"] == 2
    assert report["accuracy"] == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert 0 <= report["accuracy_low"] <= report["accuracy"] <= report["accuracy_high"] <= 0.5
    assert report["margin"] == pytest.approx(-0.5)
    assert report["loss"] == pytest.approx(
        sum(math.log(1 + math.exp(-m)) for m in (1, -1, -2, 0)) / 4
    )
    assert report["margins"] == [1.0, -1.0, -2.0, 0.0]
    assert report["accuracy_by_gap"] == {
        1: {"accuracy": pytest.approx(0.5), "pairs": 3}, 2: {"accuracy": pytest.approx(0.0), "pairs": 1},
    }  # fmt: skip
    sigmoid = {m: 1 / (1 + math.exp(-m)) for m in (0, 1, 2)}
    expected = [(sigmoid[0], 0.5, 1), (sigmoid[1], 0.5, 2), (sigmoid[2], 0.0, 1)]
    assert [(b["predicted"], b["observed"], b["pairs"]) for b in report["calibration"]] == [
        (pytest.approx(p), pytest.approx(o), n) for p, o, n in expected
    ]
    assert [(w["ranked higher"], w["scored higher"], w["margin"]) for w in report["worst"]] == [
        ("answer 1", "answer 2", -2.0), ("answer 0", "answer 2", -1.0),
    ]  # fmt: skip
    assert report["score_mean"] == pytest.approx(8 / 7)
    # lengths 2 1 3 1 1 1 1, scores 2 1 3 .5 .5 .5 .5: times 49: covariance 32, variances 26 and 41
    assert report["score_length_correlation"] == pytest.approx(32 / math.sqrt(26 * 41), rel=1e-5)


def test_invariant_36_a_perfect_order_has_no_worst_and_only_ties_are_refused(refused):
    report = ranking_report([[3.0, 2.0, 1.0]], [row([0, 1, 2], [1, 1, 1])])
    assert (
        report["accuracy"] == 1
        and report["worst"] == []
        and report["score_length_correlation"] == 0
    )
    assert "all ties" in refused(ranking_report, [[1.0, 2.0]], [row([0, 0], [1, 1])])


def test_invariant_36_plot(tmp_path):
    report = ranking_report([[3.0, 2.0, 1.0]], [row([0, 1, 2], [1, 1, 1])])
    plot_ranking_report(report, tmp_path / "ranking.png")
    assert (tmp_path / "ranking.png").stat().st_size > 1000


def test_correlation_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0])
    assert correlation(x, -2 * x) == pytest.approx(-1)
    assert correlation(x, torch.ones(3)) == 0
