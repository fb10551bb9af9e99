"""Malformed requests, made by schemathesis from our own OpenAPI: whatever is sent, the answer is never a 500."""

import runpy
from pathlib import Path

import httpx
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from rlhf.serving.catalogue import find_models
from rlhf.serving.engine.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web.access import Access
from rlhf.serving.web.guard import Rules
from rlhf.serving.web.server import build_api

SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
# path -> a model that may be asked there: with a made-up name nothing behind the name would be reached
PATHS = {
    "/v1/chat/completions": "demo/ppo",
    "/v1/completions": "demo/base",
    "/v1/score": "demo/reward",
    "/v1/classify": "demo/ner",
}
NASTY = (
    b"", b"{", b"null", b"[]", b"0", b'"x"', b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b'{"model": NaN}',
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"\\ud800": 1}', b'{"model": "\\ud800"}', b'{"model": "demo/ppo", "model": 1}', b'{"model": "\\u0000"}',
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "seed": 1' + b"0" * 5000 + b"}",
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "logit_bias": {"a": ' + b"[" * 500 + b"}}",
    b'{"model": "demo/ppo", "messages": [{"role": "user", "content": "hi"}], "generation_config": "' + b"[" * 9000 + b'"}',
)  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    service = Service(SCRIPTED["ScriptedEngine"](), Encoders({}), tmp_path_factory.mktemp("runs"))
    return build_api(service, Rules(hosts=("testserver",)), Access())


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, raise_server_exceptions=True)


@pytest.fixture(scope="module")
def real_app(tmp_path_factory):
    """Over models instead of a script."""
    root = tmp_path_factory.mktemp("served")
    runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))["make_runs"](root)
    models = find_models(root)
    engine = Engine(models["causal"], reward_runs=models["reward"])
    yield build_api(Service(engine, Encoders({}), root), Rules(hosts=("testserver",)), Access())
    engine.close()


def bodies(app, path: str, mode: GenerationMode):
    """A strategy of requests to an endpoint: valid ones, or ones that break the schema somewhere."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    return schema[path]["POST"].as_strategy(generation_mode=mode)


def send(client, case) -> httpx.Response:
    """Like a client: as JSON, whatever the body is."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = body | {"model": PATHS[case.path]}
        if case.path.endswith("completions") and "max_tokens" not in body:
            body["max_tokens"] = 3  # a real model would take its time
    if isinstance(body, bytes):
        return client.post(case.path, content=body)
    try:
        return client.post(case.path, json=body, headers={"content-type": "application/json"})
    except (TypeError, ValueError):  # not a JSON value
        return client.post(case.path, content=repr(body).encode(errors="replace"))


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert (
            error["message"]
            and error["type"]
            and error.keys() == {"message", "type", "param", "code"}
        )


def fuzz(app, client, path: str, mode: GenerationMode, count: int) -> set[int]:
    """Send so many requests; returns the statuses that came back."""
    statuses = set()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count < 1000,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=bodies(app, path, mode))
    def one(case):
        answer = send(client, case)
        statuses.add(answer.status_code)
        check(answer)

    one()
    return statuses


@pytest.mark.parametrize("path", PATHS)
def test_malformed_bodies_are_never_a_500(app, client, path):
    assert 400 in fuzz(app, client, path, GenerationMode.NEGATIVE, 6)


def test_valid_bodies_are_answered(app, client):
    assert 200 in fuzz(app, client, "/v1/score", GenerationMode.POSITIVE, 12)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_ten_thousand_bodies_are_never_a_500(real_app, path, mode):
    fuzz(real_app, TestClient(real_app), path, mode, 1250)


@pytest.mark.parametrize("path", [*PATHS, "/load_model", "/login"])
@pytest.mark.parametrize("number", range(len(NASTY)))
def test_nasty_bodies_are_never_a_500(client, path, number):
    headers = {"content-type": "application/json"}
    answer = client.post(path, content=NASTY[number], headers=headers)
    assert answer.status_code < 500
    assert client.post(path, content=NASTY[number]).status_code < 500


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]),
    path=st.text(max_size=30),
)
def test_any_path_is_never_a_500(client, method, path):
    from urllib.parse import quote

    answer = client.request(method, "/v1/" + quote(path, safe="/?=&", errors="replace"))
    assert answer.status_code < 500
