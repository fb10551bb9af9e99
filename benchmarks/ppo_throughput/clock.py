"""Clock and memory meter of both workers: seconds by update and phase, and peak memory. Imports neither side's packages.

`cpu_seconds`, of all threads, is what to look at when other programs had the cores meanwhile.
"""

import time
from contextlib import contextmanager
from pathlib import Path


class Clock:
    """Seconds of each update and of the phases inside it; `next_update` closes one update and begins the next."""

    def __init__(self):
        self.updates: list[dict] = []
        self.begin()

    def begin(self) -> None:
        self._started, self._cpu, self.phases = time.perf_counter(), time.process_time(), {}

    @contextmanager
    def phase(self, name: str):
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        self.phases[name] = self.phases.get(name, 0.0) + seconds

    def next_update(self) -> None:
        seconds = time.perf_counter() - self._started
        rest, cpu = seconds - sum(self.phases.values()), time.process_time() - self._cpu
        self.updates.append({"seconds": seconds, "cpu_seconds": cpu, **self.phases, "update": rest})
        self.begin()


def peak_memory_gb() -> float:
    """Largest resident size of this process so far. Linux hands ru_maxrss on to a new program at exec, VmHWM not."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    import resource  # macOS; Windows has neither

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
