import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from rlhf import recipe
from rlhf.data.labels import LabelForm, Task, check_labels, encode, find_task, label_names, rare_labels
from rlhf.inference.classifier import Classifier
from rlhf.models.load import fit_tokenizer, new_encoder
from rlhf.runs import RunRecord

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "green", "blue"]
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 16 --report_to none".split()
LETTERS = "a b c d e f g h".split()


@pytest.fixture(scope="module")
def classification(recipe_module):
    return recipe_module("classification")


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One token per word; "bert" has [CLS] and [SEP], "gpt2" only EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["<eos>", "<unk>"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + COLOURS + LETTERS)}, unk_token=special[1]))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "gpt2":
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


@pytest.fixture
def model(request):
    def model(kind, labels=("x", "y")):
        return new_encoder(
            tokenizer(kind),
            "classifier",
            model_type=kind,
            hidden_size=16,
            layers=1,
            heads=2,
            context=16,
            labels=list(labels),
        )

    torch.manual_seed(0)
    return model


@pytest.fixture
def train(classification, tmp_path):
    """Runs the recipe in this process; the folder of its run."""

    def train(*flags, kind="bert", name="run"):
        tokenizer(kind).save_pretrained(tmp_path / kind)
        folder = tmp_path / name
        flags = ["--tokenizer_name_or_path", str(tmp_path / kind), "--output_dir", str(folder), "--use_cpu", *flags]
        recipe.run(classification.main, classification.__doc__, [*TINY, *flags])
        return folder

    train.folder = tmp_path
    return train


def failing(train, capsys, *flags, **options) -> str:
    with pytest.raises(SystemExit) as left:
        train(*flags, **options)
    assert left.value.code == 2
    return capsys.readouterr().err


# --- labels


def test_labels_are_sorted_by_the_alphabet_or_by_size():
    assert label_names([{"label": v} for v in ("b", "a", "b")]) == ["a", "b"]
    assert label_names([{"label": v} for v in (10, 9, -1)]) == ["-1", "9", "10"]
    assert label_names([{"label": v} for v in ("10", "9", "100")]) == ["9", "10", "100"]
    assert label_names([{"label": v} for v in (True, False)]) == ["False", "True"]
    assert label_names([{"label": v} for v in ("10", "9", "x")]) == ["10", "9", "x"]


def test_one_label_is_not_enough(refused):
    assert "all 2 training rows have the label 'a': a classifier needs two or more" in refused(
        label_names, [{"label": "a"}, {"label": "a"}]
    )


def test_a_label_that_only_evaluation_rows_have_is_named_with_its_rows(refused):
    check_labels([{"label": 1}], ["0", "1"])
    message = refused(check_labels, [{"label": v} for v in ("a", "z", "b", "z")], ["a", "b"])
    assert "no training row has the label 'z' in evaluation rows 2, 4. Labels of the training rows: a, b." in message
    many = refused(check_labels, [{"label": "z"}] * 7, ["a", "b"])
    assert "'z' in evaluation rows 1, 2, 3, 4, 5 and 2 more." in many


# --- tokens


def test_bert_pairs_have_token_types_and_are_cut_and_counted(model):
    reader = tokenizer("bert")
    fit_tokenizer(reader, model("bert"), pairs=True)
    rows = [{"text": "a b", "text_pair": "c", "label": "x"}, {"text": "a b c", "text_pair": "d e f", "label": "y"}]
    encoded, cut = encode(reader, rows, pairs=True, max_length=7)
    assert encoded[0] == {
        "input_ids": [2, 7, 8, 3, 9, 3],
        "token_type_ids": [0, 0, 0, 0, 1, 1],
        "attention_mask": [1] * 6,
    }
    assert cut == 1 and encoded[1]["input_ids"] == [2, 7, 8, 3, 10, 11, 3]


