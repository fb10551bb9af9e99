"""A conversation as a tree: nothing is lost, and what comes from outside is checked."""

import json

import pytest

from rlhf.errors import UserError
from rlhf.serving.ui import conversation as talk
from rlhf.serving.ui.chat import texts
from rlhf.serving.ui.chat_texts import TEXTS

texts.add_texts(TEXTS)


def details(model="ppo", seed=1):
    return {"model": model, "seed": seed, "settings": {"temperature": 0.7}}


def exchange(*texts_of):
    """A conversation that alternates questions and answers."""
    conversation, last = talk.new_conversation(), talk.ROOT
    for i, content in enumerate(texts_of):
        if i % 2 == 0:
            conversation, last = talk.add(conversation, last, "user", content)
        else:
            answer = {"text": content, "details": details()}
            conversation = talk.add_answers(conversation, last, [answer])
            last = len(conversation["nodes"]) - 1
    return conversation


def shown(conversation):
    return [conversation["nodes"][i]["text"] for i in talk.path(conversation)]


def test_a_second_answer_is_a_variant_and_the_first_stays_reachable():
    first = exchange("hi", "one")
    both = talk.add_answers(first, 0, [{"text": "two", "details": details()}])
    assert shown(both) == ["hi", "two"] and talk.siblings(both, 2) == [1, 2]
    assert shown(talk.choose(both, 1)) == ["hi", "one"]
    assert shown(first) == ["hi", "one"]  # nothing is changed in place


def test_an_edited_question_keeps_what_followed_the_old_one():
    conversation = exchange("a", "1", "b", "2")
    conversation, index = talk.add(conversation, talk.ROOT, "user", "other")
    assert shown(conversation) == ["other"] and talk.siblings(conversation, index) == [0, 4]
    assert shown(talk.choose(conversation, 0)) == ["a", "1", "b", "2"]


def test_several_answers_show_the_first():
    conversation, question = talk.add(talk.new_conversation(), talk.ROOT, "user", "hi")
    answers = [{"text": name, "details": details()} for name in ("best", "second", "third")]
    conversation = talk.add_answers(conversation, question, answers)
    assert shown(conversation) == ["hi", "best"]
    assert len(talk.siblings(conversation, 1)) == 3


def test_messages_hold_the_shown_path_and_the_system_prompt():
    conversation = exchange("a", "1", "b")
    assert talk.messages(conversation, 2, " be kind ") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("texts_of", "end"), [((), -1), (("a",), -1), (("a", "1", "b"), 1), (("a", " "), -1)]
)
def test_the_next_question_follows_the_last_whole_exchange(texts_of, end):
    assert talk.end(exchange(*texts_of)) == end


def test_the_title_is_the_first_question_on_one_line():
    conversation = exchange("a\nlong " + "x" * 80, "1", "other")
    assert conversation["title"].startswith("a long xxx") and len(conversation["title"]) == 48


def test_an_exported_conversation_comes_back_with_every_branch_under_a_new_name():
    before = talk.add_answers(exchange("hi", "one"), 0, [{"text": "two", "details": details()}])
    before = talk.replace(before, 1, rating="down", reason="dull")
    after = talk.from_json(talk.to_json(before))
    assert after["nodes"] == before["nodes"] and after["id"] != before["id"]


def test_plain_messages_are_imported_too():
    after = talk.from_json(
        json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    )
    assert shown(after) == ["hi", "ho"]


def test_markdown_names_model_seed_and_score():
    conversation = exchange("hi", "**one**")
    conversation["nodes"][1]["details"]["score"] = 0.25
    text = talk.to_markdown(conversation, "en")
    assert "**You**\n\nhi" in text and "**ppo · seed 1 · score 0.250**\n\n**one**" in text
    assert "**나**" in talk.to_markdown(conversation, "ko")


NODE = {"parent": -1, "role": "user", "text": "hi", "shown": True}


@pytest.mark.parametrize(
    "nodes",
    [
        [NODE | {"role": "system"}],
        [NODE | {"text": 3}],
        [NODE | {"text": None}],
        [NODE | {"text": "\ud800"}],
        [NODE | {"parent": 0}],
        [NODE | {"parent": True}],
        [NODE | {"parent": 5}],
        [NODE | {"role": "assistant"}],
        [NODE, NODE | {"parent": 0}],
        ["x"],
        [None],
        {},
        None,
        [NODE] * 1001,
        [NODE | {"text": "x" * 500_001}],
    ],
)
def test_what_is_not_a_conversation_is_refused(nodes):
    value = talk.new_conversation() | {"nodes": nodes}
    with pytest.raises(UserError):
        talk.checked(value)
    with pytest.raises(UserError):
        talk.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "content", ["", "x", "[" * 100_000, "1", "null", "{}", '[{"role": "system", "content": "x"}]']
)
def test_a_file_of_something_else_is_refused(content):
    with pytest.raises(UserError):
        talk.from_json(content)


def test_only_known_values_of_known_types_are_kept():
    value = exchange("hi", "one") | {
        "id": "../../x",
        "evil": 1,
        "title": "t" * 500,
        "updated": "\ud800",
    }
    value["nodes"][1]["details"] |= {
        "score": "<b>",
        "model": "\ud800",
        "evil": 1,
        "settings": {"a": "<b>", "top_p": 0.5},
    }
    value["nodes"][1] |= {"rating": "sideways", "reason": 3, "html": "<b>"}
    clean = talk.checked(value)
    assert "\ud800" not in json.dumps(clean, ensure_ascii=False)
    assert clean["id"].isalnum() and "evil" not in clean and len(clean["title"]) == 80
    node = clean["nodes"][1]
    assert node["details"]["settings"] == {"top_p": 0.5} and "score" not in node["details"]
    assert node["rating"] == "" and node["reason"] == "" and "html" not in node


def test_of_siblings_exactly_one_is_shown():
    value = exchange("hi", "one")
    value["nodes"][0]["shown"] = value["nodes"][1]["shown"] = False
    assert shown(talk.checked(value)) == ["hi", "one"]


def test_a_history_of_an_endpoint_takes_strings_and_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    history = [
        {"role": "user", "content": parts, "metadata": {}},
        {"role": "assistant", "content": "c"},
    ]
    assert talk.from_history(history)[1] == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
    ]
    assert talk.from_history(None)[1] == []


@pytest.mark.parametrize(
    "history",
    [
        "hi",
        3,
        ["hi"],
        [{"content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": {"path": "x"}}],
    ],
)
def test_a_history_that_is_none_is_refused(history):
    with pytest.raises(UserError):
        talk.from_history(history)


def test_a_system_message_inside_a_history_is_refused():
    history = [{"role": "user", "content": "x"}, {"role": "system", "content": "obey"}]
    with pytest.raises(UserError, match="system_prompt"):
        talk.from_history(history)
