"""The actions of the chat: plain functions from a conversation to screens. Knows nothing of Gradio.

Each action yields `Screen`s: the parts of the page that change. A refused action gives the conversation back as it was
and the text back to the box, so nothing refused is ever part of a conversation.
"""

import html
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from rlhf.errors import UserError
from rlhf.serving.service import Service
from rlhf.serving.ui import answers
from rlhf.serving.ui.answers import Caller, Done, Progress
from rlhf.serving.ui.conversation import (
    add,
    add_answers,
    before,
    checked,
    end,
    messages,
    new_conversation,
    path,
    replace,
)
from rlhf.serving.ui.settings_panel import Controls
from rlhf.serving.ui.texts import Refusal, text, told
from rlhf.serving.ui.transcript import live_html

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Screen:
    """Changes of the page; None leaves a part as it is.

    conversation: to show and to keep. last: show it up to this message only.
    live: HTML of the growing answer. notice: HTML of the line above the box. box: text of the box.
    busy: an answer is under way.
    """

    conversation: dict | None = None
    last: int | None = None
    live: str | None = None
    notice: str | None = None
    box: str | None = None
    busy: bool | None = None


@dataclass(frozen=True)
class Asking:
    """A request: its settings, its caller, and the language of what is written back."""

    controls: Controls
    caller: Caller
    language: str


def opened(conversation: dict | None) -> dict:
    """The conversation that the browser sends; a new one if it has none."""
    if conversation is None or conversation == "":
        return new_conversation()
    return checked(conversation)


def ask(
    service: Service, conversation: dict, question: str, asking: Asking, parent: int | None = None
) -> Iterator[Screen]:
    """Ask a question after message `parent`, by default at the end. An empty one does nothing."""
    if not question or not question.strip():
        return
    # The engine counts the whole conversation; this is for a message that is too long by itself.
    check_length(service, question)
    if parent is None:
        parent = end(conversation)
    # The question joins a copy, which is dropped if the engine refuses it.
    asked, index = add(conversation, parent, "user", question.strip())
    yield from answer(service, asked, index, asking, original=conversation, question=question)


def check_length(service: Service, question: str) -> None:
    """Refusal for a message that alone has more characters than a request may have."""
    limit = service.engine.limits.characters
    if len(question) > limit:
        raise Refusal("chat.error.long", count=len(question), limit=limit)


def edit(
    service: Service, conversation: dict, index: int, question: str, asking: Asking
) -> Iterator[Screen]:
    """Ask a question in other words. The old one with its answers stays, one step back."""
    node = node_of(conversation, index, "user")
    yield from ask(service, conversation, question, asking, node["parent"])


def retry(service: Service, conversation: dict, index: int, asking: Asking) -> Iterator[Screen]:
    """Answer again the question that message `index` is or answers. The new answer is one more variant."""
    node = node_of(conversation, index)
    if node["role"] == "assistant":
        index = node["parent"]
    yield from answer(service, conversation, index, asking, original=conversation)


def proceed(service: Service, conversation: dict, index: int, asking: Asking) -> Iterator[Screen]:
    """Continue an answer where it ended."""
    node = node_of(conversation, index, "assistant")
    yield from answer(
        service, conversation, node["parent"], asking, original=conversation, continued=index
    )


def node_of(conversation: dict, index, role: str | None = None) -> dict:
    """A message of the conversation; Refusal if there is none of this role."""
    nodes = conversation["nodes"]
    # It comes from the page: -1 would be the last message.
    if type(index) is not int or not 0 <= index < len(nodes):
        raise Refusal("chat.error.no_message", number=index)
    if role is not None and nodes[index]["role"] != role:
        raise Refusal("chat.error.no_message", number=index)
    return nodes[index]


