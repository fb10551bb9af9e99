"""The endpoints of the chat for programs: each action under a name, with named parameters in the order of the panel.

They take the conversation as a plain list of messages and give it back with the answer. A refusal is an error for the
client, with the reason. The page has its own events, which draw what these return.
"""

import uuid
from collections.abc import Iterator
from contextlib import closing

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.service import Service
from rlhf.serving.ui import answers
from rlhf.serving.ui.answers import Caller, Done, Progress
from rlhf.serving.ui.chat_actions import check_length, store_rating
from rlhf.serving.ui.conversation import (
    from_history,
    from_json,
    messages,
    path,
    to_json,
    to_markdown,
)
from rlhf.serving.ui.endpoints import REQUIRED, expose
from rlhf.serving.ui.settings_panel import parameters, read_controls
from rlhf.serving.ui.texts import Refusal, language_of

HISTORY = {"history": (list | None, None)}


class Requests:
    """Names of the requests under way of each session, so that `stop` finds them. A session may have several."""

    def __init__(self):
        self.names: dict[str, set[str]] = {}

    def begin(self, session: str) -> str:
        name = f"{session}-{uuid.uuid4().hex}"
        self.names.setdefault(session, set()).add(name)
        return name

    def end(self, session: str, name: str) -> None:
        names = self.names.get(session, set())
        names.discard(name)
        # Sessions that have ended must not pile up.
        if not names:
            self.names.pop(session, None)

    def of(self, session: str) -> list[str]:
        return list(self.names.get(session, ()))


def add_endpoints(service: Service, requests: Requests) -> None:
    """Inside a page: add the endpoints."""
    engine = service.engine
    # name -> (type, default), the same for each endpoint that answers
    controls = parameters(engine)
    # shared with the page's own events
    streaming = {"concurrency_limit": 32, "concurrency_id": "chat"}

    def send(request: gr.Request, message, history, *settings) -> Iterator[dict]:
        """Answer a message. Yields the growing answer; the last item has its details."""
        prompt = begin_history(history, message, settings, service)
        yield from run(service, requests, request, prompt, settings)

    def retry(request: gr.Request, history, *settings) -> Iterator[dict]:
        """Answer the last question of the history again."""
        prompt = without_answer(plain(history, settings))
        yield from run(service, requests, request, prompt, settings)

    def edit(request: gr.Request, index, message, history, *settings) -> Iterator[dict]:
        """Ask the question at `index` of the history in other words. What followed it is dropped."""
        prompt = begin_history(up_to(history, index), message, settings, service)
        yield from run(service, requests, request, prompt, settings)

    def proceed(request: gr.Request, history, *settings) -> Iterator[dict]:
        """Continue the answer at the end of the history."""
        prompt = plain(history, settings)
        if not prompt or prompt[-1]["role"] != "assistant":
            raise Refusal("chat.error.no_question")
        yield from run(service, requests, request, prompt, settings)

    def stop(request: gr.Request) -> bool:
        """Stop the answers of this session. Returns whether there was one."""
        return stop_all(service, requests, request.session_hash)

    def rate(request: gr.Request, history, value, reason, model, seed, consent) -> bool:
        """Keep what you think of the answer at the end of the history: value is up or down. consent: to publish it."""
        prompt = from_history(history)[1]
        if len(prompt) < 2 or prompt[-1]["role"] != "assistant":
            raise Refusal("chat.error.no_question")
        details = {"model": model, "seed": seed, "consent": consent}
        # The last message is what is rated, the others are its prompt.
        *prompt, answer = prompt
        answer = answer["content"]
        store_rating(service, prompt, answer, details, value, reason, request.username or "", "api")
        return True

    def model_facts(model) -> dict:
        """The limits of a model: context in tokens, trained turns, system prompt, characters."""
        return facts_of(engine, model)

    def export_conversation(request: gr.Request, history, form) -> str:
        """The history as a file's text: form is json or markdown."""
        return exported(from_history(history)[0], form, language_of(request))

    def import_conversation(content) -> list:
        """The messages of an exported file's text."""
        return to_history(from_json(content))

    model = {"model": controls["model"]}
    question = {"message": (str, REQUIRED)}
    index = {"index": (int, REQUIRED)}
    rating = {"value": (str, REQUIRED), "reason": (str, "")}
    form = {"form": (str, "markdown")}
    content = {"content": (str, REQUIRED)}
    history = {"history": (list, REQUIRED)}
    seed = {"seed": (int | None, None)}
    consent = {"consent": (bool, False)}
    expose(send, question | HISTORY | controls, dict, **streaming)
    expose(retry, history | controls, dict, **streaming)
    expose(edit, index | question | history | controls, dict, **streaming)
    expose(proceed, history | controls, dict, api_name="continue", **streaming)
    expose(stop, {}, bool, queue=False)
    expose(rate, history | rating | model | seed | consent, bool)
    expose(model_facts, model, dict)
    expose(export_conversation, history | form, str)
    expose(import_conversation, content, list)