def test_gpt2_pairs_are_parted_by_eos_and_have_no_token_types(model, tmp_path):
    reader = tokenizer("gpt2")
    fit_tokenizer(reader, model("gpt2"), pairs=True)
    rows = [{"text": "a", "text_pair": "b", "label": "x"}]
    expected = {"input_ids": [5, 0, 6], "attention_mask": [1, 1, 1]}
    assert encode(reader, rows, pairs=True, max_length=8) == ([expected], 0)
    reader.save_pretrained(tmp_path)
    assert dict(AutoTokenizer.from_pretrained(tmp_path)("a", "b")) == expected


def test_an_extra_text_pair_column_does_not_make_a_pair(model):
    reader = tokenizer("bert")
    fit_tokenizer(reader, model("bert"), pairs=False)
    rows = [{"text": "a", "text_pair": "b", "label": "x"}]
    assert encode(reader, rows, pairs=False, max_length=8)[0][0]["input_ids"] == [2, 7, 3]


def test_a_text_cannot_spell_a_special_token(model):
    reader = tokenizer("bert")
    fit_tokenizer(reader, model("bert"), pairs=False)
    encoded, _ = encode(reader, [{"text": "a [SEP] b", "label": "x"}], pairs=False, max_length=8)
    assert encoded[0]["input_ids"].count(3) == 1


def test_a_length_without_room(model, refused):
    reader = tokenizer("bert")
    assert "max_length=2 leaves no room" in refused(
        encode, reader, [{"text": "a", "label": "x"}], pairs=False, max_length=2
    )


# --- the recipe


def colour_rows(count: int, offset: int = 0) -> list[dict]:
    """Which colour stands in the text; every text occurs once."""
    texts = [f"{a} {b} {c}" for a in LETTERS for b in LETTERS for c in LETTERS][offset : offset + count]
    return [{"text": f"{text} {COLOURS[i % 3]}", "label": (COLOURS[i % 3]).upper()} for i, text in enumerate(texts)]


def test_learns_colours_and_saves_a_folder_that_transformers_loads(train, write):
    data, test = write("train.jsonl", colour_rows(240)), write("test.jsonl", colour_rows(60, offset=240))
    flags = ["--dataset_name", data, "--eval_dataset_name", test, "--learning_rate", "1e-2", "--num_train_epochs", "6"]
    folder = train(*flags, "--eval_strategy", "epoch", "--save_strategy", "no")
    record = RunRecord.load(folder)
    assert record.status == "done" and record.metrics["accuracy"] == record.metrics["f1"] == 1.0
    assert (record.metrics["eval_rows"], record.metrics["labels"], record.metrics["texts_cut"]) == (60, 3, 0)
    report = json.loads((folder / "classification.json").read_text())
    assert report["confusion"] == [[20, 0, 0], [0, 20, 0], [0, 0, 20]] and report["confusions"] == []
    assert all((folder / "plots" / f"{name}.png").is_file() for name in ("confusion", "calibration"))
    assert (folder / "errors.jsonl").read_text() == ""
    reader, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "BLUE", 1: "GREEN", 2: "RED"} and model.config.label2id["RED"] == 2
    with torch.no_grad():
        assert model(**reader("b c d green", return_tensors="pt")).logits.argmax().item() == 1
    # and further from there, with LoRA, on other labels: only the head is new
    rows = [{**row, "label": i % 2} for i, row in enumerate(colour_rows(40))]
    more = ["--dataset_name", write("more.jsonl", rows), "--model_name_or_path", str(folder), "--max_steps", "2"]
    tuned = train(*more, "--use_peft", "true", "--from_scratch", "false", name="tuned")
    tuned_model = AutoModelForSequenceClassification.from_pretrained(tuned)
    assert tuned_model.config.id2label == {0: "0", 1: "1"}
    before, after = model.state_dict(), tuned_model.state_dict()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(before[(words := "bert.embeddings.word_embeddings.weight")], after[words])
    assert not torch.equal(before[query], after[query])


