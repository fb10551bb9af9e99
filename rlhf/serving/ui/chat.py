"""The chat tab: talk to a run, stop it, retry, edit a message, and compare runs on the same conversation.

Not included: likes and rankings, best-of-n with the reward model, two models side by side. The history is kept in the
browser. It is the list of messages that gr.Chatbot shows. The handlers are plain functions of the engine and the
history; only `build_chat` and what follows it builds Gradio components.
"""

import html
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.requests import SamplingSettings, StreamEnd, TextChunk
from rlhf.serving.service import Service

if TYPE_CHECKING:  # it needs torch
    from rlhf.serving.engine import Engine

logger = logging.getLogger(__name__)

EXAMPLES = (
    "Can you tell me a joke?",
    "I had a terrible day",
    "What should I cook tonight?",
    "I can't fall asleep",
    "How do I make new friends?",
)
DEFAULTS = SamplingSettings()  # the engine's own, so that the panel and the API agree


# ---- handlers ----------------------------------------------------------------------------------------------------


def content_text(content) -> str:
    """The text of a message in Gradio's forms: a string, a dict with "text", or a list of these."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(content_text(part) for part in content)
    return content.get("text", "")  # a file has no text


def to_messages(history: list[dict], system: str) -> list[dict]:
    """The messages for the engine: the system prompt, if there is one, then the history as plain text."""
    messages = []
    if system and system.strip():
        messages.append({"role": "system", "content": system.strip()})
    for message in history:
        # Gradio adds keys of its own, such as metadata.
        messages.append({"role": message["role"], "content": content_text(message["content"])})
    return messages


def question_of(history: list[dict], index: int) -> tuple[list[dict], str]:
    """The question that message `index` belongs to, as (history before it, its text)."""
    for i in range(min(index, len(history) - 1), -1, -1):
        if history[i]["role"] == "user":
            return history[:i], content_text(history[i]["content"])
    raise UserError("there is no question to retry: write a message first")


def read_settings(
    temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed
) -> SamplingSettings:
    """Settings from the side panel. An empty seed is None."""
    if seed is not None and not str(seed).strip():
        seed = None
    return SamplingSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=whole_number(top_k),
        max_new_tokens=whole_number(max_new_tokens),
        repetition_penalty=repetition_penalty,
        seed=whole_number(seed),
    )


def whole_number(value):
    """An int if the value is one in another type: sliders give floats, text boxes strings. Else the value as it is."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value  # SamplingSettings refuses it with a message


def answer(
    engine: "Engine",
    history: list[dict],
    question: str,
    model: str,
    system: str,
    settings: SamplingSettings,
    request: str,
) -> Iterator[tuple[list[dict], str]]:
    """Yield (history, status) while the answer grows. The question appears at once, the status at the end."""
    if not question or not question.strip():  # the engine would refuse it with a longer message
        raise UserError("write a message first")
    history = [*history, {"role": "user", "content": question.strip()}]
    # Checks the request, so that a bad one is refused before the question is shown.
    events = engine.stream(model, to_messages(history, system), settings, request=request)
    yield history, ""
    text = ""
    for event in events:
        if isinstance(event, TextChunk):
            text += event.text
            yield [*history, {"role": "assistant", "content": text}], ""
        elif text.strip():
            answered = [*history, {"role": "assistant", "content": text}]
            yield answered, status_line(model, event)
        else:
            yield history, status_line(model, event, empty=True)  # no empty bubble


def status_line(model: str, end: StreamEnd, *, empty: bool = False) -> str:
    """The line under an answer, as HTML: model, length, speed, seed, and why the answer ended or messages were cut."""
    parts = [
        f"<b>{html.escape(model)}</b>",  # the name comes from a folder, which may be called anything
        plural(end.tokens, "token"),
        f"{end.tokens_per_second:.0f} tokens/s",
        f"seed {end.seed}",
    ]
    note = finish_note(end.finish, empty)
    if note:
        parts.append(note)
    line = " &middot; ".join(f"<span>{part}</span>" for part in parts)
    if end.messages_cut:
        verb = "was" if end.messages_cut == 1 else "were"
        line += (
            f"<div class='notice'>The {plural(end.messages_cut, 'oldest message')} {verb} not read: "
            "the conversation is longer than those that this model was trained on.</div>"
        )
    return f"<div class='status-line'>{line}</div>"


def finish_note(finish: str, empty: bool) -> str:
    """Why the answer ended, if that is worth saying."""
    if finish == "cancelled":
        return "stopped before the first word" if empty else "stopped"
    if empty:
        return "an empty answer: try again"
    if finish == "length":
        return "reached the length limit"
    return ""