# ---- what the endpoints do ---------------------------------------------------------------------------------------


def run(
    service: Service, requests: Requests, request: gr.Request, prompt: list[dict], settings: tuple
) -> Iterator[dict]:
    """Yield {"text", "history"} while the answer grows, and its details at the end."""
    controls = read_controls(*settings)
    session = request.session_hash or ""
    name = requests.begin(session)
    try:
        caller = Caller(name, request.username or session)
        # Raises for a bad request, which becomes the client's error.
        events = answers.begin(service.engine, prompt, controls, caller)
        with closing(events):
            for event in answers.paced(events):
                yield frame(event, prompt)
    finally:
        requests.end(session, name)


def frame(event: Progress | Done, prompt: list[dict]) -> dict:
    """One item of the stream. An item without "finish" is not the last."""
    if isinstance(event, Progress):
        waiting = event.waiting
        item = {"text": event.text, "finish": None}
        if waiting is not None:
            item |= {"ahead": waiting.ahead, "loading": waiting.loading}
        return item
    # best-of-n gives several, the best first
    first, *others = event.answers
    item = {"text": first["text"], **first["details"]}
    item["history"] = with_answer(prompt, first["text"])
    if others:
        item["others"] = [{"text": other["text"], **other["details"]} for other in others]
    if event.problem:
        item["problem"] = event.problem
    return item


def with_answer(prompt: list[dict], answer: str) -> list[dict]:
    """The history after an answer, without the system prompt. A last answer is continued."""
    history = [dict(message) for message in prompt if message["role"] != "system"]
    if history[-1]["role"] == "assistant":
        history[-1]["content"] += answer
        return history
    return [*history, {"role": "assistant", "content": answer}]


def begin_history(history, message, settings: tuple, service: Service) -> list[dict]:
    """The messages of a question after a history."""
    if not isinstance(message, str) or not message.strip():
        raise Refusal("chat.error.empty")
    check_length(service, message)
    return [*plain(history, settings), {"role": "user", "content": message.strip()}]


def plain(history, settings: tuple) -> list[dict]:
    """The history as messages, the system prompt first."""
    system = settings[1]  # second in `parameters`
    return from_history(history, system if isinstance(system, str) else "")[1]


def without_answer(prompt: list[dict]) -> list[dict]:
    """The messages up to the last question."""
    while prompt and prompt[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    if not prompt or prompt[-1]["role"] != "user":
        raise Refusal("chat.error.no_question")
    return prompt


def up_to(history, index) -> list:
    """The history before the question at `index`."""
    if type(index) is not int or not isinstance(history, list) or not 0 <= index < len(history):
        raise Refusal("chat.error.no_message", number=index)
    if not isinstance(history[index], dict) or history[index].get("role") != "user":
        raise Refusal("chat.error.no_message", number=index)
    return history[:index]


def stop_all(service: Service, requests: Requests, session: str | None) -> bool:
    """Stop the requests of a session."""
    stopped = False
    for name in requests.of(session or ""):
        stopped = service.engine.cancel(name) or stopped
    return stopped


def facts_of(engine, model: str) -> dict:
    """The facts of a served model, without its path on the server."""
    if model not in engine.runs:
        raise UserError(f"no model {model!r}: choose one of {', '.join(engine.runs)}")
    facts = engine.facts(model)
    names = ("context", "trained_turns", "system_prompt", "characters", "stage", "created")
    return {name: getattr(facts, name) for name in names}


def exported(conversation: dict, form: str, language: str) -> str:
    if form == "json":
        return to_json(conversation)
    if form == "markdown":
        return to_markdown(conversation, language)
    raise Refusal("chat.error.form")


def to_history(conversation: dict) -> list[dict]:
    """The shown messages of a conversation as a plain list."""
    shown = path(conversation)  # the other branches stay in the file
    if not shown:
        return []
    return messages(conversation, shown[-1])
