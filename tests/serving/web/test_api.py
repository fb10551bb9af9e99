"""The endpoints under /v1, asked by the openai client as anybody would, over a scripted engine and a real socket."""

import json
import runpy
import socket
import threading
from pathlib import Path

import httpx
import openai
import pytest
from starlette.requests import Request

from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web.access import Access
from rlhf.serving.web.api import client_name
from rlhf.serving.web.guard import Rules
from rlhf.serving.web.server import build_api

SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
ScriptedEngine, serving, wait_for = (
    SCRIPTED["ScriptedEngine"], SCRIPTED["serving"], SCRIPTED["wait_for"],
)  # fmt: skip
HI = [{"role": "user", "content": "hi"}]


def say(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def engine():
    return ScriptedEngine()


@pytest.fixture(scope="module")
def url(engine, tmp_path_factory):
    service = Service(engine, Encoders({}), tmp_path_factory.mktemp("runs"))
    with serving(build_api(service, Rules(), Access())) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client):
    def ask(messages=HI, **fields):
        return client.chat.completions.create(
            model=fields.pop("model", "demo/ppo"), messages=messages, **fields
        )

    return ask


# ---- the openai client ---------------------------------------------------------------------------------------------


def test_a_whole_answer(ask, engine):
    answer = ask()
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three")
    assert choice.finish_reason == "stop" and choice.logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert answer.model == "demo/ppo" and answer.seed == 11
    assert engine.asked[-1][0] == HI


def test_a_stream(ask):
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "one two three" and texts.count(" two") == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 10 and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_in_done_and_says_how_long_it_waits(url):
    body = {"model": "demo/ppo", "messages": say("wait"), "stream": True}
    text = httpx.post(f"{url}/v1/chat/completions", json=body).text
    assert text.startswith(": 2 ahead in line\n\n: the model is loaded\n\ndata: {")
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text  # not asked for
    last = json.loads(text.split("data: ")[-2])
    assert last["seed"] == 11 and last["messages_cut"] == 0


def test_several_answers_whole_and_streamed(ask):
    answer = ask(n=3)
    assert [choice.message.content for choice in answer.choices] == [
        "one two three 0", "one two three 1", "one two three 2",
    ]  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == 7 and answer.usage.completion_tokens == 9
    texts = ["", "", ""]
    for chunk in ask(n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_settings_reach_the_engine_under_their_names(ask, engine):
    ask(
        temperature=0.5, top_p=0.9, seed=3, max_tokens=17, stop=["a", "b"], logprobs=True, top_logprobs=2,
        extra_body={"top_k": 4, "repetition_penalty": 1.5},
    )  # fmt: skip
    settings = engine.asked[-1][1]
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.5, 0.9, 4)
    assert (settings.seed, settings.max_new_tokens, settings.stop) == (3, 17, ("a", "b"))
    assert (settings.repetition_penalty, settings.logprobs) == (1.5, 2)
    ask(max_completion_tokens=5, stop="x")
    assert engine.asked[-1][1].max_new_tokens == 5 and engine.asked[-1][1].stop == ("x",)
    ask()
    assert engine.asked[-1][1] == type(settings)()  # the page's own defaults


def test_stop_and_logprobs(ask):
    answer = ask(stop="three", logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == "one two"
    token = answer.choices[0].logprobs.content[0]
    assert (token.token, token.logprob, token.bytes) == ("one", -0.5, [111, 110, 101])
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [
        ("one", -0.5),
        ("other", -1),
    ]
    chunks = list(ask(logprobs=True, stream=True))
    tokens = [c.choices[0].logprobs.content[0].token for c in chunks if c.choices[0].logprobs]
    assert tokens == ["one", "two", "three"]


def test_content_in_parts_developer_and_a_continued_answer(ask, engine):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask([
        {"role": "developer", "content": "be kind"}, {"role": "user", "content": parts},
        {"role": "assistant", "content": "I"},
    ])  # fmt: skip
    assert engine.asked[-1][0] == [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"}, {"role": "assistant", "content": "I"},
    ]  # fmt: skip


def test_fields_that_change_nothing_are_ignored(ask):
    answer = ask(
        user="u", metadata={"a": "b"}, frequency_penalty=0, presence_penalty=0.0, tool_choice="none",
        response_format={"type": "text"}, parallel_tool_calls=False, service_tier="auto", store=False,
    )  # fmt: skip
    assert answer.choices[0].message.content == "one two three"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("modalities", ["audio"]),
        ("store", True),
        ("reasoning_effort", "high"),
    ],
)
def test_fields_that_change_the_answer_are_refused_by_name(ask, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(**{field: value})
    assert caught.value.param == field and caught.value.code == "unsupported_parameter"
    assert field in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"seed": 2**60}, "seed"),
        ({"top_logprobs": 50, "logprobs": True}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"extra_body": {"tempreature": 1}}, "tempreature"),
        ({"extra_body": {"generation_config": "{"}}, None),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None),
    ],
)
def test_a_bad_field_is_named(ask, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(**fields)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_a_picture_is_refused(ask):
    picture = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask([{"role": "user", "content": picture}])
    assert caught.value.param.startswith("messages[0].content")


def test_what_the_engine_refuses_is_a_400_before_the_stream_begins(ask):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="your message has 300 tokens"):
            ask(say("x" * 300), stream=stream)


