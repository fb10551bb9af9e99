"""Recurrent classifiers and that of an MLP: the state that they read, padding, files, and a start from a language model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.baselines.classifier import last_columns
from rlhf.baselines.table import BASELINES, register
from rlhf.models.load import load_encoder, save
from rlhf.models.scores import sequence_scores

CLASSIFIERS = [name for name, row in BASELINES.items() if row.is_classifier()]
WORDS = "a b c d e f g h good bad".split()
IDS = torch.tensor([[0, 0, 1, 2, 3, 4], [1, 2, 6, 4, 5, 6], [7, 2, 0, 0, 0, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])


def tiny(name: str, auto=AutoModelForSequenceClassification, labels: int = 3):
    register(name)
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2}
    return auto.from_config(AutoConfig.for_model(name, **sizes, num_labels=labels)).eval()


def test_there_are_four():
    assert CLASSIFIERS == ["mlp", "rnn", "lstm", "gru"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_padding_on_either_side_changes_no_logits(name):
    model = tiny(name)
    together = model(input_ids=IDS, attention_mask=MASK).logits
    for row in range(len(IDS)):
        alone = model(input_ids=IDS[row, MASK[row].bool()].unsqueeze(0)).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=0)


def test_the_head_reads_the_last_token_that_counts():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0] * 6])
    assert last_columns(mask, mask).tolist() == [5, 5, 1, 0]
    assert last_columns(mask, None).tolist() == [5, 5, 5, 5]


def test_an_lstm_by_hand():
    """One layer, one token after the other with the gates of Hochreiter and Schmidhuber, then the linear layer."""
    model = tiny("lstm")
    layers = model.model.layers
    inputs = model.model.embeddings.weight[IDS[1]]  # (6, 8)
    for layer in range(2):
        parts = (getattr(layers, f"{part}_l{layer}") for part in ("weight_ih", "weight_hh"))
        from_input, from_state = parts
        bias = getattr(layers, f"bias_ih_l{layer}") + getattr(layers, f"bias_hh_l{layer}")
        state, cell, states = torch.zeros(8), torch.zeros(8), []
        for vector in inputs:
            gates = from_input @ vector + from_state @ state + bias
            enter, forget, new, out = gates.chunk(4)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = out.sigmoid() * cell.tanh()
            states.append(state)
        inputs = torch.stack(states)
    expected = model.score.weight @ state + model.score.bias
    actual = model(input_ids=IDS[1:2]).logits[0]
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_the_loss_is_cross_entropy_of_the_labels():
    model = tiny("gru")
    output = model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 2, 1]))
    picked = output.logits.log_softmax(-1)[torch.arange(3), torch.tensor([0, 2, 1])]
    assert output.loss.item() == pytest.approx(-picked.mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_one_output_is_a_score_of_its_last_state(name):
    """The head also works as that of a reward model, which reads states by itself."""
    model = tiny(name, labels=1)
    scores = sequence_scores(model, IDS[1:], MASK[1:].bool())
    expected = model(input_ids=IDS[1:], attention_mask=MASK[1:]).logits.squeeze(-1)
    torch.testing.assert_close(scores, expected)


def test_a_language_model_becomes_a_classifier(tmp_path, make_tokenizer):
    """Its trunk is kept, and the head is new (Dai and Le 2015)."""
    trained = tiny("lstm", AutoModelForCausalLM)
    save(trained, make_tokenizer(WORDS, "gpt2"), tmp_path)
    head = "AutoModelForSequenceClassification"
    model = load_encoder(str(tmp_path), head, labels=["no", "yes"], new_head=True)
    assert model.new_weights == ["score.bias", "score.weight"]
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, model.model.state_dict()[name]), name
