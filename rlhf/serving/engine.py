"""One interface to the finished models: `stream` an answer, `sample` several, `score` them, `cancel` a request.

This implementation is one worker thread around transformers' `generate`: requests wait in line and every sampling
option works. Left out: batching requests together, and time limits. Nothing here draws from the global random state. A
token is picked by a number that depends on the request's seed, the answer's place and the step alone (as in
rlhf.completions.sample), so a request gives the same text whatever else the engine is doing.
"""

import queue
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rlhf.completions.sample import sample_tokens, uniform_numbers
from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.data.chat import as_messages, decode, encode_prompt
from rlhf.errors import UserError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, freeze


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. They stand here because the browser's own checks are bypassed by the API."""

    characters: int = 32_000
    messages: int = 200
    new_tokens: int = 1024
    samples: int = 16


@dataclass(frozen=True)
class SamplingSettings:
    """How an answer is drawn. temperature 0: the most probable token each time; top_k 0: all; seed None: a new one."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        for name, kinds, low, high in (
            ("temperature", (int, float), 0.0, 5.0),
            ("top_p", (int, float), 0.01, 1.0),
            ("top_k", (int,), 0, 1_000_000),
            ("max_new_tokens", (int,), 1, 1_000_000),
            ("repetition_penalty", (int, float), 1.0, 5.0),
            ("seed", (int,), 0, 2**53),
        ):
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                kind = "a whole number" if kinds == (int,) else "a number"
                raise UserError(f"{name}={value!r}: give {kind} from {low} to {high}")


@dataclass(frozen=True)
class Piece:
    """The next piece of text; whole characters only."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer.

    tokens: how many were generated, the end-of-text token included. finish: "stop" (the model ended its answer),
    "length" or "cancelled". messages_cut: how many of the oldest messages did not fit. seed: repeats this answer.
    """

    tokens: int
    tokens_per_second: float
    finish: str
    messages_cut: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One whole answer; the fields mean what they mean in `Done`."""

    text: str
    tokens: int
    finish: str


