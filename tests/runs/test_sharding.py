"""Whole models where the weights are split; tests/recipes/test_layouts.py runs them on two processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from rlhf.runs.sharding import GatheringTrainer, check_can_split, layers_to_split

SIZES = dict(
    vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)


def test_layers_are_split_and_the_embeddings_among_them_are_not():
    tied = BertForMaskedLM(BertConfig(**SIZES))
    assert layers_to_split(tied) == ["BertLayer"]
    assert "BertEmbeddings" in tied._no_split_modules  # which accelerate would split twice
    untied = BertForSequenceClassification(BertConfig(**SIZES))
    assert layers_to_split(untied) == ["BertLayer"]
    # In a module that has no list of its own
    assert "BertLayer" in layers_to_split(nn.Sequential(untied))


def test_an_output_layer_that_shares_its_bias_is_refused_for_fsdp2(refused):
    message = refused(check_can_split, BertForMaskedLM(BertConfig(**SIZES)))
    assert message.startswith("FSDP2 cannot split BertForMaskedLM") and "zero3.yaml" in message
    check_can_split(BertForSequenceClassification(BertConfig(**SIZES)))


class Training:
    """As much of a Trainer as the mixin needs. Its training adds 1 to all weights."""

    def __init__(self, kind):
        self.model = self.model_wrapped = nn.Linear(2, 2)
        self.args = SimpleNamespace(device=torch.device("cpu"), output_dir="unused", world_size=1)
        self.accelerator = SimpleNamespace(
            distributed_type=kind, unwrap_model=lambda model: model, autocast=torch.no_grad
        )

    def add_callback(self, callback):
        pass

    def train(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter += 1
        return "trained"


class Gathering(GatheringTrainer, Training):
    """The mixin by itself."""


def test_the_whole_model_is_a_twin_from_the_end_of_the_training_on():
    trainer = Gathering(DistributedType.FSDP)
    trained = trainer.model
    with trainer.whole_model() as whole:
        assert whole is trainer.twin and torch.equal(whole.weight, trained.weight)
    assert trainer.twin.weight.numel() == 0
    assert trainer.train() == "trained"
    assert trainer.model is trainer.model_wrapped is trainer.twin
    assert torch.equal(trainer.model.weight, trained.weight)
    with trainer.whole_model() as whole:
        assert whole is trainer.twin
    assert trainer.model.weight.numel() == 4  # is kept


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU])
def test_a_model_that_is_whole_has_no_twin(kind):
    trainer = Gathering(kind)
    model = trainer.model
    trainer.train()
    with trainer.whole_model() as whole:
        assert whole is trainer.model is model
    assert trainer.twin is None
