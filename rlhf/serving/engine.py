"""Serve finished models through one interface: `stream` an answer, `sample` several, `score` them, `cancel` a request.

One worker thread runs transformers' `generate`: requests wait in line, and every sampling option works. Not included:
batching requests together, and time limits.

There are two generation loops on purpose. rlhf.completions.sample.decode generates batches for training: it drops
finished rows from the batch and draws from exactly the distribution whose log-probs are computed. Here transformers'
loop adds what training must not use (top-k, top-p, repetition penalty, a checkpoint's own list of stop tokens), one
token at a time to the reader. Both draw with sample_tokens and uniform_numbers: a token depends only on the request's
seed, the answer's index and the step. So a request gives the same text whatever else the engine is doing, and the
global random state is never used.
"""

import queue
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
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
from rlhf.data.chat import as_messages, completion_text, encode_prompt
from rlhf.errors import UserError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, freeze, stop_token_ids
from rlhf.models.precision import convert_for_answers
from rlhf.serving.model_cache import ModelCache, check_served
from rlhf.serving.requests import (
    Completion,
    Limits,
    SamplingSettings,
    StreamEnd,
    TextChunk,
)


@dataclass(frozen=True)
class _Job:
    """A checked request, on its way from the caller's thread to the worker's. `stop` is set to cancel it."""

    model: str
    messages: list[dict]
    settings: SamplingSettings
    stop: threading.Event


