import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from rlhf import recipe
from rlhf.data.labels import check_labels, encode, label_names
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
    assert (folder / "plots" / "confusion.png").is_file()
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
def test_two_processes_share_the_rows_of_every_epoch(tmp_path):
    (tmp_path / "shares.py").write_text(SHARES)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"), "--main_process_port", "0"]
    subprocess.run([*launch, *config, str(tmp_path / "shares.py"), str(tmp_path)], check=True, cwd=ROOT)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for epoch in range(3):
        part = slice(16 * epoch, 16 * (epoch + 1))
        assert sorted(first[part] + second[part]) == list(range(32))
