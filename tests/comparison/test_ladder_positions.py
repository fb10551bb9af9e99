"""Bits per byte by position, which the record of a ladder has."""

import json
import math

import pytest
import torch

from benchmarks.ladder.positions import bits_by_position
from rlhf.models.load import load_policy, save
from rlhf.models.scratch import new_baseline
from rlhf.tasks.pretraining.bits_per_byte import causal_sums
from tests.conftest import byte_tokenizer

TEXTS = ("abcdefghij" * 4, "abc")


@pytest.fixture
def written(tmp_path):
    """f(change of the model) -> (folder of a model, file of text). A token is a byte."""

    def write(change):
        tokenizer = byte_tokenizer(chat=False)
        model = new_baseline(tokenizer, "rnn", hidden_size=16, layers=1, order=2, dropout=0.0)
        change(model)
        save(model, tokenizer, tmp_path / "model")
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        return tmp_path / "model", str(path)

    return write


def test_a_model_that_knows_nothing_needs_the_same_bits_everywhere(written):
    folder, path = written(lambda model: model.get_output_embeddings().weight.data.zero_())
    bits = math.log2(load_policy(str(folder)).config.vocab_size)
    groups = bits_by_position(folder, path, 24)  # rows of 24 and 17 tokens, and of 4
    # The ends of both texts have bits and no bytes, after 16 tokens and after 3: 16 bytes in 17 tokens, 24 in 25.
    assert list(groups) == ["1 to 7", "8 to 23"]
    assert groups["1 to 7"] == pytest.approx(bits * 17 / 16)
    assert groups["8 to 23"] == pytest.approx(bits * 25 / 24)


def test_one_group_is_the_bits_per_byte_of_the_run(written):
    folder, path = written(lambda model: None)
    model = load_policy(str(folder))
    tokenizer = byte_tokenizer(chat=False)
    rows = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]
    blocks = [rows[0][start : start + 8] for start in range(0, 41, 8)] + [rows[1]]
    nats, size = 0.0, 0
    for block in blocks[:5] + blocks[6:]:  # the end of the first text alone is dropped
        ids = torch.tensor([block])
        with torch.no_grad():
            nats += float(causal_sums(model(ids).logits, ids)[0, 0])
        size += len(block) - 1
    expected = nats / math.log(2) / (size - 1)  # the end of the second text has no bytes
    assert bits_by_position(folder, path, 8) == {"1 to 7": pytest.approx(expected, rel=1e-5)}


def test_a_group_that_no_text_reaches_is_not_there(written):
    folder, path = written(lambda model: None)
    groups = bits_by_position(folder, path, 128)  # rows of 41 and 4 tokens
    assert list(groups) == ["1 to 7", "8 to 31", "32 to 63"]
