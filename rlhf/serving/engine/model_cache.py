"""Models in memory by name, and the error for a name that is not served. Nothing here needs torch."""

import threading
import time
from collections.abc import Callable

from rlhf.errors import UserError

# Held while a model is loaded: of two `from_pretrained` at the same time, one may lose its tied weights.
LOADING = threading.Lock()


def check_served(name: str, served: dict, kind: str) -> None:
    """Raise UserError if `name` is not one of the served models. kind: for the message."""
    if not served:
        raise UserError(f"no {kind} is here yet: train one, or start the server with one")
    if name not in served:
        names = ", ".join(map(repr, served))
        raise UserError(f"no {kind} {name!r}: choose one of {names}")


class ModelCache:
    """Loads models by name and keeps the `keep` most recently used. Not thread-safe."""

    def __init__(self, load: Callable[[str], object], keep: int):
        self.load = load
        self.keep = keep
        self.values: dict[str, object] = {}  # the least recently used first
        self.used: dict[str, float] = {}

    def __getitem__(self, name: str):
        self.used[name] = time.monotonic()
        if name in self.values:
            self.values[name] = self.values.pop(name)  # moves it to the end
            return self.values[name]
        # Free the memory before the new model needs it.
        while len(self.values) >= self.keep:
            oldest = next(iter(self.values))
            del self.values[oldest]
        self.values[name] = self.load(name)
        return self.values[name]

    def drop(self, name: str) -> None:
        """Forget a model, so that it is read from disk again."""
        self.values.pop(name, None)

    def drop_unused(self, seconds: float) -> None:
        """Unload the models that nobody used for so long."""
        limit = time.monotonic() - seconds
        for name in list(self.values):
            if self.used[name] < limit:
                self.drop(name)