def test_gpt2_pairs_learn_to_compare(train, write):
    rows = [
        {"text": f"{x} {COLOURS[i % 3]}", "text_pair": COLOURS[j], "label": int(i % 3 == j)}
        for i, x in enumerate(f"{a} {b}" for a in LETTERS for b in LETTERS)
        for j in range(3)
    ]
    flags = ["--dataset_name", write("pairs.jsonl", rows), "--eval_fraction", "0.2", "--model_type", "gpt2"]
    flags += ["--learning_rate", "1e-2", "--max_steps", "3", "--save_strategy", "no"]
    folder = train(*flags, kind="gpt2")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.id2label, config.pad_token_id) == ({0: "0", 1: "1"}, 0)
    assert RunRecord.load(folder).metrics["eval_rows"] > 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_loss_is_a_mean_whatever_the_accumulation(train, write, kind):
    flags = ["--dataset_name", write("train.jsonl", colour_rows(240)), "--model_type", kind, "--max_steps", "1"]
    folder = train(*flags, "--gradient_accumulation_steps", "4", "--logging_steps", "1", kind=kind)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(3), abs=0.3)  # a guess among three, not four times it


def test_bad_input_is_one_line_and_exit_code_2(train, write, capsys):
    data = write("train.jsonl", colour_rows(30))
    other = write("other.jsonl", [{"text": "g g g", "label": "PINK"}])
    message = failing(train, capsys, "--dataset_name", data, "--eval_dataset_name", other, name="a")
    assert "error: no training row has the label 'PINK' in evaluation row 1." in message
    same = write("same.jsonl", [{**row, "label": "A"} for row in colour_rows(30)])
    assert "have the label 'A': a classifier needs two" in failing(train, capsys, "--dataset_name", same, name="b")
    none = failing(train, capsys, "--dataset_name", data, "--eval_fraction", "0", name="c")
    assert "judged on rows it has not seen" in none
    lora = failing(train, capsys, "--dataset_name", data, "--use_peft", "true", name="d")
    assert "set one of the two to false" in lora
    bert = failing(train, capsys, "--dataset_name", data, "--model_type", "t5", name="e")
    assert "model_type='t5': use one of bert, gpt2" in bert
    unlabelled = write("texts.jsonl", [{"text": "a"}])
    assert "recognised as text rows" in failing(train, capsys, "--dataset_name", unlabelled, name="f")


# --- tasks, weights, heads


def slot_rows(count: int, offset: int = 0) -> list[dict]:
    """Which of the three colours stand in the text: none to all."""
    rows = []
    for i, row in enumerate(colour_rows(count, offset)):
        there = [colour for j, colour in enumerate(COLOURS) if (i + offset) >> j & 1]
        rows.append({"text": " ".join([row["text"].rsplit(" ", 1)[0], *there]), "label": there})
    return rows


def number_rows(count: int, offset: int = 0) -> list[dict]:
    """1000 for red, 2000 for green, 3000 for blue."""
    return [{**row, "label": 1000.0 * (1 + COLOURS.index(row["label"].lower()))} for row in colour_rows(count, offset)]


def test_several_labels_balanced_and_predicted_as_reported(train, write):
    data, test = write("train.jsonl", slot_rows(240)), write("test.jsonl", slot_rows(80, offset=240))
    flags = ["--dataset_name", data, "--eval_dataset_name", test, "--learning_rate", "5e-3", "--num_train_epochs", "10"]
    flags += ["--bf16", "false", "--dropout", "0", "--per_device_train_batch_size", "8"]
    folder = train(*flags, "--class_weights", "balanced", "--save_strategy", "no", "--eval_strategy", "epoch")
    metrics = RunRecord.load(folder).metrics
    assert metrics["f1_micro"] > 0.95 and metrics["f1"] > 0.95 and metrics["accuracy"] > 0.85 and metrics["labels"] == 3
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.problem_type == "multi_label_classification" and config.id2label == {0: "blue", 1: "green", 2: "red"}
    none = next(row for row in slot_rows(80, offset=240) if not row["label"])
    found = Classifier(folder).predict([none, {"text": "h h f red blue"}, *slot_rows(80, offset=240)])
    assert found[0]["label"] == [] and set(found[1]["label"]) == {"red", "blue"}
    assert list(found[1]["probabilities"].values()) == sorted(found[1]["probabilities"].values(), reverse=True)
    right = [set(a["label"]) == set(b["label"]) for a, b in zip(found[2:], slot_rows(80, offset=240))]
    assert sum(right) / 80 == pytest.approx(metrics["accuracy"])
    report = json.loads((folder / "classification.json").read_text())
    assert report["task"] == "multi_label" and (folder / "plots" / "calibration.png").is_file()
    wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert len(wrong) == 80 - sum(right)


