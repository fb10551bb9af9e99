"""The running service: a real server on a free port, a client that streams an answer, and the errors of app.py."""

import runpy
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from gradio_client import Client
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.runs.record import RunRecord
from rlhf.serving.catalogue import find_models
from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.server import build_app, check_host
from rlhf.serving.ui.tasks import IDLE
from rlhf.tasks.classification.predictor import ClassificationPredictor

ROOT = Path(__file__).parents[2]
# system, temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed
GREEDY = ("", 0, 1, 0, 30, 1, "")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    runpy.run_path(str(ROOT / "tests" / "serving" / "conftest.py"))["make_runs"](root)
    return root


def save_encoder(folder, cls, tokenizer, recipe: str, **config):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = cls(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **sizes, **config)
    )
    save(model, tokenizer, folder)
    RunRecord(recipe, status="done").save(folder)


@pytest.fixture(scope="module")
def encoder_runs(tmp_path_factory, bert_tokenizer):
    root = tmp_path_factory.mktemp("encoders")
    labels = {0: "O", 1: "B-x", 2: "I-x"}
    windows = {"max_length": 24, "stride": 4, "max_answer_length": 2}
    save_encoder(
        root / "c",
        BertForSequenceClassification,
        bert_tokenizer,
        "classification",
        trained_pairs=False,
    )
    save_encoder(root / "t", BertForTokenClassification, bert_tokenizer, "ner", id2label=labels)
    save_encoder(
        root / "r",
        BertForQuestionAnswering,
        bert_tokenizer,
        "question_answering",
        reader_windows=windows,
    )
    return root


@contextmanager
def serving(app):
    """The address of a real server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def url(runs):
    with serving(build_app(Engine(find_models(runs)["causal"]), Encoders({}))) as address:
        yield address


@pytest.fixture
def app_exit(capsys):
    """Exit code and error line of app.py with these arguments."""
    main = runpy.run_path(str(ROOT / "app.py"))["main"]

    def run(*args):
        return main(list(args)), capsys.readouterr().err

    return run


def test_a_client_streams_an_answer(url):
    client = Client(url, verbose=False)
    job = client.submit("hi", [], "ppo · demo", *GREEDY, api_name="/send")
    _, history, status = job.result(timeout=60)
    answers = [out[1][-1]["content"][0]["text"] for out in job.outputs() if len(out[1]) == 2]
    assert history[-1]["role"] == "assistant"
    assert answers[-1] == "Hello \N{GRINNING FACE} friend"
    assert len(set(answers)) > 2 and all(answers[-1].startswith(answer) for answer in answers)
    assert "tokens/s" in status


def test_the_conversation_goes_on_with_another_model(url):
    client = Client(url, verbose=False)
    turns = [("user", "hi"), ("assistant", "Hello")]
    history = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    _, history, status = client.predict(
        "bye", history, "base · demo", "", 0, 1, 0, 2, 1, "", api_name="/send"
    )
    assert [turn["role"] for turn in history[:3]] == ["user", "assistant", "user"]
    assert "base · demo" in status


def test_health_models_and_names(runs):
    app = build_app(Engine(find_models(runs)["causal"]), Encoders({}))
    client = TestClient(app, base_url="http://127.0.0.1:7860")
    assert client.get("/health").json()["models"] == 2
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["ppo · demo", "base · demo"]
    page = client.get("/")
    assert page.status_code == 200 and "RLHF Chat" in page.text
    assert "googleapis" not in page.text and "cdnjs" not in page.text
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_a_client_asks_each_encoder(encoder_runs):
    encoders = Encoders(find_models(encoder_runs), characters=30)
    with serving(build_app(Engine({}), encoders)) as address:
        client = Client(address, verbose=False)
        head, bars = client.predict("classification · c", "a b", "", api_name="/classification")
        ours = ClassificationPredictor(encoder_runs / "c").predict([{"text": "a b"}])[0]
        assert (
            ours["label"] in head
            and bars["label"] == ours["label"]
            and len(bars["confidences"]) == 2
        )
        _, pieces, table = client.predict("ner · t", "a b c", api_name="/ner")
        assert "".join(piece["token"] for piece in pieces) == "a b c"
        assert len(table["data"]) == sum(
            piece["class_or_confidence"] is not None for piece in pieces
        )
        head, pieces, table = client.predict(
            "question_answering · r", "a", "b c d", api_name="/question_answering"
        )
        assert len(table["data"]) > 1 and "score" in head
        head, bars = client.predict(
            "classification · c", "a" * 31, "", api_name="/classification"
        )  # no box to hold it back
        assert head == IDLE and not bars


def test_models_say_what_they_are(runs, encoder_runs):
    models = find_models(encoder_runs) | find_models(runs)
    chat = models.pop("causal")
    client = TestClient(build_app(Engine(chat), Encoders(models)), base_url="http://127.0.0.1:7860")
    kinds = {model["id"]: model["kind"] for model in client.get("/v1/models").json()["data"]}
    assert kinds == {
        "ppo · demo": "chat", "base · demo": "chat", "classification · c": "classification", "ner · t": "ner",
        "question_answering · r": "question_answering",
    }  # fmt: skip
    assert client.get("/health").json()["models"] == 5
    page = client.get("/")
    assert "RLHF Models" in page.text and "googleapis" not in page.text and "cdnjs" not in page.text


def test_only_this_machine_is_served():
    check_host("localhost")
    with pytest.raises(UserError, match="--host 0.0.0.0"):
        check_host("0.0.0.0")


def test_app_without_runs_says_what_to_do(tmp_path, app_exit):
    code, error = app_exit("--runs", str(tmp_path / "none"))
    assert code == 2 and error.count("\n") == 1 and "make demo" in error
    assert error.startswith(f"app.py: no finished run in {tmp_path / 'none'}")


def test_app_refuses_other_machines_and_other_folders(runs, app_exit):
    code, error = app_exit("--host", "0.0.0.0")
    assert code == 2 and "ssh -L" in error
    code, error = app_exit(str(runs / "demo" / "reward"))
    assert code == 2 and "holds a reward model, which cannot be tried here" in error


def test_an_error_names_the_command_that_was_run(tmp_path, capsys):
    from rlhf.__main__ import main as command

    assert command(["chat", "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("rlhf chat: no finished run") and "give a folder: rlhf chat RUN" in error
    )
