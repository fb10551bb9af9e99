"""A scripted engine and a store in memory, for the tests of the pages."""

import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.serving.engine.requests import Limits, StreamEnd, TextChunk, Waiting


@dataclass(frozen=True)
class Facts:
    context: int = 128
    max_new_tokens: int = 127
    trained_turns: int | None = 1
    system_prompt: bool | None = False
    characters: str | None = "ASCII"
    stage: str = "ppo"
    created: str = "2026-11-27T10:00:00Z"
    metrics: dict = field(default_factory=dict)


class ScriptedEngine:
    """Answers "Hello **friend**" to anything but these questions.

    A text with "refuse" is refused, with "wait" waits in line and then for the model, with "slow" is answered slowly,
    with "crash" fails after some text, with "long" reaches the length limit. "say X" is answered with X.
    """

    def __init__(self, runs=("ppo · demo", "base · demo"), facts=None):
        self.runs = dict.fromkeys(runs, "nowhere")
        self.reward_runs = {"reward · demo": "nowhere"}
        self.limits = Limits()
        self.known = facts or Facts()
        self.requests = []
        self.stops: dict[str, threading.Event] = {}

    def facts(self, model):
        return self.known

    def stream(self, model, messages, settings, *, request=None, client=None):
        self.requests.append((model, messages, settings))
        question = messages[-1]["content"]
        if model not in self.runs:
            raise UserError(f"no model {model!r}")
        if "refuse" in question:
            raise UserError("your message has 99 tokens <b>; shorten it")
        return self._play(question, settings, request)

    def _play(self, question, settings, request):
        stop = self.stops[request] = threading.Event()
        if "wait" in question:
            yield Waiting(2)
            yield Waiting(0, loading=True)
        answer = question[4:] if question.startswith("say ") else "Hello **friend**"
        if "crash" in question:
            yield TextChunk("Half")
            raise RuntimeError("/secret/path")
        words = answer.split(" ") * (100 if "slow" in question else 1)
        tokens = 0
        for i, word in enumerate(words):
            if stop.is_set():
                yield StreamEnd(tokens, 40.4, "cancelled", 0, 5)
                return
            if "slow" in question:
                time.sleep(0.02)
            tokens += 1
            yield TextChunk(word if i == 0 else f" {word}")
        finish = "length" if "long" in question else "stop"
        seed = 5 if settings.seed is None else settings.seed
        yield StreamEnd(tokens, 40.4, finish, 2, seed)

    def best_of(self, model, reward_run, messages, settings, n, *, request=None, client=None):
        scored = []
        for i in range(n):
            completion = SimpleNamespace(text=f"Answer {i}", tokens=3, finish="stop", seed=i)
            scored.append((completion, 1.0 - i))
        return scored

    def score(self, reward_run, messages, completions):
        return [0.5] * len(completions)

    def cancel(self, request):
        if request not in self.stops:
            return False
        self.stops[request].set()
        return True

    def close(self):
        for stop in self.stops.values():
            stop.set()


class Feedback:
    """Keeps events in a list. folder: for the queue of prompts."""

    def __init__(self, folder=None):
        self.events = []
        self.folder = folder

    def all(self):
        return self.events

    def append(self, event):
        self.events.append(event)
        return event

    def annotator(self, name):
        return "a" * 16


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def service(engine):
    return make_service(engine)


def make_service(engine, feedback=None):
    encoders = SimpleNamespace(runs={})
    return SimpleNamespace(
        engine=engine,
        encoders=encoders,
        runs=Path("runs"),
        feedback=feedback,
        jobs=None,
        find=None,
        refresh=lambda: False,
    )


@pytest.fixture
def with_feedback(engine, tmp_path):
    return make_service(engine, Feedback(tmp_path))


class Server:
    """The page of a service on a free port of this machine, with /health next to it."""

    def __init__(self, service):
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from rlhf.serving.ui.page import CSS, build_page
        from rlhf.serving.ui.theme import theme

        app = FastAPI()
        app.get("/health")(lambda: {"status": "ok"})
        self.page = build_page(service)
        app = gr.mount_gradio_app(
            app,
            self.page,
            "/",
            theme=theme(),
            css=CSS,
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
        )
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def served():
    """Makes an engine with given runs and facts, a service around an engine, and a server of a service."""
    return SimpleNamespace(
        engine=ScriptedEngine, service=make_service, facts=Facts, feedback=Feedback, server=Server
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    from rlhf.feedback.store import Store

    service = make_service(ScriptedEngine(), Store(tmp_path_factory.mktemp("feedback")))
    server = Server(service)
    server.service = service
    yield server
    server.stop()


@pytest.fixture
def open_page(chromium, server):
    """Opens the page in a new profile: (page, errors, requests to other hosts)."""
    contexts = []

    def open_it(url=None, **options):
        options.setdefault("viewport", {"width": 1280, "height": 800})
        options.setdefault("locale", "en-US")
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.errors, page.abroad = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("dialog", lambda dialog: (page.errors.append("dialog"), dialog.dismiss()))
        address = url or server.url

        def note(request):
            if not request.url.startswith((address, "data:", "blob:")):
                page.abroad.append(request.url)

        page.on("request", note)
        page.goto(address)
        page.wait_for_selector("#chat-talk .talk")
        page.wait_for_selector("#chat-box textarea")
        return page

    yield open_it
    for context in contexts:
        context.close()
