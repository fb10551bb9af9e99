"""What one may ask the engine for, and what comes back: settings, limits, events of a stream, completions."""

from dataclasses import dataclass

from rlhf.errors import UserError


class Busy(UserError):
    """No room for another request now.

    retry_after: seconds after which it is worth asking again.
    """

    def __init__(self, message: str, retry_after: int = 5):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for. The engine checks them because API clients bypass the browser's checks."""

    characters: int = 32_000
    messages: int = 200
    new_tokens: int = 1024
    samples: int = 16


# setting -> (types, lowest, highest)
SETTING_RANGES = {
    "temperature": ((int, float), 0.0, 5.0),
    "top_p": ((int, float), 0.01, 1.0),
    "top_k": ((int,), 0, 1_000_000),
    "max_new_tokens": ((int,), 1, 1_000_000),
    "repetition_penalty": ((int, float), 1.0, 5.0),
    # A browser cannot represent larger integers exactly.
    "seed": ((int,), 0, 2**53),
}


@dataclass(frozen=True)
class SamplingSettings:
    """Settings that one answer is sampled with.

    temperature: 0 takes the most probable token each time.
    top_k: 0 means all tokens.
    seed: None draws a new one.
    stop: texts that end the answer, which are not part of it.
    logprobs: number of likeliest tokens whose log-probs are returned with each token; None returns none.
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
            if name == "seed" and value is None:
                continue
            # True and False are ints in Python. NaN fails the comparison.
            is_number = isinstance(value, types) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:
                kind = "a whole number" if types == (int,) else "a number"
                raise UserError(f"{name}={value!r}: give {kind} from {low} to {high}")


@dataclass(frozen=True)
class Waiting:
    """The request waits. `ahead`: requests before it in line; 0 while its model is loaded."""

    ahead: int
    loading: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token, and those of the likeliest tokens at its position, the likeliest first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TextChunk:
    """The next characters of a streamed answer; never half a character."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class StreamEnd:
    """The end of a streamed answer.

    tokens: number of generated tokens, the end-of-text token included.
    finish: "stop" (the model ended its answer), "length" or "cancelled".
    messages_cut: number of the oldest messages that did not fit.
    seed: repeats this answer.
    """

    tokens: int
    tokens_per_second: float
    finish: str
    messages_cut: int
    seed: int
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """One whole answer. tokens and finish are those of `StreamEnd`."""

    text: str
    tokens: int
    finish: str
    prompt_tokens: int = 0
    seed: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
