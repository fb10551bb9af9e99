import pytest
import torch

from rlhf.models.load import save
from rlhf.models.scratch import new_encoder
from rlhf.tasks.multiple_choice.predictor import MultipleChoiceAnswers, MultipleChoicePredictor

ROWS = [
    {"text": "a b", "choices": ["c", "d e", "f"]},
    {"text": "c", "choices": ["a", "b"]},
]


@pytest.fixture
def predictor(bert_tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = dict(model_type="bert", hidden_size=16, layers=1, heads=2, context=32)
    model = new_encoder(bert_tokenizer, "AutoModelForMultipleChoice", **sizes)
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    save(model, bert_tokenizer, tmp_path)
    return MultipleChoicePredictor(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_row_has_the_softmax_of_its_own_scores(predictor, batch_size):
    results = predictor.predict(ROWS, batch_size=batch_size)
    for row, result in zip(ROWS, results, strict=True):
        texts = [row["text"]] * len(row["choices"])
        inputs = predictor.tokenizer(texts, row["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            batch = {name: value.unsqueeze(0) for name, value in inputs.items()}
            expected = predictor.model(**batch).logits[0].softmax(-1)
        assert result["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert result["label"] == int(expected.argmax())
        assert result["choice"] == row["choices"][result["label"]]


def test_bad_rows_are_named(predictor, refused):
    assert refused(predictor.predict, [{"text": "a"}]).startswith("row 1: choices: a list of 2")
    assert refused(predictor.predict, [ROWS[0], {"choices": ["a", "b"]}]) == "row 2: text: missing"
    assert predictor.predict([]) == []


def test_answers_are_counted_by_number_of_choices():
    answers = MultipleChoiceAnswers(None, {})
    for answer, label, count in ((1, 1, 2), ("0", 1, 2), (2, 2, 3)):
        answers.add(answer, {"label": label, "probabilities": [0.0] * count})
    overall, _, by_count = answers.report()
    assert overall.rows[0]["accuracy"] == pytest.approx(2 / 3)
    assert [(row["choices"], row["accuracy"]) for row in by_count.rows] == [(2, 0.5), (3, 1.0)]