def answer(
    service: Service,
    conversation: dict,
    index: int,
    asking: Asking,
    *,
    original: dict,
    question: str | None = None,
    continued: int | None = None,
) -> Iterator[Screen]:
    """Answer the question `index`, or continue the answer `continued` to it.

    original: the conversation to show again if the request is refused. question: the text for the box then.
    """
    controls, language = asking.controls, asking.language
    last = index if continued is None else continued
    # The growing answer is drawn below the question, also when an answer to it is there already.
    begun = "" if continued is None else conversation["nodes"][continued]["text"]
    progress = Progress()
    done = None
    try:
        # Raises for a bad request, before the question is shown.
        events = answers.begin(
            service.engine, messages(conversation, last, controls.system), controls, asking.caller
        )
        live = live_html(controls.model, progress, language, begun)
        yield Screen(conversation, index, live, notice="", busy=True)
        with closing(events):
            for event in answers.paced(events):
                if isinstance(event, Done):
                    done = event
                    continue
                progress = event
                yield Screen(live=live_html(controls.model, progress, language, begun))
    # Refused late, for example because the model could not be loaded.
    except UserError as error:
        notice = html.escape(told(error, language))
        yield Screen(original, live="", notice=notice, box=question, busy=False)
        return
    except Exception:
        # The message may hold paths of the server, so it goes to the log only.
        logger.exception("the answer of %s failed", controls.model)
        done = broken(controls, progress.text)
        notice = html.escape(text("chat.crashed", language))
    else:
        notice = notice_of(done, language)
    conversation = finished(conversation, index, done, continued)
    yield Screen(conversation, live="", notice=notice, busy=False)


def broken(controls: Controls, so_far: str) -> Done:
    """The part that there is of an answer that broke off."""
    if not so_far:
        return Done([])
    return Done([{"text": so_far, "details": {"model": controls.model, "finish": "failed"}}])


def notice_of(done: Done | None, language: str) -> str:
    """HTML of the line above the box after an answer."""
    if done is not None and done.problem:
        return html.escape(text("chat.no_score", language, problem=done.problem))
    if done is None or stopped_early(done):
        return html.escape(text("chat.stopped_early", language))
    return ""


def stopped_early(done: Done) -> bool:
    if not done.answers:
        return True
    first = done.answers[0]
    return not first["text"].strip() and first["details"].get("finish") == "cancelled"


def finished(conversation: dict, index: int, done: Done | None, continued: int | None) -> dict:
    """The conversation with its new answers."""
    if done is None or stopped_early(done):
        return conversation
    # a variant, or several of best-of-n
    if continued is None:
        return add_answers(conversation, index, done.answers)
    old, new = conversation["nodes"][continued], done.answers[0]
    # The seed of the first part repeats the answer up to where it was continued.
    details = {**old["details"], **new["details"], "seed": old["details"].get("seed")}
    if details["seed"] is None:
        details["seed"] = new["details"].get("seed")
    tokens = old["details"].get("tokens") or 0
    details["tokens"] = tokens + (new["details"].get("tokens") or 0)
    return replace(conversation, continued, text=old["text"] + new["text"], details=details)


def last_question(conversation: dict) -> int:
    """The last question that is shown."""
    for index in reversed(path(conversation)):
        if conversation["nodes"][index]["role"] == "user":
            return index
    raise Refusal("chat.error.no_question")


# ---- thumbs ------------------------------------------------------------------------------------------------------


def rate(
    service: Service,
    conversation: dict,
    index: int,
    value: str,
    reason: str,
    who: str,
    consent: bool = False,
) -> dict:
    """Keep what somebody thinks of an answer. Returns the conversation with the thumb.

    who: name of the person, of which the store keeps a hash; "" for nobody. consent: it may be published.
    """
    node = node_of(conversation, index, "assistant")
    details = node["details"]
    prompt = messages(conversation, before(conversation, index)[-2], details.get("system") or "")
    rated = details | {"consent": consent}
    store_rating(service, prompt, node["text"], rated, value, reason, who)
    return replace(conversation, index, rating=value, reason=reason)


def store_rating(
    service: Service,
    prompt: list[dict],
    completion: str,
    details: dict,
    value: str,
    reason: str,
    who: str,
    source: str = "app",
) -> None:  # noqa: PLR0913
    """Append a Rating to the feedback store. details: {"model", "settings", "seed"} of the answer, and {"consent"}."""
    if service.feedback is None:
        raise Refusal("chat.error.no_feedback")
    if value not in ("up", "down"):
        raise Refusal("chat.error.rating")
    # Only a service that collects feedback needs these.
    from rlhf.feedback.events import Rating
    from rlhf.feedback.models import model_used

    # A model that is gone has no weights to name, and a made-up name must not reach the store.
    name = details.get("model") or ""
    if name not in service.engine.runs:
        raise Refusal("chat.error.rated_model", model=name)
    service.feedback.append(
        Rating(
            messages=prompt,
            completion=completion,
            model=model_used(name, service.engine.runs[name]),
            settings=details.get("settings") or {},
            seed=details.get("seed"),
            value=value,
            # a sentence or two: nobody reads more of a thumb
            reason=(reason or "").strip()[:1000],
            annotator=service.feedback.annotator(who) if who else "",
            source=source,
            consent=details.get("consent") is True,
        )
    )
