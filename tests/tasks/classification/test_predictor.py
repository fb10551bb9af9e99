import pytest
import torch

from rlhf.models.load import save
from rlhf.models.parts import fit_tokenizer
from rlhf.models.scratch import new_encoder
from rlhf.tasks.classification.predictor import ClassificationPredictor


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A finished classifier of random weights: make(labels, problem, **config) -> its folder."""

    def make(labels=("x", "y", "z"), problem="single_label_classification", **config):
        torch.manual_seed(0)
        sizes = dict(model_type="gpt2", hidden_size=16, layers=1, heads=2, context=32)
        model = new_encoder(
            tokenizer,
            "AutoModelForSequenceClassification",
            **sizes,
            labels=list(labels),
            problem_type=problem,
        )
        torch.nn.init.normal_(model.score.weight)
        fit_tokenizer(tokenizer, model, pairs=False)
        model.config.pad_token_id = tokenizer.pad_token_id
        for name, value in config.items():
            setattr(model.config, name, value)
        save(model, tokenizer, tmp_path / "model")
        return tmp_path / "model"

    return make


TEXTS = [{"text": text} for text in ("a b c d e", "f", "g h")]


def test_probabilities_by_the_model_itself_in_the_order_of_the_rows(folder):
    classifier = ClassificationPredictor(folder())
    found = classifier.predict(TEXTS, batch_size=2)
    for row, prediction in zip(TEXTS, found):
        inputs = classifier.tokenizer(row["text"], return_tensors="pt")
        with torch.no_grad():
            p = classifier.model(**inputs).logits.softmax(-1)[0]
        assert prediction["label"] == "xyz"[p.argmax()]
        assert prediction["probabilities"] == pytest.approx(dict(zip("xyz", p.tolist())), abs=1e-5)
        assert list(prediction["probabilities"])[0] == prediction["label"]
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)


def test_several_labels_are_those_above_a_half(folder):
    for prediction in ClassificationPredictor(folder(problem="multi_label_classification")).predict(
        TEXTS
    ):
        assert prediction["label"] == [
            name for name, p in prediction["probabilities"].items() if p > 0.5
        ]


def test_a_number_has_no_probabilities(folder):
    classifier = ClassificationPredictor(folder(labels=("score",), problem="regression"))
    prediction = classifier.predict(TEXTS[:1])[0]
    with torch.no_grad():
        expected = classifier.model(
            **classifier.tokenizer(TEXTS[0]["text"], return_tensors="pt")
        ).logits.item()
    assert prediction == {"label": pytest.approx(expected, abs=1e-5), "probabilities": {}}


def test_texts_are_cut_where_they_were_in_training(folder):
    classifier = ClassificationPredictor(folder(trained_max_length=3, trained_pairs=False))
    long, short = classifier.predict(
        [{"text": "a b c d e"}, {"text": "a b c", "text_pair": "not read"}]
    )
    assert long["probabilities"] == pytest.approx(short["probabilities"], abs=1e-6)


def test_bad_rows_are_named(folder, refused):
    classifier = ClassificationPredictor(folder(trained_pairs=True))
    assert (
        refused(classifier.predict, [{"text": "a", "text_pair": "b"}, {"text": "a"}])
        == "row 2: text_pair: missing"
    )
    assert refused(classifier.predict, [{"text": " ", "text_pair": "b"}]) == "row 1: text: empty"
    assert classifier.predict([]) == []


def test_a_model_without_a_head_is_refused(folder, tokenizer, tmp_path, refused, make_policy):
    save(make_policy(tokenizer), tokenizer, tmp_path / "chat")
    assert "has no trained head for AutoModelForSequenceClassification" in refused(
        ClassificationPredictor, tmp_path / "chat"
    )
