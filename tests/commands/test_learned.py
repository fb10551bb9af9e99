"""What validate says is learned, and which part of a row it marks."""

import pytest

from rlhf.commands.learned import learned_part, show_row
from rlhf.data.rows import KINDS

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c\nd"},
    {"role": "assistant", "content": "e"},
]


@pytest.mark.parametrize(
    ("kind", "row", "lines"),
    [
        (
            "messages",
            {"messages": TURNS},
            ["user: a", "assistant: [[b]]", "user: c\\nd", "assistant: [[e]]"],
        ),
        (
            "prompt_completion",
            {"prompt": TURNS[:3], "completion": "e"},
            ["user: a", "assistant: b", "user: c\\nd", "assistant: [[e]]"],
        ),
        (
            "preference",
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            ["user: a", "better: [[b]]", "worse: [[c]]"],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 0]},
            ["user: a", "rank 0: [[c]]", "rank 1: [[b]]"],
        ),
        (
            "unpaired_preference",
            {"prompt": "a", "completion": "b", "label": False},
            ["user: a", "assistant (bad): b"],
        ),
        ("prompt", {"prompt": "a"}, ["user: a"]),
        ("text", {"text": "a b"}, ["text: [[a b]]"]),
        ("classification", {"text": "a", "label": "x"}, ["text: a", "label: [[x]]"]),
        (
            "ner",
            {"tokens": ["a", "b"], "tags": ["B-x", "O"]},
            ["tokens: a b", "tags: [[B-x O]]"],
        ),
        ("question", {"question": "a", "context": "b"}, ["question: a", "context: b"]),
    ],
)
def test_the_learned_part_of_a_row_is_marked(kind, row, lines):
    assert show_row(row, kind) == lines


def test_with_a_tokenizer_the_ids_are_decoded(tokenizer):
    (line,) = show_row({"messages": TURNS, "id": 1}, "messages", tokenizer)
    learned = [part.split("]]")[0] for part in line.split("[[")[1:]]
    assert learned == ["b <eos>", "e <eos>"]
    assert line.count("<|user|>") == 2 and "c" in line


def test_long_rows_are_cut_and_rows_that_do_not_encode_say_why(plain_tokenizer):
    tokenizer = plain_tokenizer
    (line,) = show_row({"prompt": "a " * 400, "completion": "b"}, "prompt_completion", tokenizer)
    assert line.endswith("tokens more")
    assert len(show_row({"text": "a" * 999}, "text")[0]) < 300
    tokenizer.eos_token = None
    (line,) = show_row({"prompt": "a", "completion": "b"}, "prompt_completion", tokenizer)
    assert "cannot be encoded: the tokenizer" in line and "no end-of-text token" in line


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_who_learns_what(kind):
    part = learned_part(kind)
    assert part == "nothing: predict reads it" or any(
        recipe.split()[0] in part for recipe in KINDS[kind].recipes
    )
    assert show_row(KINDS[kind].example, kind)