def test_a_number_in_thousands_is_learned_and_saved_in_its_own_units(train, write):
    data, test = write("train.jsonl", number_rows(240)), write("test.jsonl", number_rows(60, offset=240))
    flags = ["--dataset_name", data, "--eval_dataset_name", test, "--learning_rate", "1e-2", "--save_strategy", "no"]
    folder = train(*flags, "--num_train_epochs", "6", "--metric_for_best_model", "spearman", "--bf16", "false")
    metrics = RunRecord.load(folder).metrics
    assert metrics["r2"] > 0.9 and metrics["mae"] < 300 and "labels" not in metrics
    assert metrics["eval_loss"] == pytest.approx(metrics["mse"] / (2 / 3 * 1000**2), rel=0.02)  # in units of the spread
    found = [row["label"] for row in Classifier(folder).predict(number_rows(60, offset=240))]
    mse = sum((a - b["label"]) ** 2 for a, b in zip(found, number_rows(60, offset=240))) / 60
    assert mse == pytest.approx(metrics["mse"], rel=1e-3)
    assert (folder / "plots" / "scatter.png").is_file()
    worst = json.loads((folder / "errors.jsonl").read_text().splitlines()[0])
    assert worst["difference"] == pytest.approx(worst["predicted"] - worst["label"])
    # with rate 0 the head that goes on is the same function, in the units of other rows too
    other = write("other.jsonl", [{**row, "label": row["label"] / 100} for row in number_rows(40)])
    more = ["--dataset_name", other, "--model_name_or_path", str(folder), "--from_scratch", "false", "--max_steps", "1"]
    again = train(*more, "--learning_rate", "0", "--save_strategy", "no", name="again")
    before, after = (Classifier(path).predict([{"text": "a red"}])[0]["label"] for path in (folder, again))
    assert after == pytest.approx(before, rel=1e-4) and abs(before - 1000) < 500


def test_whole_numbers_are_a_regression_when_the_task_says_so(train, write):
    rows = [{**row, "label": int(row["label"])} for row in number_rows(60)]
    flags = ["--dataset_name", write("train.jsonl", rows), "--model_type", "gpt2", "--max_steps", "2"]
    folder = train(*flags, "--task", "regression", "--save_strategy", "no", kind="gpt2")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.problem_type, config.id2label) == ("regression", {0: "score"})
    metrics = RunRecord.load(folder).metrics
    assert (
        1000 < metrics["mse"] ** 0.5 + 1000 < 3000
    )  # from the start it is about the mean, though GPT-2's head has no bias
    found = Classifier(folder).predict([{"text": "a b c"}])[0]
    assert 500 < found["label"] < 3500 and found["probabilities"] == {}


def test_a_head_is_kept_where_it_has_the_labels_and_new_where_it_has_as_many_others(train, write, capsys):
    data = write("train.jsonl", colour_rows(120))
    base = train("--dataset_name", data, "--learning_rate", "1e-2", "--num_train_epochs", "1", "--save_strategy", "no")
    onward = ["--model_name_or_path", str(base), "--from_scratch", "false", "--max_steps", "1", "--learning_rate", "0"]
    onward += ["--save_strategy", "no"]
    two = write("two.jsonl", [row for row in colour_rows(60) if row["label"] != "BLUE"])
    kept = train("--dataset_name", two, *onward, name="kept")
    others = write("others.jsonl", [{**row, "label": row["label"].lower()} for row in colour_rows(60)])
    said = capsys.readouterr().out
    assert "has a head for BLUE, GREEN, RED: it is trained on" in said
    new = train("--dataset_name", others, *onward, name="new")
    assert "the head is new, for the labels of these rows" in capsys.readouterr().out
    models = [AutoModelForSequenceClassification.from_pretrained(path) for path in (base, kept, new)]
    assert models[1].config.id2label == {0: "BLUE", 1: "GREEN", 2: "RED"}
    assert models[2].config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)
    assert not torch.equal(models[0].classifier.weight, models[2].classifier.weight)
    assert torch.equal(models[0].bert.pooler.dense.weight, models[2].bert.pooler.dense.weight)


