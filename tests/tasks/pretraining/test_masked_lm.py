import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
)

from rlhf.tasks.pretraining.masked_lm import MaskedPlacesOnly, masked_metrics, row_sums

SIZES = dict(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "bert_nsp": lambda: BertForPreTraining(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
}


def batch(nsp: bool) -> dict:
    ids = torch.randint(5, 30, (4, 9))
    labels = torch.full_like(ids, -100)
    for row, places in enumerate(([1, 4], [2], [3, 5, 6], [8])):
        labels[row, places] = ids[row, places]
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    extra = {"next_sentence_label": torch.tensor([0, 1, 1, 0])} if nsp else {}
    return {"input_ids": ids, "attention_mask": mask, "labels": labels} | extra


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_plain_forward(name):
    plain = MODELS[name]().eval()  # no dropout
    narrow = copy.deepcopy(plain)
    MaskedPlacesOnly(narrow)
    inputs = batch(name == "bert_nsp")
    expected, found = plain(**inputs), narrow(**inputs)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    logits = [
        out["prediction_logits" if name == "bert_nsp" else "logits"] for out in (expected, found)
    ]
    assert logits[0].shape == (4, 9, 30) and logits[1].shape == (7, 30)
    torch.testing.assert_close(logits[1], logits[0][inputs["labels"] != -100])
    expected.loss.backward()
    found.loss.backward()
    for (parameter, first), (_, second) in zip(plain.named_parameters(), narrow.named_parameters()):
        assert (first.grad is None) == (second.grad is None), parameter
        if first.grad is not None:
            torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=1e-4, msg=parameter)
    del inputs["labels"], expected, found  # without labels it is the plain model
    inputs.pop("next_sentence_label", None)
    torch.testing.assert_close(narrow(**inputs)[0], plain(**inputs)[0])


def test_metrics_by_hand():
    words = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]))
    labels = torch.tensor([[-100, 0, 0], [2, -100, -100]])
    sums = row_sums((words, torch.tensor([[1.0, 0.0], [0.0, 1.0]])), (labels, torch.tensor([1, 1])))
    torch.testing.assert_close(
        sums, torch.tensor([[math.log(2) + math.log(4), 1, 2, 0], [math.log(2), 1, 1, 1]])
    )
    found = masked_metrics(SimpleNamespace(predictions=sums.numpy()))
    assert found["masked_loss"] == pytest.approx(math.log(16) / 3) and found[
        "masked_accuracy"
    ] == pytest.approx(2 / 3)
    assert found["perplexity"] == pytest.approx(16 ** (1 / 3)) and found["nsp_accuracy"] == 0.5
    assert "nsp_accuracy" not in masked_metrics(
        SimpleNamespace(predictions=row_sums(words, labels).numpy())
    )
