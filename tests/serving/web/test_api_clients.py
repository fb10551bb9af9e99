"""Other people's clients and servers against ours, unchanged: `transformers chat`, `transformers serve`, and the docs."""

import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from rlhf.serving.engine.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.service import Service
from rlhf.serving.web.access import Access, keys_of_environment
from rlhf.serving.web.guard import Rules
from rlhf.serving.web.server import build_api

ROOT = Path(__file__).parents[3]
SCRIPTED = runpy.run_path(str(Path(__file__).with_name("scripted.py")))
ScriptedEngine, serving, wait_for = (
    SCRIPTED["ScriptedEngine"], SCRIPTED["serving"], SCRIPTED["wait_for"],
)  # fmt: skip
TRANSFORMERS = Path(sys.executable).with_name("transformers")
KEY = "a-key-of-enough-characters"
QUESTIONS = ("hi", "bye", "a", "hello there", "2*3*4")


def app_of(engine, access=None):
    return build_api(Service(engine, Encoders({}), Path("runs")), Rules(), access or Access())


@pytest.mark.slow
def test_transformers_chat_works_unchanged_with_a_key(tmp_path):
    engine = ScriptedEngine()
    # Its client refuses even this machine while the Hub is off.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": KEY,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with serving(app_of(engine, Access(keys_of_environment(KEY)))) as url:
        command = [TRANSFORMERS, "chat", "demo/ppo", url, "max_new_tokens=9", "do_sample=False"]
        done = subprocess.run(
            command, input="hi\nand you?\n!exit\n", text=True, capture_output=True, timeout=500,
            env=environment, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("one two three") == 2
    (first, settings, client), (second, _, _) = engine.asked
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert first == second[:1] and second[1]["content"] == "one two three"
    assert (settings.max_new_tokens, settings.temperature) == (9, 0) and client == "user key 1"


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers_serve(runs):
    folder = str(runs / "demo" / "ppo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = ["--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    peer = subprocess.Popen(
        [TRANSFORMERS, "serve", folder, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    theirs = f"http://127.0.0.1:{port}"
    engine = Engine({"ppo": folder, "base": str(runs / "demo" / "pretrain")})
    try:
        with serving(app_of(engine)) as ours:
            assert wait_for(lambda: is_up(theirs), 400)
            for question in QUESTIONS:
                assert greedy(ours, "ppo", question) == greedy(theirs, folder, question), question
    finally:
        peer.terminate()
        peer.wait()
        engine.close()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def greedy(url: str, model: str, question: str) -> tuple[str, str, int]:
    """(text, finish reason, tokens)."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": 20}
    # Its field temperature is ignored, and ours reads this one, too.
    body["generation_config"] = '{"do_sample": false}'
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=240).json()
    [choice] = answer["choices"]
    tokens = answer["usage"]["completion_tokens"]
    # Ours has no spaces at its ends, as in training.
    return choice["message"]["content"].strip(), choice["finish_reason"], tokens


# ---- docs/serving.md --------------------------------------------------------------------------------------------------


def examples(language: str) -> list[str]:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)


@pytest.fixture(scope="module")
def address():
    engine = ScriptedEngine({"ppo · demo": "x"}, {"reward · demo": "y"})
    service = Service(engine, FakeEncoders(), Path("runs"))
    with serving(build_api(service, Rules(), Access(keys_of_environment(KEY)))) as url:
        yield url


class FakeEncoders:
    runs = {"classification": {"classification · reviews": "x"}}

    def columns(self, kind, name):
        return ["text"]

    def predict(self, kind, name, row):
        return {"label": "good"}


def test_the_python_example_of_the_docs_runs(address, capsys, monkeypatch):
    [code] = examples("python")
    monkeypatch.setenv("RLHF_KEY", KEY)
    assert "http://127.0.0.1:7860" in code
    exec(code.replace("http://127.0.0.1:7860", address), {})
    printed = capsys.readouterr().out
    assert printed.count("one two three") == 2


def test_the_curl_examples_of_the_docs_run(address):
    commands = [
        command
        for block in examples("sh")
        for command in re.split(r"\n(?=curl)", block)
        if command.startswith("curl")
    ]
    assert len(commands) >= 5
    for command in commands:
        command = command.replace("http://127.0.0.1:7860", address)
        done = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=30,
            env=os.environ | {"RLHF_KEY": KEY},
        )
        assert done.returncode == 0 and done.stdout, (command, done.stderr)
        assert "error" not in done.stdout, (command, done.stdout)


def test_the_docs_name_every_flag_and_every_limit():
    from rlhf.commands.chat import make_parser
    from rlhf.serving.engine.requests import Limits
    from rlhf.serving.web.guard import BODY_BYTES

    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for action in make_parser("rlhf chat")._actions:
        for flag in action.option_strings:
            assert flag in ("-h", "--help") or f"`{flag}" in page, flag
    limits = Limits()
    numbers = [
        f"{limits.characters:,}", f"{limits.messages} |", f"| {limits.new_tokens:,}, and", f"| {limits.samples} |",
        f"{limits.running} and {limits.waiting}", f"| {limits.per_client} |", f"| {limits.seconds:.0f} s |",
        f"| {BODY_BYTES // 2**20} MB |",
    ]  # fmt: skip
    assert [number for number in numbers if number not in page] == []
    assert "RLHF_API_KEYS" in page
