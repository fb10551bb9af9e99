import json
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.runs.record import RunRecord
from rlhf.tasks.classification.predictor import ClassificationPredictor

COLOURS = ["red", "green", "blue"]
TINY = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 16 --max_length 16 --report_to none".split()
LETTERS = "a b c d e f g h".split()


@pytest.fixture
def train(trainer_of):
    return trainer_of("classification", [*COLOURS, *LETTERS], TINY)


def colour_rows(count: int, offset: int = 0) -> list[dict]:
    """Which colour stands in the text; every text occurs once."""
    texts = [f"{a} {b} {c}" for a in LETTERS for b in LETTERS for c in LETTERS][
        offset : offset + count
    ]
    return [
        {"text": f"{text} {COLOURS[i % 3]}", "label": (COLOURS[i % 3]).upper()}
        for i, text in enumerate(texts)
    ]


def test_learns_colours_and_saves_a_folder_that_transformers_loads(train, write):
    data, test = (
        write("train.jsonl", colour_rows(240)),
        write("test.jsonl", colour_rows(60, offset=240)),
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
    folder = train(*flags, "--eval_strategy", "epoch", "--save_strategy", "no")
    record = RunRecord.load(folder)
    assert record.status == "done" and record.metrics["accuracy"] == record.metrics["f1"] == 1.0
    assert (record.metrics["eval_rows"], record.metrics["labels"], record.metrics["texts_cut"]) == (
        60,
        3,
        0,
    )
    report = json.loads((folder / "classification.json").read_text())
    assert (
        report["confusion"] == [[20, 0, 0], [0, 20, 0], [0, 0, 20]] and report["confusions"] == []
    )
    assert all(
        (folder / "plots" / f"{name}.png").is_file() for name in ("confusion", "calibration")
    )
    assert (folder / "errors.jsonl").read_text() == ""
    reader, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    assert (
        model.config.id2label == {0: "BLUE", 1: "GREEN", 2: "RED"}
        and model.config.label2id["RED"] == 2
    )
    with torch.no_grad():
        assert model(**reader("b c d green", return_tensors="pt")).logits.argmax().item() == 1
    # and further from there, with LoRA, on other labels: only the head is new
    rows = [{**row, "label": i % 2} for i, row in enumerate(colour_rows(40))]
    more = [
        "--dataset_name",
        write("more.jsonl", rows),
        "--model_name_or_path",
        str(folder),
        "--max_steps",
        "2",
    ]
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
    flags = [
        "--dataset_name",
        write("pairs.jsonl", rows),
        "--eval_fraction",
        "0.2",
        "--model_type",
        "gpt2",
    ]
    flags += ["--learning_rate", "1e-2", "--max_steps", "3", "--save_strategy", "no"]
    folder = train(*flags, kind="gpt2")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.id2label, config.pad_token_id) == ({0: "0", 1: "1"}, 0)
    assert RunRecord.load(folder).metrics["eval_rows"] > 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_loss_is_a_mean_whatever_the_accumulation(train, write, kind):
    flags = [
        "--dataset_name",
        write("train.jsonl", colour_rows(240)),
        "--model_type",
        kind,
        "--max_steps",
        "1",
    ]
    folder = train(*flags, "--gradient_accumulation_steps", "4", "--logging_steps", "1", kind=kind)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(
        math.log(3), abs=0.3
    )  # a guess among three, not four times it


def test_bad_input_is_one_line_and_exit_code_2(failing, write):
    data = write("train.jsonl", colour_rows(30))
    other = write("other.jsonl", [{"text": "g g g", "label": "PINK"}])
    message = failing("--dataset_name", data, "--eval_dataset_name", other, name="a")
    assert "error: no training row has the label 'PINK' in evaluation row 1." in message
    same = write("same.jsonl", [{**row, "label": "A"} for row in colour_rows(30)])
    assert "have the label 'A': a classifier needs two" in failing("--dataset_name", same, name="b")
    none = failing("--dataset_name", data, "--eval_fraction", "0", name="c")
    assert "evaluated on rows that it was not trained on" in none
    lora = failing("--dataset_name", data, "--use_peft", "true", name="d")
    assert "set one of the two to false" in lora
    bert = failing("--dataset_name", data, "--model_type", "t5", name="e")
    assert "model_type='t5': use one of bert, gpt2" in bert
    unlabelled = write("texts.jsonl", [{"text": "a"}])
    assert "recognised as text rows" in failing("--dataset_name", unlabelled, name="f")


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
    return [
        {**row, "label": 1000.0 * (1 + COLOURS.index(row["label"].lower()))}
        for row in colour_rows(count, offset)
    ]