def plural(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


def reply(
    engine: "Engine",
    history: list[dict],
    text: str,
    controls: tuple,
    request: str,
    *,
    refused_history: list[dict] | None = None,
    start_update: dict | None = None,
    refused_update: dict | None = None,
) -> Iterator[tuple[dict, list[dict], str]]:
    """Yield updates of the text box, the history and the status while an answer grows; errors become notices.

    controls: model, system prompt and the arguments of `read_settings`.
    request: name of the request, by which `stop` finds it.
    refused_history: history to show if the question is refused; by default `history`.
    start_update: further changes of the text box at the start.
    refused_update: further changes of the text box if the question is refused.
    """
    model, system, *sampling = controls
    shown, status = history, ""
    if refused_history is not None:
        shown = refused_history
    box = gr.update(submit_btn=False, stop_btn=True, **(start_update or {}))
    end_update = refused_update or {}
    try:
        settings = read_settings(*sampling)
        for shown, status in answer(engine, history, text, model, system, settings, request):
            yield box, shown, status
            # From here on the text box belongs to the user, who may be typing the next message.
            box = gr.skip()
            end_update = {}
    except UserError as error:
        gr.Warning(html.escape(str(error)))
    except Exception:
        # The message may hold paths of the server, so it goes to the log only.
        logger.exception("the answer of %s failed", model)
        gr.Warning("The model failed while answering. See the server's log for the reason.")
    yield gr.update(submit_btn=True, stop_btn=False, **end_update), shown, status


# ---- wiring ------------------------------------------------------------------------------------------------------

CSS = """
#talk {gap: 10px;}
#conversation {border-radius: 16px;}
#conversation .message {font-size: 1rem; line-height: 1.55; box-shadow: none;}
#conversation .bot.message {border-color: transparent; background: var(--neutral-100);}
.dark #conversation .bot.message {background: var(--neutral-800);}
#conversation .user.message {
  border-color: transparent; background: color-mix(in srgb, var(--primary-500) 16%, transparent);
}
#conversation .message-content .prose {opacity: 1;}
#conversation .message-content .prose * {color: var(--body-text-color);}
#conversation .bot.message, #conversation .user.message {border-radius: 16px; padding: 9px 15px;}
#conversation .icon-button-wrapper {border: none; box-shadow: none; background: transparent; opacity: 0.6;}
#conversation .icon-button-wrapper:hover, #conversation .icon-button-wrapper:focus-within {opacity: 1;}
#conversation .placeholder-content {display: flex; flex-direction: column; justify-content: center; gap: 6px;}
#conversation .placeholder {flex: 0 0 auto; height: auto; text-align: center;}
#conversation .examples {
  display: flex; flex-wrap: wrap; justify-content: center; gap: 8px; width: 100%; max-width: 560px; padding: 8px;
  flex: 0 0 auto; margin: 0 auto;
}
#conversation .example {
  width: auto; min-height: 0; max-width: 100%; padding: 8px 15px; border-radius: 999px; font-size: 0.92rem;
}
#conversation .example:hover {border-color: var(--primary-500); color: var(--primary-600);}
#status {min-height: 2.2rem; padding: 0 10px !important;}
#status .html-container {padding: 6px 0;}
#status .status-line, #status .status-line span {font-size: 0.82rem; color: var(--body-text-color-subdued);}
#status .status-line b {font-weight: 600; color: var(--body-text-color);}
#status .notice {margin-top: 2px; color: var(--primary-700);}
.dark #status .notice {color: var(--primary-300);}
#question {border-radius: 16px; padding: 8px 12px;}
#question textarea {font-size: 1rem; line-height: 1.5; background: transparent;}
#question .submit-button, #question .stop-button {
  background: var(--primary-600); color: white; border-radius: 50%; width: 34px; height: 34px;
}
#panel {gap: 12px;}
/* Gradio draws the arrow of a dropdown over the end of a long name. */
.wrap-inner:has(> .secondary-wrap input[role="combobox"]) {padding: 4px;}
.secondary-wrap input[role="combobox"] {padding-right: 20px; text-overflow: ellipsis;}
.secondary-wrap .icon-wrap {right: 2px;}
#panel .gr-accordion .form {border: none; box-shadow: none;}
#panel .gr-accordion .form > .block {padding: 8px 0;}
#welcome h2 {margin: 0; font-size: 1.25rem; font-weight: 600;}
#welcome p {margin: 4px 0 0; color: var(--body-text-color-subdued);}
"""

WELCOME = (
    "<div id='welcome'><h2>What is on your mind?</h2><p>Pick a line or write your own.</p></div>"
)


def build(service: Service, page: gr.Blocks) -> None:
    """Build the chat inside a page. Every action is a named endpoint: send, retry, edit, undo, clear, example, stop."""
    engine = service.engine
    with gr.Row(equal_height=False, scale=1):
        # On a narrow screen the columns stack, the conversation first.
        with gr.Column(scale=7, min_width=320, elem_id="talk"):
            chatbot = conversation()
            status = gr.HTML(elem_id="status", padding=False)
            question = gr.Textbox(
                elem_id="question",
                placeholder="Write a message",
                show_label=False,
                lines=1,
                max_lines=8,
                submit_btn=True,
                autofocus=True,
                max_length=engine.limits.characters,
            )
        with gr.Column(scale=3, min_width=260, elem_id="panel"):
            controls = side_panel(engine)
    connect(engine, page, question, chatbot, status, controls)


def conversation() -> gr.Chatbot:
    return gr.Chatbot(
        elem_id="conversation",
        show_label=False,
        height="64vh",
        min_height=320,
        layout="bubble",
        placeholder=WELCOME,
        examples=[{"text": text} for text in EXAMPLES],
        editable="user",
        buttons=["copy", "copy_all"],
        feedback_options=None,
        # A model's text may hold markup, links or scripts: show it as text.
        sanitize_html=True,
        allow_tags=False,
        allow_file_downloads=False,
        latex_delimiters=[],
    )


def side_panel(engine: "Engine") -> list[gr.components.Component]:
    """Model, system prompt and sampling settings, in the order of `read_settings`."""
    model = gr.Dropdown(
        list(engine.runs),
        value=next(iter(engine.runs), None),
        label="Model",
        info="Retry uses the model selected here.",
    )
    system = gr.Textbox(label="System prompt", placeholder="None", lines=2, max_lines=6)
    with gr.Accordion("Sampling", open=True):
        temperature = gr.Slider(0, 2, DEFAULTS.temperature, step=0.05, label="Temperature")
        top_p = gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.01, label="Top-p")
        max_new_tokens = gr.Slider(
            1, engine.limits.new_tokens, DEFAULTS.max_new_tokens, step=1, label="Max tokens"
        )
        # gr.Number cannot be empty.
        seed = gr.Textbox(label="Seed", placeholder="a new one each time")
    with gr.Accordion("More", open=False):
        top_k = gr.Slider(0, 200, DEFAULTS.top_k, step=1, label="Top-k", info="0: off")
        penalty = gr.Slider(
            1,
            2,
            DEFAULTS.repetition_penalty,
            step=0.05,
            label="Repetition penalty",
            info="1: off",
        )
    return [model, system, temperature, top_p, top_k, max_new_tokens, penalty, seed]


