"""From a request to its answers: pace of the updates, reward scores, best-of-n, continuing. Knows nothing of Gradio."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rlhf.errors import UserError
from rlhf.serving.engine.requests import StreamEnd, TextChunk, Waiting
from rlhf.serving.ui.conversation import SETTINGS
from rlhf.serving.ui.settings_panel import Controls

if TYPE_CHECKING:  # it needs torch
    from rlhf.serving.engine.engine import Engine

SECONDS = 0.05  # between two updates of the growing answer
CHARACTERS = (
    100_000  # a growing answer of this length waits a second more: each update renders all of it
)


@dataclass(frozen=True)
class Caller:
    """The one who asks. request: name by which the answer can be stopped. client: for the engine's limit per client."""

    request: str
    client: str


@dataclass(frozen=True)
class Progress:
    """An answer under way: its text so far; waiting: its place in line; samples: number of answers asked for."""

    text: str = ""
    waiting: Waiting | None = None
    samples: int = 1


@dataclass(frozen=True)
class Done:
    """answers: [{"text", "details"}], the best first. problem: why the reward model gave no score, or ""."""

    answers: list[dict]
    problem: str = ""


def begin(
    engine: "Engine", messages: list[dict], controls: Controls, caller: Caller
) -> Iterator[Progress | Done]:
    """Start the answer to `messages`. A last message of the assistant is continued.

    A bad request raises UserError here, before the first event.
    """
    # Of a continued answer there is nothing to choose from: its beginning is fixed.
    if controls.best_of > 1 and messages[-1]["role"] == "user":
        return _best_of(engine, messages, controls, caller)
    events = engine.stream(
        controls.model,
        messages,
        controls.settings,
        request=caller.request,
        client=caller.client,
    )
    return _one(engine, messages, controls, events)


def _one(engine: "Engine", messages: list[dict], controls: Controls, events) -> Iterator:
    text = ""
    for event in events:
        # A request may also wait in mid-answer, when the engine makes room.
        if isinstance(event, Waiting):
            yield Progress(text, event)
        elif isinstance(event, TextChunk):
            text += event.text
            yield Progress(text)
        elif isinstance(event, StreamEnd):
            details = details_of(controls, event)
            details["speed"] = round(event.tokens_per_second, 1)
            details["cut"] = event.messages_cut
            problem = _add_score(engine, messages, controls, text, details)
            yield Done([{"text": text, "details": details}], problem)


def _add_score(engine: "Engine", messages: list[dict], controls: Controls, text, details) -> str:
    """Put the reward model's score into the details. Returns the problem, if there is one: the answer itself is fine."""
    if not controls.reward_model or not text.strip():
        return ""
    try:
        # The reward model reads whole answers only.
        question, answer = messages, text
        if messages[-1]["role"] == "assistant":  # continued
            question, answer = messages[:-1], messages[-1]["content"] + text
        [score] = engine.score(controls.reward_model, question, [answer])
    except UserError as error:
        return str(error)
    details["score"] = score
    details["reward_model"] = controls.reward_model
    return ""


def _best_of(
    engine: "Engine", messages: list[dict], controls: Controls, caller: Caller
) -> Iterator:
    yield Progress(samples=controls.best_of)  # best_of itself tells nothing until it is done
    scored = engine.best_of(
        controls.model,
        controls.reward_model,
        messages,
        controls.settings,
        controls.best_of,
        request=caller.request,
        client=caller.client,
    )
    answers = []
    for completion, score in scored:
        details = details_of(controls, completion)
        details["score"] = score
        details["reward_model"] = controls.reward_model
        answers.append({"text": completion.text, "details": details})
    yield Done(answers)


def details_of(controls: Controls, end) -> dict:
    """The details that are kept with an answer. end: its StreamEnd or Completion."""
    settings = asdict(controls.settings)
    # The seed is kept on its own: one that was drawn is not in the settings.
    return {
        "model": controls.model,
        "seed": end.seed,
        "settings": {name: settings[name] for name in SETTINGS},
        "system": controls.system,
        "tokens": end.tokens,
        "finish": end.finish,
    }


def paced(
    events: Iterable, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress | Done]:
    """Pass on at most some 20 updates a second. What is not text passes at once."""
    last = None  # time of the last text that was passed on
    for event in events:
        if isinstance(event, Progress) and event.text and last is not None:
            pause = SECONDS + len(event.text) / CHARACTERS
            # What is passed over is part of the next text.
            if clock() - last < pause:
                continue
        if isinstance(event, Progress) and event.text:
            last = clock()
        yield event
