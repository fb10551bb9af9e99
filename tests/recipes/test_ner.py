import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from rlhf.runs.record import RunRecord
from rlhf.tasks.ner.predictor import NerPredictor

NAMES, PLACES, LETTERS = ["ada", "bob", "eve"], ["rome", "oslo", "bonn"], "a b c d e f g h".split()
WORDS = [*NAMES, *PLACES, *LETTERS]
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32 --max_length 32 --report_to none".split()


def sentences(count: int, offset: int = 0) -> list[dict]:
    """Two letters, a name (of one word or two), a letter, a place, and 0 to 4 letters more; every one occurs once."""
    rows = []
    openings = itertools.product(LETTERS, LETTERS, LETTERS)
    for i, (a, b, c) in enumerate(itertools.islice(openings, offset, offset + count)):
        name = [NAMES[i % 3]] + [NAMES[(i // 3) % 3]] * (i % 2)
        tokens = [a, b, *name, c, PLACES[(i // 2) % 3], *LETTERS[: i % 5]]
        tags = ["O", "O", *["B-per", "I-per"][: len(name)], "O", "B-loc", *["O"] * (i % 5)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def conll(path: Path, rows: list[dict]) -> str:
    sentences = [
        "".join(f"{token} {tag}\n" for token, tag in zip(row["tokens"], row["tags"]))
        for row in rows
    ]
    path.write_text("".join(sentence + "\n" for sentence in sentences), encoding="utf-8")
    return str(path)


@pytest.fixture
def train(trainer_of):
    return trainer_of("ner", WORDS, TINY)


def test_learns_names_and_saves_a_folder_that_tags(train, write, tmp_path):
    data, test = (
        conll(tmp_path / "train.conll", sentences(240)),
        write("test.jsonl", sentences(60, offset=240)),
    )
    flags = [
        "--dataset_name",
        data,
        "--eval_dataset_name",
        test,
        "--learning_rate",
        "1e-2",
        "--num_train_epochs",
        "6",
    ]
    folder = train(*flags, "--save_strategy", "no", "--warmup_steps", "5")
    metrics = RunRecord.load(folder).metrics
    assert (
        metrics["f1"]
        == metrics["precision"]
        == metrics["recall"]
        == metrics["token_accuracy"]
        == 1.0
    )
    assert (
        metrics["eval_rows"],
        metrics["entities"],
        metrics["labels"],
        metrics["windows_added"],
    ) == (60, 120, 5, 0)
    report = json.loads((folder / "ner.json").read_text())
    assert [(entry["type"], entry["entities"]) for entry in report["types"]] == [
        ("loc", 60),
        ("per", 60),
    ]
    assert report["confusions"] == [] and (folder / "errors.jsonl").read_text() == ""
    assert (folder / "plots" / "entities.png").is_file()
    config = AutoModelForTokenClassification.from_pretrained(folder).config
    assert config.id2label == {0: "O", 1: "B-loc", 2: "I-loc", 3: "B-per", 4: "I-per"}
    assert (config.trained_units, config.trained_length) == ("words", 32)
    (found,) = NerPredictor(folder).predict([{"text": "h g ada eve f oslo"}])
    assert [(entity["type"], entity["text"]) for entity in found["entities"]] == [
        ("per", "ada eve"),
        ("loc", "oslo"),
    ]
    # and further from there, with LoRA, on other types: the head is new, and saved
    rows = [
        {**row, "tags": [tag.replace("loc", "city") for tag in row["tags"]]}
        for row in sentences(60)
    ]
    more = [
        "--dataset_name",
        write("more.jsonl", rows),
        "--model_name_or_path",
        str(folder),
        "--max_steps",
        "2",
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
    before = load_file(folder / "model.safetensors")
    after = load_file(tuned / "model.safetensors")
    assert before.keys() == after.keys()
    words, query = (
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
    )
    assert torch.equal(before[words], after[words]) and not torch.equal(before[query], after[query])
    trained = AutoModelForTokenClassification.from_pretrained(tuned)
    assert (
        trained.config.id2label[1] == "B-city" and trained.classifier.bias.abs().max() > 0
    )  # a new head starts at 0


def test_what_is_reported_is_what_the_tagger_says(train, write):
    """Trained a little, and on sentences of several windows, so that there are errors of every kind."""
    rows = sentences(120)
    long = [
        {"tokens": a["tokens"] + b["tokens"], "tags": a["tags"] + b["tags"]}
        for a, b in zip(rows[::2], rows[1::2])
    ]
    flags = [
        "--dataset_name",
        write("train.jsonl", long),
        "--max_length",
        "12",
        "--learning_rate",
        "1e-2",
    ]
    folder = train(
        *flags, "--num_train_epochs", "2", "--save_strategy", "no", "--eval_fraction", "0.3"
    )
    record, report = RunRecord.load(folder), json.loads((folder / "ner.json").read_text())
    assert record.metrics["windows_added"] > 0 and 0 < record.metrics["f1"] < 1
    wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert sum(report["errors"].values()) == sum(len(row["errors"]) for row in wrong) > 0
    predicted = NerPredictor(folder).predict([{"tokens": row["tokens"]} for row in wrong])
    assert [row["tags"] for row in predicted] == [row["predicted"] for row in wrong]


def test_the_best_checkpoint_is_what_is_saved(train, write):
    """The loss falls: turned round, the first checkpoint is the best."""
    flags = [
        "--dataset_name",
        write("train.jsonl", sentences(120)),
        "--learning_rate",
        "1e-2",
        "--num_train_epochs",
        "3",
    ]
    folder = train(*flags, "--metric_for_best_model", "loss", "--greater_is_better", "true")
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [log["eval_loss"] for log in logs if "eval_loss" in log]
    assert losses[0] == max(losses) > min(losses)
    assert RunRecord.load(folder).metrics["eval_loss"] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.slow
def test_early_stopping_stops(train, write):
    flags = ["--dataset_name", write("train.jsonl", sentences(120)), "--learning_rate", "0"]
    folder = train(*flags, "--num_train_epochs", "6", "--early_stopping_patience", "2")
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (
        len([log for log in logs if "eval_f1" in log]) == 3
    )  # the first, and two that are no better


@pytest.mark.parametrize("stop", ["4", pytest.param("7", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_same_weights(train, write, tmp_path, stop):
    """Stopped in the middle of the first epoch (6 steps) or of the second; dropout and the order by length are on."""
    flags = [
        "--dataset_name",
        write("train.jsonl", sentences(100)),
        "--learning_rate",
        "1e-2",
        "--max_steps",
        "12",
    ]
    flags += [
        "--per_device_train_batch_size",
        "16",
        "--save_strategy",
        "steps",
        "--eval_strategy",
        "steps",
    ]
    flags += ["--save_steps", stop, "--eval_steps", stop, "--save_total_limit", "5"]
    whole = train(*flags, name="whole")
    resumed = train(
        *flags, "--resume_from_checkpoint", str(whole / f"checkpoint-{stop}"), name="resumed"
    )
    for name in ("model.safetensors",):
        first, second = load_file(whole / name), load_file(resumed / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert RunRecord.load(whole).metrics["f1"] == RunRecord.load(resumed).metrics["f1"]


def test_gpt2_and_characters(train, write):
    rows = [{"tokens": list(f"{a}{b} {c}d"), "tags": ["B-x", "I-x", "O", "O", "O"]}
            for a in LETTERS for b in LETTERS for c in "abc"]  # fmt: skip
    flags = [
        "--dataset_name",
        write("train.jsonl", rows),
        "--model_type",
        "gpt2",
        "--max_steps",
        "2",
    ]
    folder = train(*flags, "--save_strategy", "no", kind="gpt2")
    config = AutoModelForTokenClassification.from_pretrained(folder).config
    assert (config.trained_units, config.pad_token_id) == ("characters", 0)
    assert NerPredictor(folder).predict([{"text": "ab cd"}])[0]["tokens"] == list("ab cd")


def test_bad_input_is_one_line_and_exit_code_2(failing, write, tmp_path):
    data = write("train.jsonl", sentences(60))
    uneven = write("uneven.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}])
    message = failing("--dataset_name", uneven, name="a")
    assert "uneven.jsonl:1: tags: 1 tags for 2 tokens: give each token its tag" in message
    (cut := tmp_path / "cut.conll").write_text("a O\nb\n\nc O\n")
    assert "cut.conll:2: 'b' has no tag" in failing("--dataset_name", str(cut), name="b")
    other = write("other.jsonl", [{"tokens": ["a"], "tags": ["B-org"]}])
    message = failing("--dataset_name", data, "--eval_dataset_name", other, name="c")
    assert "no training row has an entity of the type 'org' (1, first in row 1)" in message
    outside = write(
        "outside.jsonl", [{**row, "tags": ["O"] * len(row["tags"])} for row in sentences(60)]
    )
    assert "(all tags are O): there is nothing to learn" in failing(
        "--dataset_name", outside, name="d"
    )
    none = failing("--dataset_name", data, "--eval_fraction", "0", name="e")
    assert "evaluated on rows that it was not trained on" in none
    lora = failing("--dataset_name", data, "--use_peft", "true", name="f")
    assert "set one of the two to false" in lora


def test_evaluation_rows_without_an_entity_are_refused(failing, write):
    test = write("test.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "O"]}])
    said = failing(
        "--dataset_name", write("train.jsonl", sentences(60)), "--eval_dataset_name", test
    )
    assert "none of the 1 evaluation rows has an entity to find" in said


def test_warnings_are_said(train, write, capsys):
    rows = sentences(60)
    rows.append({"tokens": ["h", "h", "h", "h"], "tags": ["O", "B-rare", "O", "I-per"]})
    test = write("test.jsonl", sentences(20, offset=100))
    flags = [
        "--dataset_name",
        write("train.jsonl", rows),
        "--eval_dataset_name",
        test,
        "--max_steps",
        "1",
    ]
    folder = train(*flags, "--save_strategy", "no")
    said = capsys.readouterr().out
    assert "1 tags break BIO" in said and "1 types have a single entity to learn from: rare" in said
    assert "1 types are in no evaluation row and not evaluated: rare" in said
    assert RunRecord.load(folder).metrics["tags_repaired"] == 1


@pytest.mark.slow
def test_two_processes_judge_as_one_does(launch_two, write):
    flags = [
        "--dataset_name",
        write("train.jsonl", sentences(240)),
        "--max_steps",
        "12",
        "--learning_rate",
        "1e-2",
    ]
    flags += ["--logging_steps", "1", "--save_strategy", "no", "--per_device_eval_batch_size", "3"]
    folder = launch_two("ner", WORDS, *TINY, *flags)
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (
        0.8 * math.log(5) < logs[0]["loss"] < 1.6 * math.log(5)
    )  # a guess among five; not half of it, not twice
    wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    predicted = NerPredictor(folder).predict([{"tokens": row["tokens"]} for row in wrong])
    assert [row["tags"] for row in predicted] == [row["predicted"] for row in wrong]
    assert wrong and RunRecord.load(folder).metrics["f1"] > 0
