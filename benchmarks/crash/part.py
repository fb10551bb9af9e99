"""One part of a run: forked from a process that has imported everything, watched, and killed at a moment.

Starting Python and its imports takes six seconds, a run of `cases.py` one or two. So the parent imports, computes nothing,
since threads do not survive a fork, and each part of a run is a child that calls the `start` of a recipe.
"""

import mmap
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("preparation", "step", "rollout", "evaluation", "save", "after training")
# Methods of a Trainer in which another phase goes on.
METHODS = {"evaluate": "evaluation", "_save_checkpoint": "save", "save_model": "save"}
LIMIT = 600  # seconds after which a part counts as hung; a busy machine is slow
# Seconds that the other process lives on where one has ended. One that was asked to stop may still be saving.
GRACE = {signal.SIGKILL: 0.5, signal.SIGTERM: 20.0, signal.SIGINT: 20.0}
BETWEEN = 0.02  # seconds between the signals to two processes: they may fall on two sides of a step
WAIT = 0.005  # seconds between two looks at the children
HUNG = -1000  # exit code of a part that had to be ended


@dataclass(frozen=True)
class Shot:
    """When and how a part is killed.

    seconds: after the start of the part, or after its step.
    step: number of the batch of a training, from 1, that the main process begins.
    boundary: number of the file boundary of a save at which it happens, from 1 (`rlhf.runs.durable.boundary`).
    all_processes: otherwise one process is killed, and the other as a launcher would, which sees it end. SIGTERM and SIGINT
    reach all, one after the other.
    """

    signal: int
    seconds: float | None = None
    step: int | None = None
    boundary: int | None = None
    all_processes: bool = True


@dataclass
class Part:
    """What became of a part. codes: exit code per process, minus the signal that killed it."""

    codes: list[int]
    seconds: float
    phase: str
    shot: bool
    steps: int
    boundaries: int

    @property
    def finished(self) -> bool:
        """True when every process ended by itself without an error."""
        return not any(self.codes)


class Board:
    """A page that the processes of a part share: the phase of the main process, and what it has counted."""

    STEPS, BOUNDARIES = 4, 8  # places of the two counters, of four bytes each

    def __init__(self):
        self.page = mmap.mmap(-1, mmap.PAGESIZE)

    @property
    def phase(self) -> int:
        """Index of PHASES."""
        return self.page[0]

    def enter(self, phase: int) -> None:
        """Note that a phase has begun."""
        self.page[0] = phase

    def counted(self, counter: int) -> int:
        """The number that a counter has reached."""
        return int.from_bytes(self.page[counter : counter + 4], "little")

    def count(self, counter: int) -> int:
        """Count one more, and return the number, from 1."""
        number = self.counted(counter) + 1
        self.page[counter : counter + 4] = number.to_bytes(4, "little")
        return number


# ---- in the parent -----------------------------------------------------------------------------------------------


def preload() -> None:
    """Import what the recipes import, and compute nothing."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401
    import trl  # noqa: F401

    import rlhf.runs.run  # noqa: F401


def load_recipe(name: str):
    """The module of recipes/<name>.py, imported once."""
    key = f"recipe_{name}"
    if key not in sys.modules:
        spec = util.spec_from_file_location(key, ROOT / "recipes" / f"{name}.py")
        module = util.module_from_spec(spec)
        sys.modules[key] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[key]


def run_part(
    recipe: str,
    argv: list[str],
    log: Path,
    *,
    processes: int = 1,
    shot: Shot | None = None,
) -> Part:
    """Run a recipe in child processes until they end, shot at its moment. log: what they print is added to it."""
    load_recipe(recipe)
    board = Board()
    port = str(free_port())
    began = time.monotonic_ns()
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            environment = {} if processes == 1 else rank_environment(rank, processes, port)
            child(recipe, argv, log, board, environment, shot if rank == 0 else None)
        pids.append(pid)
    codes: dict[int, int] = {}
    trigger = Trigger(shot, board)
    grace = GRACE[shot.signal if shot else signal.SIGKILL]
    phase, failed_at = "", 0.0
    while len(codes) < processes:
        collect(pids, codes)
        seconds = (time.monotonic_ns() - began) / 1e9
        alive = [pid for pid in pids if pid not in codes]
        if len(alive) == processes and trigger.pull(seconds):
            phase = PHASES[board.phase]
            shoot(alive, shot, index=int(seconds * 1000) % processes)
        if any(codes.values()) and not failed_at:
            failed_at = seconds
        # A launcher stops the others, once one has failed.
        if alive and failed_at and seconds > failed_at + grace:
            is_patient = seconds < failed_at + grace + 10
            stop(alive, signal.SIGTERM if is_patient else signal.SIGKILL)
        if seconds > LIMIT:
            stop(alive, signal.SIGKILL)
            codes |= dict.fromkeys(alive, HUNG)
        time.sleep(WAIT)
    return Part(
        codes=[codes[pid] for pid in pids],
        seconds=(time.monotonic_ns() - began) / 1e9,
        phase=phase or PHASES[board.phase],
        shot=trigger.is_pulled,
        steps=board.counted(Board.STEPS),
        boundaries=board.counted(Board.BOUNDARIES),
    )


class Trigger:
    """Knows when the moment of a shot has come. At a file boundary the main process shoots itself."""

    def __init__(self, shot: Shot | None, board: Board):
        self.shot = shot
        self.board = board
        self.step_seen: float | None = None
        self.was_pulled = False

    def pull(self, seconds: float) -> bool:
        """True once, when the moment has come. seconds: since the start of the part."""
        shot = self.shot
        if shot is None or shot.boundary is not None or self.was_pulled:
            return False
        since = 0.0
        if shot.step is not None:
            if self.board.counted(Board.STEPS) < shot.step:
                return False
            if self.step_seen is None:
                self.step_seen = seconds
            since = self.step_seen
        self.was_pulled = seconds >= since + shot.seconds
        return self.was_pulled

    @property
    def is_pulled(self) -> bool:
        """True after the shot."""
        if self.shot is not None and self.shot.boundary is not None:
            return self.board.counted(Board.BOUNDARIES) >= self.shot.boundary
        return self.was_pulled


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank: int, processes: int, port: str) -> dict[str, str]:
    """The variables that a launcher sets for one of several processes."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
    }
    numbers = {name: str(value) for name, value in names.items()}
    return numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def collect(pids: list[int], codes: dict[int, int]) -> None:
    """Add the exit codes of the children that have ended."""
    for pid in pids:
        if pid in codes:
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            codes[pid] = os.waitstatus_to_exitcode(status)


