"""SIGTERM and SIGINT end a run where it can be continued.

    before the training          at once: nothing was trained
    in a step, an evaluation
    or a save of the training    at the end of the step, with a checkpoint
    in the sampling of a rollout at once, with a checkpoint: no weight has changed since the last step
    after the training           at once: the model is saved, `rlhf finish` does the rest

The handler only notes the signal where the run holds it back (`held`), and raises `Interrupted` elsewhere. Several processes
agree at the end of each step, so that all of them stop after the same one. A second signal ends the process at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainerCallback

from rlhf.data.parallel import end_with
from rlhf.errors import Interrupted

# The kernel sends this one when the launcher dies. A signal to the whole group reaches the launcher and this process, so
# it must not count as the second.
LAUNCHER_DIED = getattr(signal, "SIGUSR2", None)
HANDLED = [signal.SIGTERM, signal.SIGINT]
if LAUNCHER_DIED is not None:  # None on Windows
    HANDLED.append(LAUNCHER_DIED)
SAME_SIGNAL = 0.5  # seconds in which a launcher and a terminal may both pass on one signal
DEAF = 5.0  # seconds without the handler, after which a process waits in code of C


class Signals:
    """The signals that this process has received.

    number: the first one; 0: none. LAUNCHER_DIED is counted as SIGTERM.
    """

    def __init__(self):
        self.number = 0
        self._handled_at = -1e9
        self._first_at = 0.0
        self._is_held = False
        self._process = 0  # 0: not listening
        self._session: object = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals of this process. In a thread other than the main one Python cannot, and nothing is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.__init__()
        self._process = os.getpid()
        before = {number: signal.signal(number, self._handle) for number in HANDLED}
        # The interpreter writes the number of each signal here at once, also where the handler must wait.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._session = object()
        threading.Thread(target=self._watch, args=(reader, self._session), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            os.close(writer)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.__init__()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only note a signal until the end of the block, and raise Interrupted there."""
        with self.held_back():
            yield
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `held`: raise Interrupted at once in this block."""
        before, self._is_held = self._is_held, False
        try:
            self.check()
            yield
        finally:
            self._is_held = before

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Only note a signal: the run is about to end anyway."""
        before, self._is_held = self._is_held, True
        try:
            yield
        finally:
            self._is_held = before

    def check(self) -> None:
        """Raise Interrupted if a signal has come and is not held back."""
        if self.number and not self._is_held:
            raise Interrupted(self.number)

    def _watch(self, reader: int, session: object) -> None:
        """End a process whose handler cannot run: one that waits for a dead process in code of C, for instance."""
        first_at = None
        while content := os.read(reader, 1):
            number, now = content[0], time.monotonic()
            if number not in HANDLED:
                continue
            first_at = first_at or now
            is_second = number != LAUNCHER_DIED and now - first_at > SAME_SIGNAL
            timer = threading.Timer(DEAF, self._end_if_deaf, (number, now, is_second, session))
            timer.daemon = True  # the process may end before
            timer.start()
        os.close(reader)

    def _end_if_deaf(self, number: int, at: float, is_second: bool, session: object) -> None:
        """End the process if its handler has not run for a signal. One that trains goes on, until a second signal.

        at: when the signal was seen here, which may be some time after the handler has run.
        """
        if self._session is not session or self._handled_at > at - 1:
            return
        if is_second or not self._is_held:
            os._exit(128 + (signal.SIGTERM if number == LAUNCHER_DIED else number))

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            _handle_in_child(number)
            return
        self._handled_at = now = time.monotonic()
        if not self.number:
            self.number = signal.SIGTERM if number == LAUNCHER_DIED else number
            self._first_at = now
            self.check()
        elif number != LAUNCHER_DIED and now - self._first_at > SAME_SIGNAL:
            os._exit(128 + number)


SIGNALS = Signals()


def _in_child() -> None:
    """The signals of a forked worker are not those of this process."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _handle_in_child(number: int) -> None:
    """A child has inherited the handler. Workers of a data loader go on, for the step needs their rows; others end."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is None:
        os._exit(128 + number)
    # The end of the run terminates them once more.
    signal.signal(number, signal.SIG_DFL)


def end_with_launcher(launcher: int) -> None:
    """Let the launcher's death, the parent with this process id, be a signal to this process. Linux alone has that."""
    end_with(launcher, LAUNCHER_DIED)


def agreed_signal() -> int:
    """The signal that any process has received; 0: none. All processes call it together."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return int(SIGNALS.number)
    number = torch.tensor([int(SIGNALS.number)])
    dist.all_reduce(number, op=dist.ReduceOp.MAX, group=_group_on_cpus())
    return int(number)


_groups: dict = {}  # of the default group of processes -> one that needs no GPU


def _group_on_cpus():
    """A gloo group of all processes: waiting for an answer of the GPU would cost time at every step."""
    import torch.distributed as dist

    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()
        _groups[world] = world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return _groups[world]


@contextmanager
def abandonable() -> Iterator[None]:
    """Sampling that may be given up: nothing has been learned from it yet.

    One process gives it up at once. Several wait for its end and agree there.
    """
    if not SIGNALS._is_held:
        yield  # not in training
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        yield
        number = agreed_signal()
        if number:
            raise Interrupted(number)
        return
    with SIGNALS.at_once():
        yield


class StopAtSignal(TrainerCallback):
    """Ends the training after the step in which a signal came, with a checkpoint.

    A log and an evaluation that are due at this step come first, so that the resumed run has them once, and chooses the same
    best model. Those of an epoch do too (`runs.epoch_end`).

    steps_between: optimiser steps after which a checkpoint can be made.
    """

    def __init__(self, steps_between: int):
        self.steps_between = steps_between
        self.number = 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps_between:
            return
        self.number = agreed_signal()
        control.should_save |= bool(self.number)

    def on_save(self, args, state, control, **kwargs):
        if self.number:
            raise Interrupted(self.number)
