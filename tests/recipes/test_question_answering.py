import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from rlhf.runs.record import RunRecord
from rlhf.runs.run import start
from rlhf.tasks.question_answering.predictor import QuestionAnsweringPredictor

COLOURS = ["red", "green", "blue"]
LETTERS = "a b c d e f g h".split()
WORDS = ["which", "colour", *COLOURS, *LETTERS]
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 12 --stride 2".split()
TINY += "--report_to none --logging_steps 5 --answer_unit word".split()


def colour_rows(count: int, offset: int = 0, without: int = 0) -> list[dict]:
    """Which colour stands in the context? In every `without`th none does. Some contexts take two windows."""
    rows = []
    for n in range(offset, offset + count):
        words = [LETTERS[(n // 8**k) % 8] for k in range(4 + n % 7)]
        answers = {"text": [], "answer_start": []}
        if not without or n % without:
            words.insert(n % 5 % len(words), colour := COLOURS[n % 3])
            answers = {"text": [colour], "answer_start": [" ".join(words).index(colour)]}
        rows.append(
            {
                "id": f"n{n}",
                "question": "which colour",
                "context": " ".join(words),
                "answers": answers,
            }
        )
    return rows


@pytest.fixture
def train(trainer_of):
    return trainer_of("question_answering", WORDS, TINY)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_help_lists_what_a_reader_adds_to_the_keys_of_an_encoder(recipe_module, capsys):
    module = recipe_module("question_answering")
    with pytest.raises(SystemExit):
        start(module.main, module.__doc__, ["--help"])
    said = capsys.readouterr().out
    assert (
        "--max_length" in said
        and "[384]" in said
        and "--early_stopping_patience" in said
        and "--stride" in said
    )


FAST = "--learning_rate 1e-2 --num_train_epochs 2 --per_device_train_batch_size 16 --save_strategy no".split()


def test_learns_colours_and_leaves_official_predictions(train, write, capsys):
    data, test = (
        write("train.jsonl", colour_rows(300)),
        write("test.jsonl", colour_rows(60, offset=300)),
    )
    folder = train("--dataset_name", data, "--eval_dataset_name", test, *FAST)
    assert (
        "300 questions in " in (said := capsys.readouterr().out) and "0 answers are no span" in said
    )
    record = RunRecord.load(folder)
    assert record.status == "done" and record.metrics["exact"] == record.metrics["f1"] == 1.0
    assert record.metrics["train_windows"] > record.metrics["train_rows"] == 300
    assert read(folder / "predictions.json") == {f"n{n}": COLOURS[n % 3] for n in range(300, 360)}
    assert not (folder / "na_prob.json").exists()
    report = read(folder / "question_answering.json")
    assert report["mistakes"] == [] and report["kinds"][0]["question"] == "which colour"
    config = AutoModelForQuestionAnswering.from_pretrained(folder).config
    assert config.reader_windows == {"max_length": 12, "stride": 2, "max_answer_length": 30}
    assert AutoTokenizer.from_pretrained(folder).model_input_names[1] == "token_type_ids"
    # and further from there, with LoRA: embeddings stay, the output layer and the matrices move
    more = [
        "--dataset_name",
        data,
        "--model_name_or_path",
        str(folder),
        "--max_steps",
        "2",
        "--save_strategy",
        "no",
    ]
    tuned = train(
        *more,
        "--use_peft",
        "true",
        "--from_scratch",
        "false",
        "--learning_rate",
        "1e-2",
        name="tuned",
    )
    before, after = (
        AutoModelForQuestionAnswering.from_pretrained(f).state_dict() for f in (folder, tuned)
    )
    assert before.keys() == after.keys()
    for name, same in (
        ("embeddings.word_embeddings.weight", True),
        ("attention.self.query.weight", False),
    ):
        key = next(key for key in before if name in key)
        assert torch.equal(before[key], after[key]) == same
    assert not torch.equal(before["qa_outputs.weight"], after["qa_outputs.weight"])


@pytest.mark.slow
def test_learns_that_a_context_may_hold_no_answer(train, write):
    rows = colour_rows(400, without=4)
    folder = train("--dataset_name", write("train.jsonl", rows), "--eval_fraction", "0.2", *FAST)
    report, predicted = read(folder / "question_answering.json"), read(folder / "predictions.json")
    assert (
        report["f1"] >= 0.95
        and report["unanswerable"]["rows"] > 5
        and report["answerable"]["rows"] > 5
    )
    nothing, threshold = read(folder / "na_prob.json"), report["no_answer_threshold"]
    assert (
        predicted.keys() == nothing.keys()
        and "" in predicted.values()
        and "red" in predicted.values()
    )
    assert all((predicted[name] == "") == (nothing[name] > threshold) for name in predicted)
    assert RunRecord.load(folder).metrics["no_answer_threshold"] == pytest.approx(
        threshold, abs=1e-6
    )
    # the saved folder alone gives the same answers
    held_out = [row for row in rows if row["id"] in predicted]
    answers = QuestionAnsweringPredictor(folder).predict(held_out)
    assert {row["id"]: answer["answer"] for row, answer in zip(held_out, answers)} == predicted


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(train, write):
    data = write("train.jsonl", colour_rows(120, without=4))
    flags = [
        "--dataset_name",
        data,
        "--learning_rate",
        "1e-3",
        "--save_steps",
        "5",
        "--save_strategy",
        "steps",
    ]
    flags += [
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "5",
        "--per_device_train_batch_size",
        "16",
    ]
    flags += ["--load_best_model_at_end", "false"]  # the best may stand before the resume
    whole = train(*flags, "--num_train_epochs", "2", "--save_total_limit", "5", name="whole")
    resume = ["--resume_from_checkpoint", str(whole / "checkpoint-5")]
    again = train(*flags, "--num_train_epochs", "2", *resume, name="again")
    first, second = (
        AutoModelForQuestionAnswering.from_pretrained(f).state_dict() for f in (whole, again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [
        json.loads(line)["step"] for line in (again / "metrics.jsonl").read_text().splitlines()
    ]
    assert min(steps) > 5 and max(steps) > 10
    assert read(whole / "predictions.json") == read(again / "predictions.json")


def test_bad_input_is_one_line_and_exit_code_2(failing, train, write, capsys):
    data = write("train.jsonl", colour_rows(30))
    bad = colour_rows(3)
    bad[1]["answers"]["answer_start"] = [3]
    moved = failing("--dataset_name", write("bad.jsonl", bad), name="a")
    assert (
        "bad.jsonl:2: question n1: answers: 'green' is not at character 3 of the context" in moved
    )
    half = ["--eval_fraction", "0.4"]
    part = [*half, "--max_steps", "1", "--save_strategy", "no"]
    skipped = train(
        "--dataset_name",
        write("bad.jsonl", [*colour_rows(30, 50), *bad]),
        "--skip_bad",
        "true",
        *part,
    )
    assert (
        RunRecord.load(skipped).status == "done"
        and "1 of 33 rows are bad and were dropped" in capsys.readouterr().out
    )
    none = failing("--dataset_name", data, "--eval_fraction", "0", name="b")
    assert "evaluated on rows that it was not trained on" in none
    same = write("same.jsonl", [row | {"id": "x"} for row in colour_rows(30, 100)])
    twice = failing("--dataset_name", data, "--eval_dataset_name", same, name="c")
    assert "1 ids are in more than one row, the first: x;" in twice
    other = write("other.jsonl", colour_rows(9, 40, without=3))
    silent = failing("--dataset_name", data, "--eval_dataset_name", other, name="d")
    assert "3 evaluation rows have no answer in their context, and no training row shows" in silent
    empty = write("empty.jsonl", colour_rows(30, 100, without=1))
    mute = failing("--dataset_name", empty, "--eval_dataset_name", other, name="e")
    assert "none of the 30 training rows has an answer: there is nothing to mark" in mute
    unit = failing("--dataset_name", data, *half, "--answer_unit", "token", name="f")
    assert "answer_unit='token': use one of word, character" in unit
    narrow = failing("--dataset_name", data, *half, "--stride", "9", name="g")
    assert (
        "max_length=12 leaves 5 tokens for a context next to a question of 4, and stride=9"
        in narrow
    )
    texts = write("texts.jsonl", [{"text": "a"}])
    assert "recognised as text rows" in failing("--dataset_name", texts, name="h")
    lora = failing("--dataset_name", data, *half, "--use_peft", "true", name="i")
    assert "set one of the two to false" in lora
    nested = {
        "data": [
            {
                "paragraphs": [
                    {"context": "a red b", "qas": [{"id": "x7", "question": "which colour"}]}
                ]
            }
        ]
    }
    squad = str(Path(data).with_name("squad.json"))
    Path(squad).write_text(json.dumps(nested))
    assert "squad.json:1: question x7: answers: missing" in failing(
        "--dataset_name", squad, name="j"
    )


@pytest.mark.slow
def test_two_processes_answer_as_one_folder_does(launch_two, write):
    rows = colour_rows(201, without=4)
    flags = [
        *TINY,
        "--dataset_name",
        write("train.jsonl", rows),
        "--max_steps",
        "4",
        "--logging_steps",
        "1",
    ]
    flags += ["--per_device_eval_batch_size", "7"]  # the last batch is not full
    folder = launch_two("question_answering", WORDS, *flags)
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(math.log(10), abs=0.5)  # a guess among some ten tokens
    predicted = read(folder / "predictions.json")
    held_out = [row for row in rows if row["id"] in predicted]
    answers = QuestionAnsweringPredictor(folder).predict(held_out)
    assert {row["id"]: answer["answer"] for row, answer in zip(held_out, answers)} == predicted
