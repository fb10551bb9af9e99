"""The state over blocks: the order of the blocks, states and gradients, and its JSON."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.baselines.table import register
from rlhf.errors import UserError
from rlhf.tasks.pretraining.carried_state import (
    CarriedState,
    Streams,
    check_is_recurrent,
    evaluation_streams,
)

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [3, 1, 4, 1, 5, 9, 2, 6]])


class Blocks:
    """Seven blocks of four tokens, each of which says its number."""

    lengths = [4] * 7

    def __len__(self):
        return 7

    def __getitem__(self, index: int):
        return index


def tiny(name: str = "lstm"):
    register(name)
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))


def test_each_row_of_a_batch_continues_that_of_the_batch_before():
    streams = Streams(Blocks(), 3)
    assert list(streams) == [0, 2, 4, 1, 3, 5] and streams.batches == 2
    assert streams.dropped == 4 and streams.lengths == [4] * 6
    assert list(Streams(Blocks(), 16)) == list(range(7))


def test_an_evaluation_leaves_out_as_little_as_possible():
    for largest, size, left_out in ((16, 7, 0), (6, 6, 4), (4, 3, 4), (2, 2, 4), (1, 1, 0)):
        streams = evaluation_streams(Blocks(), largest)
        assert (streams.batch_size, streams.dropped) == (size, left_out)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("training", [True, False])
def test_blocks_give_the_logits_of_the_whole_text_and_an_epoch_starts_from_nothing(name, training):
    model = tiny(name).train(training)
    whole = model(input_ids=IDS).logits
    start = model(input_ids=IDS[:, :4]).logits
    CarriedState(model, train=2, evaluation=2)
    parts = [model(input_ids=part).logits for part in IDS.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(input_ids=IDS[:, :4]).logits, start)


def test_no_gradient_goes_back_into_the_block_before():
    model = tiny()
    CarriedState(model, train=2, evaluation=1)
    model(input_ids=IDS[:1, :4])
    model(input_ids=IDS[:1, 4:]).logits.sum().backward()
    used = model.model.embeddings.weight.grad.abs().sum(1).nonzero().squeeze(1)
    assert used.tolist() == [5, 6, 7, 8]


def test_an_evaluation_between_two_batches_changes_nothing():
    first, second = tiny(), tiny()
    for model in (first, second):
        CarriedState(model, train=2, evaluation=1)
        model(input_ids=IDS[:, :4])
    second.eval()(input_ids=IDS[:, 2:6])
    second.train()
    logits = [model(input_ids=IDS[:, 4:]).logits for model in (first, second)]
    assert torch.equal(*logits)


def test_the_state_of_a_checkpoint_is_exact():
    first, second = tiny(), tiny()
    carried = CarriedState(first, train=2, evaluation=0)
    first(input_ids=IDS[:, :4])
    saved = json.loads(json.dumps(carried.to_json()))
    CarriedState(second, train=2, evaluation=0).restore(saved, torch.device("cpu"))
    logits = [model(input_ids=IDS[:, 4:]).logits for model in (first, second)]
    assert torch.equal(*logits)
    # the next epoch
    logits = [model(input_ids=IDS[:, :4]).logits for model in (first, second)]
    assert torch.equal(*logits)


def test_models_without_a_recurrent_state_are_refused():
    for name in ("gpt2", "mlp", "ngram"):
        with pytest.raises(UserError, match=f"a {name} model has no recurrent state"):
            check_is_recurrent(name)
    check_is_recurrent("gru")