class Engine:
    """Serves the models `runs` (name -> folder or Hub id) and scores with the reward models `reward_runs`.

    A model is loaded when it is first requested. At most `keep` policies and `keep` reward models stay in memory.
    precision: of the policies, as in `convert_for_answers`; reward models score in fp32.
    """

    def __init__(
        self,
        runs: dict[str, str],
        device: str = "cpu",
        *,
        reward_runs: dict[str, str] | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        keep: int = 2,
        precision: str = "fp32",
    ):
        check_device(device)
        self.precision = precision
        self.runs = dict(runs)
        self.reward_runs = dict(reward_runs or {})
        self.device = device
        self.limits = limits
        self._policies = ModelCache(self._load_policy, keep)
        self._scorers = ModelCache(self._load_scorer, keep)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._stops: dict[str, threading.Event] = {}  # request -> the event that cancels it

    # ---- the interface -------------------------------------------------------------------------------------------

    def stream(
        self,
        model: str,
        messages: list[dict],
        settings: SamplingSettings,
        *,
        request: str | None = None,
        client: str | None = None,
    ) -> Iterator[TextChunk | StreamEnd]:
        """Yield chunks of text as they are generated, then one StreamEnd.

        Closing the iterator or calling `cancel(request)` stops it. A second request of the same name stops the first.
        A bad request raises UserError here, before the first chunk is read.
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
        client: str | None = None,
    ) -> list[Completion]:
        """Generate n answers to the same messages. The first is the one that `stream` gives for the same seed."""
        messages = self._checked(model, messages, settings)
        if not 1 <= n <= self.limits.samples:
            raise UserError(f"n={n}: ask for 1 to {self.limits.samples} answers")
        if n > 1 and settings.temperature == 0:
            raise UserError(
                f"n={n} answers at temperature 0 would all be the same: raise temperature, or ask for one"
            )
        with self._stoppable(request) as stop:
            job = _Job(model, messages, settings, stop)
            return self._worker.submit(self._sample, job, n).result()

    def score(
        self, reward_run: str, messages: list[dict], completions: Sequence[str]
    ) -> list[float]:
        """Score each completion as an answer to `messages` with a reward model."""
        check_served(reward_run, self.reward_runs, "reward model")
        messages = self._checked_messages(messages)
        if not 1 <= len(completions) <= self.limits.samples:
            raise UserError(f"{len(completions)} completions: give 1 to {self.limits.samples}")
        contents = [message["content"] for message in messages]
        self._check_size([*contents, *completions])
        batch = ScoringBatch(prompts=[messages] * len(completions), completions=list(completions))
        scores = self._worker.submit(lambda: self._scorers[reward_run](batch))
        return scores.result().tolist()

    def refresh(self, runs: dict[str, str], reward_runs: dict[str, str]) -> None:
        """Serve these from now on."""
        self.runs, self.reward_runs = dict(runs), dict(reward_runs)

    def load_report(self) -> dict:
        """Numbers for /metrics."""
        return {"models_loaded": len(self._policies.values) + len(self._scorers.values)}

    def cancel(self, request: str) -> bool:
        """Stop a request after the token that it is generating; returns False if there is no such request."""
        stop = self._stops.get(request)
        if stop is None:
            return False
        stop.set()
        return True

    def close(self) -> None:
        """Stop every request and end the worker thread."""
        for stop in list(self._stops.values()):  # a copy: requests remove themselves meanwhile
            stop.set()
        self._worker.shutdown()

    # ---- checks, on the caller's thread --------------------------------------------------------------------------

    def _checked(self, model: str, messages: list[dict], settings: SamplingSettings) -> list[dict]:
        check_served(model, self.runs, "model")
        if settings.max_new_tokens > self.limits.new_tokens:
            raise UserError(
                f"max_new_tokens={settings.max_new_tokens}: at most {self.limits.new_tokens} are allowed"
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
                f"{len(messages)} messages: the limit is {self.limits.messages}; start a new conversation"
            )
        if any(message["role"] == "system" for message in messages[1:]):
            raise UserError("a system message may only be the first one: move it to the start")
        self._check_size([message["content"] for message in messages])
        return messages

    def _check_size(self, texts: list[str]) -> None:
        """Check the number of characters, and that the text is valid Unicode (a tokenizer would crash)."""
        size = sum(map(len, texts))
        if size > self.limits.characters:
            raise UserError(
                f"{size} characters: the limit is {self.limits.characters}; shorten the conversation"
            )
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                "the text contains half a character (a lone surrogate): send valid Unicode"
            ) from error

    # ---- waiting, on the caller's thread -------------------------------------------------------------------------

    @contextmanager
    def _stoppable(self, request: str | None) -> Iterator[threading.Event]:
        """Register a request, so that `cancel` finds it; stops it when the block is left."""
        request = request or uuid.uuid4().hex
        stop = threading.Event()
        self.cancel(request)
        self._stops[request] = stop
        try:
            yield stop
        finally:
            stop.set()
            # A newer request of the same name may have taken the place.
            if self._stops.get(request) is stop:
                del self._stops[request]

    def _read(self, model, messages, settings, request) -> Iterator[TextChunk | StreamEnd]:
        """Hand the request to the worker and yield its events; an exception of the worker is raised here."""
        events: queue.SimpleQueue = queue.SimpleQueue()
        # A reader that closes the iterator leaves this block by GeneratorExit, which stops the worker.
        with self._stoppable(request) as stop:
            job = _Job(model, messages, settings, stop)
            self._worker.submit(self._stream, job, events.put)
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, StreamEnd):
                    return

    # ---- work, on the worker's thread ----------------------------------------------------------------------------

    def _load_policy(self, name: str):
        """The model and its tokenizer, ready to generate."""
        path = str(self.runs[name])
        tokenizer = load_tokenizer(path)
        model = freeze(load_policy(path))
        model = convert_for_answers(model, self.precision, torch.device(self.device))
        pad = tokenizer.pad_token_id
        if pad is None:
            pad = tokenizer.eos_token_id
        # A checkpoint may name its own sampling settings. Only its stop tokens are used: the rest comes with the request.
        model.generation_config = GenerationConfig(
            eos_token_id=stop_token_ids(model, tokenizer) or None, pad_token_id=pad
        )
        return model, tokenizer

    def _load_scorer(self, name: str) -> RewardModelScorer:
        scorer = RewardModelScorer.load(str(self.reward_runs[name]))
        scorer.model.to(self.device)
        return scorer

    def _stream(self, job: _Job, emit: Callable[[object], None]) -> None:
        """Emit the chunks of one answer, then StreamEnd, or the exception that ended it."""
        try:
            policy, tokenizer = self._policies[job.model]
            ids, cut = fit_request(policy, tokenizer, job)
            decoder = DecodeStream(skip_special_tokens=True)
            stop_tokens = policy.generation_config.eos_token_id or []

            def on_token(token: int) -> None:
                if token in stop_tokens:  # it need not be special to the tokenizer
                    return
                # None until the bytes so far make whole characters.
                text = decoder.step(tokenizer.backend_tokenizer, token)
                if text:
                    emit(TextChunk(text))

            seed = request_seed(job.settings)
            started = time.perf_counter()
            [(tokens, finish)] = generate(
                policy, ids, job.settings, [(seed, 0)], job.stop, on_token
            )
            seconds = time.perf_counter() - started
            emit(StreamEnd(len(tokens), len(tokens) / seconds, finish, cut, seed, len(ids)))
        except BaseException as error:  # the reader waits for an event, so it must always get one
            emit(error)

    def _sample(self, job: _Job, n: int) -> list[Completion]:
        policy, tokenizer = self._policies[job.model]
        ids, _ = fit_request(policy, tokenizer, job)
        seed = request_seed(job.settings)
        draws = [(seed, i) for i in range(n)]
        completions = []
        for tokens, finish in generate(policy, ids, job.settings, draws, job.stop):
            text = completion_text(tokenizer, tokens, ended=finish == "stop")
            completions.append(Completion(text, len(tokens), finish, len(ids), seed))
        return completions


def check_device(device: str) -> None:
    """Raise UserError if this machine does not have the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here ({reason}): use cpu") from error


# ---- the prompt ----------------------------------------------------------------------------------------------------


def fit_request(policy, tokenizer, job: _Job) -> tuple[list[int], int]:
    """`fit_prompt` with the limits of the model."""
    return fit_prompt(
        tokenizer,
        job.messages,
        context_length(policy),
        job.settings.max_new_tokens,
        trained_turns(policy),
    )