@pytest.mark.slow
def test_several_labels_balanced_and_predicted_as_reported(train, write):
    data, test = (
        write("train.jsonl", slot_rows(240)),
        write("test.jsonl", slot_rows(80, offset=240)),
    )
    flags = [
        "--dataset_name",
        data,
        "--eval_dataset_name",
        test,
        "--learning_rate",
        "5e-3",
        "--num_train_epochs",
        "10",
    ]
    flags += ["--bf16", "false", "--dropout", "0", "--per_device_train_batch_size", "8"]
    folder = train(
        *flags, "--class_weights", "balanced", "--save_strategy", "no", "--eval_strategy", "epoch"
    )
    metrics = RunRecord.load(folder).metrics
    assert (
        metrics["f1_micro"] > 0.95
        and metrics["f1"] > 0.95
        and metrics["accuracy"] > 0.85
        and metrics["labels"] == 3
    )
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert config.problem_type == "multi_label_classification" and config.id2label == {
        0: "blue",
        1: "green",
        2: "red",
    }
    none = next(row for row in slot_rows(80, offset=240) if not row["label"])
    found = ClassificationPredictor(folder).predict(
        [none, {"text": "h h f red blue"}, *slot_rows(80, offset=240)]
    )
    assert found[0]["label"] == [] and set(found[1]["label"]) == {"red", "blue"}
    assert list(found[1]["probabilities"].values()) == sorted(
        found[1]["probabilities"].values(), reverse=True
    )
    right = [
        set(a["label"]) == set(b["label"]) for a, b in zip(found[2:], slot_rows(80, offset=240))
    ]
    assert sum(right) / 80 == pytest.approx(metrics["accuracy"])
    report = json.loads((folder / "classification.json").read_text())
    assert report["task"] == "multi_label" and (folder / "plots" / "calibration.png").is_file()
    wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert len(wrong) == 80 - sum(right)


@pytest.mark.slow
def test_a_number_in_thousands_is_learned_and_saved_in_its_own_units(train, write):
    data, test = (
        write("train.jsonl", number_rows(240)),
        write("test.jsonl", number_rows(60, offset=240)),
    )
    flags = [
        "--dataset_name",
        data,
        "--eval_dataset_name",
        test,
        "--learning_rate",
        "1e-2",
        "--save_strategy",
        "no",
    ]
    folder = train(*flags, "--num_train_epochs", "6", "--bf16", "false")
    metrics = RunRecord.load(folder).metrics
    assert metrics["r2"] > 0.9 and metrics["mae"] < 300 and "labels" not in metrics
    assert metrics["eval_loss"] == pytest.approx(
        metrics["mse"] / (2 / 3 * 1000**2), rel=0.02
    )  # in units of the spread
    found = [
        row["label"] for row in ClassificationPredictor(folder).predict(number_rows(60, offset=240))
    ]
    mse = sum((a - b["label"]) ** 2 for a, b in zip(found, number_rows(60, offset=240))) / 60
    assert mse == pytest.approx(metrics["mse"], rel=1e-3)
    assert (folder / "plots" / "scatter.png").is_file()
    worst = json.loads((folder / "errors.jsonl").read_text().splitlines()[0])
    assert worst["difference"] == pytest.approx(worst["predicted"] - worst["label"])
    # with rate 0 the head that goes on is the same function, in the units of other rows too
    other = write("other.jsonl", [{**row, "label": row["label"] / 100} for row in number_rows(40)])
    more = [
        "--dataset_name",
        other,
        "--model_name_or_path",
        str(folder),
        "--from_scratch",
        "false",
        "--max_steps",
        "1",
    ]
    again = train(*more, "--learning_rate", "0", "--save_strategy", "no", name="again")
    before, after = (
        ClassificationPredictor(path).predict([{"text": "a b c red"}])[0]["label"]
        for path in (folder, again)
    )
    assert after == pytest.approx(before, rel=1e-4) and abs(before - 1000) < 500


