"""Regression with trunks whose heads have no bias: a saved model gives the numbers themselves, whatever holds the mean."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf.models.load import save
from rlhf.tasks.classification.encode import LabelTask
from rlhf.tasks.classification.predictor import ClassificationPredictor
from rlhf.tasks.classification.training import to_numbers, to_units_of_spread

SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
KINDS = {
    "llama": SIZES,
    "qwen2": SIZES | dict(num_key_value_heads=2),
    "gemma": SIZES | dict(num_key_value_heads=2, head_dim=8),
    "mistral": SIZES | dict(num_key_value_heads=2),
    "opt": SIZES | dict(ffn_dim=32, word_embed_proj_dim=16),
    "gpt2": dict(n_embd=16, n_layer=1, n_head=2),
    "bert": SIZES,
}
ROWS = [{"text": "a b c"}, {"text": "d"}, {"text": "e f g h a"}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_regression_is_saved_as_numbers_and_can_be_trained_on(kind, bert_tokenizer, tmp_path):
    torch.manual_seed(0)
    special = dict(vocab_size=len(bert_tokenizer), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    labels = dict(num_labels=1, problem_type="regression")
    config = AutoConfig.for_model(kind, **special, **labels, **KINDS[kind])
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    task = LabelTask("regression", [], mean=1900.0, spread=25.0)

    def outputs():
        """What the trainer sees."""
        values = []
        for row in ROWS:
            inputs = bert_tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)
            with torch.no_grad():
                values.append(model(**inputs).logits.item())
        return torch.tensor(values)

    trained = outputs()
    assert trained.std() > 0.01
    expected = (25.0 * trained + 1900.0).tolist()
    bert_tokenizer.model_input_names = ["input_ids", "attention_mask"]
    save(to_numbers(model, task), bert_tokenizer, tmp_path)
    found = [row["label"] for row in ClassificationPredictor(tmp_path).predict(ROWS)]
    assert found == pytest.approx(expected, abs=0.05)

    # A second run on rows with another mean and spread keeps the head.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    second = to_units_of_spread(model, LabelTask("regression", [], mean=1950.0, spread=10.0))
    again = second.spread * outputs() + second.mean
    assert again.tolist() == pytest.approx(expected, abs=0.05)
    save(to_numbers(model, second), bert_tokenizer, tmp_path / "second")
    found = [row["label"] for row in ClassificationPredictor(tmp_path / "second").predict(ROWS)]
    assert found == pytest.approx(expected, abs=0.05)
