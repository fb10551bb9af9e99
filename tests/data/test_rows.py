import json
import re
from functools import partial
from pathlib import Path

import pytest

from rlhf.data import rows
from rlhf.data.rows import (
    CHECKS,
    KINDS,
    check_row,
    normalise,
    recognise,
    serves,
    to_prompt,
    to_ranking,
)

USER = {"role": "user", "content": "Hi!"}
ASSISTANT = {"role": "assistant", "content": "Hello!"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_example_is_a_good_row_of_its_kind(kind):
    assert recognise(kind.example) is kind
    assert check_row(kind.example, kind) == []
    assert set(kind.columns) <= set(CHECKS)


def test_the_guide_shows_every_kind_with_its_example_and_recipes():
    guide = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    table = re.findall(
        r"^\| (\w+) \| `(\{.*\})` \| (.*) \|$", guide.read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = {kind: (json.loads(example), recipes.split(", ")) for kind, example, recipes in table}
    assert shown == {kind.name: (kind.example, list(kind.recipes)) for kind in KINDS.values()}


def test_the_most_specific_kind_is_recognised():
    assert recognise({"prompt", "chosen", "rejected", "id"}).name == "preference"
    assert recognise({"text", "label"}).name == "classification"
    assert recognise({"question", "answer"}) is None


def test_what_the_caller_accepts_decides_between_fitting_kinds():
    assert recognise({"text", "label"}, ["text"]).name == "text"
    assert recognise({"prompt", "messages"}, ["prompt"]).name == "prompt"
    assert recognise({"prompt", "messages"}, ["messages"]).name == "messages"
    assert serves("preference", ["ranking"]) == "ranking"
    assert serves("ranking", ["preference"]) is None


@pytest.mark.parametrize(
    ("kind", "row", "problems"),
    [
        ("text", {"text": " \n"}, [("text", "empty")]),
        ("text", {"text": "\0\0"}, [("text", "only NUL characters")]),
        ("text", {"text": "ab\0c"}, [("text", "NUL character at position 3")]),
        ("text", {"text": "a\ud800"}, [("text", "half a surrogate pair at position 2")]),
        ("text", {"text": float("nan")}, [("text", "a string is expected, NaN given")]),
        ("text", {"text": None}, [("text", "missing")]),
        (
            "prompt_completion",
            {"prompt": "", "completion": 3},
            [("prompt", "empty"), ("completion", "a string is expected, 3 given")],
        ),
        (
            "prompt",
            {"prompt": [{"role": "bot", "content": "x"}]},
            [("prompt", "message 0: unknown role 'bot', allowed: system, user, assistant")],
        ),
        (
            "prompt",
            {"prompt": [USER, ASSISTANT]},
            [("prompt", "ends with an assistant message: a prompt ends before the answer")],
        ),
        ("prompt", {"prompt": []}, [("prompt", "a list of messages is expected, [] given")]),
        (
            "messages",
            {"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "1"}]}]},
            [
                (
                    "messages",
                    "message 1: tool_calls: calls of tools cannot be learned here, [{'id': '1'}] given",
                )
            ],
        ),
        (
            "unpaired_preference",
            {"prompt": "a", "completion": "b", "label": "good"},
            [("label", "true or false is expected, 'good' given")],
        ),
        (
            "preference",
            {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
            [("score_rejected", "2 is above score_chosen, 1: are the two answers swapped?")],
        ),
        ("messages", {"messages": [USER]}, [("messages", "no assistant message to learn from")]),
        (
            "messages",
            {"messages": [USER, {**ASSISTANT, "content": ""}]},
            [("messages", "message 1: content: empty")],
        ),
        (
            "messages",
            {"messages": ["Hi!"]},
            [("messages", "message 0: role and content are expected, 'Hi!' given")],
        ),
        (
            "preference",
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            [("rejected", "the same text as chosen: such a pair says nothing")],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b", "c"], "ranks": [0]},
            [("ranks", "1 ranks for 2 completions: give each completion its rank")],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b"], "ranks": [0]},
            [("completions", "a list of at least 2 completions is expected, ['b'] given")],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b", ""], "ranks": [0, 1]},
            [("completions", "completion 1: empty")],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b", "c"], "ranks": [0, -1]},
            [("ranks", "a list of integers from 0 (the best) is expected, [0, -1] given")],
        ),
        (
            "ranking",
            {"prompt": "a", "completions": ["b", "c"], "ranks": [True, 0]},
            [("ranks", "a list of integers from 0 (the best) is expected, [True, 0] given")],
        ),
        (
            "classification",
            {"text": "a", "label": ["b", 0.5]},
            [
                (
                    "label",
                    "a string, a number, true or false, or a list of labels is expected, ['b', 0.5] given",
                )
            ],
        ),
        ("classification", {"text": "a", "label": ["b", ""]}, [("label", "empty")]),
        (
            "classification",
            {"text": "a", "label": ["1", 1]},
            [("label", "the label '1' appears twice in the list")],
        ),
        (
            "classification",
            {"text": "a", "label": float("inf")},
            [("label", "a number is expected, inf given")],
        ),
        (
            "classification",
            {"text": "a", "label": {}},
            [
                (
                    "label",
                    "a string, a number, true or false, or a list of labels is expected, {} given",
                )
            ],
        ),
        (
            "classification",
            {"text": "a", "label": float("nan")},
            [("label", "a number is expected, NaN given")],
        ),
    ],
)
def test_bad_rows_are_named_by_column_and_reason(kind, row, problems):
    assert check_row(row, KINDS[kind]) == problems


def test_ties_and_gaps_in_ranks_and_every_sort_of_label_are_good():
    assert (
        check_row(
            {"prompt": [USER], "completions": ["a", "b", "c"], "ranks": [0, 5, 0]}, KINDS["ranking"]
        )
        == []
    )
    assert all(
        check_row({"text": "a", "label": label}, KINDS["classification"]) == []
        for label in ("good", 0, False, 0.5, [], ["a", 1])
    )


def test_conversational_answers_become_strings():
    row = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [USER, ASSISTANT], "id": 7}
    assert normalise(row) == {
        "prompt": [USER],
        "chosen": "Hello!",
        "rejected": [USER, ASSISTANT],
        "id": 7,
    }
    assert normalise({"completions": [[ASSISTANT], "b"]}) == {"completions": ["Hello!", "b"]}


def test_openais_developer_and_parts_of_text_become_ours():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": parts},
            ASSISTANT,
        ]
    }
    assert normalise(row)["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "ab"},
        ASSISTANT,
    ]
    picture = [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]
    assert normalise({"messages": picture})["messages"] == picture
    assert "a string is expected" in check_row({"messages": picture}, KINDS["messages"])[0][1]


def test_a_conversation_that_the_assistant_opens_is_a_good_row():
    assert check_row({"messages": [ASSISTANT, USER, ASSISTANT]}, KINDS["messages"]) == []
    assert check_row({"prompt": [ASSISTANT, USER]}, KINDS["prompt"]) == []


def test_conversions_keep_extra_columns():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "id": 7}
    assert to_ranking(row) == {"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1], "id": 7}
    assert to_prompt(row) == {"prompt": "a", "id": 7}


@pytest.mark.parametrize(
    "messages", [[{"role": "user", "content": "q"}], [{"from": "gpt", "value": "[a]"}]]
)
@pytest.mark.parametrize("spell", [str, json.dumps, partial(json.dumps, indent=1)])
@pytest.mark.parametrize("column", ["prompt", "completion", "chosen", "messages", "completions"])
def test_messages_that_a_table_made_a_string_are_not_a_text(column, spell, messages):
    # As pandas writes a column of lists to a CSV file.
    text = spell(messages)
    value = text
    if column == "completions":
        value = ["a", text]
    assert "a list of messages as a string" in CHECKS[column](value)
    for other in ("[{}]", "[1, 2]", f"As JSON: {text}", '[{"name": "Ada"}]', '{"role": "user"}'):
        assert CHECKS["completion"](other) is None


@pytest.mark.parametrize("column", ["tokens", "choices"])
@pytest.mark.parametrize(
    "item", ["b", "", " ", "\u00a0", "\0", "b\0", "\0 ", "\ud800", "\n", 3, None]
)
def test_a_list_that_is_checked_at_once_is_checked_like_its_items(monkeypatch, column, item):
    values = ["é", item, "c"]
    at_once = rows.CHECKS[column](values)
    monkeypatch.setattr(rows, "_are_good_texts", lambda values: False)
    assert rows.CHECKS[column](values) == at_once
