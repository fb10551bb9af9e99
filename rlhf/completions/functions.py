"""Reward functions of the user: loaded, called within limits, and checked. An error names the rows.

A function is `f(prompts, completions, **columns) -> list[float]`: prompts as in the data rows, completions as text, and
every other column of the rows by name. What it does to its surroundings does not reach the run:
- It gets copies of the rows.
- Its random numbers (torch, numpy, random) are a function of the texts, so that a resumed run draws the same ones. The
  run's own random states are put back, and so is the working folder.
- With a time-out it runs in a thread. A thread cannot be killed, only abandoned: the run stops, or calls the function again.
"""

import contextvars
import copy
import faulthandler
import importlib
import importlib.util
import inspect
import os
import random
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy
import torch
from torch import Tensor

from rlhf.completions.finite_scores import as_scores, rows_text
from rlhf.errors import UserError

# Other numbers have these names: score_std and score_watched in metrics.jsonl, step in samples.jsonl.
RESERVED_NAMES = ("std", "watched", "step")
LONGEST_WAIT = 60  # seconds before a call is tried again; it begins at 1 and doubles
# Seconds after the time-out in which a function that never lets other threads run has to return.
GRACE = 5


@dataclass(frozen=True)
class CallLimits:
    """Seconds that a call may take (None: any number), and the number of times that a failed call is tried again."""

    timeout: float | None = None
    retries: int = 0


class FunctionScorer:
    """Scores by a Python function. What it returns is checked, and an error names the rows."""

    def __init__(self, function: Callable, name: str, limits: CallLimits | None = None):
        self.function, self.name = function, name
        self.limits = limits or CallLimits()

    @classmethod
    def load(cls, path: str, limits: CallLimits | None = None) -> "FunctionScorer":
        """path: "module:function"; modules of the working folder are found."""
        module, _, function = path.partition(":")
        if not function:
            raise UserError(
                f"reward function {path!r}: write module:function, for example rlhf.recipes.rewards:slot_coverage"
            )
        if function in RESERVED_NAMES:
            raise UserError(
                f"reward function {path!r}: the log has another number of the name {function!r}: rename the function"
            )
        if os.getcwd() not in sys.path:  # `accelerate launch` drops it
            sys.path.insert(0, os.getcwd())
        try:
            return cls(getattr(importlib.import_module(module), function), function, limits)
        except (Exception, SystemExit) as error:  # the user's file may raise anything
            raise UserError(
                f"reward function {path!r}: {type(error).__name__}: {error}{_file_of(module, error)}"
            ) from error

    def __call__(self, batch) -> Tensor:
        """One score per row of a `ScoringBatch`: (B,), fp32, on the CPU.

        A call that raises or takes too long is tried again after 1, 2, 4, ... seconds, `limits.retries` times at most. A bad
        result is not, because the function would give it again.
        """
        failures: list[str] = []
        while True:
            try:
                returned = self.call(batch)
                break
            except SystemExit as error:  # a decision of the user's code, not a passing fault
                failures.append(reason(error))
                raise self.failure(failures, batch) from error
            except Exception as error:  # the user's code may raise anything
                failures.append(reason(error))
                if len(failures) > self.limits.retries:
                    raise self.failure(failures, batch) from error
                self.wait(failures)
        try:
            scores = listed(returned, len(batch.completions))
        except TypeError as error:
            raise UserError(f"reward function {self.name} returned {error}") from error
        return as_scores(scores, batch, f"reward function {self.name}")

    def call(self, batch):
        """Call the function with copies of the rows. A generator that it returns is read to its end."""
        # Of the texts, so that it depends neither on the calls before nor on where a run was resumed.
        seed = zlib.crc32(repr((batch.prompts, batch.completions)).encode("utf-8", "replace"))
        prompts, columns = copy.deepcopy((batch.prompts, batch.columns))
        completions = list(batch.completions)
        count = len(completions)

        def work():
            with torch.no_grad():
                returned = self.function(prompts, completions, **columns)
                if hasattr(returned, "__next__"):  # a generator, which may be endless
                    return list(islice(returned, count + 1))
                return returned

        with kept_surroundings(seed):
            if self.limits.timeout is None:
                return work()
            return call_within(work, self.limits.timeout)

    def wait(self, failures: list[str]) -> None:
        """Print why the last call failed, and sleep before the next."""
        seconds = min(2 ** (len(failures) - 1), LONGEST_WAIT)
        calls = self.limits.retries + 1
        process = f" on process {os.environ['RANK']}" if "RANK" in os.environ else ""
        print(
            f"reward function {self.name} {failures[-1]} (call {len(failures)} of {calls}{process}): again in {seconds} s",
            flush=True,
        )
        time.sleep(seconds)

    def failure(self, failures: list[str], batch) -> UserError:
        """The error of a function that has failed for good, with all its reasons."""
        rows = rows_text(batch)
        if len(failures) == 1:
            return UserError(f"reward function {self.name} {failures[0]} (while it scored {rows})")
        reasons = "; ".join(dict.fromkeys(failures))  # each once
        return UserError(
            f"reward function {self.name} failed {len(failures)} times: {reasons} (while it scored {rows})"
        )


