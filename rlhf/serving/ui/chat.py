"""The chat tab: talk to a run, retry, edit, continue, rate, and keep conversations in the browser.

This file builds and connects the components. What they show is made elsewhere: `chat_actions` (from a conversation to
screens), `transcript` (from a conversation to HTML), `settings_panel`, and `chat_api` (the endpoints for programs).

The open conversation is the value of the component `keeper`. Its script, chat.js, stores it in the browser, draws the
list of conversations, and turns clicks on the transcript into events. While an answer grows, only its own bubble is sent.
"""

import html
import json
import logging
import time
from collections.abc import Iterator
from functools import wraps
from pathlib import Path

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.service import Service
from rlhf.serving.ui import chat_actions, texts
from rlhf.serving.ui.answers import Caller
from rlhf.serving.ui.chat_actions import Asking, Screen, opened
from rlhf.serving.ui.chat_api import Requests, add_endpoints, exported, stop_all
from rlhf.serving.ui.chat_texts import TEXTS, script_texts
from rlhf.serving.ui.consent import consent_box, is_given
from rlhf.serving.ui.conversation import choose, from_json
from rlhf.serving.ui.settings_panel import model_picker, panel, read_controls
from rlhf.serving.ui.texts import label, language_of, told
from rlhf.serving.ui.transcript import Look, conversation_html, facts_html

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
CSS = (HERE / "chat.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "chat.js").read_text(encoding="utf-8")
# Questions to begin with, for a run that names none.
EXAMPLES = (
    "Can you tell me a joke?",
    "I had a terrible day",
    "What should I cook tonight?",
    "I can't fall asleep",
)
EXAMPLES_FILE = "examples.json"  # of a run: a list of questions
MOST_EXAMPLES = 6
EXAMPLE_LENGTH = 80
SCORES = ("score", "reward", "voice")  # in the name of a number that the picker shows


def build(service: Service, page: gr.Blocks) -> None:
    """Build the chat inside its tab."""
    texts.add_texts(TEXTS)
    # of this page, for its stop button
    requests = Requests()
    with gr.Row(elem_id="chat", equal_height=True):
        with gr.Column(elem_id="chat-side", scale=0, min_width=220):
            keeper = gr.HTML(
                None,
                html_template="<div class='side'></div>",
                js_on_load=SCRIPT,
                apply_default_css=False,
                words={"en": script_texts(0), "ko": script_texts(1)},
            )
        with gr.Column(elem_id="chat-main", scale=1, min_width=300):
            with gr.Row(elem_id="chat-bar"):
                gr.Button(label("chat.conversations"), elem_id="chat-open-side", min_width=0)
                # Their titles come when the page is opened: reading a model's facts takes a moment.
                names = [(name, name) for name in service.engine.runs]
                model = model_picker(service.engine, names)
                gr.Button(label("chat.settings"), elem_id="chat-open-settings", min_width=0)
            facts = gr.HTML(elem_id="chat-facts", apply_default_css=False, js_on_load=None)
            with gr.Column(elem_id="chat-thread"):
                talk = gr.HTML(elem_id="chat-talk", apply_default_css=False, js_on_load=None)
                live = gr.HTML(elem_id="chat-live", apply_default_css=False, js_on_load=None)
            notice = gr.HTML(
                "",
                html_template="<div role='status' class='notice'>${value}</div>",
                elem_id="chat-notice",
                apply_default_css=False,
                js_on_load=None,
            )
            with gr.Row(elem_id="chat-composer"):
                box = gr.Textbox(
                    label=label("chat.message"),
                    placeholder=label("chat.message.hint"),
                    elem_id="chat-box",
                    container=False,
                    lines=1,
                    max_lines=8,
                    scale=1,
                )
                send = gr.Button(
                    label("chat.send"), elem_id="chat-send", variant="primary", min_width=0, scale=0
                )
                stop = gr.Button(
                    label("chat.stop"), elem_id="chat-stop", min_width=0, scale=0, visible=False
                )
        with gr.Column(elem_id="chat-settings", scale=0, min_width=270):
            controls = [model, *panel(service.engine)]
            consent = None
            if service.feedback is not None:
                consent = consent_box(page, "chat-consent")
        download = gr.HTML(
            None, html_template="", js_on_load=DOWNLOAD, elem_id="chat-download", padding=False
        )
    wiring = Wiring(service, requests, consent)
    wiring.connect_answers(
        keeper, box, send, controls, [keeper, talk, live, notice, box, send, stop]
    )
    wiring.connect_others(page, keeper, talk, notice, stop, download, model)
    wiring.connect_model(page, model, controls, facts, keeper, talk)
    add_endpoints(service, requests)


# Saves {"name", "type", "text"} as a file, without the server.
DOWNLOAD = """
watch('value', () => {
  const file = props.value;
  if (!file) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([file.text], {type: file.type}));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
"""


# The box is emptied as the question leaves it: later, it may hold the next one.
EMPTY_BOX = """
(...values) => {
  const box = document.querySelector('#chat-box textarea');
  box.value = '';
  box.dispatchEvent(new Event('input', {bubbles: true}));
  return values;
}
"""


class Wiring:
    """Connects the components to the actions.

    Gradio passes gr.Request and gr.EventData by their annotations; the other arguments are the values of the inputs. A
    browser gets no gr.Error, whose notices would pile up over the page: the line above the box has the last one.
    consent: the box that allows to publish ratings, None where nothing is rated.
    """

    def __init__(self, service: Service, requests: Requests, consent: gr.Checkbox | None = None):
        self.service = service
        self.requests = requests
        self.consent = consent

    # ---- answers -------------------------------------------------------------------------------------------------

    def connect_answers(self, keeper, box, send, controls: list, outputs: list) -> None:
        """Events that make the model answer."""

        def on_send(request: gr.Request, kept, question, *settings):
            """Ask what is in the box."""
            yield from self.play(request, kept, settings, "ask", question)

        def on_example(request: gr.Request, event: gr.EventData, kept, *settings):
            yield from self.play(request, kept, settings, "ask", str(event.text))

        def on_edit(request: gr.Request, event: gr.EventData, kept, *settings):
            yield from self.play(request, kept, settings, "edit", event.node, str(event.text))

        def on_retry(request: gr.Request, event: gr.EventData, kept, *settings):
            yield from self.play(request, kept, settings, "retry", event.node)

        def on_proceed(request: gr.Request, event: gr.EventData, kept, *settings):
            yield from self.play(request, kept, settings, "proceed", event.node)

        streaming = {
            "outputs": outputs,
            "show_progress": "hidden",
            "api_visibility": "private",
            # Of the server's 40 threads some stay free for what must run while answers grow.
            "concurrency_limit": 32,
            "concurrency_id": "chat",
        }
        gr.on(
            [box.submit, send.click], on_send, [keeper, box, *controls], js=EMPTY_BOX, **streaming
        )
        inputs = [keeper, *controls]
        keeper.example(on_example, inputs, **streaming)
        keeper.edit(on_edit, inputs, **streaming)
        keeper.retry(on_retry, inputs, **streaming)
        keeper.proceed(on_proceed, inputs, **streaming)

    def play(self, request: gr.Request, kept, settings: tuple, action: str, *arguments) -> Iterator:
        """Run an action of `chat_actions` and yield the updates of the page."""
        language = language_of(request)
        look = self.look(language, settings[0])
        session = request.session_hash or ""
        name = self.requests.begin(session)
        shown = False  # Gradio wants at least one value from a generator
        try:
            # The browser sends it, so it is checked each time.
            conversation = opened(kept)
            caller = Caller(name, request.username or session)
            asking = Asking(read_controls(*settings), caller, language)
            screens = getattr(chat_actions, action)(self.service, conversation, *arguments, asking)
            for screen in screens:
                shown = True
                yield updates(screen, look)
        except UserError as error:
            shown = True
            yield updates(Screen(notice=html.escape(told(error, language)), live=""), look)
        finally:
            self.requests.end(session, name)
        if not shown:
            yield updates(Screen(), look)  # an empty message does nothing

    def look(self, language: str, model: str) -> Look:
        ratable = self.service.feedback is not None
        return Look(language, ratable, examples_of(self.service.engine, model))

    def drawn(self, request: gr.Request, conversation: dict, model: str) -> str:
        """HTML of a conversation in the language of the browser."""
        return conversation_html(conversation, self.look(language_of(request), model))

    # ---- the rest ------------------------------------------------------------------------------------------------

    def connect_others(self, page, keeper, talk, notice, stop, download, model) -> None:
        """Events that answer at once, also while an answer grows: they skip the queue."""
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

        def on_open(request: gr.Request, kept, model):
            """Draw the conversation that the browser opened."""
            return self.drawn(request, opened(kept), model), ""

        def on_pick(request: gr.Request, event: gr.EventData, kept, model):
            """Show another variant of a message."""
            conversation = opened(kept)
            chat_actions.node_of(conversation, event.node)
            conversation = choose(conversation, event.node)
            return conversation, self.drawn(request, conversation, model), ""

        def on_rate(request: gr.Request, event: gr.EventData, kept, model, agreed=False):
            who, reason = request.username or "", str(event.reason)
            conversation = chat_actions.rate(
                self.service, opened(kept), event.node, event.value, reason, who, is_given(agreed)
            )
            thanks = html.escape(texts.text("chat.thanks", language_of(request)))
            return conversation, self.drawn(request, conversation, model), thanks

        def on_bring(request: gr.Request, event: gr.EventData, kept, model):
            """Open an exported file."""
            conversation = from_json(event.content)
            return conversation, self.drawn(request, conversation, model), ""

        def on_export(request: gr.Request, event: gr.EventData, kept):
            language = language_of(request)
            conversation = opened(kept)
            kind = {"json": "application/json", "markdown": "text/markdown"}[event.form]
            ending = {"json": "json", "markdown": "md"}[event.form]
            return {
                "name": f"{file_name(conversation['title'])}.{ending}",
                "type": kind,
                "text": exported(conversation, event.form, language),
                "time": time.time(),  # the same file may be saved twice
            }

        def on_stop(request: gr.Request):
            stop_all(self.service, self.requests, request.session_hash)

        # chat.js triggers these.
        inputs, outputs = [keeper, model], [keeper, talk, notice]
        keeper.open(refusing(on_open, 2), inputs, outputs[1:], **at_once)
        keeper.pick(refusing(on_pick, 3), inputs, outputs, **at_once)
        boxes = [self.consent] if self.consent is not None else []
        keeper.rate(refusing(on_rate, 3), [*inputs, *boxes], outputs, **at_once)
        keeper.bring(refusing(on_bring, 3), inputs, outputs, **at_once)
        keeper.export(on_export, [keeper], [download], **at_once)
        keeper.halt(on_stop, None, None, **at_once)
        stop.click(on_stop, None, None, **at_once)
        page.unload(on_stop)  # the page was closed

    def connect_model(self, page, model, controls: list, facts, keeper, talk) -> None:
        """Follow the chosen model: its line of facts, longest answer, system prompt and examples."""
        engine = self.service.engine
        system, max_tokens = controls[1], controls[4]
        reward_model, best_of = controls[-2:]

        def on_model(request: gr.Request, model, max_tokens):
            # None where no run has finished yet.
            if model not in engine.runs:
                return gr.skip(), gr.skip(), gr.skip()
            known = engine.facts(model)
            line = facts_html(known, language_of(request))
            return line, longest_answer(known, max_tokens), system_box(known)

        def on_greeting(request: gr.Request, model, kept):
            """A model has its own examples."""
            conversation = opened(kept)
            if conversation["nodes"]:
                return gr.skip()
            return self.drawn(request, conversation, model)

        def on_page(request: gr.Request, model):
            """Models may have been added since the page was built."""
            self.service.refresh()
            if model not in engine.runs:
                model = next(iter(engine.runs), None)
            return gr.update(choices=model_choices(engine), value=model)

        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        change = {"inputs": [model, max_tokens], "outputs": [facts, max_tokens, system]}
        model.change(on_model, **change, **at_once)
        model.change(on_greeting, [model, keeper], talk, **at_once)
        loaded = page.load(on_page, [model], [model], **at_once)
        loaded.then(on_model, **change, **at_once)
        reward_model.change(
            lambda name: gr.update(visible=bool(name), value=1), reward_model, best_of, **at_once
        )


def refusing(handler, outputs: int):
    """The handler, whose refusal is the text of its last output, the line above the box. The others stay."""

    @wraps(handler)
    def guarded(request: gr.Request, *arguments):
        try:
            return handler(request, *arguments)
        except UserError as error:
            notice = html.escape(told(error, language_of(request)))
            return [*[gr.skip()] * (outputs - 1), notice]

    return guarded


# ---- from screens to updates -------------------------------------------------------------------------------------


def updates(screen: Screen, look: Look) -> list:
    """Values of keeper, talk, live, notice, box, send and stop."""
    keeper, talk = gr.skip(), gr.skip()  # not sent
    if screen.conversation is not None:
        keeper = screen.conversation
        talk = conversation_html(screen.conversation, look, screen.last)
    send = stop = gr.skip()
    if screen.busy is not None:
        send, stop = gr.update(visible=not screen.busy), gr.update(visible=screen.busy)
    # in the order of `outputs` in build
    values = [keeper, talk]
    for value in (screen.live, screen.notice, screen.box):
        values.append(gr.skip() if value is None else value)
    return [*values, send, stop]


def longest_answer(facts, chosen) -> dict:
    """The slider up to what the model keeps for an answer, however long the question is."""
    most = max(1, min(facts.max_new_tokens, facts.context // 2))
    return gr.update(maximum=most, value=min(chosen, most))


def system_box(facts) -> dict:
    """The system prompt, closed for a model that was trained without."""
    if facts.system_prompt is False:
        return gr.update(value="", interactive=False, placeholder=label("chat.system.none"))
    return gr.update(interactive=True, placeholder=label("chat.system.hint"))


def model_choices(engine) -> list[tuple[str, str]]:
    """(title, name) of each model. A title tells runs of one stage apart."""
    return [(model_title(name, engine.facts(name)), name) for name in engine.runs]


def model_title(name: str, facts) -> str:
    """The name, the day it was made, and its first score if it has one: `ppo · demo · 2026-11-27 · score 0.81`."""
    parts = [name]
    # Runs of one recipe differ by their day at least.
    if facts.created:
        parts.append(str(facts.created)[:10])
    for metric, value in facts.metrics.items():
        # Other numbers, such as counts of rows or the scores before the training, tell nobody how good a model is.
        if any(word in metric for word in SCORES) and not metric.endswith("_before"):
            parts.append(f"{metric.replace('_', ' ')} {value:.3g}")
            break
    return " · ".join(parts)


def examples_of(engine, model: str) -> list[str]:
    """Questions that the run names, else general ones. A file that is not a list of short texts is passed over."""
    # A Hub id has no folder: its file is not there.
    try:
        path = Path(str(engine.runs[model])) / EXAMPLES_FILE
        named = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError):
        return list(EXAMPLES)
    if not isinstance(named, list):
        return list(EXAMPLES)
    short = [text for text in named if isinstance(text, str) and 0 < len(text) <= EXAMPLE_LENGTH]
    return short[:MOST_EXAMPLES] or list(EXAMPLES)


def file_name(title: str) -> str:
    """A title as a name of a file on any system."""
    # Letters of any alphabet stay, separators of paths do not.
    kept = [character if character.isalnum() else "-" for character in title]
    words = "".join(kept).split("-")
    return "-".join(word for word in words if word)[:60] or "conversation"
