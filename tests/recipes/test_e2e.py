"""The E2E rows: other values in facts and texts alike."""

import random

import pytest


@pytest.fixture
def e2e(recipe_module):
    return recipe_module("e2e")


def test_facts_and_texts_get_the_same_new_values(e2e):
    facts = (
        "name[The Mill], eatType[pub], food[Chinese], area[riverside], near[Raja Indian Cuisine]"
    )
    texts = ["The Mill is a pub near Raja Indian Cuisine.", "A Chinese pub: The Mill, riverside."]
    prompt, new = e2e.other_values(facts, texts, random.Random(3))
    slots = dict(e2e.SLOT.findall(prompt))
    assert "Mill" not in prompt + " ".join(new) and slots["area"] == "riverside"
    assert slots["name"] in new[0] and slots["name"] in new[1] and slots["near"] in new[0]
    assert slots["eatType"] in new[0] and slots["food"] in new[1]
    assert [len(e2e.SLOT.findall(text)) for text in (facts, prompt)] == [5, 5]


def test_a_value_that_no_text_has_stays(e2e):
    prompt, _ = e2e.other_values("name[The Mill], food[Chinese]", ["A place."], random.Random(0))
    assert prompt == "name[The Mill], food[Chinese]"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("Indian", "It is an Indian place. An Indian pub."),
        ("French", "It is a French place. A French pub."),
    ],
)
def test_articles_follow_the_new_value(e2e, new, expected):
    pattern = e2e.re.compile(r"\bEnglish\b")
    assert e2e.with_article(pattern, new, "It is an English place. An English pub.") == expected


def test_fast_food_is_said_once(e2e):
    pattern = e2e.re.compile(r"\bEnglish\b")
    text = e2e.with_article(pattern, "Fast food", "It serves English food.")
    assert text == "It serves Fast food."


def test_the_first_copy_is_the_row_itself_and_other_columns_stay(e2e):
    row = {"prompt": "name[Cotto]", "completions": ["Cotto.", "No."], "ranks": [0, 1]}
    rows = e2e.with_other_values([row], 3)
    assert rows[0] == row and len(rows) == 3
    for other in rows[1:]:
        assert other["ranks"] == [0, 1] and other["completions"][1] == "No."
        assert other["prompt"] == f"name[{other['completions'][0][:-1]}]"
