"""The thread of one model: it loads it, answers the requests in its line, and unloads it when nobody asks.

Whoever waits for an answer looks after the thread: if it died or does not move, the requests that it had fail with a clear
error, and the next request starts a new one (`Engine`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf.serving.engine.answers import Request
from rlhf.serving.engine.batched import BatchedGenerator, can_batch
from rlhf.serving.engine.models import Memory, ServedModel, Turns
from rlhf.serving.engine.plain import PlainGenerator
from rlhf.serving.engine.requests import Limits, Waiting, WorkerFailed

IDLE_SECONDS = 900.0  # after which an unused model is unloaded
STUCK_SECONDS = 120.0  # for one step of one model
LOG = logging.getLogger(__name__)


class Running:
    """The number of answers that are generated now, over all models."""

    def __init__(self, most: int):
        self.most, self.count = most, 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """False if there is no room for so many. A request that is larger than all room runs alone."""
        with self._lock:
            if self.count and self.count + count > self.most:
                return False
            self.count += count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self.count -= count


@dataclass
class Shared:
    """Limits and locks that the threads of all models share.

    load: name -> model. batching: "auto" (where the model can) or "off". tokens: generated so far.
    """

    load: Callable[[str], ServedModel]
    limits: Limits
    batching: str
    memory: Memory
    running: Running
    turns: Turns = field(default_factory=Turns)
    tokens: int = 0


class Worker:
    """Answers the requests to one model in their order.

    loading: it reads its weights. leaving: it unloads as soon as its answers are finished. retiring: it ends when its line
    is empty. ending: it ends now. dead: it has ended. died: by an exception.
    used: when it last had something to do. stamp: of the files that it loads, see `Engine.refresh`.
    """

    def __init__(self, name: str, shared: Shared, stamp: object = None):
        self.name, self.shared, self.stamp = name, shared, stamp
        self.line: deque[Request] = deque()
        self.active: list[Request] = []
        self.loading = self.leaving = self.retiring = self.ending = self.dead = False
        self.died = False
        self.generator: BatchedGenerator | PlainGenerator | None = None
        self.used = time.monotonic()
        self._step_began: float | None = None
        self._changed = threading.Condition()
        self._wanted = False  # a model that is to be loaded without a request
        self._has_served = False  # since it was loaded
        self._thread = threading.Thread(target=self._run, name=f"answers {name}", daemon=True)
        self._thread.start()

    # ---- called by the threads of the readers --------------------------------------------------------------------

    def submit(self, request: Request) -> bool:
        """Put a request into the line. False if this worker has ended."""
        with self._changed:
            if self.dead or self.ending or self.retiring:
                return False
            request.worker = self
            self.line.append(request)
            self._changed.notify()
            return True

    def preload(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify()

    def withdraw(self, request: Request) -> bool:
        """Take a request out of the line. False if it is not in it."""
        with self._changed:
            if request not in self.line:
                return False
            self.line.remove(request)
            return True

    def waiting(self, request: Request) -> Waiting | None:
        """The place of a request; None if it is not in line."""
        with self._changed:
            if request not in self.line:
                return None
            if self.generator is None:
                return Waiting(0, loading=True)
            return Waiting(self.line.index(request))

    def leave_soon(self) -> None:
        """Unload the model when its answers are finished, so that another one can be loaded."""
        with self._changed:
            self.leaving = True
            self._changed.notify()

    def retire(self) -> None:
        """Take no more requests, and end when those in line are answered."""
        with self._changed:
            self.retiring = True
            self._changed.notify()

    def end(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self.ending = True
            for request in self.active:
                request.stop.set()
            while self.line:
                self.line.popleft().cancel_unstarted()
            self._changed.notify()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def is_stuck(self) -> bool:
        began = self._step_began
        return began is not None and time.monotonic() - began > STUCK_SECONDS

    def abandon(self) -> None:
        """Give up a thread that does not move. If it ever does, it ends."""
        self._give_up(
            WorkerFailed(
                f"{self.name}: a step took longer than {STUCK_SECONDS:.0f} s; its thread was given up: ask again"
            )
        )

    def _give_up(self, error: BaseException) -> None:
        with self._changed:
            self.dead = self.ending = True
            requests = [*self.active, *self.line]
            self.line.clear()
        self.shared.turns.give_back(self)
        self.shared.memory.leave(self)
        for request in requests:
            self._forget(request)
            request.fail(error)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error = WorkerFailed(f"{self.name} was stopped")
        try:
            while self._wait_for_work():
                if self.shared.memory.enter(self):
                    try:
                        self._load_and_serve()
                    finally:
                        self.generator = None
                        self.leaving = False
                        self.shared.memory.leave(self)
        except BaseException as cause:  # noqa: BLE001 (nobody else would see it)
            LOG.exception("the thread of %s died", self.name)
            self.died = True
            error = WorkerFailed(
                f"{self.name}: its thread died ({type(cause).__name__}: {cause}): ask again"
            )
            error.__cause__ = cause
        self._give_up(error)

    def _wait_for_work(self) -> bool:
        """False when the worker is to end. An unloaded model needs no thread for long."""
        with self._changed:
            self._changed.wait_for(self._has_news, IDLE_SECONDS)
            if not self.line and not self._wanted:
                self.ending = True
            return not self.ending

    def _has_news(self) -> bool:
        return bool(self.line) or self._wanted or self.leaving or self.retiring or self.ending

    def _load_and_serve(self) -> None:
        self.loading, self._wanted, self._has_served = True, False, False
        try:
            generator = self._load()
        except Exception as error:  # noqa: BLE001
            # Later requests try again: the folder may be complete by then.
            with self._changed:
                requests, self.line = list(self.line), deque()
            for request in requests:
                request.fail(error)
            return
        finally:
            self.loading = False
        self.generator = generator
        while not self.ending and self._serve_once(generator):
            pass
        for request in self.active:
            request.stop.set()
        # What still grows at the end closes its answers, so that their readers know.
        while generator.busy and not self.dead:
            generator.step()
            self._collect()

    def _load(self) -> BatchedGenerator | PlainGenerator:
        served = self.shared.load(self.name)
        if self.shared.batching == "auto":
            with self.shared.turns.turn(self):
                batches = can_batch(served.model)
            if batches:
                # A model of single questions and answers reads every prompt from its start.
                several_turns = getattr(served.model.config, "trained_turns", None) != 1
                running = self.shared.limits.running
                return BatchedGenerator(served, running, reuse=several_turns)
        return PlainGenerator(served, self._between_tokens)

    def _serve_once(self, generator) -> bool:
        """A step, or a wait for something to do. False when the model is to be unloaded."""
        new = self._admit(generator)
        if new or generator.busy or self.active:
            with self.shared.turns.turn(self):
                self._step_began = time.monotonic()
                if new:
                    generator.add(new)
                if generator.busy:
                    generator.step()
                self._step_began = None
            self._collect()
            self.used = time.monotonic()
            return True
        with self._changed:
            if self.leaving or (self.retiring and not self.line):
                return False
            if self.line:
                self._changed.wait(0.02)  # other models use all the room
                return True
            return self._changed.wait_for(self._has_news, IDLE_SECONDS)

    def _between_tokens(self) -> None:
        self._step_began = None
        self.shared.turns.pass_on(self)
        self._step_began = time.monotonic()

    def _admit(self, generator) -> list:
        """Take requests out of the line while there is room. Returns their answers."""
        answers: list = []
        with self._changed:
            # A model that is asked to leave serves its line once, or two models could chase each other out for ever.
            while self.line and not (self.leaving and self._has_served):
                request = self.line[0]
                if not generator.has_room(request, answers):
                    break
                if not self.shared.running.take(request.n):
                    break
                self.line.popleft()
                self.active.append(request)
                answers += self._begin(request, generator.served)
            self._has_served = self._has_served or bool(answers)
        return answers

    def _begin(self, request: Request, served: ServedModel) -> list:
        try:
            return request.begin(served.tokenizer, served.stop_tokens)
        except Exception as error:  # noqa: BLE001
            request.fail(error)
            return []

    def _collect(self) -> None:
        """Forget the requests that are finished."""
        for request in [request for request in self.active if request.done]:
            self._forget(request)

    def _forget(self, request: Request) -> None:
        with self._changed:
            if request not in self.active:
                return
            self.active.remove(request)
            self.shared.running.give_back(request.n)
            self.shared.tokens += sum(len(answer.tokens) for answer in request.answers)