class Engine:
    """Serves the models `runs` (name -> folder or Hub id) and scores with the reward models `reward_runs`.

    Models are loaded when first asked for; at most `keep` policies and `keep` reward models stay in memory.
    """

    def __init__(
        self,
        runs: dict[str, str],
        device: str = "cpu",
        *,
        reward_runs: dict[str, str] | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        keep: int = 2,
    ):
        check_device(device)
        self.runs, self.reward_runs, self.device, self.limits = (
            dict(runs),
            dict(reward_runs or {}),
            device,
            limits,
        )
        self._policies = Recent(self._load_policy, keep)
        self._scorers = Recent(self._load_scorer, keep)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._stops: dict[str, threading.Event] = {}

    # ---- the interface -------------------------------------------------------------------------------------------

    def stream(
        self,
        model: str,
        messages: list[dict],
        settings: SamplingSettings,
        *,
        request: str | None = None,
    ) -> Iterator[Piece | Done]:
        """Pieces of text as they are generated, then one Done. Closing the iterator, or `cancel(request)`, stops it.

        What is wrong with the request is raised here, before the first piece is asked for. A second request of the same
        name stops the first.
        """
        messages = self._checked(model, messages, settings)
        return self._read(model, messages, settings, request)

    def sample(
        self,
        model: str,
        messages: list[dict],
        settings: SamplingSettings,
        n: int,
        *,
        request: str | None = None,
    ) -> list[Completion]:
        """n answers to the same messages. The first is the one that `stream` gives for the same seed."""
        messages = self._checked(model, messages, settings)
        if not 1 <= n <= self.limits.samples:
            raise UserError(f"n={n}: ask for 1 to {self.limits.samples} answers")
        if n > 1 and settings.temperature == 0:
            raise UserError(
                f"n={n} answers at temperature 0 would all be the same: raise temperature or ask for one"
            )
        with self._stoppable(request) as stop:
            return self._worker.submit(self._sample, model, messages, settings, n, stop).result()

    def score(
        self, reward_run: str, messages: list[dict], completions: Sequence[str]
    ) -> list[float]:
        """The reward model's score of each completion, read as the answer to `messages`."""
        known(reward_run, self.reward_runs, "reward model")
        messages = self._checked_messages(messages)
        if not 1 <= len(completions) <= self.limits.samples:
            raise UserError(f"{len(completions)} completions: give 1 to {self.limits.samples}")
        self._check_size([*(m["content"] for m in messages), *completions])
        batch = ScoringBatch(prompts=[messages] * len(completions), completions=list(completions))
        return self._worker.submit(lambda: self._scorers[reward_run](batch).tolist()).result()

    def cancel(self, request: str) -> bool:
        """Stop the request of this name after the token it is at; False when there is none."""
        stop = self._stops.get(request)
        if stop is not None:
            stop.set()
        return stop is not None

    def close(self) -> None:
        """Stop every request and end the worker thread."""
        for stop in list(self._stops.values()):
            stop.set()
        self._worker.shutdown()

    # ---- checks, on the caller's thread --------------------------------------------------------------------------

    def _checked(self, model: str, messages: list[dict], settings: SamplingSettings) -> list[dict]:
        known(model, self.runs, "model")
        if settings.max_new_tokens > self.limits.new_tokens:
            raise UserError(
                f"max_new_tokens={settings.max_new_tokens}: at most {self.limits.new_tokens} are served"
            )
        return self._checked_messages(messages)

    def _checked_messages(self, messages: list[dict]) -> list[dict]:
        messages = as_messages(list(messages))
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
            raise UserError(
                "the last message must be from the user, and not empty: write something to answer"
            )
        if len(messages) > self.limits.messages:
            raise UserError(
                f"{len(messages)} messages: at most {self.limits.messages} are read; begin anew"
            )
        if any(message["role"] == "system" for message in messages[1:]):
            raise UserError("a system message may only be the first one: move it to the start")
        self._check_size([message["content"] for message in messages])
        return messages

    def _check_size(self, texts: list[str]) -> None:
        size = sum(map(len, texts))
        if size > self.limits.characters:
            raise UserError(
                f"{size} characters: at most {self.limits.characters} are read; shorten the conversation"
            )
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                "the text holds half a character (a lone surrogate): send it as valid Unicode"
            ) from error

    # ---- waiting, on the caller's thread -------------------------------------------------------------------------

    @contextmanager
    def _stoppable(self, request: str | None) -> Iterator[threading.Event]:
        request, stop = request or uuid.uuid4().hex, threading.Event()
        self.cancel(request)
        self._stops[request] = stop
        try:
            yield stop
        finally:
            stop.set()
            if self._stops.get(request) is stop:
                del self._stops[request]

    def _read(self, model, messages, settings, request) -> Iterator[Piece | Done]:
        events: queue.SimpleQueue = queue.SimpleQueue()
        with self._stoppable(request) as stop:  # leaving it, by GeneratorExit too, stops the worker
            self._worker.submit(self._stream, model, messages, settings, events.put, stop)
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Done):
                    return

    # ---- work, on the worker's thread ----------------------------------------------------------------------------

    def _load_policy(self, name: str):
        path = str(self.runs[name])
        tokenizer = load_tokenizer(path)
        model = freeze(load_policy(path)).to(self.device)
        stops = model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops]) | {tokenizer.eos_token_id}
        # Sampling settings come with the request, never from the checkpoint; only the stop tokens are its own.
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(stops - {None}) or None,
            pad_token_id=tokenizer.eos_token_id
            if tokenizer.pad_token_id is None
            else tokenizer.pad_token_id,
        )
        return model, tokenizer

    def _load_scorer(self, name: str) -> RewardModelScorer:
        scorer = RewardModelScorer.load(str(self.reward_runs[name]))
        scorer.model.to(self.device)
        return scorer

    def _stream(self, model, messages, settings, emit, stop) -> None:
        try:
            policy, tokenizer = self._policies[model]
            ids, cut = fit_prompt(
                tokenizer,
                messages,
                context_length(policy),
                settings.max_new_tokens,
                trained_turns(policy),
            )
            text = DecodeStream(skip_special_tokens=True)

            def on_token(token: int) -> None:
                piece = text.step(tokenizer.backend_tokenizer, token)
                if piece:
                    emit(Piece(piece))

            seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
            started = time.perf_counter()
            [(tokens, finish)] = generate(policy, ids, settings, [(seed, 0)], stop, on_token)
            seconds = time.perf_counter() - started
            emit(Done(len(tokens), len(tokens) / seconds, finish, cut, seed))
        except BaseException as error:  # the reader waits for an event: it must get one
            emit(error)

    def _sample(self, model, messages, settings, n, stop) -> list[Completion]:
        policy, tokenizer = self._policies[model]
        ids, _ = fit_prompt(
            tokenizer,
            messages,
            context_length(policy),
            settings.max_new_tokens,
            trained_turns(policy),
        )
        seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
        answers = generate(policy, ids, settings, [(seed, place) for place in range(n)], stop)
        return [
            Completion(decode(tokenizer, tokens), len(tokens), finish) for tokens, finish in answers
        ]


