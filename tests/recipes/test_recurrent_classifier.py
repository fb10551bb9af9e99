"""The classification recipe with recurrent models: learning, files, padding of a batch, pairs, and resuming."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from rlhf.runs.record import RunRecord, model_kind
from rlhf.tasks.classification.predictor import ClassificationPredictor

WORDS = "a b c d e f g h good bad".split()
TINY = (
    "--from_scratch true --hidden_size 16 --layers 1 --max_length 16 --report_to none --disable_tqdm true "
    "--eval_fraction 0.2 --per_device_train_batch_size 8"
).split()


@pytest.fixture
def train(trainer_of):
    """The classification recipe with a recurrent model; a text is good or bad by one word at its start."""
    return trainer_of("classification", WORDS, TINY)


@pytest.fixture
def data(write):
    rows = []
    for first in ("good", "bad"):
        for second in "abcdefgh":
            for third in "abcd":
                text = f"{first} {second} {third}" if third in "ab" else f"{first} {second}"
                rows.append({"text": f"{text} {third}", "label": first})
    return write("rows.jsonl", rows)


def test_the_recipe_learns_saves_and_predicts(train, data):
    flags = ["--dataset_name", data, "--learning_rate", "0.03", "--num_train_epochs", "6"]
    folder = train(*flags, "--model_type", "lstm", "--dropout", "0", "--save_strategy", "no")
    record = RunRecord.load(folder)
    assert record.status == "done" and record.metrics["accuracy"] == 1.0
    assert model_kind(folder) == "classification"
    predictor = ClassificationPredictor(folder)
    rows = [{"text": "good a b"}, {"text": "bad a b c d e f g h a"}, {"text": "bad h"}]
    together = predictor.predict(rows)
    assert [answer["label"] for answer in together] == ["good", "bad", "bad"]
    for row, answer in zip(rows, together, strict=True):
        (alone,) = predictor.predict([row])
        for label, probability in answer["probabilities"].items():
            assert math.isclose(alone["probabilities"][label], probability, abs_tol=1e-6)


def test_pairs_with_a_tokenizer_without_separators(train, write):
    rows = [{"text": a, "text_pair": b, "label": int(a == b)} for a in WORDS for b in WORDS]
    flags = ["--dataset_name", write("pairs.jsonl", rows), "--model_type", "gru"]
    folder = train(*flags, "--max_steps", "2", "--save_strategy", "no", kind="gpt2")
    answer = ClassificationPredictor(folder).predict([{"text": "a", "text_pair": "b"}])
    assert set(answer[0]["probabilities"]) == {"0", "1"}


def test_sizes_of_attention_are_refused(train, data, capsys):
    for key in ("heads", "context"):
        with pytest.raises(SystemExit) as left:
            train("--dataset_name", data, "--model_type", "lstm", f"--{key}", "8")
        assert left.value.code == 2
        assert f"{key}=8" in (said := capsys.readouterr().err) and "recurrent" in said


@pytest.mark.slow
def test_a_resumed_run_equals_the_whole_one(train, data):
    flags = ["--dataset_name", data, "--model_type", "lstm", "--layers", "2", "--dropout", "0.2"]
    flags += "--max_steps 6 --save_strategy steps --save_steps 3 --eval_strategy no".split()
    flags += ["--save_total_limit", "4"]
    folder = train(*flags)
    whole = load_file(folder / "model.safetensors")
    # as a kill after the first checkpoint leaves it
    shutil.rmtree(folder / "checkpoint-6")
    (folder / "model.safetensors").unlink()
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    train(*flags, "--resume_from_checkpoint", "true")
    assert RunRecord.load(folder).parts[-1]["from_step"] == 3
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(value, whole[name]), name
