"""An engine that answers by a script, for the tests of the HTTP side: no model, no waiting, every event under control."""

import threading
import time
import uuid
from contextlib import contextmanager

from rlhf.errors import UserError
from rlhf.serving.engine.requests import (
    Busy,
    Completion,
    Limits,
    StreamEnd,
    TextChunk,
    TokenLogprob,
    Waiting,
)

LONG = 200  # characters of a message that do not fit


class ScriptedEngine:
    """Answers "one two three" to everything; a message holds a command: "fail", "slow", "wait", "cut".

    room: requests that may run at once. running: names of those that run now.
    """

    def __init__(self, runs=None, reward_runs=None, *, room=100, text="one two three"):
        self.runs = runs or {"ppo · demo": "ppo", "base · demo": "base"}
        self.reward_runs = reward_runs or {"reward · demo": "reward"}
        self.limits = Limits()
        self.room, self.words = room, text.split(" ")
        self.running, self.lock = {}, threading.Lock()
        self.asked = []  # (messages, settings, client) of each request
        self.most = 0  # requests at once
        self.closed = False

    # ---- the interface

    def stream(self, model, messages, settings, *, request=None, client=None):
        command = self._check(model, messages, settings, client)
        return self._events(command, settings, request, self._enter(request))

    def sample(self, model, messages, settings, n, *, request=None, client=None):
        command = self._check(model, messages, settings, client)
        if n > self.limits.samples:
            raise UserError(f"n={n}: ask for 1 to {self.limits.samples} answers")
        name = self._enter(request)
        completions = []
        for i in range(n):
            text, tokens = "", 0
            for event in self._words(command, settings, name):
                text, tokens = text + event.text, tokens + 1
            finish = "cancelled" if self._stopped(name) else "stop"
            logprobs = (
                tuple(map(self._logprob, self.words)) if settings.logprobs is not None else None
            )
            completions.append(
                Completion(text + f" {i}" * (n > 1), tokens, finish, 7, 11, logprobs)
            )
        self._leave(name)
        return completions

    def score(self, reward_run, messages, completions):
        return [float(len(text)) for text in completions]

    def cancel(self, request):
        stop = self.running.get(request)
        if stop is not None:
            stop.set()
        return stop is not None

    def refresh(self, runs, reward_runs):
        self.runs, self.reward_runs = dict(runs), dict(reward_runs)

    def load_report(self):
        return {"running": len(self.running), "loaded": list(self.runs)}

    def close(self):
        self.closed = True

    # ---- the script

    def _check(self, model, messages, settings, client):
        text = messages if isinstance(messages, str) else messages[-1]["content"]
        self.asked.append((messages, settings, client))
        if len(text) > LONG:
            raise UserError(f"your message has {len(text)} tokens; this model reads {LONG}")
        if len(self.running) >= self.room:
            raise Busy("the line is full", retry_after=7)
        return text.strip()

    def _enter(self, request):
        name = request or uuid.uuid4().hex
        with self.lock:
            self.running[name] = threading.Event()
            self.most = max(self.most, len(self.running))
        return name

    def _leave(self, name):
        with self.lock:
            self.running.pop(name, None)

    def _stopped(self, name):
        return self.running[name].is_set()

    def _events(self, command, settings, request, name):
        try:
            if command == "wait":
                yield Waiting(2)
                yield Waiting(0, loading=True)
            tokens = 0
            for event in self._words(command, settings, name):
                tokens += 1
                yield event
            finish = "cancelled" if self._stopped(name) else "stop"
            yield StreamEnd(tokens, 100.0, finish, 3 if command == "cut" else 0, 11, 7)
        finally:
            self._leave(name)

    def _words(self, command, settings, name):
        words = self.words
        if command == "slow":
            words = words * 1000
        for i, word in enumerate(words):
            if command == "fail at once" or (command == "fail" and i == 1):
                self._leave(name)
                raise RuntimeError("/secret/path is broken")
            if command == "slow":
                time.sleep(0.05)
            if self._stopped(name):
                return
            if word in settings.stop:
                return
            logprobs = (self._logprob(word),) if settings.logprobs is not None else None
            yield TextChunk(word if i == 0 else f" {word}", logprobs)

    def _logprob(self, word):
        return TokenLogprob(word, -0.5, ((word, -0.5), ("other", -1.0)))


@contextmanager
def serving(app, **options):
    """The address of a real server. options: of uvicorn."""
    import socket

    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


def wait_for(condition, seconds=5.0):
    """True as soon as the condition holds, False after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