def test_the_form_of_labels_is_one_in_all_rows(train, write, capsys):
    mixed = write("mixed.jsonl", [*colour_rows(20), {"text": "a", "label": ["x"]}, {"text": "b", "label": 0.5}])
    message = failing(train, capsys, "--dataset_name", mixed, name="a")
    expected = "one label, a string or an integer, is expected (a row before has 'RED')"
    assert f"mixed.jsonl:21: label: {expected}, ['x'] given" in message and "mixed.jsonl:22: label: one" in message
    data, lists = write("train.jsonl", colour_rows(20)), write("lists.jsonl", slot_rows(4, offset=400))
    flags = ["--dataset_name", data, "--eval_dataset_name", lists]
    assert f"lists.jsonl:1: label: {expected}" in failing(train, capsys, *flags, name="b")
    message = failing(train, capsys, "--dataset_name", data, "--task", "regression", name="c")
    assert "train.jsonl:1: label: a number is expected (task: regression), 'RED' given" in message


def test_bad_settings_are_named_before_anything_is_trained(train, write, capsys):
    data = ["--dataset_name", write("train.jsonl", colour_rows(40))]
    message = failing(train, capsys, *data, "--metric_for_best_model", "pearson", name="a")
    known = "use one of loss, accuracy, f1, f1_weighted, mcc, calibration_error"
    assert f"metric_for_best_model='pearson': {known}" in message and not (train.folder / "a" / "checkpoint-1").exists()
    assert "class_weights='some': use none or" in failing(train, capsys, *data, "--class_weights", "some", name="b")
    assert "task='two': use one of auto, single" in failing(train, capsys, *data, "--task", "two", name="c")
    numbers = ["--dataset_name", write("numbers.jsonl", number_rows(40)), "--class_weights", "balanced"]
    assert "class_weights is for labels" in failing(train, capsys, *numbers, name="d")
    same = ["--dataset_name", write("same.jsonl", [{**row, "label": 2.5} for row in number_rows(40)])]
    assert "have the label 2.5: there is nothing to learn" in failing(train, capsys, *same, name="e")


def test_rare_labels_are_counted_and_named():
    rows = [{"label": label} for label in ("a", "a", "b", "c")]
    assert rare_labels(rows, [{"label": "a"}, {"label": "b"}]) == [
        "2 of 3 labels stand in one training row only: b, c",
        "1 of 3 labels stand in no held-out row, and are not judged: c",
    ]
    assert rare_labels([{"label": ["a", "b"]}, {"label": ["a", "b"]}], [{"label": ["b", "a"]}]) == []


def test_the_task_follows_from_the_labels():
    def task(*values, asked="auto"):
        form = LabelForm(asked)
        assert [form(value) for value in values] == [None] * len(values)
        rows = [{"label": value} for value in values]
        return find_task(rows, rows, form).name

    assert task("good", "1.5") == task(0, 1) == task(True, False) == task("0.0", "1.0") == "single_label"
    assert task(["a"], ["b"], []) == "multi_label"
    assert task(1, 0.5) == task("1", "2.5") == task(1, 2, asked="regression") == "regression"
    form = LabelForm()
    assert (form(0.5), form("x")) == (None, "a number is expected (a row before has 0.5), 'x' given")


def test_targets_by_hand(refused):
    several = Task("multi_label", ["a", "b", "c"])
    assert several.targets([{"label": ["c", "a"]}, {"label": []}]) == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    numbers = find_task([{"label": 1.0}, {"label": 3.0}], [], LabelForm("regression"))
    assert (numbers.mean, numbers.spread) == (2.0, 1.0) and numbers.targets([{"label": "5"}]) == [3.0]
    assert "'a' is the only label of all lists" in refused(label_names, [{"label": ["a"]}, {"label": []}])
    assert "none of the 1 training rows has a label" in refused(label_names, [{"label": []}])


