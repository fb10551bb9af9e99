"""From messages to the token ids that a model reads: what fits, what is cut, what is refused."""

import threading
from dataclasses import dataclass

from rlhf.data.chat import encode_completion, encode_prompt, encode_text
from rlhf.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """ids: of the prompt. cut: number of the oldest messages that did not fit. room: tokens left for the answer.

    continued: the prompt ends inside the text that is to go on: raw text, or a begun answer.
    """

    ids: list[int]
    cut: int
    room: int
    continued: bool = False


class PromptReader:
    """Encodes what is asked of one model.

    turns: most user messages that are read, see `fit_prompt`. knows_ascii_only: for the advice in a refusal.
    """

    def __init__(
        self, tokenizer, context: int, turns: int | None, *, knows_ascii_only: bool = False
    ):
        self.tokenizer, self.context, self.turns = tokenizer, context, turns
        self.knows_ascii_only = knows_ascii_only
        self.lock = threading.Lock()  # encoding sets options of the tokenizer

    def read(self, messages: list[dict] | str, max_new_tokens: int) -> Prompt:
        """UserError if the last message is too long for the model."""
        with self.lock:
            if isinstance(messages, str):
                ids, cut, continued = self._text(messages, max_new_tokens), 0, True
            else:
                ids, cut = self._fit(messages, max_new_tokens)
                continued = messages[-1]["role"] == "assistant"
        return Prompt(ids, cut, min(max_new_tokens, self.context - len(ids)), continued)

    def _fit(self, messages: list[dict], max_new_tokens: int) -> tuple[list[int], int]:
        try:
            return fit_prompt(
                self.tokenizer, messages, self.context, max_new_tokens, turns=self.turns
            )
        except TooLong as error:
            if self.knows_ascii_only and not error.text.isascii():
                raise UserError(
                    f"{error}. It knows English letters only: any other character costs it several tokens"
                ) from error
            raise

    def _text(self, text: str, max_new_tokens: int) -> list[int]:
        ids = encode_text(self.tokenizer, text)
        if not ids:
            raise UserError("the prompt is empty: write something to continue")
        room = prompt_room(self.context, max_new_tokens)
        if len(ids) > room:
            raise too_long("your text has", text, len(ids), 0, self.context, room)
        return ids


class TooLong(UserError):
    """A text that does not fit into the context of a model, with what fits. text: that text."""

    def __init__(self, message: str, text: str):
        super().__init__(message)
        self.text = text


def prompt_room(context: int, max_new_tokens: int) -> int:
    """Tokens of a prompt that fit. The answer gets max_new_tokens, but at most half of the context."""
    return context - min(max_new_tokens, context // 2)


def fit_prompt(
    tokenizer, messages: list[dict], context: int, max_new_tokens: int, turns: int | None = None
) -> tuple[list[int], int]:
    """Drop the oldest messages until the answer has room. Returns (token ids, number of dropped messages).

    The system message and the last question always stay. What stays begins with a user message, as in training. At most
    `turns` user messages are kept: a model trained on single questions and answers does not make sense of more. A last
    message of the assistant is continued.
    """
    room = prompt_room(context, max_new_tokens)
    first = 1 if messages[0]["role"] == "system" else 0
    system, rest = messages[:first], messages[first:]
    questions = [i for i, message in enumerate(rest) if message["role"] == "user"]
    starts = [0, *[i for i in questions if i > 0]]
    if turns is not None and len(questions) > turns:
        starts = questions[-turns:]
    # The later the start, the shorter the prompt: the earliest one that fits is searched by halving.
    low, high = 0, len(starts) - 1
    ids = encode_messages(tokenizer, [*system, *rest[starts[high] :]])
    if len(ids) > room:
        kept = [*system, *rest[starts[high] :]]
        raise _refusal(tokenizer, kept, len(ids), context, room)
    while low < high:
        middle = (low + high) // 2
        shorter = encode_messages(tokenizer, [*system, *rest[starts[middle] :]])
        if len(shorter) <= room:
            high, ids = middle, shorter
        else:
            low = middle + 1
    return ids, starts[high]


def encode_messages(tokenizer, messages: list[dict]) -> list[int]:
    """Ids of messages up to where the assistant speaks, or behind what it has already said.

    The spelling of a control token in a message stays text.
    """
    if messages[-1]["role"] != "assistant":
        return encode_prompt(tokenizer, messages)
    begun = encode_completion(tokenizer, messages[-1]["content"])
    return [*encode_prompt(tokenizer, messages[:-1]), *begun[:-1]]  # without the token that closes


def _refusal(tokenizer, messages: list[dict], tokens: int, context: int, room: int) -> TooLong:
    """The error for messages that do not fit, none of which can be dropped."""
    empty = []
    for message in messages:
        empty.append({**message, "content": ""})
    around = len(encode_messages(tokenizer, empty))  # what the template itself writes
    subject = "your message has"
    if messages[-1]["role"] == "assistant":
        subject = "your message and the begun answer have"
    if messages[0]["role"] == "system":
        subject = "your message and the system prompt have"
    text = "".join(message["content"] for message in messages)
    return too_long(subject, text, tokens, around, context, room)


def too_long(subject: str, text: str, tokens: int, around: int, context: int, room: int) -> TooLong:
    """The error for a text of so many tokens, with the number of its own characters that fit.

    around: tokens of the template, which the text does not have to blame.
    """
    own = max(1, tokens - around)
    fits = max(0, room - around) * len(text) // own
    message = (
        f"{subject} {tokens} tokens ({len(text)} characters); this model reads {context} and keeps {context - room} of "
        f"them for its answer: shorten to {room} tokens (about {fits} characters like these)"
    )
    return TooLong(message, text)
