"""Conversations as HTML: pure functions from a conversation and a language to what the chat shows.

Own HTML, because gr.Chatbot loads the images of a message, drops unknown tags and has no room under an answer. All text
from outside goes through `markup`. The buttons say what they do in data-act; chat.js listens to them.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.serving.ui.answers import Progress
from rlhf.serving.ui.conversation import path, siblings
from rlhf.serving.ui.markup import answer_html, typed_html
from rlhf.serving.ui.texts import text

# 24 x 24, drawn with lines
ICONS = {
    "copy": "M9 9h10v11H9zM5 15V4h10",
    "edit": "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
    "retry": "M20 11a8 8 0 1 0-2.3 6.2M20 5v6h-6",
    "proceed": "M5 12h13M12 6l6 6-6 6",
    "up": "M7 21V10l5-7a2 2 0 0 1 2 2v4h5a2 2 0 0 1 2 2l-2 8a2 2 0 0 1-2 2zM3 10v11h4V10z",
    "down": "M17 3v11l-5 7a2 2 0 0 1-2-2v-4H5a2 2 0 0 1-2-2l2-8a2 2 0 0 1 2-2zM21 14V3h-4v11z",
    "earlier": "M15 5l-7 7 7 7",
    "later": "M9 5l7 7-7 7",
}
SETTINGS = {
    "temperature": "chat.temperature",
    "top_p": "chat.top_p",
    "top_k": "chat.top_k",
    "max_new_tokens": "chat.max_tokens",
    "repetition_penalty": "chat.penalty",
}


@dataclass(frozen=True)
class Look:
    """language: of the texts. ratable: thumbs are shown. examples: questions to begin with."""

    language: str
    ratable: bool = False
    examples: Sequence[str] = ()


def conversation_html(conversation: dict, look: Look, last: int | None = None) -> str:
    """The shown path, up to message `last`; a welcome if it is empty."""
    indices = path(conversation)
    if last is not None:
        indices = indices[: indices.index(last) + 1]
    name = html.escape(text("chat.log", look.language))
    if not indices:
        return f"<div class='talk' role='log' aria-label='{name}'>{welcome_html(look)}</div>"
    turns = []  # HTML of each message
    for index in indices:
        if conversation["nodes"][index]["role"] == "user":
            turns.append(_question(conversation, index, look))
        else:
            turns.append(_answer(conversation, index, look))
    # A page that was reloaded in mid-answer has a question without one.
    ends_with_question = conversation["nodes"][indices[-1]]["role"] == "user"
    if ends_with_question and last is None:
        turns.append(_unanswered(indices[-1], look.language))
    return f"<div class='talk' role='log' aria-label='{name}'>{''.join(turns)}</div>"


def welcome_html(look: Look) -> str:
    """The heading of an empty conversation, with questions to try."""
    chips = []  # one per example; chat.js sends the text of the clicked one
    for example in look.examples:
        question = html.escape(example)
        chips.append(f"<button type='button' class='chip' data-act='example'>{question}</button>")
    return (
        f"<div class='welcome'><h2>{html.escape(text('chat.welcome', look.language))}</h2>"
        f"<p>{html.escape(text('chat.welcome.hint', look.language))}</p>"
        f"<div class='chips'>{''.join(chips)}</div></div>"
    )


def live_html(model: str, progress: Progress, language: str, before: str = "") -> str:
    """The growing answer. before: the text that is continued."""
    who = f"<div class='who'>{html.escape(model)}</div>"
    content = before + progress.text
    # Spaces alone would draw an empty bubble.
    if content.strip():
        return f"<div class='turn model live'>{who}<div class='bubble prose'>{answer_html(content)}</div></div>"
    note = html.escape(waiting_text(progress, language))
    return (
        f"<div class='turn model live'>{who}<div class='bubble waiting'>"
        f"<span class='dots' aria-hidden='true'><i></i><i></i><i></i></span><span>{note}</span></div></div>"
    )


def waiting_text(progress: Progress, language: str) -> str:
    """The reason why there is no text yet."""
    waiting = progress.waiting  # None once the model is at it
    if waiting is not None and waiting.loading:
        return text("chat.loading", language)
    if waiting is not None and waiting.ahead == 1:
        return text("chat.ahead.one", language)
    if waiting is not None and waiting.ahead:
        return text("chat.ahead", language, count=waiting.ahead)
    if progress.samples > 1:
        return text("chat.sampling", language, count=progress.samples)
    return ""


# ---- turns -------------------------------------------------------------------------------------------------------


def _question(conversation: dict, index: int, look: Look) -> str:
    node = conversation["nodes"][index]
    language = look.language
    # In the order of how often they are used.
    acts = [
        _variants(conversation, index, language),
        _button("edit", index, "chat.edit", language),
        _button("copy", index, "chat.copy", language),
    ]
    return (
        f"<div class='turn user' data-node='{index}'>"
        f"<span class='heard'>{html.escape(text('chat.you', language))}:</span>"
        f"<div class='bubble'>{typed_html(node['text'])}</div>"
        f"<div class='acts'>{''.join(acts)}</div></div>"
    )


def _answer(conversation: dict, index: int, look: Look) -> str:
    node = conversation["nodes"][index]
    language, details = look.language, node["details"]
    content = answer_html(node["text"])
    if not node["text"].strip():
        content = f"<p class='note'>{html.escape(text('chat.empty_answer', language))}</p>"
    acts = [
        _variants(conversation, index, language),
        _button("copy", index, "chat.copy", language),
        _button("retry", index, "chat.retry", language),
    ]
    # An answer that the model ended itself has nothing to continue.
    if details.get("finish") in ("length", "cancelled", "failed") and node["text"].strip():
        acts.append(_button("proceed", index, "chat.continue", language))
    if look.ratable and node["text"].strip():
        acts += [_thumb("up", node, index, language), _thumb("down", node, index, language)]
    model = html.escape(details.get("model") or text("chat.model", language))
    return (
        f"<div class='turn model' data-node='{index}'>"
        f"<div class='who'>{model}</div>"
        f"<div class='bubble prose'>{content}</div>"
        f"<div class='foot'>{details_html(details, language)}<div class='acts'>{''.join(acts)}</div></div></div>"
    )


def _unanswered(index: int, language: str) -> str:
    retry = html.escape(text("chat.answer_it", language))
    note = html.escape(text("chat.unanswered", language))
    return (
        f"<div class='turn model' data-node='{index}'><p class='note'>{note} "
        f"<button type='button' class='link' data-act='retry' data-node='{index}'>{retry}</button></p></div>"
    )


def details_html(details: dict, language: str) -> str:
    """One line about an answer; all its settings when it is opened."""
    parts = []
    if details.get("score") is not None:
        score = text("chat.score_is", language, score=f"{details['score']:.3f}")
        parts.append(f"<b>{html.escape(score)}</b>")
    for part in short_details(details, language):
        parts.append(html.escape(part))
    if not parts:  # an imported answer, of which nothing is known
        return ""
    # The line says the most important, the list below all of it.
    rows = []
    for name, value in all_details(details, language):
        rows.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>")
    return (
        f"<details class='meta'><summary>{' <i>·</i> '.join(parts)}</summary>"
        f"<dl>{''.join(rows)}</dl></details>"
    )


def short_details(details: dict, language: str) -> list[str]:
    """Tokens, speed, seed, and why the answer ended if that is worth saying."""
    parts = []
    if details.get("tokens") is not None:
        key = "chat.token" if details["tokens"] == 1 else "chat.tokens"
        parts.append(text(key, language, count=details["tokens"]))
    if details.get("speed") is not None:
        parts.append(text("chat.speed_is", language, speed=f"{details['speed']:.0f}"))
    if details.get("seed") is not None:
        parts.append(text("chat.seed_is", language, seed=details["seed"]))
    if details.get("finish") in ("length", "cancelled", "failed"):
        parts.append(text(f"chat.finish.{details['finish']}", language))
    return parts


def all_details(details: dict, language: str) -> list[tuple[str, str]]:
    """(name, value) of everything that is known about an answer."""
    rows = []
    if details.get("model"):
        rows.append((text("chat.model", language), details["model"]))
    for name, key in SETTINGS.items():
        if name in details.get("settings", {}):
            rows.append((text(key, language), f"{details['settings'][name]:g}"))
    if details.get("seed") is not None:
        rows.append((text("chat.seed", language), str(details["seed"])))
    if details.get("system"):
        rows.append((text("chat.system", language), details["system"]))
    if details.get("reward_model"):
        rows.append((text("chat.reward_model", language), details["reward_model"]))
    if details.get("cut"):
        rows.append((text("chat.not_read", language), str(details["cut"])))
    return rows


def _variants(conversation: dict, index: int, language: str) -> str:
    """‹ 2/3 › if the message has siblings."""
    group = siblings(conversation, index)  # itself included
    if len(group) < 2:
        return ""
    position = group.index(index)
    earlier = _step("earlier", group, position - 1, language)
    later = _step("later", group, position + 1, language)
    return f"<span class='variants'>{earlier}<span>{position + 1}/{len(group)}</span>{later}</span>"


def _step(name: str, group: list[int], position: int, language: str) -> str:
    # At either end the arrow stays, disabled, so that the others do not move.
    if 0 <= position < len(group):
        return _button(name, group[position], f"chat.{name}", language, act="pick")
    return _button(name, group[0], f"chat.{name}", language, act="pick", more="disabled")


def _thumb(value: str, node: dict, index: int, language: str) -> str:
    # for screen readers, and for the colour
    pressed = "true" if node["rating"] == value else "false"
    more = f"data-value='{value}' aria-pressed='{pressed}'"
    return _button(value, index, f"chat.{value}", language, act="thumb", more=more)


def _button(icon: str, node: int, key: str, language: str, act: str = "", more: str = "") -> str:
    name = html.escape(text(key, language))
    return (
        f"<button type='button' class='act' data-act='{act or icon}' data-node='{node}' {more} "
        f"aria-label='{name}' title='{name}'>{icon_html(icon)}</button>"
    )


def icon_html(name: str) -> str:
    return f"<svg viewBox='0 0 24 24' aria-hidden='true'><path d='{ICONS[name]}'/></svg>"


# ---- the chosen model --------------------------------------------------------------------------------------------


def facts_html(facts, language: str) -> str:
    """The limits of the chosen model in one line, said before they are met."""
    # What is not known is not said.
    parts = []
    if facts.context:
        parts.append(text("chat.fact.context", language, tokens=facts.context))
    # Said once here, it need not be said again under each answer.
    if facts.trained_turns == 1:
        parts.append(text("chat.fact.single", language))
    elif facts.trained_turns:
        parts.append(text("chat.fact.turns", language, count=facts.trained_turns))
    if facts.system_prompt is False:
        parts.append(text("chat.fact.no_system", language))
    if facts.characters:
        parts.append(text("chat.fact.characters", language, characters=facts.characters))
    # "" gives the line no height
    return " <i>·</i> ".join(html.escape(part) for part in parts)
