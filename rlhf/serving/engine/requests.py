"""Requests to the engine and its replies: settings, limits, events of a stream, completions."""

from dataclasses import dataclass, field

from rlhf.errors import UserError


class Busy(UserError):
    """No room for another request now.

    retry_after: seconds after which it is worth asking again.
    """

    def __init__(self, message: str, retry_after: int = 5):
        super().__init__(message)
        self.retry_after = retry_after


class WorkerFailed(RuntimeError):
    """The thread that answered this request died or stopped moving. The next request gets a new one."""


class NotANumber(RuntimeError):
    """The model gave NaN or infinite scores, so that no token can be drawn."""


@dataclass(frozen=True)
class Limits:
    """The most that may be asked for. The engine checks them because API clients bypass the browser's checks.

    characters, messages: of a conversation.
    new_tokens: of one answer.
    samples: answers to one request.
    running: answers that are generated at the same time.
    waiting: requests in line behind them; one more is Busy.
    per_client: requests of one client, running or waiting; one more is Busy.
    seconds: from the request to the end of its answer.
    """

    characters: int = 32_000
    messages: int = 200
    new_tokens: int = 1024
    samples: int = 16
    running: int = 64
    waiting: int = 256
    per_client: int = 32
    seconds: float = 300.0


# setting -> (types, lowest, highest)
SETTING_RANGES = {
    "temperature": ((int, float), 0.0, 5.0),
    "top_p": ((int, float), 0.01, 1.0),
    "top_k": ((int,), 0, 1_000_000),
    "max_new_tokens": ((int,), 1, 1_000_000),
    "repetition_penalty": ((int, float), 1.0, 5.0),
    # A browser cannot represent larger integers exactly.
    "seed": ((int,), 0, 2**53),
    "logprobs": ((int,), 0, 20),
}
OPTIONAL = ("seed", "logprobs")  # may be None
STOPS, STOP_CHARACTERS = 8, 200  # most stop strings, and most characters of one


@dataclass(frozen=True)
class SamplingSettings:
    """Settings that one answer is sampled with.

    temperature: 0 takes the most probable token each time.
    top_k: 0 means all tokens.
    seed: None draws a new one.
    stop: texts that end the answer, which are not part of it.
    logprobs: number of likeliest tokens whose log-probs come with each token; None gives no log-probs at all.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self):
        for name, (types, low, high) in SETTING_RANGES.items():
            value = getattr(self, name)
            if name in OPTIONAL and value is None:
                continue
            # True and False are ints in Python. NaN fails the comparison.
            is_number = isinstance(value, types) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:
                kind = "a whole number" if types == (int,) else "a number"
                raise UserError(f"{name}={value!r}: give {kind} from {low} to {high}")
        self._check_stop()

    def _check_stop(self) -> None:
        if isinstance(self.stop, str) or not isinstance(self.stop, (tuple, list)):
            raise UserError(f"stop={self.stop!r}: give a list of strings")
        if len(self.stop) > STOPS:
            raise UserError(f"stop: {len(self.stop)} strings, at most {STOPS} are allowed")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= STOP_CHARACTERS:
                raise UserError(
                    f"stop: {text!r:.80} must be a string of 1 to {STOP_CHARACTERS} characters"
                )
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True)
class Waiting:
    """The request waits. `ahead`: requests before it in line; 0 while its model is loaded."""

    ahead: int
    loading: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token, and those of the likeliest tokens at its position, the likeliest first.

    They are the model's own: before temperature, penalty and cut-offs.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TextChunk:
    """The next characters of a streamed answer; never half a character. logprobs: of its tokens, if asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class StreamEnd:
    """The end of a streamed answer.

    tokens: number of generated tokens, the end-of-text token included.
    finish: "stop" (the model ended its answer, or wrote a stop string), "length", "time" (it took longer than
        Limits.seconds) or "cancelled".
    messages_cut: number of the oldest messages that did not fit.
    seed: repeats this answer.
    prompt_tokens: that the model read.
    max_new_tokens: that there was room for, at most the setting of that name.
    """

    tokens: int
    tokens_per_second: float
    finish: str
    messages_cut: int
    seed: int
    prompt_tokens: int = 0
    max_new_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """One whole answer. Its other fields are those of `StreamEnd` and `TextChunk`."""

    text: str
    tokens: int
    finish: str
    prompt_tokens: int = 0
    seed: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that need none of its weights.

    context: tokens that it reads and writes in all.
    max_new_tokens: most tokens of an answer that can be asked for.
    trained_turns: most user messages of one training conversation; None if it is unknown.
    system_prompt: False for a model that was trained without one; None if it is unknown.
    characters: "ASCII" if the tokenizer has no token for any other character; None if it knows more.
    stage: "ppo", "sft", "base", ...; "hub" for a model of the Hub.
    created: date of the run, YYYY-MM-DD, or "".
    metrics: some final numbers of the run.
    """

    context: int
    max_new_tokens: int
    trained_turns: int | None
    system_prompt: bool | None
    characters: str | None
    path: str
    kind: str
    stage: str
    created: str
    metrics: dict[str, float] = field(default_factory=dict)
