"""Checks of what is asked, before it costs anything: turns, sizes, valid Unicode."""

from rlhf.data.chat import as_messages
from rlhf.errors import UserError
from rlhf.serving.engine.requests import Limits


def check_messages(messages: list[dict], limits: Limits, *, answered: bool = False) -> list[dict]:
    """The messages with role and content alone.

    answered: they are the question to given answers, so that they end with the user. Otherwise a last message of the
    assistant is continued.
    """
    if not isinstance(messages, (list, tuple)):
        raise UserError("messages must be a list of objects with role and content")
    for message in messages:
        if not isinstance(message, dict):
            raise UserError("a message must be an object with role and content")
    messages = as_messages(list(messages))
    _check_last(messages, answered)
    if len(messages) > limits.messages:
        raise UserError(
            f"{len(messages)} messages: the limit is {limits.messages}; start a new conversation"
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise UserError("a system message may only be the first one: move it to the start")
    check_sizes([message["content"] for message in messages], limits)
    return messages


def _check_last(messages: list[dict], answered: bool) -> None:
    asked = messages
    if messages and messages[-1]["role"] == "assistant" and not answered:
        if not messages[-1]["content"].strip():
            raise UserError("the begun answer is empty: drop it, or write how it begins")
        asked = messages[:-1]
    if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].strip():
        raise UserError(
            "the last message must be from the user, and not empty: write something to answer"
        )


def check_text(text: str, limits: Limits) -> None:
    """Check raw text that is to be continued."""
    if not text:
        raise UserError("the prompt is empty: write something to continue")
    check_sizes([text], limits)


def check_sizes(texts: list[str], limits: Limits) -> None:
    """Check the number of characters, and that the text is valid Unicode (a tokenizer would crash)."""
    for text in texts:
        if not isinstance(text, str):
            raise UserError("a text must be a string")
    size = sum(map(len, texts))
    if size > limits.characters:
        raise UserError(
            f"{size} characters: the limit is {limits.characters}; shorten the conversation"
        )
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            "the text contains half a character (a lone surrogate): send valid Unicode"
        ) from error
