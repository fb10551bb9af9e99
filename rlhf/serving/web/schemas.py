"""The bodies of the HTTP endpoints. Those under /v1/chat and /v1/completions have OpenAI's form.

A field that would change the answer and that we do not support is refused by name, unless it holds its neutral value.
A field that changes nothing here (`user`, `metadata`) is accepted and ignored. An unknown field is refused.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlhf.errors import UserError
from rlhf.serving.engine.requests import SETTING_RANGES, SamplingSettings

STOPS = 8  # most stop strings of a request
TOP_LOGPROBS = 20  # most alternatives per token

# field -> its values that change nothing, next to null
NEUTRAL = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
# Settings of `transformers chat` that we have: name there -> ours
GENERATION_SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_new_tokens": "max_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}
# Those that say something about the file, or what we do anyway
GENERATION_NOTES = (
    "transformers_version",
    "_from_model_config",
    "do_sample",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def setting(name: str):
    """A number within the range of the engine's setting, or null."""
    types, low, high = SETTING_RANGES[name]
    kind = int if types == (int,) else float
    return Annotated[kind | None, Field(ge=low, le=high)]


StopText = Annotated[str, Field(min_length=1, max_length=200)]
Stops = StopText | Annotated[list[StopText], Field(max_length=STOPS)] | None
ModelName = Annotated[str, Field(min_length=1, max_length=500)]


class Body(BaseModel):
    """Of a request. No conversion of types: "1" is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    def refused_field(self) -> str | None:
        """Name of a field that would change the answer and that we do not support."""
        for name in sorted(self.model_fields_set & NEUTRAL.keys()):
            value = getattr(self, name)
            if value is not None and value not in NEUTRAL[name]:
                return name
        return None


class TextPart(Body):
    """One part of a message. Pictures and sound cannot be read."""

    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    # An assistant's message that came from this service, or from OpenAI's, has these.
    refusal: None = None
    tool_calls: Annotated[list, Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None

    def plain(self) -> dict:
        """The message as the engine takes it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content}


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # ignored: pads chunks against guesses of their length


class Sampling(Body):
    """The fields that both ways to ask for text have."""

    model: ModelName
    n: Annotated[int | None, Field(ge=1, le=128)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stops = None
    seed: setting("seed") = None
    temperature: setting("temperature") = None
    top_p: setting("top_p") = None
    top_k: setting("top_k") = None
    repetition_penalty: setting("repetition_penalty") = None
    max_tokens: setting("max_new_tokens") = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    # accepted, because they change nothing here
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop)

    def given_settings(self) -> dict:
        """The engine's settings that this request names. The others keep their defaults, those of the page."""
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "max_new_tokens": self.max_tokens,
            "stop": self.stops() or None,
        }
        return {name: value for name, value in values.items() if value is not None}


class ChatBody(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: setting("max_new_tokens") = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=TOP_LOGPROBS)] = None
    # `transformers chat` sends its settings as one JSON text
    generation_config: Annotated[str, Field(max_length=20_000)] | None = None
    # refused unless neutral: see NEUTRAL
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def settings(self) -> SamplingSettings:
        values = generation_settings(self.generation_config) | self.given_settings()
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise UserError(
                    "max_tokens and max_completion_tokens differ: give one of them (the second is OpenAI's new name)"
                )
            values["max_new_tokens"] = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise UserError("top_logprobs needs logprobs: true")
        if self.logprobs:
            values["logprobs"] = self.top_logprobs or 0
        return SamplingSettings(**values)


class CompletionBody(Sampling):
    """prompt: raw text, which the model continues. Token ids are not taken."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16)]
    logprobs: Annotated[int | None, Field(ge=0, le=TOP_LOGPROBS)] = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None

    def prompts(self) -> list[str]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return self.prompt

    def settings(self) -> SamplingSettings:
        values = self.given_settings()
        if self.logprobs is not None:
            values["logprobs"] = self.logprobs
        return SamplingSettings(**values)


class ScoreBody(Body):
    """completions: answers to the messages, each of which a reward model scores."""

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1)]
    completions: Annotated[list[str], Field(min_length=1)]


Row = str | dict[str, str | list[str]]


class ClassifyBody(Body):
    """input: a text, or a row with the columns of the task ({"text": ..., "text_pair": ...}), or a list of these."""

    model: ModelName
    input: Row | Annotated[list[Row], Field(min_length=1, max_length=64)]

    def rows(self) -> list[Row]:
        if isinstance(self.input, list):
            return self.input
        return [self.input]


class LoadBody(Body):
    model: ModelName


def generation_settings(text: str | None) -> dict:
    """The engine's settings from a generation config of transformers, as JSON. UserError for one that we lack."""
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"generation_config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError("generation_config must be a JSON object")
    settings = {}
    for name, value in config.items():
        if value is None or name in GENERATION_NOTES:
            continue
        if name not in GENERATION_SETTINGS:
            known = ", ".join(GENERATION_SETTINGS)
            raise UserError(f"generation_config: {name!r} is not supported (known: {known})")
        settings[GENERATION_SETTINGS[name]] = value
    if config.get("do_sample") is False:
        settings["temperature"] = 0
    return settings
