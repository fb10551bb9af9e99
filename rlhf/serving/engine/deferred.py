"""An engine that is made in the background, so that the page is there before torch is imported.

Importing torch, transformers and peft takes longer than everything else together at a start. What the page needs to be
drawn (the names of the models and the limits) is known before; the first question waits for the rest.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rlhf.serving.engine.requests import Busy, Limits, SamplingSettings

if TYPE_CHECKING:
    from rlhf.serving.engine.engine import Engine


class DeferredEngine:
    """The interface of Engine over one that `make(runs, reward_runs)` returns later. `start` begins that in a thread."""

    def __init__(
        self,
        make: Callable[[dict, dict], "Engine"],
        runs: dict[str, str],
        reward_runs: dict[str, str],
        *,
        limits: Limits,
    ):
        self._make = make
        self._runs, self._reward_runs = dict(runs), dict(reward_runs)
        self.limits = limits
        self._lock = threading.RLock()  # held while the engine is made
        self._engine: Engine | None = None
        self._closed = False

    def start(self) -> None:
        """Make the engine in the background."""
        threading.Thread(target=self.get, name="engine-import", daemon=True).start()

    def get(self) -> "Engine":
        """The engine; waits until it is made, or makes it."""
        with self._lock:
            if self._closed:
                raise Busy("the service is closing: ask again when it is back", retry_after=10)
            if self._engine is None:
                self._engine = self._make(self._runs, self._reward_runs)
            return self._engine

    # ---- known without the engine

    @property
    def runs(self) -> dict[str, str]:
        return self._runs if self._engine is None else self._engine.runs

    @property
    def reward_runs(self) -> dict[str, str]:
        return self._reward_runs if self._engine is None else self._engine.reward_runs

    def refresh(self, runs: dict[str, str], reward_runs: dict[str, str]) -> None:
        with self._lock:
            self._runs, self._reward_runs = dict(runs), dict(reward_runs)
            if self._engine is not None:
                self._engine.refresh(runs, reward_runs)

    def load_report(self) -> dict:
        if self._engine is None:
            return {"ready": 0}
        return {"ready": 1} | self._engine.load_report()

    def cancel(self, request: str) -> bool:
        return self._engine is not None and self._engine.cancel(request)

    def close(self) -> None:
        # Without the lock: a server that stops does not wait for an import.
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    # ---- what needs it

    def stream(
        self, model: str, messages, settings: SamplingSettings, *, request=None, client=None
    ) -> Iterator:
        # It must not yield that it waits before the engine has checked the request: a bad one raises here.
        return self.get().stream(model, messages, settings, request=request, client=client)

    def sample(self, model: str, messages, settings: SamplingSettings, n: int, **names) -> list:
        return self.get().sample(model, messages, settings, n, **names)

    def best_of(
        self, model: str, reward_run: str, messages, settings: SamplingSettings, n: int, **names
    ) -> list:
        return self.get().best_of(model, reward_run, messages, settings, n, **names)

    def score(self, reward_run: str, messages, completions: Sequence[str]) -> list[float]:
        return self.get().score(reward_run, messages, completions)

    def facts(self, model: str):
        return self.get().facts(model)
