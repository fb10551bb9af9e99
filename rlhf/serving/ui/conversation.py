"""A conversation as the app keeps it: a tree of messages, of which one path is shown.

Retrying an answer and editing a question add a sibling, so nothing that was written is lost. The browser keeps
conversations as JSON and sends the open one with each action. Every function takes and returns plain JSON values and
changes nothing in place.

A conversation: {"schema", "id", "title", "updated", "nodes"}. A node: {"parent": index of the message before it or -1,
"role", "text", "shown": it is the one of its siblings that is shown}, and of an answer "details": {"model", "seed",
"settings", "system", "tokens", "speed": tokens per second, "finish", "cut": messages that were not read, "score",
"reward_model"}, "rating": "", "up" or "down", and "reason".
"""

import json
import secrets
import time
from copy import deepcopy

from rlhf.serving.ui.texts import Refusal, text

SCHEMA = 1
ROOT = -1  # the parent of the first message
ROLES = ("user", "assistant")
MOST_NODES = 1000
MOST_CHARACTERS = 500_000
TITLE_LENGTH = 48
# name of a detail of an answer -> its types; None is allowed for each
DETAILS = {
    "model": str,
    "seed": int,
    "settings": dict,
    "system": str,
    "tokens": int,
    "speed": (int, float),
    "finish": str,
    "cut": int,
    "score": (int, float),
    "reward_model": str,
}
SETTINGS = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty")
RATINGS = ("", "up", "down")


# ---- building ----------------------------------------------------------------------------------------------------


def new_conversation() -> dict:
    return {
        "schema": SCHEMA,
        "id": secrets.token_hex(8),
        "title": "",
        "updated": now(),
        "nodes": [],
    }


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def add(conversation: dict, parent: int, role: str, content: str, **extra) -> tuple[dict, int]:
    """Add a message after `parent` and show it. Returns the conversation and the index of the message."""
    conversation = deepcopy(conversation)
    nodes = conversation["nodes"]
    # An index never changes: messages are added at the end and never removed.
    nodes.append({"parent": parent, "role": role, "text": content, "shown": True, **extra})
    index = len(nodes) - 1
    _show(nodes, index)
    if not conversation["title"]:
        conversation["title"] = short_title(content)
    conversation["updated"] = now()
    return conversation, index


def add_answers(conversation: dict, parent: int, answers: list[dict]) -> dict:
    """Add answers to the question `parent`, and show the first. An answer: {"text", "details"}."""
    first = len(conversation["nodes"])  # index of the first new answer
    for answer in answers:
        conversation, _ = add(
            conversation,
            parent,
            "assistant",
            answer["text"],
            details=answer["details"],
            rating="",
            reason="",
        )
    return choose(conversation, first)


def replace(conversation: dict, index: int, **values) -> dict:
    """Change values of one message."""
    conversation = deepcopy(conversation)
    conversation["nodes"][index].update(values)
    conversation["updated"] = now()
    return conversation


def choose(conversation: dict, index: int) -> dict:
    """Show this one of its siblings."""
    conversation = deepcopy(conversation)
    _show(conversation["nodes"], index)
    return conversation


def _show(nodes: list[dict], index: int) -> None:
    for node in nodes:
        if node["parent"] == nodes[index]["parent"]:
            node["shown"] = False
    nodes[index]["shown"] = True


def short_title(content: str) -> str:
    """The first words of a message, on one line."""
    line = " ".join(content.split())
    # one character less, for the ellipsis
    if len(line) > TITLE_LENGTH:
        line = line[: TITLE_LENGTH - 1] + "…"
    return line


# ---- reading -----------------------------------------------------------------------------------------------------


def path(conversation: dict) -> list[int]:
    """Indices of the messages that are shown, the first one first."""
    next_one = {}  # message -> the shown one of those after it
    for i, node in enumerate(conversation["nodes"]):
        if node["shown"]:
            next_one[node["parent"]] = i
    indices, parent = [], ROOT
    while parent in next_one:
        parent = next_one[parent]
        indices.append(parent)
    return indices


def siblings(conversation: dict, index: int) -> list[int]:
    """Indices of the message and of its variants, in the order in which they were made."""
    parent = conversation["nodes"][index]["parent"]
    return [i for i, node in enumerate(conversation["nodes"]) if node["parent"] == parent]


def before(conversation: dict, index: int) -> list[int]:
    """Indices of the messages from the first to this one, inclusive."""
    indices = []
    while index != ROOT:
        indices.append(index)
        index = conversation["nodes"][index]["parent"]
    return indices[::-1]  # walked from the last to the first


def end(conversation: dict) -> int:
    """The message that the next question follows: the last one shown that is a whole exchange, or ROOT.

    A question without an answer is not followed: two questions in a row would reach the model as one.
    """
    nodes = conversation["nodes"]
    for index in reversed(path(conversation)):
        if nodes[index]["role"] == "assistant" and nodes[index]["text"].strip():
            return index
    return ROOT


def messages(conversation: dict, last: int, system: str = "") -> list[dict]:
    """The messages up to `last` for the engine: the system prompt, if there is one, and the texts."""
    result = []
    if system.strip():
        result.append({"role": "system", "content": system.strip()})
    for index in before(conversation, last):
        node = conversation["nodes"][index]
        result.append({"role": node["role"], "content": node["text"]})
    return result


def from_history(history, system: str = "") -> tuple[dict, list[dict]]:
    """The conversation of a list of messages as API clients send it, and these as plain messages.

    A content is a string or a list of parts with texts. A system message in a history is refused: it has an own
    parameter, and in the middle it would be read as something that was said.
    """
    if history is None:
        history = []
    if not isinstance(history, list):
        raise Refusal("chat.error.history")
    conversation, last = new_conversation(), ROOT
    for message in history:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Refusal("chat.error.history")
        content = content_text(message.get("content"))
        extra = {}
        if message["role"] == "assistant":
            extra = {"details": {"settings": {}}, "rating": "", "reason": ""}
        conversation, last = add(conversation, last, message["role"], content, **extra)
    return conversation, messages(conversation, last, system)


