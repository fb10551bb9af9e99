"""recipes/multiple_choice.py end to end: a tiny BERT learns which word was named."""

import json
import random

import pytest
from transformers import AutoModelForMultipleChoice

from rlhf.runs.card import card_text
from rlhf.runs.record import RunRecord, model_kind
from rlhf.tasks.multiple_choice.predictor import MultipleChoicePredictor

COLOURS = ["red", "green", "blue", "pink"]
TINY = (
    "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 12".split()
)
TINY += (
    "--report_to none --logging_steps 5 --save_strategy no --per_device_train_batch_size 8".split()
)


def named_rows(count: int, offset: int = 0) -> list[dict]:
    """The right choice is `yes`, at a place that moves; every other row has two choices, the others four."""
    rows = []
    for n in range(offset, offset + count):
        choices = ["no"] * (2 if n % 2 else 4)
        label = n // 3 % len(choices)
        choices[label] = "yes"
        rows.append({"text": f"{COLOURS[n % 4]} w{n % 50}", "choices": choices, "label": label})
    return rows


@pytest.fixture
def train(trainer_of):
    return trainer_of(
        "multiple_choice", [*COLOURS, "yes", "no", *(f"w{n}" for n in range(50))], TINY
    )


def test_learns_rows_with_any_number_of_choices(train, write, capsys):
    data = write("train.jsonl", named_rows(40))
    test = write("test.jsonl", [row | {"text": f"{row['text']} red"} for row in named_rows(20)])
    fast = ["--learning_rate", "2e-2", "--num_train_epochs", "4"]
    folder = train("--dataset_name", data, "--eval_dataset_name", test, *fast)
    assert "40 rows, 20 held out; 0 choices cut at 12 tokens" in capsys.readouterr().out
    record = RunRecord.load(folder)
    assert record.status == "done" and record.metrics["accuracy"] == 1.0
    assert record.metrics["chance"] == pytest.approx(0.375)
    assert model_kind(folder) == "multiple_choice"
    report = json.loads((folder / "multiple_choice.json").read_text())
    assert [(row["choices"], row["rows"]) for row in report["choices"]] == [(2, 10), (4, 10)]
    assert AutoModelForMultipleChoice.from_pretrained(folder).config.trained_max_length == 12
    rows = named_rows(5)
    predicted = MultipleChoicePredictor(folder).predict(rows)
    assert [result["label"] for result in predicted] == [row["label"] for row in rows]
    card = card_text(folder)
    assert "pipeline_tag: multiple-choice" in card and "| 4 | 10 | 1 | 0.25 |" in card
    # and on from there with LoRA, for one step
    tuned = train(
        *("--dataset_name", data, "--eval_fraction", "0.2", "--max_steps", "1"),
        *("--from_scratch", "false", "--use_peft", "true", "--model_name_or_path", str(folder)),
        name="tuned",
    )
    assert model_kind(tuned) == "multiple_choice"


def test_a_model_without_such_a_head_is_refused(failing, write, tmp_path, make_tokenizer):
    data = ["--dataset_name", write("train.jsonl", named_rows(40)), "--eval_fraction", "0.2"]
    assert "model_type='gpt2': use one of bert" in failing(*data, "--model_type", "gpt2")
    bad = write("bad.jsonl", [{"text": "red", "choices": ["yes", "no"], "label": 2}])
    message = failing("--dataset_name", bad, "--eval_fraction", "0.2")
    assert "label: the index of one of the choices is expected, 0 to 1, 2 given" in message


def rows_with_a_shared_word(count: int, seed: int) -> list[dict]:
    """Two words and a name; the right choice is one of the two words, the wrong ones are others."""
    draw = random.Random(seed)
    words = [f"w{n}" for n in range(12)]
    rows = []
    for n in range(count):
        text = draw.sample(words, 2)
        others = [word for word in words if word not in text]
        choices = draw.sample(others, draw.randint(2, 3))
        label = draw.randrange(len(choices))
        choices[label] = draw.choice(text)
        rows.append(
            {"text": f"{text[0]} {text[1]} x{seed}x{n}", "choices": choices, "label": label}
        )
    return rows


@pytest.mark.slow
def test_learns_to_pick_the_choice_that_shares_a_word_with_the_text(train, write):
    """The text has to be compared with each choice: no word is right by itself. Some 40 seconds on an idle core."""
    data = write("train.jsonl", rows_with_a_shared_word(3000, 0))
    test = write("test.jsonl", rows_with_a_shared_word(200, 9))
    sizes = ["--hidden_size", "32", "--layers", "2", "--max_length", "16", "--dropout", "0"]
    fast = ["--learning_rate", "3e-3", "--lr_scheduler_type", "constant", "--seed", "42"]
    fast += [
        "--eval_strategy",
        "no",
        "--num_train_epochs",
        "4",
        "--per_device_train_batch_size",
        "32",
        "--bf16",
        "false",
    ]
    folder = train("--dataset_name", data, "--eval_dataset_name", test, *sizes, *fast)
    metrics = RunRecord.load(folder).metrics
    assert metrics["accuracy"] > 0.9 and metrics["chance"] < 0.45
