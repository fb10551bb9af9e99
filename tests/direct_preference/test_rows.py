"""Rankings and thumbs as token ids: what is learned, dropped, counted and refused."""

import pytest
import torch

from rlhf.direct_preference.config import PairConfig, ThumbConfig
from rlhf.direct_preference.rows import (
    balance_advice,
    collate_pairs,
    encode_pairs_of_rankings,
    encode_thumbs,
    last_tokens,
    require_both_thumbs,
    thumbs_dataset,
)

EOS = 0


def ranking(completions, ranks, prompt="a"):
    return {"prompt": prompt, "completions": completions, "ranks": ranks}


def thumb(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


# ---- rankings ----------------------------------------------------------------------------------------------------


def test_what_orders_nothing_is_dropped_and_counted(tokenizer):
    rows = [
        ranking(["b", "c"], [0, 1]),
        ranking(["b", "c"], [1, 1]),  # one tier
        ranking(["b", "b", "c"], [2, 0, 1]),  # the same text twice: its best rank
        ranking(["b", "c " * 30], [0, 1]),  # one too long
        ranking(["b", "b"], [0, 1]),  # equal answers
    ]
    encoded, counts = encode_pairs_of_rankings(tokenizer, rows, max_length=20)
    assert [row["ranks"] for row in encoded] == [[0, 1], [0, 1]]
    assert counts == {
        "completions_repeated": 2,
        "completions_too_long": 1,
        "rankings_without_order": 3,
    }


@pytest.mark.parametrize(
    "rows",
    [[ranking(["b", "c"], [0, 0])], [ranking(["b", "b", "c " * 30], [0, 1, 2])]],
    ids=["one tier", "nothing is left"],
)
def test_nothing_to_learn_is_refused(tokenizer, refused, rows):
    with pytest.raises(Exception, match="no strictly ordered pair|no ranking fits"):
        encode_pairs_of_rankings(tokenizer, rows, max_length=20)


def test_completions_of_the_same_tokens_are_one(make_tokenizer):
    """Of a template that trims, as Llama's does."""
    tokenizer = make_tokenizer("a b c".split(), "gpt2")
    tokenizer.chat_template = (
        "{%- for message in messages -%}{{- message['role'] + ' ' + message['content'] | trim + eos_token -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'assistant ' -}}{%- endif -%}"
    )
    rows = [ranking(["b", " b ", "c"], [2, 0, 1]), ranking(["b", "b "], [0, 1])]
    (row,), counts = encode_pairs_of_rankings(tokenizer, rows, max_length=20)
    assert row["ranks"] == [0, 1] and row["places"] == [0, 2]
    assert len(row["input_ids"]) == len(row["lengths"]) == 2
    assert (counts["completions_repeated"], counts["rankings_without_order"]) == (2, 1)


def test_a_batch_by_hand(tokenizer):
    rows = [
        {"input_ids": [[5, 6, 0], [5, 0]], "ranks": [0, 1], "lengths": [2, 1]},
        {
            "input_ids": [[5, 6, 7, 0], [5, 6, 0], [5, 6, 8, 0]],
            "ranks": [1, 0, 2],
            "lengths": [2, 1, 3],
        },
    ]
    batch = collate_pairs(rows, 13)
    assert batch["completion_mask"].long().tolist() == [
        [0, 1, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 0],
        [0, 1, 1, 1],
    ]
    assert batch["lengths"].tolist() == [[2, 1, 1], [2, 1, 3]]
    assert "ref_log_probs" not in batch
    rows = [{**row, "ref_log_probs": [-1.5] * len(row["ranks"])} for row in rows]
    assert collate_pairs(rows, 13)["ref_log_probs"].tolist() == [
        [-1.5, -1.5, 0.0],
        [-1.5, -1.5, -1.5],
    ]


def test_the_last_tokens_count_also_where_padding_is_eos():
    mask = torch.tensor([[True, True, True, False]])
    assert last_tokens(mask, torch.tensor([1])).tolist() == [[False, False, True, False]]


# ---- thumbs ------------------------------------------------------------------------------------------------------


def test_each_row_has_the_completion_of_another_prompt_that_fits(tokenizer):
    rows = [
        thumb("a", "b", True),
        thumb("a", "c", False),
        thumb("d", "e e e", True),
        thumb("f", "g", False),
    ]
    encoded, counts = encode_thumbs(tokenizer, rows, max_length=9, seed=3)
    assert counts["rows_too_long"] == 0 and len(encoded) == 4
    by_completion = {tuple(row["completion_ids"]): row["row"]["prompt"] for row in encoded}
    for row in encoded:
        assert by_completion[tuple(row["KL_completion_ids"])] != row["row"]["prompt"]
        assert len(row["prompt_ids"]) + len(row["KL_completion_ids"]) <= 9
        assert row["completion_ids"][-1] == EOS
    again, _ = encode_thumbs(tokenizer, rows, max_length=9, seed=3)
    other, _ = encode_thumbs(tokenizer, rows, max_length=9, seed=4)
    assert list(again) == list(encoded) and list(other) != list(encoded)


def test_only_what_kto_trains_on_needs_other_prompts(tokenizer):
    rows = [thumb("a", "b", True), thumb("a", "c", False)]
    encoded, _ = encode_thumbs(tokenizer, rows, max_length=9, seed=0, estimates_kl=False)
    assert "KL_completion_ids" not in encoded[0]
    assert thumbs_dataset(encoded).column_names == ["prompt_ids", "completion_ids", "label"]


def test_prompts_of_the_same_tokens_are_one(tokenizer, refused):
    rows = [thumb("unknown", "b", True), thumb("word", "c", False)]
    assert "all training rows have one prompt" in refused(
        encode_thumbs, tokenizer, rows, max_length=9, seed=0
    )


def test_long_rows_are_counted_and_one_prompt_or_no_room_is_refused(tokenizer, refused):
    rows = [thumb("a", "b", True), thumb("d", "c " * 30, False), thumb("e", "c", False)]
    encoded, counts = encode_thumbs(tokenizer, rows, max_length=9, seed=0)
    assert len(encoded) == 2 and counts["rows_too_long"] == 1
    same = [thumb("a", "b", True), thumb("a", "c", False)]
    assert "all training rows have one prompt" in refused(
        encode_thumbs, tokenizer, same, max_length=9, seed=0
    )
    tight = [thumb("a a a", "b", True), thumb("d", "c c c c", False)]
    message = refused(encode_thumbs, tokenizer, tight, max_length=9, seed=0)
    assert "no room for the completion of another prompt" in message


def test_a_thumb_that_its_person_changed_later_is_the_later_one(tokenizer):
    people = [("ann", True), ("ben", True), ("ann", False), ("", True), ("", False)]
    rows = [{**thumb("a", "b", label), "annotator": name} for name, label in people]
    encoded, counts = encode_thumbs(tokenizer, [*rows, thumb("d", "c", True)], max_length=9, seed=0)
    assert counts["thumbs_changed_later"] == 1
    named = {entry["row"].get("annotator"): entry["label"] for entry in encoded}
    assert len(encoded) == 5 and named["ann"] is False and named["ben"] is True


@pytest.mark.parametrize(("label", "kind"), [(True, "good"), (False, "bad")])
def test_thumbs_of_one_kind_are_refused(refused, label, kind):
    rows = [{"label": label}, {"label": label}]
    assert f"of the training rows are {kind}" in refused(require_both_thumbs, rows, "training")
    require_both_thumbs([*rows, {"label": not label}], "training")


def test_the_advice_on_weights_is_that_of_the_paper():
    """desirable_weight x good / (undesirable_weight x bad) from 1 to 4/3."""
    rows = [{"label": i < 3} for i in range(9)]
    message = balance_advice(rows, desirable=1.0, undesirable=1.0)
    assert "3 good and 6 bad" in message and "desirable_weight from 2 to 2.67" in message
    assert balance_advice(rows, desirable=2.0, undesirable=1.0) == ""
    assert balance_advice(rows, desirable=2.6, undesirable=1.0) == ""
    assert "is 1.4" in balance_advice(rows, desirable=2.8, undesirable=1.0)
    flipped = [{"label": i >= 3} for i in range(9)]
    assert "undesirable_weight from 1.5 to 2" in balance_advice(
        flipped, desirable=1.0, undesirable=1.0
    )


# ---- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": ["robust"]}, "needs label_smoothing above 0"),
        ({"loss_type": ["exo_pair"]}, "needs label_smoothing above 0"),
        ({"loss_type": ["aot"]}, "sort the pairs of a batch"),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "named twice"),
        ({"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, -1.0]}, "more than 0"),
    ],
)
def test_losses_that_do_not_fit_are_refused(refused, tmp_path, settings, said):
    assert said in refused(PairConfig, output_dir=str(tmp_path), use_cpu=True, **settings)


def test_kto_on_one_row_is_refused_but_not_its_loss_without_a_kl(refused, tmp_path):
    options = dict(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=1)
    assert "use 2 or more" in refused(ThumbConfig, **options)
    assert "loss_type=ipo" in refused(ThumbConfig, loss_type="ipo", **options)
    ThumbConfig(loss_type="apo_zero_unpaired", **options)


def test_the_best_checkpoint_is_that_of_the_best_accuracy(tmp_path):
    options = dict(output_dir=str(tmp_path), use_cpu=True, load_best_model_at_end=True)
    options |= dict(eval_strategy="steps", save_strategy="steps")
    pairs, thumbs = PairConfig(**options), ThumbConfig(**options)
    assert (pairs.metric_for_best_model, thumbs.metric_for_best_model) == ("accuracy", "auc")
    assert pairs.greater_is_better and thumbs.greater_is_better
