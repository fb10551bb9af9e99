import math
from collections import Counter

import pytest
import torch

from rlhf.data.importers import recognise_layout
from rlhf.data.rows import KINDS, check_row, recognise
from rlhf.models.load import load_encoder, save
from rlhf.models.scratch import new_policy
from rlhf.tasks.multiple_choice.encode import (
    IGNORED,
    PadChoices,
    choice_inputs,
    choice_loss,
    label_index,
    training_rows,
)

ROWS = [
    {"text": "a b", "choices": ["c", "d e", "f"], "label": 1},
    {"text": "a", "choices": ["b", "c"], "label": "0"},
]


def test_each_choice_is_the_second_text_of_a_pair(bert_tokenizer):
    counts = Counter()
    encoded = list(choice_inputs(bert_tokenizer, ROWS, counts, max_length=16))
    assert [len(choices) for choices in encoded] == [3, 2] and counts["cut"] == 0
    expected = bert_tokenizer("a b", "d e")["input_ids"]
    assert encoded[0][1]["input_ids"] == expected
    list(choice_inputs(bert_tokenizer, ROWS, counts, max_length=6))
    assert counts["cut"] == 1  # only the longest pair


def test_a_batch_repeats_choices_and_marks_the_repetitions(bert_tokenizer):
    rows, _ = training_rows(bert_tokenizer, ROWS, max_length=16)
    assert rows.lengths == [len(bert_tokenizer("a b", "d e")["input_ids"]), 5]
    batch = PadChoices(bert_tokenizer)(rows)
    assert batch["input_ids"].shape[:2] == (2, 3)
    assert batch["labels"].tolist() == [[0, 1, 0], [1, 0, IGNORED]]
    assert torch.equal(batch["input_ids"][1, 2], batch["input_ids"][1, 1])


def test_the_loss_is_worked_out_by_hand_and_ignores_repetitions():
    logits = torch.tensor([[0.0, math.log(3.0), 0.0], [1.0, 1.0, 50.0]])
    labels = torch.tensor([[0, 1, 0], [1, 0, IGNORED]])
    # exp: 1, 3, 1 -> 3/5; two equal scores -> 1/2
    expected = [-math.log(3 / 5), math.log(2)]
    assert choice_loss(logits, labels).tolist() == pytest.approx(expected)
    logits.requires_grad_()
    choice_loss(logits, labels).sum().backward()
    assert logits.grad[1, 2] == 0 and logits.grad[1, 0] == pytest.approx(-0.5)


def test_one_padded_row_has_the_loss_that_it_has_alone():
    torch.manual_seed(0)
    logits = torch.randn(1, 2)
    alone = choice_loss(logits, torch.tensor([[0, 1]]))
    padded = choice_loss(
        torch.cat([logits, torch.randn(1, 3)], 1), torch.tensor([[0, 1] + [IGNORED] * 3])
    )
    assert torch.equal(alone, padded)


def test_labels_are_indices_of_the_choices():
    kind = KINDS["multiple_choice"]
    assert recognise({"text", "choices", "label"}) is kind
    assert all(check_row(row, kind) == [] for row in ROWS)
    assert [label_index(row) for row in ROWS] == [1, 0]
    for label in (3, -1, "x", True, 1.0, [1]):
        [(column, reason)] = check_row(ROWS[0] | {"label": label}, kind)
        assert column == "label" and "the index of one of the choices is expected, 0 to 2" in reason


@pytest.mark.parametrize("count", [0, 1, 27])
def test_the_number_of_choices_is_checked(count):
    row = {"text": "a", "choices": ["b"] * count, "label": 0}
    [(column, reason)] = check_row(row, KINDS["multiple_choice"])
    assert column == "choices" and "a list of 2 to 26 strings is expected" in reason
    assert check_row(row | {"choices": ["b"] * 26}, KINDS["multiple_choice"]) == []


def test_an_empty_choice_is_named():
    row = {"text": "a", "choices": ["b", " "], "label": 0}
    assert check_row(row, KINDS["multiple_choice"]) == [("choices", "choice 1: empty")]


SWAG = {"sent1": "She sat.", "sent2": "Then she", "label": "2"}
SWAG |= {f"ending{k}": f"e{k}" for k in range(4)}


def test_rows_of_swag_are_read():
    layout = recognise_layout(SWAG)
    choices = [f"Then she e{k}" for k in range(4)]
    assert (layout.name, layout.kind) == ("SWAG", "multiple_choice")
    expected = {"text": "She sat.", "choices": choices, "label": "2"}
    assert layout.read(SWAG) == [expected]
    # its other columns stay, as those of any row
    assert layout.read(SWAG | {"video-id": "v1"}) == [expected | {"video-id": "v1"}]
    [row] = layout.read(SWAG | {"sent2": ""})
    assert row["choices"] == ["e0", "e1", "e2", "e3"]


@pytest.mark.parametrize("label", [-1, "-1", "", None])
def test_test_rows_of_swag_have_no_label(label):
    [row] = recognise_layout(SWAG).read(SWAG | {"label": label})
    assert row["label"] is None


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("sent2", None, "sent2: a string is expected, None given"),
        ("ending3", 7, "ending3: a string is expected, 7 given"),
        ("ending0", " ", "ending0: empty"),
    ],
)
def test_a_swag_row_without_a_text_is_bad(column, value, reason, refused):
    assert refused(recognise_layout(SWAG).read, SWAG | {column: value}) == reason


def test_gpt2_has_no_such_head(tmp_path, plain_tokenizer, refused):
    sizes = dict(model_type="gpt2", hidden_size=16, layers=1, heads=2, context=16)
    save(new_policy(plain_tokenizer, **sizes), plain_tokenizer, tmp_path)
    message = refused(load_encoder, str(tmp_path), "AutoModelForMultipleChoice", new_head=True)
    assert "as AutoModelForMultipleChoice: transformers has no such head for GPT2 models" in message