def check_device(device: str) -> None:
    """UserError for a device that is not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here ({reason}): use cpu") from error


def known(name: str, names: dict, kind: str) -> None:
    if name not in names:
        raise UserError(
            f"no {kind} {name!r}: choose one of {', '.join(map(repr, names)) or '(none are served)'}"
        )


class Recent:
    """The `keep` values used last; others are forgotten before a new one is loaded. For one thread."""

    def __init__(self, load, keep: int):
        self.load, self.keep, self.values = load, keep, {}

    def __getitem__(self, name: str):
        if name in self.values:
            self.values[name] = self.values.pop(name)
        else:
            while len(self.values) >= self.keep:
                del self.values[next(iter(self.values))]
            self.values[name] = self.load(name)
        return self.values[name]


def trained_turns(policy) -> int | None:
    """The most user messages in one of its demonstrations, written by recipes/sft.py; None where nobody counted."""
    return getattr(policy.config, "trained_turns", None)


def fit_prompt(
    tokenizer, messages: list[dict], context: int, max_new_tokens: int, turns: int | None = None
) -> tuple[list[int], int]:
    """Ids of the messages and how many of the oldest had to be left out, so that the answer has room.

    At most `turns` user messages are read: what a model of single questions and answers says to more is noise. The
    answer keeps max_new_tokens, but at most half of the context. The system message and the last message stay; what is
    left begins with a user message, as the models were trained.
    """
    room = context - min(max_new_tokens, context // 2)
    first = 1 if messages[0]["role"] == "system" else 0
    system, rest = messages[:first], messages[first:]
    asked = [place for place, message in enumerate(rest) if message["role"] == "user"]
    starts = [0, *(place for place in asked if place > 0)]
    if turns is not None and len(asked) > turns:
        starts = asked[-turns:]
    for start in starts:
        ids = encode_prompt(tokenizer, [*system, *rest[start:]])
        if len(ids) <= room:
            return ids, start
    what = "your message and the system prompt have" if system else "your message has"
    raise UserError(
        f"{what} {len(ids)} tokens; this model reads {context} and keeps {context - room} of them for its answer: "
        f"shorten to {room} tokens (about {3 * room} characters)"
    )


class _Draw(LogitsProcessor):
    """Leaves one token possible, drawn with the row's own number, so that taking the best one is sampling."""

    def __init__(self, uniforms: torch.Tensor, prompt_length: int):
        self.uniforms, self.prompt_length = uniforms, prompt_length  # (B, max_new_tokens)

    def __call__(self, input_ids, scores):
        uniforms = self.uniforms[:, input_ids.shape[1] - self.prompt_length]
        chosen = sample_tokens(scores, uniforms, temperature=1.0)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen.unsqueeze(1), 0.0)


class _Watch(StoppingCriteria):
    """Sees each token as it is generated and ends the generation after the token at which `stop` was set."""

    def __init__(self, stop: threading.Event, on_token=None):
        self.stop, self.on_token = stop, on_token

    def __call__(self, input_ids, scores, **kwargs):
        if self.on_token is not None:
            self.on_token(int(input_ids[0, -1]))
        return torch.full(
            (len(input_ids),), self.stop.is_set(), dtype=torch.bool, device=input_ids.device
        )


@torch.inference_mode()
def generate(
    model,
    ids: list[int],
    settings: SamplingSettings,
    draws: list[tuple[int, int]],
    stop: threading.Event,
    on_token=None,
) -> list[tuple[list[int], str]]:
    """(token ids, finish) of one answer per draw (a seed and a stream). on_token hears the first answer's tokens."""
    if stop.is_set():
        return [([], "cancelled")] * len(draws)
    length = min(settings.max_new_tokens, context_length(model) - len(ids))
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.temperature > 0:
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k > 0:
            processors.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            processors.append(TopPLogitsWarper(float(settings.top_p)))
        uniforms = [uniform_numbers(1, length, seed=seed, stream=stream) for seed, stream in draws]
        processors.append(_Draw(torch.cat(uniforms), len(ids)))
    prompt = torch.tensor([ids] * len(draws), device=model.device)
    rows = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=length,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([_Watch(stop, on_token)]),
    )
    stops = model.generation_config.eos_token_id or []
    answers = []
    for row in rows[:, len(ids) :].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), None)
        if end is not None:
            answers.append((row[: end + 1], "stop"))
        else:
            answers.append((row, "cancelled" if stop.is_set() and len(row) < length else "length"))
    return answers
