"""Export to ONNX: the result is run and compared, and a wrong one is not kept. Without the packages most is skipped."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers import AutoModelForTokenClassification as TokenModel

from rlhf.commands.export import main
from rlhf.errors import UserError
from rlhf.hub import export as module
from rlhf.hub.export import Logits, difference, example, export_onnx

SMALL = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
)


@pytest.fixture
def make_run(bert_tokenizer, tmp_path):
    """f(recipe, Auto class, labels) -> the folder of a finished run with random weights."""

    def make_run(recipe: str, auto_class, labels: int = 3):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(bert_tokenizer), num_labels=labels, **SMALL)
        folder = tmp_path / recipe
        auto_class.from_config(config).save_pretrained(folder)
        bert_tokenizer.save_pretrained(folder)
        (folder / "run.json").write_text(json.dumps({"recipe": recipe, "status": "done"}))
        return folder

    return make_run


@pytest.fixture
def without_packages(monkeypatch):
    monkeypatch.setattr(module, "check_packages", lambda: None)


def test_missing_packages_are_named_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript and .*pip install 'rlhf\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "out")


def test_a_run_of_another_kind_and_a_full_folder_are_refused(without_packages, make_run, tmp_path):
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UserError, match="only encoders and reward models .* give a run of"):
        export_onnx(tmp_path / "gpt", tmp_path / "out")
    run = make_run("classification", AutoModelForSequenceClassification)
    with pytest.raises(UserError, match="is not empty"):
        export_onnx(run, run)


def test_a_result_that_computes_something_else_is_not_kept(
    without_packages, make_run, tmp_path, monkeypatch
):
    def write(wrapped, path, dimensions, longest):
        path.write_bytes(b"not it")
        return ["logits"]

    monkeypatch.setattr(module, "write_onnx", write)
    run = make_run("classification", AutoModelForSequenceClassification)
    for worst in (0.02, float("nan")):
        monkeypatch.setattr(module, "compare", lambda *args: (worst, 18))  # noqa: B023
        with pytest.raises(UserError, match="so it is not kept"):
            export_onnx(run, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())


def test_the_difference_sees_every_logit_but_those_of_padding(make_run):
    """The session is a double that changes one logit by 1."""
    model = TokenModel.from_pretrained(make_run("ner", TokenModel)).eval()
    wrapped = Logits(model, ["input_ids", "attention_mask"])
    values = example(wrapped, (2, 6), padding=True)
    assert values[1].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    with torch.inference_mode():
        logits = wrapped(*values)[0]
    scale = float(logits[values[1].bool()].abs().max())

    class Session:
        def __init__(self, row, column, change=1.0):
            self.logits = logits.clone()
            self.logits[row, column, 0] += change

        def run(self, outputs, inputs):
            assert set(inputs) == {"input_ids", "attention_mask"}
            return [self.logits.numpy()]

    assert difference(wrapped, Session(1, 2), values) == pytest.approx(1 / scale, rel=1e-3)
    assert difference(wrapped, Session(1, 5), values) == 0
    nothing = difference(wrapped, Session(0, 0, float("nan")), values)
    assert nothing != nothing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "auto_class", "labels", "shape"),
    [
        ("classification", AutoModelForSequenceClassification, 3, (4, 3)),
        ("ner", TokenModel, 5, (4, 9, 5)),
        ("reward", AutoModelForSequenceClassification, 1, (4, 1)),
    ],
)
def test_an_exported_model_gives_the_same_logits(
    make_run, recipe, auto_class, labels, shape, capsys
):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    run = make_run(recipe, auto_class, labels)
    from argparse import Namespace

    assert main(Namespace(run=str(run), format="onnx", output=None)) == 0
    assert "in 18 batches" in capsys.readouterr().out
    # By another way than the export itself: from the folder, with texts.
    tokenizer = AutoTokenizer.from_pretrained(run / "onnx")
    texts = ["a b c", "b", "c c a b c b a", "a"]
    batch = tokenizer(texts, padding=True, return_tensors="np")
    ids, mask = (torch.tensor(batch[name]) for name in ("input_ids", "attention_mask"))
    model = auto_class.from_pretrained(run).eval()
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).logits
    session = onnxruntime.InferenceSession(str(run / "onnx" / "model.onnx"))
    names = [item.name for item in session.get_inputs()]
    values = {name: batch[name] for name in names}
    logits = torch.tensor(session.run(None, values)[0])
    assert logits.shape[0] == shape[0] and logits.shape[-1] == shape[-1]
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-4)
