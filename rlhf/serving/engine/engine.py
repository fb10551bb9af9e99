"""Serve finished models through one interface: `stream` an answer, `sample` several, `score` them, `cancel` a request.

A request is checked on the thread of who asks (checks, prompts), gets a place in line, and is answered by the thread of
its model (worker): many requests together where the architecture allows it (batched), else one after the other through
transformers' `generate` (plain). At most `keep` models stay in memory; one that nobody uses is unloaded.

These generation loops are apart from the one of training (rlhf.completions.sample.decode), which must draw from exactly the
distribution whose log-probs are computed. Here come top-k, top-p, repetition penalty, stop strings and a checkpoint's own
stop tokens. All draw with sample_tokens and uniform_numbers: a token depends only on the request's seed, the answer's index
and the step. So a request gives the same text whatever else the engine is doing (up to the rounding of products of another
shape, which a token can only notice where two are equally likely), and the global random state is never used.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty

from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.errors import UserError
from rlhf.serving.engine.answers import Request
from rlhf.serving.engine.checks import check_messages, check_sizes, check_text
from rlhf.serving.engine.model_cache import LOADING, ModelCache, check_served
from rlhf.serving.engine.models import (
    Known,
    Memory,
    ServedModel,
    check_device,
    load_for_answers,
    read_known,
    stamp_of,
)
from rlhf.serving.engine.requests import (
    Busy,
    Completion,
    Limits,
    ModelFacts,
    SamplingSettings,
    StreamEnd,
    TextChunk,
    Waiting,
)
from rlhf.serving.engine.worker import IDLE_SECONDS, Running, Shared, Worker

BATCHING = ("auto", "off")
# Seconds after which a reader without news looks after its place in line and its worker: at first, and then.
FIRST_LOOK, LOOK = 0.05, 0.25
SAY_AGAIN = 1.0  # seconds after which a reader in line hears of its place again, so that it can notice that it left


class Engine:
    """Serves the models `runs` (label -> folder or Hub id) and scores with the reward models `reward_runs`.

    A model is loaded when it is first requested. At most `keep` policies and `keep` reward models stay in memory.
    precision: of the policies, as in `convert_for_answers`; reward models score in fp32.
    batching: "auto", or "off" to answer one request to a model at a time.
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
        batching: str = "auto",
    ):
        check_device(device)
        if batching not in BATCHING:
            raise UserError(f"batching={batching!r}: use one of {', '.join(BATCHING)}")
        self.precision, self.device, self.limits = precision, device, limits
        self.runs = dict(runs)
        self.reward_runs = dict(reward_runs or {})
        self._folders: set[str] = set()  # paths that are no Hub ids
        self._note_folders()
        self._shared = Shared(
            self._load_policy, limits, batching, Memory(keep), Running(limits.running)
        )
        self._workers: dict[str, Worker] = {}  # by label
        self._requests: dict[str, Request] = {}  # by name, running or waiting
        self._known: dict[str, tuple[tuple, Known]] = {}  # by label, with the stamp of its files
        self._scorers = ModelCache(self._load_scorer, keep)
        self._scorer_stamps: dict[str, tuple] = {}
        self._scoring = threading.Lock()
        self._reading = threading.Lock()  # of tokenizers
        self._lock = threading.RLock()  # of the dicts above
        self._counts: Counter[str] = Counter()
        self._mean_seconds = 1.0  # of recent requests
        self._closed = False

    # ---- the interface -------------------------------------------------------------------------------------------

    def stream(
        self,
        model: str,
        messages: list[dict] | str,
        settings: SamplingSettings,
        *,
        request: str | None = None,
        client: str | None = None,
    ) -> "AnswerStream":
        """An iterator of chunks of text as they are generated, then one StreamEnd; Waiting while it is in line.

        messages: a last message of the assistant is continued; a string is raw text to continue.
        request: a name for `cancel`. A second request of the same name stops the first.
        client: who asks, for the limit per client.

        Closing the iterator stops it too. A bad request raises UserError here, and a full line Busy.
        """
        asked = self._start(model, messages, settings, 1, request, client, streamed=True)
        return AnswerStream(self, asked)

    def sample(
        self,
        model: str,
        messages: list[dict] | str,
        settings: SamplingSettings,
        n: int,
        *,
        request: str | None = None,
        client: str | None = None,
    ) -> list[Completion]:
        """Generate n answers to the same messages. The first is the one that `stream` gives for the same seed."""
        self._check_count(settings, n)
        asked = self._start(model, messages, settings, n, request, client, streamed=False)
        completions: list[Completion] = []
        for event in self.events_of(asked):
            if isinstance(event, list):
                completions = event
        return completions

    def best_of(
        self,
        model: str,
        reward_run: str,
        messages: list[dict],
        settings: SamplingSettings,
        n: int,
        *,
        request: str | None = None,
        client: str | None = None,
    ) -> list[tuple[Completion, float]]:
        """Generate n answers and score them with a reward model. Returns (answer, score), the best first."""
        check_served(reward_run, self.reward_runs, "reward model")
        completions = self.sample(model, messages, settings, n, request=request, client=client)
        # As in training, where the spaces around a completion are no part of it.
        texts = [completion.text.strip() for completion in completions]
        scored = list(zip(completions, self.score(reward_run, messages, texts), strict=True))
        return sorted(scored, key=lambda pair: pair[1], reverse=True)

    def score(
        self, reward_run: str, messages: list[dict], completions: Sequence[str]
    ) -> list[float]:
        """Score each completion as an answer to `messages` with a reward model."""
        check_served(reward_run, self.reward_runs, "reward model")
        messages = check_messages(messages, self.limits, answered=True)
        if not 1 <= len(completions) <= self.limits.samples:
            raise UserError(f"{len(completions)} completions: give 1 to {self.limits.samples}")
        contents = [message["content"] for message in messages]
        check_sizes([*contents, *completions], self.limits)
        batch = ScoringBatch(prompts=[messages] * len(completions), completions=list(completions))
        with self._scoring, self._shared.turns.turn(batch):
            self._scorers.drop_unused(IDLE_SECONDS)
            self._drop_old_scorer(reward_run)
            return self._scorers[reward_run](batch).tolist()

    def cancel(self, request: str) -> bool:
        """Stop a request after the token that it is generating; returns False if there is no such request."""
        with self._lock:
            asked = self._requests.get(request)
        if asked is None:
            return False
        self.stop(asked)
        return True

    def facts(self, model: str) -> ModelFacts:
        """The facts of a model, without loading it."""
        check_served(model, self.runs, "model")
        return self._read_known(model).facts

    def preload(self, model: str) -> None:
        """Load a model in the background, so that the first question does not wait for it."""
        check_served(model, self.runs, "model")
        self._worker(model).preload()

    def refresh(self, runs: dict[str, str], reward_runs: dict[str, str]) -> None:
        """Replace the models that are served. One that is gone, or has other files, answers its line and is unloaded."""
        gone = []
        with self._lock:
            self.runs, self.reward_runs = dict(runs), dict(reward_runs)
            self._note_folders()
            for name, worker in list(self._workers.items()):
                if name not in self.runs or stamp_of(self.runs[name]) != worker.stamp:
                    gone.append(self._workers.pop(name))
        for worker in gone:
            worker.retire()
        with self._scoring:
            for name in list(self._scorers.values):
                if name not in self.reward_runs:
                    self._scorers.drop(name)
                self._drop_old_scorer(name)

    def load_report(self) -> dict[str, int]:
        """Numbers of now (loaded, loading, running, waiting) and since the start (the others)."""
        with self._lock:
            workers = list(self._workers.values())
            in_flight = len(self._requests)
            counts = dict(self._counts)
        running = 0
        for worker in workers:
            running += sum(not request.done for request in list(worker.active))
        report = {
            "loaded": sum(worker.generator is not None for worker in workers),
            "loaded_reward_models": len(self._scorers.values),
            "loading": sum(worker.loading for worker in workers),
            "running": running,
            "waiting": max(0, in_flight - running),
            "tokens": self._shared.tokens,
        }
        for name in ("requests", "refused", "failed", "cancelled", "rebuilt"):
            report[name] = counts.get(name, 0)
        return report

    def close(self) -> None:
        """Stop every request and end the threads."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join(timeout=5.0)

    # ---- checks and the line, on the caller's thread -------------------------------------------------------------

    def _start(self, model, messages, settings, n, request, client, *, streamed: bool) -> Request:
        """Check a request and put it into the line of its model."""
        check_served(model, self.runs, "model")
        with self._lock:
            self._check_room(client)  # before the prompt costs anything
        if settings.max_new_tokens > self.limits.new_tokens:
            raise UserError(
                f"max_new_tokens={settings.max_new_tokens}: at most {self.limits.new_tokens} are allowed"
            )
        if isinstance(messages, str):
            check_text(messages, self.limits)
        else:
            messages = check_messages(messages, self.limits)
        prompt = self._read_known(model).reader.read(messages, settings.max_new_tokens)
        asked = Request(
            request or uuid.uuid4().hex,
            model,
            prompt,
            settings,
            n,
            streamed=streamed,
            seconds=self.limits.seconds,
            client=client,
        )
        asked.on_done = self._leave
        self.cancel(asked.name)
        self._enter(asked)
        while not self._worker(model).submit(asked):
            pass  # it ended in this moment: the next one is new
        if asked.stop.is_set():  # cancelled before it was in a line, where `stop` looks for it
            self.stop(asked)
        return asked

    def _check_count(self, settings: SamplingSettings, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= self.limits.samples:
            raise UserError(f"n={n}: ask for 1 to {self.limits.samples} answers")
        if n > 1 and settings.temperature == 0:
            raise UserError(
                f"n={n} answers at temperature 0 would all be the same: raise temperature, or ask for one"
            )

    def _enter(self, asked: Request) -> None:
        """Count a request, or refuse it as Busy."""
        with self._lock:
            # Again: others came while the prompt was read.
            self._check_room(asked.client)
            self._counts["requests"] += 1
            self._requests[asked.name] = asked

    def _check_room(self, client: str | None) -> None:
        """Raise Busy if no further request of a client is taken now. The lock is held."""
        if self._closed:
            raise Busy("the service is closing: ask again when it is back", retry_after=10)
        in_flight = len(self._requests)
        most = self.limits.running + self.limits.waiting
        own = 0
        if client is not None:
            clients = [request.client for request in self._requests.values()]
            own = clients.count(client)
        if in_flight >= most or own >= self.limits.per_client:
            self._counts["refused"] += 1
            wait = self._retry_after(in_flight)
        if in_flight >= most:
            raise Busy(
                f"{in_flight} requests are running or in line, the most that are taken: ask again in {wait} s",
                retry_after=wait,
            )
        if own >= self.limits.per_client:
            raise Busy(
                f"you have {own} requests running or in line, the most for one client: wait for one of them, or "
                "cancel it",
                retry_after=wait,
            )

    def _retry_after(self, in_flight: int) -> int:
        """Seconds until the line is shorter, from the time that recent requests took."""
        rounds = max(1.0, in_flight / self.limits.running)
        return int(min(60, max(1, round(rounds * self._mean_seconds))))

    def _leave(self, asked: Request) -> None:
        """Called once for each request, when it is finished."""
        with self._lock:
            # A newer request of the same name may have its entry.
            if self._requests.get(asked.name) is asked:
                del self._requests[asked.name]
            if asked.error is not None:
                self._counts["failed"] += 1
            if asked.stop.is_set():
                self._counts["cancelled"] += 1
            if asked.started is not None:
                seconds = time.monotonic() - asked.started
                self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def stop(self, asked: Request) -> None:
        """Cancel a request, wherever it is."""
        asked.stop.set()
        if asked.worker is not None and asked.worker.withdraw(asked):
            asked.cancel_unstarted()

    # ---- waiting, on the caller's thread -------------------------------------------------------------------------

    def events_of(self, asked: Request) -> Iterator:
        """The events of a request: Waiting while it is in line, then what its thread sends. Raises its exception."""
        said, said_at = None, 0.0
        patience = FIRST_LOOK
        while True:
            try:
                event = asked.events.get(timeout=patience)
            except Empty:
                patience = LOOK
                waiting = self._look_after(asked)
                now = time.monotonic()
                if waiting is not None and (waiting != said or now - said_at > SAY_AGAIN):
                    said, said_at = waiting, now
                    yield waiting
                continue
            if isinstance(event, BaseException):
                raise event
            yield event
            if not isinstance(event, TextChunk):
                return

    def _look_after(self, asked: Request) -> Waiting | None:
        """The place of a request in line. Replaces a worker that does not move; ends a request that waited too long."""
        worker = asked.worker
        if worker.is_stuck():
            self._replace(worker)
            return None
        waiting = worker.waiting(asked)
        if waiting is not None and time.monotonic() > asked.deadline and worker.withdraw(asked):
            wait = self._retry_after(len(self._requests))
            asked.fail(
                Busy(
                    f"the request waited for {self.limits.seconds:.0f} s and did not begin: ask again in {wait} s",
                    retry_after=wait,
                )
            )
        return waiting

    # ---- workers -------------------------------------------------------------------------------------------------

    def _worker(self, model: str) -> Worker:
        """The worker of a model; a new one if there is none that lives."""
        with self._lock:
            if self._closed:
                raise Busy("the service is closing: ask again when it is back", retry_after=10)
            stamp = stamp_of(self._path(model, self.runs))
            worker = self._workers.get(model)
            if worker is not None and worker.died:
                self._counts["rebuilt"] += 1
            if worker is not None and worker.stamp != stamp:
                worker.retire()  # the folder holds another model by now, and another tokenizer perhaps
                worker = None
            if worker is None or worker.dead or worker.ending:
                worker = Worker(model, self._shared, stamp)
                self._workers[model] = worker
            return worker

    def _replace(self, worker: Worker) -> None:
        with self._lock:
            if self._workers.get(worker.name) is worker:
                del self._workers[worker.name]
                self._counts["rebuilt"] += 1
        worker.abandon()

    def _load_policy(self, name: str) -> ServedModel:
        return load_for_answers(self._path(name, self.runs), self.precision, self.device)

    def _load_scorer(self, name: str) -> RewardModelScorer:
        path = self._path(name, self.reward_runs)
        self._scorer_stamps[name] = stamp_of(path)
        with LOADING:
            scorer = RewardModelScorer.load(path)
        scorer.model.to(self.device)
        return scorer

    def _drop_old_scorer(self, name: str) -> None:
        """Forget a reward model whose files have changed."""
        path = self.reward_runs.get(name)
        if path is None or stamp_of(str(path)) != self._scorer_stamps.get(name):
            self._scorers.drop(name)

    def _note_folders(self) -> None:
        # Remembered for good: a folder that comes back is served again.
        for path in (*self.runs.values(), *self.reward_runs.values()):
            if Path(path).is_dir():
                self._folders.add(str(path))

    def _path(self, name: str, served: dict[str, str]) -> str:
        """The folder or Hub id of a served model. UserError for a folder that is gone: it must not become a Hub id."""
        # Read once more under the name: a refresh may come between any two lines.
        check_served(name, served, "model")  # others may have replaced the served models meanwhile
        path = str(served.get(name))
        if path in self._folders and not Path(path).is_dir():
            raise UserError(f"the folder of {name!r} is gone: choose another model")
        return path

    def _read_known(self, model: str) -> Known:
        path = self._path(model, self.runs)
        stamp = stamp_of(path)
        with self._reading:
            if model not in self._known or self._known[model][0] != stamp:
                self._known[model] = stamp, read_known(path, self.limits.new_tokens)
            return self._known[model][1]


class AnswerStream:
    """The events of one request, as an iterator that can be closed. Nobody who drops it leaves work behind."""

    def __init__(self, engine: Engine, asked: Request):
        self._engine, self._asked = engine, asked
        self._events = engine.events_of(asked)

    def __iter__(self) -> "AnswerStream":
        return self

    def __next__(self) -> Waiting | TextChunk | StreamEnd:
        return next(self._events)

    def close(self) -> None:
        """Stop the request, unless it is finished."""
        if not self._asked.done:
            self._engine.stop(self._asked)
        with suppress(ValueError):  # another thread waits in it, and gets the end of the stream
            self._events.close()

    def __del__(self):
        if not self._asked.done:
            self._engine.stop(self._asked)
