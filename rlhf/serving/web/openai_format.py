"""From the engine's events and completions to the objects of OpenAI's API: the only place that knows both.

Two forms of text share what they say about a request: a chat's (`chat.completion`) and a plain completion's
(`text_completion`). Each is a class with the same methods. Next to OpenAI's fields an answer has `seed`, which repeats it,
and `messages_cut`, the number of the oldest messages that the model could not read.
"""

import json
import time
from dataclasses import dataclass

from rlhf.serving.engine.requests import Completion, StreamEnd, TextChunk
from rlhf.serving.web.errors import ApiError

IMPOSSIBLE = -9999.0  # OpenAI's log-prob of a token that cannot be: JSON has no infinity
DONE = "data: [DONE]\n\n"
# The engine's reasons to end an answer -> OpenAI's
FINISH = {"stop": "stop", "length": "length", "time": "length"}


def server_sent(content: dict) -> str:
    """A server-sent event. ASCII, so that no line separator inside a text can break it."""
    return f"data: {json.dumps(content)}\n\n"


def comment(text: str) -> str:
    """A line of the stream that clients skip; it keeps the connection open."""
    return f": {text}\n\n"


def finish_reason(finish: str) -> str:
    """OpenAI's name; an answer that the server cut off is an error."""
    if finish not in FINISH:
        message = f"the answer was {finish} by the server"
        raise ApiError(503, message, code="cancelled", retry_after=10)
    return FINISH[finish]


def usage(prompt_tokens: int, tokens: int) -> dict:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def total_usage(answers: list[list[Completion]]) -> dict:
    """Of the answers to each prompt. A prompt counts once, as in OpenAI's API."""
    prompt_tokens = tokens = 0
    # answers to one prompt after the other
    for completions in answers:
        prompt_tokens += completions[0].prompt_tokens
        tokens += sum(completion.tokens for completion in completions)
    return usage(prompt_tokens, tokens)


@dataclass
class Form:
    """The objects of one response. request_id: names it. model: its name as the client gave it."""

    request_id: str
    model: str
    name = ""
    chunk_name = ""
    prefix = ""

    def __post_init__(self):
        self.created = int(time.time())

    def whole(self, completions: list[Completion], used: dict) -> dict:
        """The answers at once."""
        choices = [self.choice(i, completion) for i, completion in enumerate(completions)]
        return self._object(self.name, choices, usage=used, seed=completions[0].seed)

    def opening(self, index: int) -> list[dict]:
        """The chunks before any text."""
        return []

    def text(self, index: int, part: TextChunk | Completion) -> dict:
        """A chunk of text."""
        return self.chunk([self.text_choice(index, part)])

    def last(self, index: int, end: StreamEnd | Completion, **more) -> dict:
        """The chunk after the last text of an answer."""
        return self.chunk([self.last_choice(index, end)], seed=end.seed, **more)

    def usage_chunk(self, used: dict) -> dict:
        """The last chunk of a stream whose client asked for `include_usage`."""
        # OpenAI sends it without choices.
        return self.chunk([], usage=used)

    def chunk(self, choices: list[dict], **more) -> dict:
        return self._object(self.chunk_name, choices, **more)

    def _object(self, name: str, choices: list[dict], **more) -> dict:
        return {
            "id": f"{self.prefix}-{self.request_id}",
            "object": name,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


class ChatForm(Form):
    name, chunk_name, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def choice(self, index: int, completion: Completion) -> dict:
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(completion),
            "finish_reason": finish_reason(completion.finish),
        }

    def opening(self, index: int) -> list[dict]:
        delta = {"role": "assistant", "content": ""}
        return [self.chunk([_streamed(index, delta)])]

    def text_choice(self, index: int, part: TextChunk | Completion) -> dict:
        return _streamed(index, {"content": part.text}, logprobs=chat_logprobs(part))

    def last_choice(self, index: int, end: StreamEnd | Completion) -> dict:
        return _streamed(index, {}, finish_reason=finish_reason(end.finish))


class CompletionForm(Form):
    name, chunk_name, prefix = "text_completion", "text_completion", "cmpl"

    def choice(self, index: int, completion: Completion) -> dict:
        choice = self.text_choice(index, completion)
        choice["finish_reason"] = finish_reason(completion.finish)
        return choice

    def text_choice(self, index: int, part: TextChunk | Completion) -> dict:
        logprobs = text_logprobs(part)
        return {"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": None}

    def last_choice(self, index: int, end: StreamEnd | Completion) -> dict:
        reason = finish_reason(end.finish)
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


def chat_logprobs(part: TextChunk | Completion) -> dict | None:
    """Of each token: its log-probability and those of the likeliest tokens; None where they were not asked for."""
    if part.logprobs is None:
        return None
    content = []
    for token in part.logprobs:
        entry = _token(token.token, token.logprob)
        entry["top_logprobs"] = [_token(text, logprob) for text, logprob in token.top]
        content.append(entry)
    return {"content": content, "refusal": None}


def text_logprobs(part: TextChunk | Completion) -> dict | None:
    """The same in the older form of plain completions: one list for each value."""
    if part.logprobs is None:
        return None
    tokens, values, top, offsets = [], [], [], []
    offset = 0  # characters of the answer before the token
    for token in part.logprobs:
        tokens.append(token.token)
        # A model may rule tokens out, with -inf.
        values.append(max(token.logprob, IMPOSSIBLE))
        top.append({text: max(logprob, IMPOSSIBLE) for text, logprob in token.top})
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _streamed(index: int, delta: dict, *, logprobs=None, finish_reason=None) -> dict:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _token(text: str, logprob: float) -> dict:
    return {
        "token": text,
        "logprob": max(logprob, IMPOSSIBLE),
        "bytes": list(text.encode(errors="replace")),
    }