def trained_turns(policy) -> int | None:
    """Most user messages in one training conversation, as recipes/sft.py records it; None if it is unknown."""
    return getattr(policy.config, "trained_turns", None)


def fit_prompt(
    tokenizer, messages: list[dict], context: int, max_new_tokens: int, turns: int | None = None
) -> tuple[list[int], int]:
    """Drop the oldest messages until the answer has room. Returns (token ids, number of dropped messages).

    The answer gets max_new_tokens, but at most half of the context. The system message and the last message always
    stay. What stays begins with a user message, as in training. At most `turns` user messages are kept: a model trained
    on single questions and answers does not make sense of more.
    """
    room = context - min(max_new_tokens, context // 2)
    first = 1 if messages[0]["role"] == "system" else 0
    system, rest = messages[:first], messages[first:]
    questions = [i for i, message in enumerate(rest) if message["role"] == "user"]
    starts = [0, *[i for i in questions if i > 0]]
    if turns is not None and len(questions) > turns:
        starts = questions[-turns:]
    for start in starts:
        ids = encode_prompt(tokenizer, [*system, *rest[start:]])
        if len(ids) <= room:
            return ids, start
    subject = "your message and the system prompt have" if system else "your message has"
    raise UserError(
        f"{subject} {len(ids)} tokens; this model reads {context} and keeps {context - room} of them for its answer: "
        f"shorten to {room} tokens (about {3 * room} characters)"  # some 3 characters per token
    )


# ---- generation ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def generate(
    model,
    ids: list[int],
    settings: SamplingSettings,
    draws: list[tuple[int, int]],
    stop: threading.Event,
    on_token: Callable[[int], None] | None = None,
) -> list[tuple[list[int], str]]:
    """Generate one answer per draw, as (token ids, finish).

    ids: the prompt.
    draws: (seed, stream) of the random numbers of each answer.
    stop: ends the generation after the token at which it was set.
    on_token: called with each token of the first answer.
    """
    if stop.is_set():
        return [([], "cancelled")] * len(draws)
    length = min(settings.max_new_tokens, context_length(model) - len(ids))
    prompt = torch.tensor([ids] * len(draws), device=model.device)  # (B, P)
    rows = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,  # the last logits processor samples
        max_new_tokens=length,
        logits_processor=logits_processors(settings, draws, len(ids), length),
        stopping_criteria=StoppingCriteriaList([_StopWhenCancelled(stop, on_token)]),
    )  # (B, P + T)
    stop_tokens = model.generation_config.eos_token_id or []
    answers = []
    for row in rows[:, len(ids) :].tolist():
        # A row that ended before the others is padded behind its stop token.
        tokens = up_to_stop_token(row, stop_tokens)
        if tokens is not None:
            answers.append((tokens, "stop"))
        elif stop.is_set() and len(row) < length:
            answers.append((row, "cancelled"))
        else:
            answers.append((row, "length"))
    return answers


def request_seed(settings: SamplingSettings) -> int:
    if settings.seed is None:
        return secrets.randbelow(2**31)
    return settings.seed


def logits_processors(
    settings: SamplingSettings, draws: list[tuple[int, int]], prompt_length: int, length: int
) -> LogitsProcessorList:
    """The steps from the model's logits to the token, in the order of transformers' own sampling."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.temperature == 0:
        return processors
    processors.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k > 0:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(float(settings.top_p)))
    uniforms = [uniform_numbers(1, length, seed=seed, stream=stream) for seed, stream in draws]
    processors.append(_SampleWithUniforms(torch.cat(uniforms), prompt_length))
    return processors


class _SampleWithUniforms(LogitsProcessor):
    """Samples each row's token with the row's own random number.

    It leaves only that token possible, so that greedy decoding takes it.
    """

    def __init__(self, uniforms: torch.Tensor, prompt_length: int):
        self.uniforms = uniforms  # (B, max_new_tokens)
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        # The scores (B, V) are already divided by the temperature.
        tokens = sample_tokens(scores, self.uniforms[:, step], temperature=1.0)
        impossible = torch.full_like(scores, float("-inf"))
        return impossible.scatter(1, tokens.unsqueeze(1), 0.0)


class _StopWhenCancelled(StoppingCriteria):
    """Passes each new token of the first row to `on_token`, and ends the generation once `stop` is set."""

    def __init__(self, stop: threading.Event, on_token: Callable[[int], None] | None = None):
        self.stop = stop
        self.on_token = on_token

    def __call__(self, input_ids, scores, **kwargs):
        if self.on_token is not None:
            self.on_token(int(input_ids[0, -1]))
        rows = len(input_ids)
        return torch.full((rows,), self.stop.is_set(), dtype=torch.bool, device=input_ids.device)


def up_to_stop_token(row: list[int], stop_tokens: Sequence[int]) -> list[int] | None:
    """The tokens up to the first stop token, inclusive; None if there is no stop token."""
    for i, token in enumerate(row):
        if token in stop_tokens:
            return row[: i + 1]
    return None