def shoot(pids: list[int], shot: Shot, *, index: int) -> None:
    """Send the signal to all processes, or to one of them."""
    if shot.signal == signal.SIGKILL:
        stop(pids if shot.all_processes else [pids[index]], shot.signal)
        return
    for pid in pids[index:] + pids[:index]:
        stop([pid], shot.signal)
        time.sleep(BETWEEN)


def stop(pids: list[int], number: int) -> None:
    """Send a signal to children that may have ended meanwhile."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


# ---- in the child ------------------------------------------------------------------------------------------------


def child(
    recipe: str,
    argv: list[str],
    log: Path,
    board: Board,
    environment: dict[str, str],
    shot: Shot | None,
) -> None:
    """Run the recipe and end this process with the exit code that Python would have had."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ |= environment
        sys.argv = [str(ROOT / "recipes" / f"{recipe}.py"), *argv]
        code = call(recipe, argv, board, environment.get("RANK", "0") == "0", shot)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's is closed here


def call(recipe: str, argv: list[str], board: Board, is_main: bool, shot: Shot | None) -> int:
    """Call the recipe's `start` and return its exit code."""
    from rlhf.runs.run import start

    if is_main:
        watch_phases(board)
        watch_steps(board)
        watch_boundaries(board, shot)
    module = load_recipe(recipe)
    try:
        start(module.main, module.__doc__, argv)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    return 0


def watch_phases(board: Board) -> None:
    """Let the board show the phase that the main process is in."""
    from transformers import Trainer

    from rlhf.policy_gradient.rollouts import RolloutMaker
    from rlhf.runs.run import Run

    watch(Run, "train", board, "step", after="after training")
    watch(RolloutMaker, "make", board, "rollout")
    for cls in [Trainer, *subclasses(Trainer)]:
        for name, phase in METHODS.items():
            if name in cls.__dict__:
                watch(cls, name, board, phase)


def subclasses(cls: type) -> list[type]:
    """All classes that inherit from one, each once."""
    classes: list[type] = []
    for direct in cls.__subclasses__():
        for each in (direct, *subclasses(direct)):
            if each not in classes:
                classes.append(each)
    return classes


def watch(cls: type, name: str, board: Board, phase: str, *, after: str = "") -> None:
    """Wrap a method so that the board shows its phase while it runs. after: the phase that follows, if not the last one."""
    method = getattr(cls, name)

    def watched(*args, **options):
        with shown(board, phase, after):
            return method(*args, **options)

    setattr(cls, name, watched)


@contextmanager
def shown(board: Board, phase: str, after: str):
    """A context in which the board shows a phase."""
    before = board.phase
    board.enter(PHASES.index(phase))
    yield
    # Not after an error: the phase in which it was raised stays.
    board.enter(PHASES.index(after) if after else before)


def watch_steps(board: Board) -> None:
    """Count the batches that the main process trains on."""
    from transformers import Trainer

    training_step = Trainer.training_step

    def counted(*args, **options):
        board.count(Board.STEPS)
        return training_step(*args, **options)

    Trainer.training_step = counted


def watch_boundaries(board: Board, shot: Shot | None) -> None:
    """Count the file boundaries of saves, and die at the one that the shot names."""
    from rlhf.runs import durable

    def boundary(path) -> None:
        if board.count(Board.BOUNDARIES) == (shot.boundary if shot else None):
            print(f"killed at boundary {shot.boundary}: {path}", flush=True)
            os.kill(os.getpid(), shot.signal)

    for module in holders(durable.boundary):
        module.boundary = boundary


def holders(boundary) -> list:
    """The modules that have the function `boundary`, imported by its name."""
    modules = list(sys.modules.values())
    return [module for module in modules if module.__dict__.get("boundary") is boundary]
