"""The evaluate command from end to end, and what it refuses before a model is loaded."""

import argparse
import json

import pytest

from rlhf.commands.evaluate import add_arguments, main
from rlhf.errors import UserError
from rlhf.models.load import save

REVIEWS = [{"text": f"film {i}", "label": i % 2} for i in range(12)]
CHOICES = [
    {"text": f"He ran {i}", "choices": ["up", "down", "on"], "label": i % 3} for i in range(6)
]
SPANS = [
    {
        "question": f"Who is {i}?",
        "context": "It is Ada.",
        "answers": {"text": ["Ada"], "answer_start": [6]},
    }
    for i in range(4)
]
NAMES = ["--label_names", "bad", "good"]


@pytest.fixture
def run(tmp_path, plain_tokenizer, make_policy) -> str:
    save(make_policy(plain_tokenizer, context=96), plain_tokenizer, tmp_path / "base")
    return str(tmp_path / "base")


def command(*argv) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(list(map(str, argv))))


def test_classification(run, write, tmp_path, capsys):
    flags = ["--dataset_name", write("reviews.jsonl", REVIEWS), "--num_rows", 4, "--shots", 2, 0]
    flags += [*NAMES, "--export_lm_eval", tmp_path / "tasks"]
    assert command(run, *flags) == 0
    shown = capsys.readouterr().out
    assert "4 of 12 rows are evaluated, 8 can be shots" in shown and "majority" in shown
    folder = tmp_path / "base" / "few_shot"
    record = json.loads((folder / "evaluation.json").read_text())
    cells = [(row["shots"], row["method"], len(row["by_draw"])) for row in record["results"]]
    assert cells[0] == (0, "sum", 1) and cells[-1] == (2, "calibrated", 3) and len(cells) == 8
    assert record["labels"] == ["bad", "good"] and record["baselines"]["random"] == 0.5
    lines = (folder / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 4 * (1 + 3)
    assert (folder / "accuracy.png").is_file()
    assert json.loads((tmp_path / "tasks" / "reviews.yaml").read_text())["group"] == "reviews"
    # The accuracy follows from the log-probs that are on the disk.
    right = 0
    for row in map(json.loads, lines[:4]):
        right += row["log_probs"].index(max(row["log_probs"])) == row["gold"]
    assert record["results"][0]["accuracy"] == right / 4


def test_multiple_choice_and_generated_answers(run, write, tmp_path, capsys):
    flags = ["--shots", 0, 1, "--num_rows", 3, "--draws", 1, "--json", "--output", tmp_path / "out"]
    assert command(run, "--dataset_name", write("choices.jsonl", CHOICES), *flags) == 0
    printed = capsys.readouterr()
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert json.loads(printed.out) == record and "3 of 6 rows are evaluated" in printed.err
    assert record["baselines"]["random"] == pytest.approx(1 / 3)
    assert command(run, "--dataset_name", write("spans.jsonl", SPANS), *flags) == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {row["method"] for row in record["results"]} == {"exact", "f1"}


def test_show_prompt_prints_what_the_model_reads(run, write, capsys):
    flags = ["--dataset_name", write("reviews.jsonl", REVIEWS), "--num_rows", 4, "--shots", 1]
    assert command(run, *flags, *NAMES, "--show_prompt", "--template", "{text} =") == 0
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last[1] == "" and last[2].endswith(" =")
    assert last[0].split(" = ")[1] in ("bad", "good")


def test_a_chat_model_gets_turns(bytes_tokenizer, make_policy, write, tmp_path, capsys):
    save(make_policy(bytes_tokenizer, context=96), bytes_tokenizer, tmp_path / "sft")
    flags = ["--dataset_name", write("reviews.jsonl", REVIEWS), "--num_rows", 4, *NAMES]
    assert command(tmp_path / "sft", *flags, "--shots", 1, "--show_prompt") == 0
    shown = capsys.readouterr().out
    assert shown.count("<|user|>") == 2 and shown.rstrip().endswith("<|assistant|>")
    with pytest.raises(UserError, match="--format text"):
        command(tmp_path / "sft", *flags, "--shots", 1, "--export_lm_eval", tmp_path / "tasks")


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (REVIEWS, [], "--label_names negative positive"),
        (REVIEWS, ["--label_names", "bad"], "no text for 1"),
        (REVIEWS, [*NAMES, "--shots", "20"], "needs 20 rows .* there are 0"),
        (REVIEWS[:1], NAMES, "all rows have the label '0'"),
        ([], [], "no rows"),
        (CHOICES, NAMES, "is for classification"),
        (REVIEWS, [*NAMES, "--shots", "-1"], "at least 0"),
        (REVIEWS, [*NAMES, "--draws", "0"], "at least 1"),
        (REVIEWS, [*NAMES, "--num_rows", "4", "--format", "chat"], "no chat template"),
        ([{"prompt": "Hi!"}], [], "classification"),
        (REVIEWS, [*NAMES, "--output", __file__], "is a file: name a folder"),
    ],
)
def test_refused_before_a_model_is_loaded(run, write, rows, flags, message, monkeypatch):
    def load_runs(*args):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rlhf.commands.evaluate.load_runs", load_runs)
    with pytest.raises(UserError, match=message):
        command(run, "--dataset_name", write("rows.jsonl", rows), *flags)


def test_an_encoder_is_refused(write, tmp_path, make_reward_model, plain_tokenizer):
    save(make_reward_model(plain_tokenizer), plain_tokenizer, tmp_path / "reward")
    flags = ["--dataset_name", write("reviews.jsonl", REVIEWS), *NAMES, "--num_rows", 4]
    with pytest.raises(UserError, match="reward"):
        command(tmp_path / "reward", *flags, "--shots", 0)
