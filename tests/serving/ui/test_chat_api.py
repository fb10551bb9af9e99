"""The endpoints of the chat, through Gradio's own client: names, refusals as errors, and plain histories."""

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

HISTORY = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello **friend**"}]
SETTINGS = [
    "model", "system_prompt", "temperature", "top_p", "max_tokens", "seed", "top_k", "repetition_penalty",
    "reward_model", "best_of",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url, verbose=False)


def test_every_action_is_an_endpoint_with_named_parameters(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = {}
    for name, endpoint in endpoints.items():
        # Those of the other tabs are looked at in their own tests.
        if name.startswith(("/compare_", "/rank_", "/data_")):
            continue
        names[name] = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    assert names == {
        "/send": ["message", "history", *SETTINGS],
        "/retry": ["history", *SETTINGS],
        "/edit": ["index", "message", "history", *SETTINGS],
        "/continue": ["history", *SETTINGS],
        "/stop": [],
        "/rate": ["history", "value", "reason", "model", "seed", "consent"],
        "/model_facts": ["model"],
        "/export_conversation": ["history", "form"],
        "/import_conversation": ["content"],
    }


def test_send_gives_the_answer_its_details_and_the_history(client):
    result = client.predict("hi", seed=7, api_name="/send")
    assert result["text"] == "Hello **friend**" and result["history"] == HISTORY
    assert (result["model"], result["seed"], result["finish"]) == ("ppo · demo", 7, "stop")
    following = client.predict(
        message="say more", history=result["history"], model="base · demo", api_name="/send"
    )
    assert following["history"][2:] == [
        {"role": "user", "content": "say more"},
        {"role": "assistant", "content": "more"},
    ]


def test_the_answer_streams_and_the_line_is_told(client):
    outputs = client.submit("wait", api_name="/send")
    outputs.result()
    items = outputs.outputs()
    assert items[0]["ahead"] == 2 and items[1]["loading"] is True
    assert items[0]["finish"] is None and items[-1]["finish"] == "stop"


def test_retry_edit_and_continue(client):
    assert client.predict(HISTORY, api_name="/retry")["history"] == HISTORY
    edited = client.predict(0, "say ho", HISTORY, api_name="/edit")["history"]
    assert [message["content"] for message in edited] == ["say ho", "ho"]
    continued = client.predict(HISTORY, api_name="/continue")["history"]
    assert len(continued) == 2 and continued[1]["content"].startswith("Hello **friend**Hello")


def test_best_of_gives_every_answer(client):
    result = client.predict("hi", best_of=3, reward_model="reward · demo", api_name="/send")
    assert result["score"] == 1.0 and [other["text"] for other in result["others"]] == [
        "Answer 1",
        "Answer 2",
    ]


SYSTEM_INSIDE = [*HISTORY, {"role": "system", "content": "obey"}]


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("/send", {"message": "refuse"}, "99 tokens"),
        ("/send", {"message": "  "}, "Write a message"),
        ("/send", {"message": 3}, "Write a message"),
        ("/send", {"message": "hi", "history": SYSTEM_INSIDE}, "system_prompt"),
        ("/send", {"message": "hi", "history": "hi"}, "list of messages"),
        ("/send", {"message": "hi", "history": [{"role": "user", "content": 3}]}, "text"),
        ("/send", {"message": "hi", "temperature": 99}, "temperature=99"),
        ("/send", {"message": "hi", "seed": "abc"}, "whole number, such as 42"),
        ("/send", {"message": "hi", "model": "nope"}, "no model 'nope'"),
        ("/send", {"message": "hi", "best_of": 2}, "reward model"),
        ("/retry", {"history": []}, "no question"),
        ("/continue", {"history": HISTORY[:1]}, "no question"),
        ("/edit", {"index": 1, "message": "x", "history": HISTORY}, "no message 1"),
        ("/edit", {"index": 7, "message": "x", "history": HISTORY}, "no message 7"),
        ("/rate", {"history": HISTORY, "value": "meh"}, "up or down"),
        ("/model_facts", {"model": "nope"}, "no model 'nope'"),
        ("/export_conversation", {"history": HISTORY, "form": "exe"}, "json or markdown"),
        ("/import_conversation", {"content": "{}"}, "not a conversation"),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(client, name, arguments, reason):
    with pytest.raises(AppError, match=reason):
        client.predict(**arguments, api_name=name)


def test_a_failure_is_an_error_without_details(client, caplog):
    with pytest.raises(AppError) as failure:
        client.predict("crash", api_name="/send")
    assert "failed while answering" in str(failure.value) and "secret" not in str(failure.value)
    assert "/secret/path" in caplog.text


def test_stop_ends_the_answers_of_this_client_only(client, server):
    other = Client(server.url, verbose=False)
    mine, theirs = (some.submit("slow", api_name="/send") for some in (client, other))
    while len(mine.outputs()) < 2:
        pass
    assert client.predict(api_name="/stop") is True
    assert mine.result()["finish"] == "cancelled"
    assert not theirs.done()
    other.predict(api_name="/stop")
    theirs.result()
    assert client.predict(api_name="/stop") is False


def test_export_and_import_are_inverse(client):
    content = client.predict(HISTORY, "json", api_name="/export_conversation")
    assert client.predict(content, api_name="/import_conversation") == HISTORY
    assert "**You**" in client.predict(HISTORY, api_name="/export_conversation")


def test_facts_say_no_path_of_the_server(client):
    facts = client.predict("base · demo", api_name="/model_facts")
    assert facts["context"] == 128 and facts["trained_turns"] == 1 and "path" not in facts


def test_what_only_the_page_calls_is_not_offered(server):
    public = {fn.api_name for fn in server.page.fns.values() if fn.api_visibility == "public"}
    assert "on_send" not in public and "send" in public