# --- the same weights, however one comes to them


LONG = [{**row, "text": " ".join([row["text"]] + ["a"] * (i * 7 % 5))} for i, row in enumerate(colour_rows(64))]


def weights(folder) -> dict:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def assert_equal(first, second, **tolerance) -> None:
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resumed_in_mid_epoch_is_uninterrupted(train, write, kind, lora):
    data = ["--dataset_name", write("train.jsonl", LONG), "--per_device_train_batch_size", "4", "--model_type", kind]
    data += ["--learning_rate", "3e-3", "--eval_strategy", "no"]
    if lora:
        base = train(*data, "--max_steps", "2", "--save_strategy", "no", kind=kind, name="base")
        data += ["--model_name_or_path", str(base), "--from_scratch", "false", "--use_peft", "true", "--lora_r", "4"]
    data += ["--num_train_epochs", "2", "--save_strategy", "steps", "--save_steps", "20", "--save_total_limit", "9"]
    whole = train(*data, kind=kind, name="whole")
    assert (whole / "checkpoint-20").is_dir() and not (whole / "checkpoint-20" / "pytorch_model.bin").exists()
    resumed = train(*data, "--resume_from_checkpoint", str(whole / "checkpoint-20"), kind=kind, name="resumed")
    assert_equal(whole, resumed)
    if lora:
        changed = {
            name.split(".")[-2] for name, value in weights(whole).items() if not value.equal(weights(base)[name])
        }
        head = (
            {"classifier", "dense", "query", "key", "value"}
            if kind == "bert"
            else {"score", "c_attn", "c_proj", "c_fc"}
        )
        assert changed == head


def test_early_stopping_keeps_the_best_and_goes_on_counting_when_resumed(train, write):
    data = [
        "--dataset_name",
        write("train.jsonl", LONG),
        "--per_device_train_batch_size",
        "4",
        "--num_train_epochs",
        "9",
    ]
    data += ["--learning_rate", "0", "--eval_strategy", "steps", "--eval_steps", "5", "--save_strategy", "steps"]
    data += ["--save_steps", "5", "--save_total_limit", "9", "--early_stopping_patience", "3"]
    whole = train(*data, name="whole")
    steps = sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*"))
    assert steps == [5, 10, 15, 20]  # the best is the first, and three are no better
    resumed = train(*data, "--resume_from_checkpoint", str(whole / "checkpoint-15"), name="resumed")
    assert [path.name for path in resumed.glob("checkpoint-*")] == ["checkpoint-20"]
    assert_equal(whole, resumed)


def test_the_best_checkpoint_is_what_is_saved_and_reported(train, write):
    data, test = write("train.jsonl", colour_rows(120)), write("test.jsonl", colour_rows(60, offset=240))
    flags = ["--dataset_name", data, "--eval_dataset_name", test, "--num_train_epochs", "3", "--learning_rate", "1e-2"]
    flags += ["--save_total_limit", "9", "--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]
    folder = train(*flags, "--per_device_train_batch_size", "8")  # the loss falls: turned round, the first is the best
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in reversed(logs) if "eval_loss" in row}
    best = max(losses, key=losses.get)
    assert best != max(losses) and RunRecord.load(folder).metrics["eval_loss"] == pytest.approx(losses[best], abs=1e-5)
    assert_equal(folder, folder / f"checkpoint-{best}")


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_eight_rows_are_eight_times_one_row(train, write, strategy):
    """With weights: a mean of PyTorch's own would lose them in batches of one row."""
    rare = [row for i, row in enumerate(LONG) if row["label"] != "RED" or i % 4 == 0]
    flags = ["--dataset_name", write("train.jsonl", rare), "--class_weights", "balanced", "--dropout", "0"]
    flags += ["--train_sampling_strategy", strategy, "--max_steps", "5", "--save_strategy", "no", "--bf16", "false"]
    flags += ["--learning_rate", "1e-3", "--optim", "sgd"]
    whole = train(*flags, "--per_device_train_batch_size", "8", name="whole")
    split = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8"]
    assert_equal(whole, train(*flags, *split, name="split"), rtol=1e-4, atol=1e-6)