def test_whole_numbers_are_a_regression_when_the_task_says_so(train, write):
    rows = [{**row, "label": int(row["label"])} for row in number_rows(60)]
    flags = [
        "--dataset_name",
        write("train.jsonl", rows),
        "--model_type",
        "gpt2",
        "--max_steps",
        "2",
    ]
    folder = train(*flags, "--task", "regression", "--save_strategy", "no", kind="gpt2")
    config = AutoModelForSequenceClassification.from_pretrained(folder).config
    assert (config.problem_type, config.id2label) == ("regression", {0: "score"})
    metrics = RunRecord.load(folder).metrics
    assert (
        metrics["mse"] ** 0.5 < 2000
    )  # from the start it is about the mean, though GPT-2's head has no bias
    found = ClassificationPredictor(folder).predict([{"text": "a b c"}])[0]
    assert 500 < found["label"] < 3500 and found["probabilities"] == {}


@pytest.mark.slow
def test_years_survive_weights_of_half_precision(train, write):
    years = write(
        "years.jsonl", [{**row, "label": 2010.0 + row["label"] / 1000} for row in number_rows(60)]
    )
    flags = [
        "--dataset_name",
        years,
        "--max_steps",
        "1",
        "--save_strategy",
        "no",
        "--task",
        "regression",
    ]
    half = [
        "--from_scratch",
        "false",
        "--dtype",
        "bfloat16",
        "--learning_rate",
        "0",
        "--model_name_or_path",
    ]
    folder = train(*flags, *half, str(train(*flags, name="base")))
    worst = json.loads((folder / "errors.jsonl").read_text().splitlines()[0])
    found = ClassificationPredictor(folder).predict([{"text": worst["text"]}])[0]["label"]
    assert found == pytest.approx(worst["predicted"], abs=0.05)  # in bf16 a year is right to 8


@pytest.mark.slow
def test_a_head_is_kept_where_it_has_the_labels_and_new_where_it_has_as_many_others(
    train, write, capsys
):
    data = write("train.jsonl", colour_rows(120))
    base = train(
        "--dataset_name",
        data,
        "--learning_rate",
        "1e-2",
        "--num_train_epochs",
        "1",
        "--save_strategy",
        "no",
    )
    onward = [
        "--model_name_or_path",
        str(base),
        "--from_scratch",
        "false",
        "--max_steps",
        "1",
        "--learning_rate",
        "0",
    ]
    onward += ["--save_strategy", "no"]
    two = write("two.jsonl", [row for row in colour_rows(60) if row["label"] != "BLUE"])
    kept = train("--dataset_name", two, *onward, name="kept")
    others = write(
        "others.jsonl", [{**row, "label": row["label"].lower()} for row in colour_rows(60)]
    )
    said = capsys.readouterr().out
    assert "has a head for BLUE, GREEN, RED: it is trained on" in said
    new = train("--dataset_name", others, *onward, name="new")
    assert "the head is new, for the labels of these rows" in capsys.readouterr().out
    models = [
        AutoModelForSequenceClassification.from_pretrained(path) for path in (base, kept, new)
    ]
    assert models[1].config.id2label == {0: "BLUE", 1: "GREEN", 2: "RED"}
    assert models[2].config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)
    assert not torch.equal(models[0].classifier.weight, models[2].classifier.weight)
    assert torch.equal(models[0].bert.pooler.dense.weight, models[2].bert.pooler.dense.weight)


def test_the_form_of_labels_is_one_in_all_rows(failing, write):
    mixed = write(
        "mixed.jsonl",
        [*colour_rows(20), {"text": "a", "label": ["x"]}, {"text": "b", "label": 0.5}],
    )
    message = failing("--dataset_name", mixed, name="a")
    expected = "one label, a string or an integer, is expected (a row before has 'RED')"
    assert (
        f"mixed.jsonl:21: label: {expected}, ['x'] given" in message
        and "mixed.jsonl:22: label: one" in message
    )
    data, lists = (
        write("train.jsonl", colour_rows(20)),
        write("lists.jsonl", slot_rows(4, offset=400)),
    )
    flags = ["--dataset_name", data, "--eval_dataset_name", lists]
    assert f"lists.jsonl:1: label: {expected}" in failing(*flags, name="b")
    message = failing("--dataset_name", data, "--task", "regression", name="c")
    assert "train.jsonl:1: label: a number is expected (task: regression), 'RED' given" in message


