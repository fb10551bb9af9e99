"""A request under way, and the answers to it: the same for every way to generate.

The thread of a model calls `Answer.take` with each token; the reader of the request gets the events.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers.decoders import DecodeStream

from rlhf.completions.sample import uniform_numbers
from rlhf.serving.engine.prompts import Prompt
from rlhf.serving.engine.requests import (
    Completion,
    NotANumber,
    SamplingSettings,
    StreamEnd,
    TextChunk,
    TokenLogprob,
)
from rlhf.serving.engine.sampling import token_logprobs


class Request:
    """A checked request on its way through the thread of a model.

    name: by which it can be cancelled. n: number of answers. streamed: chunks of text are events too.
    events: TextChunk ..., then StreamEnd or a list of Completion, or the exception that ended it.
    stop: set to cancel it. deadline: on time.monotonic().
    """

    def __init__(
        self,
        name: str,
        model: str,
        prompt: Prompt,
        settings: SamplingSettings,
        n: int = 1,
        *,
        streamed: bool,
        seconds: float,
        client: str | None = None,
    ):
        self.name, self.model, self.client = name, model, client
        self.prompt, self.settings, self.n, self.streamed = prompt, settings, n, streamed
        self.seed = request_seed(settings)
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.stop = threading.Event()
        self.deadline = time.monotonic() + seconds
        self.started: float | None = None
        self.answers: list[Answer] = []
        self.error: BaseException | None = None
        self.done = False
        self.on_done: Callable[[Request], None] = lambda request: None  # called once, when it ends
        self.worker: object | None = None  # whose line it is in
        self._finishing = threading.Lock()  # a reader may end it while its thread does

    def begin(self, tokenizer, stop_tokens: Sequence[int]) -> list["Answer"]:
        """The answers to generate."""
        self.started = time.monotonic()
        self.answers = [Answer(self, i, tokenizer, stop_tokens) for i in range(self.n)]
        return self.answers

    @property
    def ended_early(self) -> str | None:
        """The reason to stop generating now: "cancelled" or "time"."""
        if self.stop.is_set():
            return "cancelled"
        if time.monotonic() > self.deadline:
            return "time"
        return None

    def settle(self) -> None:
        """Tell the reader if all answers are finished."""
        if all(answer.finish is not None for answer in self.answers):
            if self.streamed:
                self._finish(self.answers[0].end())
            else:
                self._finish([answer.completion() for answer in self.answers])

    def fail(self, error: BaseException) -> None:
        self.error = error
        self._finish(error)

    def cancel_unstarted(self) -> None:
        """End a request that no thread has begun."""
        self.stop.set()
        if self.streamed:
            self._finish(StreamEnd(0, 0.0, "cancelled", self.prompt.cut, self.seed))
        else:
            self._finish([Completion("", 0, "cancelled", seed=self.seed)] * self.n)

    def _finish(self, event) -> None:
        with self._finishing:
            if self.done:
                return
            self.done = True
        self.on_done(self)
        self.events.put(event)


class Answer:
    """One answer under way.

    prompt_ids, tokens: ids that the model read, and those that it wrote. uniforms (room,): a random number per step.
    finish: as in `StreamEnd`; None while it grows.
    """

    def __init__(self, request: Request, index: int, tokenizer, stop_tokens: Sequence[int]):
        self.request, self.settings = request, request.settings
        self.prompt_ids, self.room = request.prompt.ids, request.prompt.room
        self.tokenizer, self.stop_tokens = tokenizer, frozenset(stop_tokens)
        self.uniforms = torch.zeros(0)
        if self.settings.temperature > 0:
            self.uniforms = uniform_numbers(1, self.room, seed=request.seed, stream=index)[0]
        self.tokens: list[int] = []
        self.finish: str | None = None
        # Where a text goes on, its last tokens decide if the first word begins with a space. An answer begins without one.
        before = self.prompt_ids[-4:] if request.prompt.continued else []
        self._decoder = DecodeStream(ids=before, skip_special_tokens=True)
        self._stops = StopStrings(self.settings.stop)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._unsent: list[TokenLogprob] = []  # of tokens whose text is not complete

    @property
    def over(self) -> bool:
        return self.finish is not None or self.request.done

    def take(self, token: int | None, logits: torch.Tensor) -> None:
        """Add the next token, which was chosen from logits (V,). None: they are no numbers, an exception."""
        if token is None:
            raise NotANumber(
                "the model gave NaN or infinite numbers for the next token: its weights are damaged, or too large for "
                "this precision (--precision fp32)"
            )
        self.tokens.append(token)
        ended = token in self.stop_tokens  # it need not be special to the tokenizer
        if not ended:
            if self.settings.logprobs is not None:
                self._unsent.append(self._logprob(token, logits))
            text = self._decoder.step(self.tokenizer.backend_tokenizer, token)
            # None until the bytes so far make whole characters.
            if text:
                self._show(self._stops.feed(text))
        if ended or self._stops.hit:
            self.close("stop")
        elif len(self.tokens) >= self.room:
            self.close("length")

    def stop_if_asked(self) -> bool:
        """Close the answer if its request was cancelled or took too long. True if it is over."""
        reason = self.request.ended_early
        if reason is not None and not self.over:
            self.close(reason)
        return self.over

    def close(self, finish: str) -> None:
        self.finish = finish
        if not self._stops.hit:
            self._show(self._stops.rest(), last=True)
        self.request.settle()

    def _show(self, text: str, *, last: bool = False) -> None:
        if not text and not (last and self._unsent):
            return
        logprobs = None
        if self.settings.logprobs is not None:
            logprobs = tuple(self._unsent)
            self._logprobs += self._unsent
            self._unsent = []
        self._shown.append(text)
        if self.request.streamed:
            self.request.events.put(TextChunk(text, logprobs))

    def _logprob(self, token: int, logits: torch.Tensor) -> TokenLogprob:
        value, best = token_logprobs(logits, token, self.settings.logprobs)
        top = tuple((self.tokenizer.decode([i]), logprob) for i, logprob in best)
        return TokenLogprob(self.tokenizer.decode([token]), value, top)

    def end(self) -> StreamEnd:
        seconds = max(1e-6, time.monotonic() - self.request.started)
        return StreamEnd(
            tokens=len(self.tokens),
            tokens_per_second=len(self.tokens) / seconds,
            finish=self.finish,
            messages_cut=self.request.prompt.cut,
            seed=self.request.seed,
            prompt_tokens=len(self.prompt_ids),
            max_new_tokens=self.room,
        )

    def completion(self) -> Completion:
        """The answer as a whole: its text is what `stream` gives, to the letter."""
        logprobs = None
        if self.settings.logprobs is not None:
            logprobs = tuple(self._logprobs)
        return Completion(
            text="".join(self._shown),
            tokens=len(self.tokens),
            finish=self.finish,
            prompt_tokens=len(self.prompt_ids),
            seed=self.request.seed,
            logprobs=logprobs,
        )


class StopStrings:
    """Holds text back while it may be the beginning of a stop string. hit: one of them was written."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.hit = False
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that may be shown now. What follows a stop string is dropped."""
        if not self.stops:
            return text
        self._held += text
        starts = [self._held.find(stop) for stop in self.stops]
        starts = [start for start in starts if start >= 0]
        if starts:
            self.hit = True
            shown, self._held = self._held[: min(starts)], ""
            return shown
        keep = max(self._begun(stop) for stop in self.stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _begun(self, stop: str) -> int:
        """Length of the longest end of the held text with which the stop string begins."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0

    def rest(self) -> str:
        """The text that is still held, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def request_seed(settings: SamplingSettings) -> int:
    """The seed that was asked for, or a new one."""
    if settings.seed is None:
        return secrets.randbelow(2**31)
    return settings.seed
