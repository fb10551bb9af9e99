import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from rlhf import recipe
from rlhf.inference.tagger import Tagger
from rlhf.runs import RunRecord

ROOT = Path(__file__).resolve().parents[2]
NAMES, PLACES, LETTERS = ["ada", "bob", "eve"], ["rome", "oslo", "bonn"], "a b c d e f g h".split()
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32 --max_length 32 --report_to none".split()


@pytest.fixture(scope="module")
def ner(recipe_module):
    return recipe_module("ner")


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token per word; "bert" has [CLS] and [SEP], "gpt2" only EOS."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["<eos>", "<unk>"]
    words = [*special, *NAMES, *PLACES, *LETTERS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=special[1]))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "gpt2":
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


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


@pytest.fixture
def write(tmp_path):
    def write(name: str, rows: list[dict]) -> str:
        """As JSON lines or, by the ending, as CoNLL."""
        lines = [json.dumps(row) for row in rows]
        if not name.endswith(".jsonl"):
            lines = ["".join(f"{t} {tag}\n" for t, tag in zip(row["tokens"], row["tags"])) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def train(ner, tmp_path):
    """Runs the recipe in this process; the folder of its run."""

    def train(*flags, kind="bert", name="run"):
        tokenizer(kind).save_pretrained(tmp_path / kind)
        folder = tmp_path / name
        flags = ["--tokenizer_name_or_path", str(tmp_path / kind), "--output_dir", str(folder), "--use_cpu", *flags]
        recipe.run(ner.main, ner.__doc__, [*TINY, *flags])
        return folder

    return train


def failing(train, capsys, *flags, **options) -> str:
    with pytest.raises(SystemExit) as left:
        train(*flags, **options)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_learns_names_and_saves_a_folder_that_tags(train, write):
    data, test = write("train.conll", sentences(240)), write("test.jsonl", sentences(60, offset=240))
    flags = ["--dataset_name", data, "--eval_dataset_name", test, "--learning_rate", "1e-2", "--num_train_epochs", "6"]
    folder = train(*flags, "--save_strategy", "no", "--warmup_steps", "5")
    metrics = RunRecord.load(folder).metrics
    assert metrics["f1"] == metrics["precision"] == metrics["recall"] == metrics["token_accuracy"] == 1.0
    assert (metrics["eval_rows"], metrics["entities"], metrics["labels"], metrics["windows_added"]) == (60, 120, 5, 0)
    report = json.loads((folder / "ner.json").read_text())
    assert [(entry["type"], entry["entities"]) for entry in report["types"]] == [("loc", 60), ("per", 60)]
    assert report["confusions"] == [] and (folder / "errors.jsonl").read_text() == ""
    assert (folder / "plots" / "entities.png").is_file()
    config = AutoModelForTokenClassification.from_pretrained(folder).config
    assert config.id2label == {0: "O", 1: "B-loc", 2: "I-loc", 3: "B-per", 4: "I-per"}
    assert (config.trained_units, config.trained_length) == ("words", 32)
    (found,) = Tagger(folder).predict([{"text": "h g ada eve, f oslo"}])
    assert [(entity["type"], entity["text"]) for entity in found["entities"]] == [("per", "ada eve"), ("loc", "oslo")]
    # and further from there, with LoRA, on other types: the head is new, and saved
    rows = [{**row, "tags": [tag.replace("loc", "city") for tag in row["tags"]]} for row in sentences(60)]
    more = ["--dataset_name", write("more.jsonl", rows), "--model_name_or_path", str(folder), "--max_steps", "2"]
    tuned = train(*more, "--use_peft", "true", "--from_scratch", "false", "--learning_rate", "1e-2", name="tuned")
    before = load_file(folder / "model.safetensors")
    after = load_file(tuned / "model.safetensors")
    assert before.keys() == after.keys()
    words, query = "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(before[words], after[words]) and not torch.equal(before[query], after[query])
    trained = AutoModelForTokenClassification.from_pretrained(tuned)
    assert trained.config.id2label[1] == "B-city" and trained.classifier.bias.abs().max() > 0  # a new head starts at 0


def test_what_is_reported_is_what_the_tagger_says(train, write):
    """Trained a little, and on sentences of several windows, so that there are errors of every kind."""
    rows = sentences(120)
    long = [{"tokens": a["tokens"] + b["tokens"], "tags": a["tags"] + b["tags"]} for a, b in zip(rows[::2], rows[1::2])]
    flags = ["--dataset_name", write("train.jsonl", long), "--max_length", "12", "--learning_rate", "1e-2"]
    folder = train(*flags, "--num_train_epochs", "2", "--save_strategy", "no", "--eval_fraction", "0.3")
    record, report = RunRecord.load(folder), json.loads((folder / "ner.json").read_text())
    assert record.metrics["windows_added"] > 0 and 0 < record.metrics["f1"] < 1
    wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert sum(report["errors"].values()) == sum(len(row["errors"]) for row in wrong) > 0
    predicted = Tagger(folder).predict([{"tokens": row["tokens"]} for row in wrong])
    assert [row["tags"] for row in predicted] == [row["predicted"] for row in wrong]


def test_the_best_checkpoint_is_what_is_saved(train, write):
    """At a rate this high and constant it does not stay at its best."""
    flags = ["--dataset_name", write("train.jsonl", sentences(120)), "--learning_rate", "0.3", "--max_grad_norm", "0"]
    folder = train(*flags, "--num_train_epochs", "6", "--lr_scheduler_type", "constant")
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = [log["eval_f1"] for log in logs if "eval_f1" in log]
    assert len(scores) == 6 and scores[-1] < max(scores)
    assert RunRecord.load(folder).metrics["f1"] == pytest.approx(max(scores), abs=1e-6)


def test_early_stopping_stops(train, write):
    flags = ["--dataset_name", write("train.jsonl", sentences(120)), "--learning_rate", "0"]
    folder = train(*flags, "--num_train_epochs", "6", "--early_stopping_patience", "2")
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([log for log in logs if "eval_f1" in log]) == 3  # the first, and two that are no better


@pytest.mark.parametrize("stop", ["4", "7"])
def test_a_resumed_run_ends_with_the_same_weights(train, write, tmp_path, stop):
    """Stopped in the middle of the first epoch (6 steps) or of the second; dropout and the order by length are on."""
    flags = ["--dataset_name", write("train.jsonl", sentences(100)), "--learning_rate", "1e-2", "--max_steps", "12"]
    flags += ["--per_device_train_batch_size", "16", "--save_strategy", "steps", "--eval_strategy", "steps"]
    flags += ["--save_steps", stop, "--eval_steps", stop, "--save_total_limit", "5"]
    whole = train(*flags, name="whole")
    resumed = train(*flags, "--resume_from_checkpoint", str(whole / f"checkpoint-{stop}"), name="resumed")
    for name in ("model.safetensors",):
        first, second = load_file(whole / name), load_file(resumed / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert RunRecord.load(whole).metrics["f1"] == RunRecord.load(resumed).metrics["f1"]


def test_gpt2_and_characters(train, write):
    rows = [{"tokens": list(f"{a}{b} {c}d"), "tags": ["B-x", "I-x", "O", "O", "O"]}
            for a in LETTERS for b in LETTERS for c in "abc"]  # fmt: skip
    flags = ["--dataset_name", write("train.jsonl", rows), "--model_type", "gpt2", "--max_steps", "2"]
    folder = train(*flags, "--save_strategy", "no", kind="gpt2")
    config = AutoModelForTokenClassification.from_pretrained(folder).config
    assert (config.trained_units, config.pad_token_id) == ("characters", 0)
    assert Tagger(folder).predict([{"text": "ab cd"}])[0]["tokens"] == list("ab cd")


def test_bad_input_is_one_line_and_exit_code_2(train, write, capsys):
    data = write("train.jsonl", sentences(60))
    uneven = write("uneven.jsonl", [{"tokens": ["a", "b"], "tags": ["O"]}])
    message = failing(train, capsys, "--dataset_name", uneven, name="a")
    assert "uneven.jsonl:1: tags: 1 tags for 2 tokens: give each token its tag" in message
    cut = write("cut.conll", sentences(1))
    Path(cut).write_text("a O\nb\n\nc O\n")
    assert "cut.conll:2: 'b' has no tag" in failing(train, capsys, "--dataset_name", cut, name="b")
    other = write("other.jsonl", [{"tokens": ["a"], "tags": ["B-org"]}])
    message = failing(train, capsys, "--dataset_name", data, "--eval_dataset_name", other, name="c")
    assert "no training row has an entity of the type 'org' (1, first in row 1)" in message
    outside = write("outside.jsonl", [{**row, "tags": ["O"] * len(row["tags"])} for row in sentences(60)])
    assert "(all tags are O): there is nothing to learn" in failing(train, capsys, "--dataset_name", outside, name="d")
    none = failing(train, capsys, "--dataset_name", data, "--eval_fraction", "0", name="e")
    assert "judged on rows it has not seen" in none
    lora = failing(train, capsys, "--dataset_name", data, "--use_peft", "true", name="f")
    assert "set one of the two to false" in lora


def test_warnings_are_said(train, write, capsys):
    rows = sentences(60)
    rows.append({"tokens": ["h", "h", "h", "h"], "tags": ["O", "B-rare", "O", "I-per"]})
    test = write("test.jsonl", sentences(20, offset=100))
    flags = ["--dataset_name", write("train.jsonl", rows), "--eval_dataset_name", test, "--max_steps", "1"]
    folder = train(*flags, "--save_strategy", "no")
    said = capsys.readouterr().out
    assert "1 tags break BIO" in said and "1 types have a single entity to learn from: rare" in said
    assert "1 types are in no evaluation row and not judged: rare" in said
    assert RunRecord.load(folder).metrics["tags_repaired"] == 1


@pytest.mark.slow
def test_two_processes_judge_as_one_does(tmp_path, write):
    tokenizer("bert").save_pretrained(tmp_path / "bert")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")]
    flags = ["--dataset_name", write("train.jsonl", sentences(240)), "--max_steps", "12", "--learning_rate", "1e-2"]
    flags += ["--tokenizer_name_or_path", str(tmp_path / "bert"), "--output_dir", str(tmp_path / "run"), *TINY]
    flags += ["--logging_steps", "1", "--save_strategy", "no", "--per_device_eval_batch_size", "3"]
    subprocess.run([*launch, *config, str(ROOT / "recipes" / "ner.py"), *flags], check=True, cwd=ROOT)
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0.8 * math.log(5) < logs[0]["loss"] < 1.6 * math.log(5)  # a guess among five; not half of it, not twice
    wrong = [json.loads(line) for line in (tmp_path / "run" / "errors.jsonl").read_text().splitlines()]
    predicted = Tagger(tmp_path / "run").predict([{"tokens": row["tokens"]} for row in wrong])
    assert [row["tags"] for row in predicted] == [row["predicted"] for row in wrong]
    assert wrong and RunRecord.load(tmp_path / "run").metrics["f1"] > 0