def content_text(content) -> str:
    """The text of a message: a string, {"text": ...}, or a list of these."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        return content["text"]
    if isinstance(content, list):
        return "".join(content_text(part) for part in content)
    raise Refusal("chat.error.text_only")


# ---- what comes from outside -------------------------------------------------------------------------------------


def checked(value) -> dict:
    """A conversation from a browser or a file: only what is known is kept; Refusal if it is not one."""
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise Refusal("chat.error.not_conversation")
    nodes = value.get("nodes")
    if not isinstance(nodes, list) or len(nodes) > MOST_NODES:
        raise Refusal("chat.error.too_long", nodes=MOST_NODES, characters=MOST_CHARACTERS)
    # Built from nothing, so that a key that is not known cannot come along.
    conversation = new_conversation()
    for name in ("id", "title", "updated"):
        if is_unicode(value.get(name)):
            conversation[name] = value[name][:80]
    # The browser makes a key of its storage from it.
    if not conversation["id"].isalnum():
        conversation["id"] = secrets.token_hex(8)
    for i, node in enumerate(nodes):
        conversation["nodes"].append(_checked_node(node, i, conversation["nodes"]))
    if sum(len(node["text"]) for node in conversation["nodes"]) > MOST_CHARACTERS:
        raise Refusal("chat.error.too_long", nodes=MOST_NODES, characters=MOST_CHARACTERS)
    _show_one_each(conversation["nodes"])
    return conversation


def _checked_node(node, index: int, earlier: list[dict]) -> dict:
    if not isinstance(node, dict):
        raise Refusal("chat.error.message", number=index + 1)
    parent, role, content = node.get("parent"), node.get("role"), node.get("text")
    if type(parent) is not int or not ROOT <= parent < index:
        raise Refusal("chat.error.message", number=index + 1)
    if role not in ROLES or not is_unicode(content):
        raise Refusal("chat.error.message", number=index + 1)
    # A parent comes earlier in the list, so there are no circles.
    before_it = "assistant" if parent == ROOT else earlier[parent]["role"]
    if role == before_it:  # questions and answers alternate
        raise Refusal("chat.error.message", number=index + 1)
    clean = {"parent": parent, "role": role, "text": content, "shown": node.get("shown") is True}
    if role == "assistant":
        clean["details"] = _checked_details(node.get("details"))
        rating, reason = node.get("rating"), node.get("reason")
        clean["rating"] = rating if rating in RATINGS else ""
        clean["reason"] = reason if isinstance(reason, str) else ""
    return clean


def is_unicode(content) -> bool:
    """Is it a text that can be sent? Half a character (a lone surrogate) cannot."""
    if not isinstance(content, str):
        return False
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _checked_details(details) -> dict:
    if not isinstance(details, dict):
        return {}
    clean = {}
    for name, types in DETAILS.items():
        value = details.get(name)
        # True is an int in Python
        if isinstance(value, types) and not isinstance(value, bool):
            clean[name] = value
        if types is str and not is_unicode(value):
            clean.pop(name, None)
    settings = {}
    for name, value in clean.get("settings", {}).items():
        if name in SETTINGS and isinstance(value, int | float):
            settings[name] = value
    clean["settings"] = settings
    return clean


def _show_one_each(nodes: list[dict]) -> None:
    """Of each group of siblings show exactly one: the last that says so, else the last."""
    chosen: dict[int, int] = {}  # parent -> the child that is shown
    for i, node in enumerate(nodes):
        current = chosen.get(node["parent"])
        if current is None or node["shown"] or not nodes[current]["shown"]:
            chosen[node["parent"]] = i
    for i, node in enumerate(nodes):
        node["shown"] = chosen[node["parent"]] == i


def from_json(content: str) -> dict:
    """A conversation from an exported file, as a new one: importing never overwrites."""
    if not isinstance(content, str) or len(content) > 4 * MOST_CHARACTERS:
        raise Refusal("chat.error.too_long", nodes=MOST_NODES, characters=MOST_CHARACTERS)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal("chat.error.not_conversation") from error
    if isinstance(value, list):  # plain messages, as an endpoint returns them
        conversation, _ = from_history(value)
        value = conversation
    conversation = checked(value)
    # A new name: the same file may be opened twice.
    conversation["id"] = secrets.token_hex(8)
    return conversation


def to_json(conversation: dict) -> str:
    """The whole tree, as `from_json` reads it."""
    return json.dumps(conversation, ensure_ascii=False, indent=2) + "\n"


def to_markdown(conversation: dict, language: str = "en") -> str:
    """The path that is shown, for people."""
    parts = [f"# {conversation['title'] or text('chat.untitled', language)}"]
    for index in path(conversation):
        node = conversation["nodes"][index]
        if node["role"] == "user":
            speaker = text("chat.you", language)
        else:
            speaker = answer_line(node, language)
        parts.append(f"**{speaker}**\n\n{node['text']}")
    return "\n\n".join(parts) + "\n"


def answer_line(node: dict, language: str) -> str:
    """The model of an answer, with seed and score."""
    details = node["details"]
    # An imported answer may not say its model.
    words = [details.get("model") or text("chat.model", language)]
    if details.get("seed") is not None:
        words.append(text("chat.seed_is", language, seed=details["seed"]))
    if details.get("score") is not None:
        words.append(text("chat.score_is", language, score=f"{details['score']:.3f}"))
    return " · ".join(words)
