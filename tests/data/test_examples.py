"""Examples are encoded once for rows, tokenizer and length, and are the same from the cache."""

import copy
import json

import pytest
from datasets import Dataset

from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.encodings import encode_for_now
from rlhf.data.examples import COLUMNS, dataset_of, demonstrations, in_order, lengths_of
from rlhf.data.fingerprints import encoding_key, tokenizer_fingerprint
from rlhf.data.load import load_rows
from rlhf.data.padding import IGNORED
from rlhf.data.splits import split_rows


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": letter}) + "\n" for letter in "abcdef"))
    return load_rows(str(path), kinds=("text",)).rows


ENCODED = [
    {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]},
    {"input_ids": [8, 9], "labels": [8, IGNORED]},
]


def test_the_data_set_has_the_types_that_datasets_gives(rows, tokenizer):
    def encode(*arguments):
        yield from ENCODED

    examples = dataset_of(encode_for_now(encode, tokenizer, rows, COLUMNS))
    assert list(examples) == ENCODED
    assert examples.features == Dataset.from_list(ENCODED).features


def test_what_is_learned_of_rows_and_what_is_too_long(tokenizer):
    rows = [{"prompt": "a", "completion": "b c"}, {"text": "d"}, {"text": "d " * 9}]
    encoded = encode_for_now(demonstrations, tokenizer, rows, COLUMNS, longest=8)
    answered, text = encoded
    assert encoded.counts["too_long"] == 1
    learned = encode_completion(tokenizer, "b c")
    assert answered["labels"] == [IGNORED] * len(encode_prompt(tokenizer, "a")) + learned
    assert answered["input_ids"][-len(learned) :] == learned
    assert text["labels"] == text["input_ids"]


def test_the_key_names_all_that_decides_the_ids(rows, tokenizer):
    tokenizer = copy.deepcopy(tokenizer)  # the others use it too
    train, test = split_rows(rows, 0.5, 0, "text")
    keys = [encoding_key("sft", part, tokenizer, 4) for part in (rows, train, test)]
    keys.append(encoding_key("sft", rows, tokenizer, 5))
    keys.append(encoding_key("pretrain", rows, tokenizer, 4))
    tokenizer.chat_template += " "
    keys.append(encoding_key("sft", rows, tokenizer, 4))
    tokenizer.add_tokens(["<new>"])
    keys.append(encoding_key("sft", rows, tokenizer, 4))
    assert None not in keys and len(set(keys)) == len(keys)
    assert encoding_key("sft", list(rows), tokenizer, 4) is None  # rows without a name


def test_a_call_does_not_change_the_name_of_a_tokenizer(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a b c", "a"], truncation=True, max_length=2, padding=True)
    assert tokenizer_fingerprint(tokenizer) == before


def test_examples_of_two_sources_in_one_order():
    first, second = ENCODED, [{"input_ids": [1], "labels": [1]}]
    order = [2, 0, 2, 1]
    expected = [second[0], first[0], second[0], first[1]]
    assert in_order(first, second, order) == expected
    mixed = in_order(Dataset.from_list(first), second, order)
    assert list(mixed) == expected
    assert lengths_of(mixed) == lengths_of(expected) == [len(row["input_ids"]) for row in expected]