def test_an_unknown_model_is_a_404_that_lists_the_others(ask, client):
    with pytest.raises(openai.NotFoundError, match="demo/ppo, demo/base") as caught:
        ask(model="nope")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ask(model="demo/reward")  # it cannot chat
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_models_have_ids_and_labels(client, ask):
    models = client.models.list().data
    assert [(model.id, model.kind, model.label) for model in models] == [
        ("demo/ppo", "chat", "ppo · demo"),
        ("demo/base", "chat", "base · demo"),
        ("demo/reward", "reward", "reward · demo"),
    ]
    assert client.models.retrieve("demo/base").label == "base · demo"
    assert client.models.retrieve("base · demo").id == "demo/base"
    assert ask(model="base · demo").choices[0].message.content  # by the name on the page


def test_plain_completions(client, engine):
    answer = client.completions.create(model="demo/base", prompt=["a", "b"], n=2, logprobs=1)
    assert [choice.text[-1] for choice in answer.choices] == ["0", "1", "0", "1"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 14  # both prompts, each once
    assert answer.choices[0].logprobs.tokens == ["one", "two", "three"]
    assert answer.choices[0].logprobs.text_offset == [0, 3, 6]
    assert [asked[0] for asked in engine.asked[-2:]] == ["a", "b"]  # raw text
    chunks = list(client.completions.create(model="demo/base", prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two three"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo/base", prompt="a", echo=True)
    assert caught.value.param == "echo"


def test_scores_of_a_reward_model(url):
    body = {"model": "demo/reward", "messages": HI, "completions": ["a", "bcd"]}
    answer = httpx.post(f"{url}/v1/score", json=body).json()
    assert [(entry["index"], entry["score"]) for entry in answer["data"]] == [(0, 1.0), (1, 3.0)]
    wrong = httpx.post(f"{url}/v1/score", json=body | {"model": "demo/ppo"})
    assert wrong.status_code == 404 and "demo/reward" in wrong.json()["error"]["message"]


# ---- errors and limits ---------------------------------------------------------------------------------------------


def test_an_exception_fails_that_request_only_and_its_text_stays_in_the_log(ask, caplog, engine):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(say("fail at once"))
    assert "secret" not in caught.value.message and "RuntimeError: /secret/path" in caplog.text
    name = caught.value.response.headers["x-request-id"]
    assert name in caught.value.message and name in caplog.text
    assert ask().choices[0].message.content == "one two three"
    assert not engine.running


def test_an_exception_in_the_middle_of_a_stream_is_an_event(ask):
    chunks = []
    with pytest.raises(openai.APIError, match="the server's log") as caught:
        for chunk in ask(say("fail"), stream=True):
            chunks.append(chunk)
    assert chunks[-1].choices[0].delta.content == "one" and "secret" not in str(caught.value)


def test_a_full_line_is_a_503_with_retry_after(ask, engine, monkeypatch):
    monkeypatch.setattr(engine, "room", 0)
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="the line is full") as caught:
            ask(stream=stream)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "7"


def test_health_answers_while_more_chats_run_than_asyncio_has_threads(url, engine):
    def chat():
        body = {"model": "demo/ppo", "messages": say("slow"), "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
            for _ in answer.iter_lines():
                if done.is_set():
                    return

    done = threading.Event()
    threads = [threading.Thread(target=chat) for _ in range(45)]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: len(engine.running) == 45, 20)
    assert httpx.get(f"{url}/health", timeout=5).json()["status"] == "ok"
    done.set()
    for thread in threads:
        thread.join()
    assert wait_for(lambda: not engine.running)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_gives_up_its_room_within_a_second(url, engine, stream):
    body = {"model": "demo/ppo", "messages": say("slow"), "stream": stream}
    content = json.dumps(body).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert wait_for(lambda: engine.running)
        if stream:
            assert b"200 OK" in connection.recv(1000)
    assert wait_for(lambda: not engine.running, 1.0)


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ({"client": ("127.0.0.1", 5)}, None),
        ({"client": ("10.0.0.5", 5)}, "address 10.0.0.5"),
        ({"client": ("10.0.0.5", 5), "rlhf.user": "mina"}, "user mina"),
        ({"client": None}, None),
    ],
)
def test_the_client_of_a_request_is_named_for_the_engine(scope, name):
    assert client_name(Request({"type": "http"} | scope)) == name