def test_bad_settings_are_named_before_anything_is_trained(failing, write, tmp_path):
    data = ["--dataset_name", write("train.jsonl", colour_rows(40))]
    message = failing(*data, "--metric_for_best_model", "pearson", name="a")
    known = "use one of loss, accuracy, f1, f1_weighted, mcc, calibration_error"
    assert (
        f"metric_for_best_model='pearson': {known}" in message
        and not (tmp_path / "a" / "checkpoint-1").exists()
    )
    assert "class_weights='some': use none or" in failing(
        *data, "--class_weights", "some", name="b"
    )
    assert "task='two': use one of auto, single" in failing(*data, "--task", "two", name="c")
    numbers = [
        "--dataset_name",
        write("numbers.jsonl", number_rows(40)),
        "--class_weights",
        "balanced",
    ]
    assert "class_weights is for labels" in failing(*numbers, name="d")
    smoothed = ["--label_smoothing_factor", "0.1"]
    assert "label_smoothing_factor is for one label" in failing(*numbers[:2], *smoothed, name="f")
    assert "label_smoothing_factor is for one" in failing(
        *data, *smoothed, "--class_weights", "balanced", name="g"
    )
    same = [
        "--dataset_name",
        write("same.jsonl", [{**row, "label": 2.5} for row in number_rows(40)]),
    ]
    assert "have the label 2.5: there is nothing to learn" in failing(*same, name="e")


# --- the same weights, however one comes to them


LONG = [
    {**row, "text": " ".join([row["text"]] + ["a"] * (i * 7 % 5))}
    for i, row in enumerate(colour_rows(64))
]


def weights(folder) -> dict:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def assert_equal(first, second, **tolerance) -> None:
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=name, **({"rtol": 0, "atol": 0} | tolerance)
        )


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("bert", False),
        pytest.param("gpt2", True, marks=pytest.mark.slow),
        pytest.param("bert", True, marks=pytest.mark.slow),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
    ],
)
def test_resumed_in_mid_epoch_is_uninterrupted(train, write, kind, lora):
    data = [
        "--dataset_name",
        write("train.jsonl", LONG),
        "--per_device_train_batch_size",
        "4",
        "--model_type",
        kind,
    ]
    data += ["--learning_rate", "3e-3", "--eval_strategy", "no"]
    if lora:
        base = train(*data, "--max_steps", "2", "--save_strategy", "no", kind=kind, name="base")
        data += [
            "--model_name_or_path",
            str(base),
            "--from_scratch",
            "false",
            "--use_peft",
            "true",
            "--lora_r",
            "4",
        ]
    data += [
        "--num_train_epochs",
        "2",
        "--save_strategy",
        "steps",
        "--save_steps",
        "20",
        "--save_total_limit",
        "9",
    ]
    whole = train(*data, kind=kind, name="whole")
    assert (whole / "checkpoint-20").is_dir() and not (
        whole / "checkpoint-20" / "pytorch_model.bin"
    ).exists()
    resumed = train(
        *data, "--resume_from_checkpoint", str(whole / "checkpoint-20"), kind=kind, name="resumed"
    )
    assert_equal(whole, resumed)
    if lora:
        changed = {
            name.split(".")[-2]
            for name, value in weights(whole).items()
            if not value.equal(weights(base)[name])
        }
        head = (
            {"classifier", "dense", "query", "key", "value"}
            if kind == "bert"
            else {"score", "c_attn", "c_proj", "c_fc"}
        )
        assert changed == head


@pytest.mark.slow
def test_early_stopping_keeps_the_best_and_goes_on_counting_when_resumed(train, write):
    data = [
        "--dataset_name",
        write("train.jsonl", LONG),
        "--per_device_train_batch_size",
        "4",
        "--num_train_epochs",
        "9",
    ]
    data += [
        "--learning_rate",
        "0",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "5",
        "--save_strategy",
        "steps",
    ]
    data += ["--save_steps", "5", "--save_total_limit", "9", "--early_stopping_patience", "3"]
    whole = train(*data, name="whole")
    steps = sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*"))
    assert steps == [5, 10, 15, 20]  # the best is the first, and three are no better
    resumed = train(*data, "--resume_from_checkpoint", str(whole / "checkpoint-15"), name="resumed")
    assert [path.name for path in resumed.glob("checkpoint-*")] == ["checkpoint-20"]
    assert_equal(whole, resumed)