SHARES = """
import json, sys, torch
from transformers import BertConfig, BertForSequenceClassification
from rlhf.trainers.encoder import EncoderConfig, EncoderTrainer

seen = []
class Seeing(BertForSequenceClassification):
    def forward(self, input_ids, labels=None, **rest):
        seen.extend(input_ids[:, 0].tolist())
        return super().forward(input_ids, labels=labels, **rest)

quiet = dict(use_cpu=True, report_to="none", save_strategy="no", eval_strategy="no", disable_tqdm=True)
args = EncoderConfig(output_dir=sys.argv[1], num_train_epochs=3, per_device_train_batch_size=4, **quiet)
torch.manual_seed(0)
size = dict(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
rows = [{"input_ids": [i] + [63] * (i % 5), "labels": i % 2} for i in range(32)]
pad = lambda batch: {"input_ids": torch.nn.utils.rnn.pad_sequence([torch.tensor(r["input_ids"]) for r in batch], True),
                     "labels": torch.tensor([r["labels"] for r in batch])}
torch.manual_seed(0)
EncoderTrainer(model=Seeing(BertConfig(**size)), args=args, train=rows, data_collator=pad).train()
json.dump(seen, open(f"{sys.argv[1]}/{args.process_index}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_report_the_mean_loss(tmp_path, write):
    tokenizer("bert").save_pretrained(tmp_path / "bert")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml")]
    flags = ["--dataset_name", write("train.jsonl", colour_rows(240)), "--max_steps", "2", "--logging_steps", "1"]
    flags += ["--tokenizer_name_or_path", str(tmp_path / "bert"), "--output_dir", str(tmp_path / "run"), *TINY]
    subprocess.run([*launch, *config, str(ROOT / "recipes" / "classification.py"), *flags], check=True, cwd=ROOT)
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(math.log(3), abs=0.3)
    assert RunRecord.load(tmp_path / "run").metrics["eval_loss"] == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.slow
def test_two_processes_judge_as_one(tmp_path, write):
    """The same weights on 63 rows, which two processes cannot share evenly: every number, and every error in its row."""
    tokenizer("bert").save_pretrained(tmp_path / "bert")
    flags = ["--dataset_name", write("train.jsonl", LONG), "--eval_dataset_name"]
    flags += [write("test.jsonl", colour_rows(63, offset=240)), "--learning_rate", "0", "--max_steps", "1", "--use_cpu"]
    flags += ["--tokenizer_name_or_path", str(tmp_path / "bert"), "--per_device_eval_batch_size", "4", *TINY]
    for name in ("one_process", "ddp_cpu"):
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", "0"]
        launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")]
        own = [*launch, str(ROOT / "recipes" / "classification.py"), *flags, "--output_dir", str(tmp_path / name)]
        subprocess.run(own, check=True, cwd=ROOT)
    one, two = (
        json.loads((tmp_path / name / "classification.json").read_text()) for name in ("one_process", "ddp_cpu")
    )
    assert one["confusion"] == two["confusion"] and one["rows"] == two["rows"] == 63
    assert one["nll"] == pytest.approx(two["nll"], rel=1e-4)
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "errors.jsonl").read_text().splitlines()]
        for name in ("one_process", "ddp_cpu")
    )
    assert {(row["text"], row["predicted"]) for row in first} == {(row["text"], row["predicted"]) for row in second}


@pytest.mark.slow
def test_two_processes_share_the_rows_of_every_epoch(tmp_path):
    (tmp_path / "shares.py").write_text(SHARES)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"), "--main_process_port", "0"]
    subprocess.run([*launch, *config, str(tmp_path / "shares.py"), str(tmp_path)], check=True, cwd=ROOT)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for epoch in range(3):
        part = slice(16 * epoch, 16 * (epoch + 1))
        assert sorted(first[part] + second[part]) == list(range(32))