def reason(error: BaseException) -> str:
    """The reason why a call failed, with the line of the user's file that raised."""
    if isinstance(error, CallTimeout):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    line = ""
    if frames and frames[-1].filename != __file__:
        line = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
    return f"raised {type(error).__name__}: {error}{line}"


def listed(returned, count: int) -> list:
    """The scores as a list of `count` items. TypeError, which says what came instead, if they are anything but a list."""
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # without this, Python warns that nobody awaited it
        raise TypeError(
            "a coroutine, for it is an async function: make it a plain one that returns asyncio.run(...)"
        )
    # A list of their items would be keys, letters, or in any order.
    unordered = (dict, str, bytes, set, frozenset)
    if isinstance(returned, unordered) or not hasattr(returned, "__iter__"):
        kind = type(returned).__name__
        raise TypeError(f"{kind} and not a list of numbers (TypeError): {str(returned)[:60]}")
    try:
        scores = list(islice(returned, count + 1))
    except Exception as error:  # of the user's class, or a tensor of no dimension
        raise TypeError(f"no list of numbers ({type(error).__name__}: {error})") from error
    if len(scores) == count + 1 and hasattr(returned, "__len__"):
        scores = list(returned)  # all of them, for the message
    return scores


# ---- limits ------------------------------------------------------------------------------------


class CallTimeout(Exception):
    """A call took longer than it may."""


def call_within(function: Callable, seconds: float):
    """The result of `function()`, called in a thread. CallTimeout where that takes longer: the thread is abandoned.

    A signal would not do: Python handles one in its main thread, and only between two steps of Python. Code that never lets
    another thread run, such as a regular expression that backtracks without end, holds up this thread too. For that case a
    watchdog outside Python prints where the function is and ends the process with exit code 1.
    """
    outcome: dict = {}
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    context = contextvars.copy_context()

    def work():
        try:
            if device is not None:  # a new thread begins on the first GPU
                torch.cuda.set_device(device)
            outcome["returned"] = context.run(function)
        except BaseException as error:  # SystemExit too, which would end the thread without a word
            outcome["error"] = error

    thread = threading.Thread(target=work, name="reward function", daemon=True)
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__)
    try:
        thread.start()
        thread.join(seconds)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if thread.is_alive():
        raise CallTimeout(f"took longer than reward_timeout, {seconds:g} s")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["returned"]


@contextmanager
def kept_surroundings(seed: int):
    """Random numbers from `seed` within. Afterwards the random states and the working folder are as they were."""
    folder = os.getcwd()
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            numpy.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        os.chdir(folder)


def _file_of(module: str, error: BaseException) -> str:
    """The path of a module that cannot be imported, for a message."""
    if isinstance(error, SyntaxError):
        return ""  # its text names the file and the line
    loaded = sys.modules.get(module)
    if getattr(loaded, "__file__", None):
        return f" (in {loaded.__file__})"
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # also a package that is not there
        return ""
    return f" (in {spec.origin})" if spec else ""
