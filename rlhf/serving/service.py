"""Everything that the app and the HTTP endpoints serve, in one object."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.serving.catalogue import CHAT, REWARD, Models
from rlhf.serving.predictors import Encoders

if TYPE_CHECKING:
    from rlhf.feedback.store import Store
    from rlhf.serving.engine.engine import Engine
    from rlhf.serving.jobs.jobs import Jobs


@dataclass(frozen=True)
class Service:
    """engine: chat and reward models. encoders: models of the encoder tasks. runs: the folder of the runs.

    feedback: where answers are rated, None without. jobs: runs that the app starts, None without.
    find: returns the models that exist now; None if they never change.
    """

    engine: "Engine"
    encoders: Encoders
    runs: Path
    feedback: "Store | None" = None
    jobs: "Jobs | None" = None
    find: Callable[[], Models] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def refresh(self) -> bool:
        """Serve the runs that have finished since, and no longer those that are gone. Returns True if that changed any."""
        if self.find is None:
            return False
        # Outside the lock: it reads the disk.
        models = self.find()
        chat, rewards = models.pop(CHAT, {}), models.pop(REWARD, {})
        with self._lock:
            known = _in_order(self.engine.runs), _in_order(self.engine.reward_runs)
            changed = known != (_in_order(chat), _in_order(rewards))
            if changed:  # the order counts: it is that of the picker
                self.engine.refresh(chat, rewards)
            if models != self.encoders.runs:
                self.encoders.refresh(models)
                changed = True
        return changed


def _in_order(runs: dict) -> list[tuple[str, str]]:
    return [(label, str(path)) for label, path in runs.items()]
