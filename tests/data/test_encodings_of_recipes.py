"""What each recipe makes of its rows comes again from the cache: the rows, their order, and what was counted."""

from dataclasses import dataclass

import numpy as np
import pytest

from rlhf.completions.prompts import fitting_prompts
from rlhf.data import cache
from rlhf.data.encodings import encode_once
from rlhf.data.examples import COLUMNS, demonstrations
from rlhf.data.load import load_rows
from rlhf.direct_preference.rows import encode_pairs_of_rankings, encode_thumbs
from rlhf.implicit_q.rows import encode_scored
from rlhf.reward_model.rankings import encode_rankings
from rlhf.tasks.classification.encode import stored_texts
from rlhf.tasks.multiple_choice.encode import training_rows
from rlhf.tasks.ner.encode import in_bio
from rlhf.tasks.ner.encode import stored_windows as tagged_windows
from rlhf.tasks.question_answering.encode import stored_windows as question_windows
from rlhf.tasks.seq2seq.encode import encode_pairs


def read_prompts(tokenizer, rows, limit):
    prompts, long = fitting_prompts(rows, tokenizer, limit=limit, long_prompts="drop", name="")
    return list(zip(prompts.rows, prompts.ids, prompts.numbers, strict=True)), long


def read_demonstrations(tokenizer, rows, limit):
    encoded = encode_once(demonstrations, tokenizer, rows, COLUMNS, longest=limit)
    return encoded, encoded.counts


def read_tags(tokenizer, rows, limit):
    rows, _, *counts = in_bio(rows, rows)
    sizes = {"labels": ["O", "B-x", "I-x"], "units": "words", "max_length": limit}
    return tagged_windows(tokenizer, rows, **sizes).by_length(), counts


def read_questions(tokenizer, rows, limit):
    encoded = question_windows(tokenizer, rows, max_length=limit, stride=2, max_answer_length=1)
    return encoded, encoded.counts


def read_pairs(tokenizer, rows, limit):
    encoded, kept = encode_pairs(tokenizer, rows, prefix="a ", start=2, longest=(limit, limit))
    return encoded, list(kept)


@dataclass
class Case:
    """kind, rows: of a file. read: f(tokenizer, rows, limit) -> (encoded rows, counts). limit: tokens, one row has more."""

    kind: str
    rows: list[dict]
    read: object
    limit: int = 9
    encoder: bool = False


LONG = "b " * 30
RANKINGS = [
    {"prompt": "a", "completions": ["b", "c", "b", LONG], "ranks": [0, 10**12, 2, 1]},
    {"prompt": "d", "completions": ["e", "f"], "ranks": [1, 0]},
    {"prompt": "d", "completions": ["e", "f"], "ranks": [0, 0]},
]
THUMBS = [
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": "c", "completion": LONG, "label": True},
    {"prompt": "c", "completion": "d e", "label": False},
    {"prompt": "f", "completion": "g", "label": False, "annotator": "x"},
    {"prompt": "f", "completion": "g", "label": True, "annotator": "x"},
]
CASES = {
    "reward": Case(
        "ranking", RANKINGS, lambda *given: encode_rankings(*given[:2], max_length=given[2])
    ),
    "reward of an encoder": Case(
        "ranking",
        RANKINGS,
        lambda *given: encode_rankings(*given[:2], max_length=given[2], pairs=True),
        encoder=True,
    ),
    "dpo": Case(
        "ranking",
        RANKINGS,
        lambda *given: encode_pairs_of_rankings(*given[:2], max_length=given[2]),
    ),
    "kto": Case(
        "unpaired_preference",
        THUMBS,
        lambda *given: encode_thumbs(*given[:2], max_length=given[2], seed=3),
    ),
    "ilql": Case(
        "unpaired_preference",
        THUMBS,
        lambda *given: encode_scored(*given[:2], "unpaired_preference", max_length=given[2]),
    ),
    "ppo": Case("prompt", [{"prompt": "a"}, {"prompt": LONG}, {"prompt": "b c"}], read_prompts),
    "sft": Case("text", [{"text": "a b"}, {"text": LONG}, {"text": "c"}], read_demonstrations),
    "classification": Case(
        "classification",
        [{"text": "a b", "label": "x"}, {"text": LONG, "label": "y"}],
        lambda *given: stored_texts(*given[:2], pairs=False, max_length=given[2]),
        encoder=True,
    ),
    "multiple_choice": Case(
        "multiple_choice",
        [
            {"text": "a", "choices": ["b", LONG], "label": 0},
            {"text": "a", "choices": ["b", "c d", "e"], "label": 2},
        ],
        lambda *given: training_rows(*given[:2], max_length=given[2]),
        encoder=True,
    ),
    "ner": Case(
        "ner",
        [
            {"tokens": ["a"] * 20, "tags": ["I-x"] * 20},
            {"tokens": ["b", "c"], "tags": ["O", "B-x"]},
        ],
        read_tags,
        encoder=True,
    ),
    "question_answering": Case(
        "question_answering",
        [
            {
                "question": "a b c d e",
                "context": "b c " * 8,
                "answers": {"text": ["b c"], "answer_start": [0]},
            },
            {"question": "a", "context": "d", "answers": {"text": ["d"], "answer_start": [0]}},
        ],
        read_questions,
        encoder=True,
    ),
    "seq2seq": Case(
        "prompt_completion",
        [{"prompt": "a", "completion": "b c"}, {"prompt": LONG, "completion": "d"}],
        read_pairs,
        encoder=True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_second_start_reads_what_the_first_made(
    name, write, tmp_path, monkeypatch, tokenizer, bert_tokenizer
):
    case = CASES[name]
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    rows = load_rows(write("rows.jsonl", case.rows), kinds=(case.kind,)).rows
    reader = bert_tokenizer if case.encoder else tokenizer
    encoded, counts = case.read(reader, rows, case.limit)
    by_hand, same_counts = case.read(reader, list(rows), case.limit)  # rows without a name
    assert counts and len(encoded) and list(encoded) == list(by_hand) and counts == same_counts

    def not_there(key, *others):
        raise LookupError(key)

    monkeypatch.setattr(cache, "_made", not_there)
    again, counts_again = case.read(reader, rows, case.limit)
    assert list(again) == list(encoded) and counts_again == counts
    with pytest.raises(LookupError):
        case.read(reader, rows, case.limit + 1)
    with pytest.raises(LookupError):
        case.read(reader, rows.take(np.array([1, 0])), case.limit)
