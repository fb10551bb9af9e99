"""The chat tab: talk to a run, stop it, ask again, change what was said, and compare runs on the same conversation.

Left out: likes and rankings, best-of-n with the reward model, two models side by side. The history lives in the
browser. It is the list of messages that gr.Chatbot shows; the functions above `build_chat` know nothing else of Gradio.
"""

import html
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.errors import UserError
from rlhf.serving.engine import Done, Engine, Piece, SamplingSettings

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported

import gradio as gr  # noqa: E402

logger = logging.getLogger(__name__)

TITLE = "RLHF Chat"
SUBTITLE = "Talk to the models you trained, and feel what each stage changed."
EXAMPLES = (
    "Can you tell me a joke?",
    "I had a terrible day",
    "What should I cook tonight?",
    "I can't fall asleep",
    "How do I make new friends?",
)
DEFAULTS = SamplingSettings()


# ---- handlers ----------------------------------------------------------------------------------------------------


def content_text(content) -> str:
    """The text of a message as Gradio gives it: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in parts)


def to_messages(history: list[dict], system: str) -> list[dict]:
    """What the engine reads: the system prompt, if there is one, and the turns as plain text."""
    opening = [{"role": "system", "content": system.strip()}] if system and system.strip() else []
    return opening + [
        {"role": turn["role"], "content": content_text(turn["content"])} for turn in history
    ]


def asked_before(history: list[dict], index: int) -> tuple[list[dict], str]:
    """The history before the question that message `index` belongs to, and that question."""
    places = [place for place, turn in enumerate(history[: index + 1]) if turn["role"] == "user"]
    if not places:
        raise UserError("there is no question to ask again: write a message first")
    return history[: places[-1]], content_text(history[places[-1]]["content"])


def read_settings(
    temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed
) -> SamplingSettings:
    """Settings from the side panel. Sliders give whole floats where a whole number is meant; an empty seed is None."""

    def whole(value):
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return SamplingSettings(
        temperature=temperature,
        top_p=top_p,
        top_k=whole(top_k),
        max_new_tokens=whole(max_new_tokens),
        repetition_penalty=repetition_penalty,
        seed=None if seed is None or not str(seed).strip() else whole(seed),
    )


def answer(
    engine: Engine,
    history: list[dict],
    question: str,
    model: str,
    system: str,
    settings: SamplingSettings,
    request: str,
) -> Iterator[tuple[list[dict], str]]:
    """(history, status) as the answer to `question` grows; the question shows at once, the status at the end."""
    if not question or not question.strip():
        raise UserError("write a message first")
    history = [*history, {"role": "user", "content": question.strip()}]
    events = engine.stream(model, to_messages(history, system), settings, request=request)
    yield history, ""
    text = ""
    for event in events:
        if isinstance(event, Piece):
            text += event.text
            yield [*history, {"role": "assistant", "content": text}], ""
        else:
            shown = [*history, {"role": "assistant", "content": text}] if text.strip() else history
            yield shown, status_line(model, event, empty=not text.strip())


def status_line(model: str, done: Done, *, empty: bool = False) -> str:
    """The line under an answer, as HTML: who wrote it, how long, how fast, how to repeat it, and what was not read."""
    parts = [
        f"<b>{html.escape(model)}</b>",
        f"{done.tokens} token{'s' * (done.tokens != 1)}",
        f"{done.tokens_per_second:.0f} tokens/s",
        f"seed {done.seed}",
    ]
    notes = {"length": "reached the length limit", "cancelled": "stopped", "stop": ""}[done.finish]
    if empty:
        notes = (
            "stopped before the first word"
            if done.finish == "cancelled"
            else "an empty answer: try again"
        )
    if notes:
        parts.append(notes)
    line = " &middot; ".join(f"<span>{part}</span>" for part in parts)
    if done.messages_cut:
        plural = "s" * (done.messages_cut != 1)
        line += (
            f"<div class='notice'>The {done.messages_cut} oldest message{plural} {'were' if plural else 'was'} not "
            "read: longer than what this model was trained on.</div>"
        )
    return f"<div class='status-line'>{line}</div>"


def reply(
    engine: Engine,
    history: list[dict],
    text: str,
    controls: tuple,
    request: str,
    *,
    otherwise: list[dict] | None = None,
    first: dict | None = None,
    failed: dict | None = None,
) -> Iterator[tuple[dict, list[dict], str]]:
    """Updates of the text box, the history and the status while an answer grows; errors become notices.

    controls: model, system prompt and the arguments of `read_settings`. otherwise: the history if the question is
    refused. first, failed: what else changes in the text box at the start, and if the question is refused.
    """
    model, system, *sampling = controls
    shown, line = history if otherwise is None else otherwise, ""
    update, idle = gr.update(submit_btn=False, stop_btn=True, **(first or {})), failed or {}
    try:
        for shown, line in answer(
            engine, history, text, model, system, read_settings(*sampling), request
        ):
            yield update, shown, line
            update, idle = gr.skip(), {}
    except UserError as error:
        gr.Warning(html.escape(str(error)))
    except Exception:
        logger.exception("the answer of %s failed", model)
        gr.Warning("The model failed while it was answering. The server's log says why.")
    yield gr.update(submit_btn=True, stop_btn=False, **idle), shown, line


# ---- wiring ------------------------------------------------------------------------------------------------------

FONTS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "Noto Sans KR",
    "sans-serif",
)
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Liberation Mono", "monospace")

CSS = """
.gradio-container > .main {max-width: 1160px !important; width: 100% !important; margin: 0 auto !important;}
#header h1 {font-size: 1.3rem; font-weight: 650; letter-spacing: -0.015em; margin: 0;}
#header p {margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 0.93rem;}
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
#panel .gr-accordion .form {border: none; box-shadow: none;}
#panel .gr-accordion .form > .block {padding: 8px 0;}
footer .divider {display: none !important;}
#welcome h2 {margin: 0; font-size: 1.25rem; font-weight: 600;}
#welcome p {margin: 4px 0 0; color: var(--body-text-color-subdued);}
"""

WELCOME = (
    "<div id='welcome'><h2>What is on your mind?</h2><p>Pick a line or write your own.</p></div>"
)


def theme() -> gr.themes.Base:
    """Calm, and offline: system fonts only."""
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=FONTS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_shadow="none",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_label_text_color="*neutral_500",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="500",
        body_text_color_subdued="*neutral_500",
        input_shadow="none",
        input_border_width="1px",
        input_border_color="*neutral_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        slider_color="*primary_500",
    )


@contextmanager
def titled_page(title: str, subtitle: str) -> Iterator[gr.Blocks]:
    """A page with its heading; what is built in the block stands below it."""
    with gr.Blocks(
        title=title, fill_height=True, analytics_enabled=False, delete_cache=(86400, 86400)
    ) as page:
        gr.HTML(f"<h1>{title}</h1><p>{subtitle}</p>", elem_id="header")
        yield page


def build_chat(engine: Engine) -> gr.Blocks:
    """The page of one view."""
    with titled_page(TITLE, SUBTITLE) as page:
        chat_view(engine, page)
    return page


def chat_view(engine: Engine, page: gr.Blocks) -> None:
    """Inside a page. Every action is an endpoint with a name: send, retry, edit, undo, clear, example, stop."""
    with gr.Row(equal_height=False, scale=1):
        with gr.Column(scale=7, min_width=320, elem_id="talk"):
            chatbot = gr.Chatbot(
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
                sanitize_html=True,
                allow_tags=False,
                allow_file_downloads=False,
                latex_delimiters=[],
            )
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
            model = gr.Dropdown(
                list(engine.runs),
                value=next(iter(engine.runs), None),
                label="Model",
                info="Switch at any time; retry then asks this one.",
            )
            system = gr.Textbox(label="System prompt", placeholder="None", lines=2, max_lines=6)
            with gr.Accordion("Sampling", open=True):
                temperature = gr.Slider(0, 2, DEFAULTS.temperature, step=0.05, label="Temperature")
                top_p = gr.Slider(0.05, 1, DEFAULTS.top_p, step=0.01, label="Top-p")
                max_new_tokens = gr.Slider(
                    1, engine.limits.new_tokens, DEFAULTS.max_new_tokens, step=1, label="Max tokens"
                )
                seed = gr.Textbox(
                    label="Seed", placeholder="a new one each time"
                )  # gr.Number cannot be empty
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

    controls = [model, system, temperature, top_p, top_k, max_new_tokens, penalty, seed]
    outputs = [question, chatbot, status]

    # Gradio passes what is annotated by type; the rest comes from the components, in the order given below.
    def send(text: str, history: list[dict], request: gr.Request, *controls):
        first = {"value": ""}
        yield from reply(
            engine,
            history,
            text,
            controls,
            request.session_hash,
            first=first,
            failed={"value": text},
        )

    def example(history: list[dict], event: gr.SelectData, request: gr.Request, *controls):
        yield from reply(engine, history, event.value["text"], controls, request.session_hash)

    def retry(history: list[dict], event: gr.RetryData, request: gr.Request, *controls):
        before, text = asked_before(history, event.index)
        yield from reply(engine, before, text, controls, request.session_hash, otherwise=history)

    def edit(history: list[dict], event: gr.EditData, request: gr.Request, *controls):
        before = history[: event.index]
        yield from reply(
            engine, before, event.value, controls, request.session_hash, otherwise=history
        )

    def undo(history: list[dict], event: gr.UndoData):
        before, text = asked_before(history, event.index)
        return text, before, ""

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
    at_once = {"queue": False, "show_progress": "hidden"}
    chatbot.undo(undo, [chatbot], outputs, api_name="undo", **at_once)
    # An answer that is still growing would write the cleared conversation back: it is cancelled, not only stopped.
    chatbot.clear(clear, None, outputs, api_name="clear", cancels=answers, **at_once)
    question.stop(stop, None, None, api_name="stop", **at_once)
    page.unload(stop)