@pytest.mark.slow
def test_the_best_checkpoint_is_what_is_saved_and_reported(train, write):
    data, test = (
        write("train.jsonl", colour_rows(120)),
        write("test.jsonl", colour_rows(60, offset=240)),
    )
    flags = [
        "--dataset_name",
        data,
        "--eval_dataset_name",
        test,
        "--num_train_epochs",
        "3",
        "--learning_rate",
        "1e-2",
    ]
    flags += [
        "--save_total_limit",
        "9",
        "--metric_for_best_model",
        "eval_loss",
        "--greater_is_better",
        "true",
    ]
    folder = train(
        *flags, "--per_device_train_batch_size", "8"
    )  # the loss falls: turned round, the first is the best
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval_loss"] for row in reversed(logs) if "eval_loss" in row}
    best = max(losses, key=losses.get)
    assert best != max(losses) and RunRecord.load(folder).metrics["eval_loss"] == pytest.approx(
        losses[best], abs=1e-5
    )
    assert_equal(folder, folder / f"checkpoint-{best}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_eight_rows_are_eight_times_one_row(train, write, strategy):
    """With weights: a mean of PyTorch's own would lose them in batches of one row."""
    rare = [row for i, row in enumerate(LONG) if row["label"] != "RED" or i % 4 == 0]
    flags = [
        "--dataset_name",
        write("train.jsonl", rare),
        "--class_weights",
        "balanced",
        "--dropout",
        "0",
    ]
    flags += [
        "--train_sampling_strategy",
        strategy,
        "--max_steps",
        "5",
        "--save_strategy",
        "no",
        "--bf16",
        "false",
    ]
    flags += ["--learning_rate", "1e-3", "--optim", "sgd"]
    whole = train(*flags, "--per_device_train_batch_size", "8", name="whole")
    split = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "8"]
    assert_equal(whole, train(*flags, *split, name="split"), rtol=1e-4, atol=1e-6)


SHARES = """
import json, sys, torch
from transformers import BertConfig, BertForSequenceClassification
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer

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
def test_two_processes_report_the_mean_loss(launch_two, write):
    flags = [
        "--dataset_name",
        write("train.jsonl", colour_rows(240)),
        "--max_steps",
        "2",
        "--logging_steps",
        "1",
    ]
    folder = launch_two("classification", [*COLOURS, *LETTERS], *TINY, *flags)
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(math.log(3), abs=0.3)
    assert RunRecord.load(folder).metrics["eval_loss"] == pytest.approx(math.log(3), abs=0.3)


@pytest.mark.slow
def test_two_processes_judge_as_one(launch_two, write):
    """The same weights on 63 rows, which two processes cannot share evenly: every number, and every error in its row."""
    flags = [*TINY, "--dataset_name", write("train.jsonl", LONG), "--eval_dataset_name"]
    flags += [
        write("test.jsonl", colour_rows(63, offset=240)),
        "--learning_rate",
        "0",
        "--max_steps",
        "1",
        "--use_cpu",
    ]
    flags += ["--per_device_eval_batch_size", "4"]
    reports, errors = [], []
    for layout in ("one_process", "ddp_cpu"):
        folder = launch_two(
            "classification", [*COLOURS, *LETTERS], *flags, layout=layout, folder=layout
        )
        reports.append(json.loads((folder / "classification.json").read_text()))
        wrong = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
        errors.append({(row["text"], row["predicted"]) for row in wrong})
    one, two = reports
    assert one["confusion"] == two["confusion"] and one["rows"] == two["rows"] == 63
    assert one["nll"] == pytest.approx(two["nll"], rel=1e-4)
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_two_processes_share_the_rows_of_every_epoch(tmp_path, launch):
    (tmp_path / "shares.py").write_text(SHARES)
    launch(tmp_path / "shares.py", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for epoch in range(3):
        part = slice(16 * epoch, 16 * (epoch + 1))
        assert sorted(first[part] + second[part]) == list(range(32))