def connect(
    engine: "Engine",
    page: gr.Blocks,
    question: gr.Textbox,
    chatbot: gr.Chatbot,
    status: gr.HTML,
    controls: list[gr.components.Component],
) -> None:
    """Connect the components to the handlers above.

    Gradio passes the arguments that are annotated with its own types (gr.Request, gr.RetryData, ...) by type. The other
    arguments are the values of the input components, in the order of the lists below. A browser session has one request
    at a time, so its hash names the request.
    """
    outputs = [question, chatbot, status]

    def send(text: str, history: list[dict], request: gr.Request, *controls):
        yield from reply(
            engine,
            history,
            text,
            controls,
            request.session_hash,
            start_update={"value": ""},
            refused_update={"value": text},
        )

    def example(history: list[dict], event: gr.SelectData, request: gr.Request, *controls):
        yield from reply(engine, history, event.value["text"], controls, request.session_hash)

    def retry(history: list[dict], event: gr.RetryData, request: gr.Request, *controls):
        before, text = question_of(history, event.index)
        yield from reply(
            engine, before, text, controls, request.session_hash, refused_history=history
        )

    def edit(history: list[dict], event: gr.EditData, request: gr.Request, *controls):
        before = history[: event.index]  # what followed the edited message is dropped
        yield from reply(
            engine, before, event.value, controls, request.session_hash, refused_history=history
        )

    def undo(history: list[dict], event: gr.UndoData):
        before, text = question_of(history, event.index)
        return text, before, ""  # the question goes back into the text box

    def stop(request: gr.Request) -> None:
        engine.cancel(request.session_hash)

    def clear(request: gr.Request):
        engine.cancel(request.session_hash)
        return gr.update(submit_btn=True, stop_btn=False), [], ""

    streaming = {"outputs": outputs, "concurrency_limit": 16, "show_progress": "hidden"}
    answers = [
        question.submit(send, [question, chatbot, *controls], api_name="send", **streaming),
        chatbot.example_select(example, [chatbot, *controls], api_name="example", **streaming),
        chatbot.retry(retry, [chatbot, *controls], api_name="retry", **streaming),
        chatbot.edit(edit, [chatbot, *controls], api_name="edit", **streaming),
    ]
    # These must run while an answer is streaming, so they skip the queue.
    at_once = {"queue": False, "show_progress": "hidden"}
    chatbot.undo(undo, [chatbot], outputs, api_name="undo", **at_once)
    # A growing answer would write the cleared conversation back, so its event is cancelled too.
    chatbot.clear(clear, None, outputs, api_name="clear", cancels=answers, **at_once)
    question.stop(stop, None, None, api_name="stop", **at_once)
    page.unload(stop)  # the tab was closed
