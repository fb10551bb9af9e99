"""The ending of a run: what caused it, the lines that say so, what to do next, and the exit code."""

import os
import shlex
import signal
import sys
import time
import traceback

from rlhf.errors import Interrupted, UserError
from rlhf.runs.disk import is_full, refuses_writes
from rlhf.runs.failures import (
    describe,
    first_failure,
    lost_process,
    said_by_main,
    signal_of_main,
)
from rlhf.runs.output_folder import has_only_early_files
from rlhf.runs.record import TRAINED, resuming_command
from rlhf.runs.signals import SIGNALS
from rlhf.runs.verified_save import checkpoints_of, how_to_continue

LAUNCHER_STOPS = 5  # seconds in which it stops the other processes, once the first has failed
MAIN_PRINTS = 2  # seconds in which the main process prints an error that all processes have


# ---- of the program ----------------------------------------------------------------------------------------------


def report(error: BaseException) -> int:
    """Print an error, unless another process prints it, and return the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, Interrupted | KeyboardInterrupt):
        stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if rank == 0:
            print(stop, file=sys.stderr, flush=True)
        return stop.exit_code
    code = 2 if isinstance(error, UserError) else 1
    said = code == 1 if rank == 0 else _is_said_by_main(error)
    process = f" in process {rank}" if rank else ""
    if not said:
        print(f"error{process}: {describe(error)}", file=sys.stderr)
    for note in getattr(error, "notes", ()):
        print(note, file=sys.stderr)
    sys.stderr.flush()
    error.said = said and rank > 0
    return code


def _is_said_by_main(error: BaseException) -> bool:
    """True if the main process prints this error of another one. Waits for it: one line, not one per process."""
    folder = getattr(error, "folder", None)
    try:
        if folder is not None:
            return said_by_main(folder, error, wait=MAIN_PRINTS)
        if not getattr(error, "said", False):
            # Who is still here then has an error that the main process does not.
            time.sleep(LAUNCHER_STOPS)
            return False
    except Interrupted:  # the launcher stops this process, as the main one has failed first
        pass
    return True


def leave(code: int, error: BaseException) -> None:
    """End this process now. A traceback that the main process prints is not printed again."""
    if code == 1 and not error.said:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- of the run --------------------------------------------------------------------------------------------------


def cause_of(error: BaseException, run) -> BaseException:
    """Find what has ended the run, where the error is only a consequence of it.

    run: a `runs.run.Run`.
    """
    if isinstance(error, SystemExit):
        return left_by_exit(error)
    if isinstance(error, UserError):
        return error
    # Who has received a signal ends at once, but for the training, which all end together. Read before the launcher stops
    # this process because of the other one.
    in_training = run.trainer is not None and run.record.status != TRAINED
    stopped_by = 0 if in_training else SIGNALS.number
    if run.args.world_size > 1:
        # Who waits for a process that has died gets an error of its own.
        wait = 0.0 if isinstance(error, Interrupted) else MAIN_PRINTS
        other = first_failure(run.folder, run.args.process_index, wait=wait)
        if other is not None:
            return UserError(other)
        lost = lost_process(error)
        if lost is not None:
            # The main process may have left at a signal before this one had read its last word.
            stopped_by = stopped_by or signal_of_main(run.folder)
            return Interrupted(stopped_by) if stopped_by else lost
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(signal.SIGINT)
    if isinstance(error, Exception) and (refuses_writes(error) or is_full(run.folder)):
        return UserError(
            f"output_dir {run.folder}: the disk is full or takes no writes ({error}): free some space, then {what_next(run)}"
        )
    return error


def with_process(message: str, args) -> str:
    """The message with the process that it comes from, where there are several."""
    if args.world_size == 1 or message.startswith("process "):
        return message
    return f"process {args.process_index}: {message}"


def what_next(run) -> str:
    """Advice for when the cause of an error is gone."""
    if run.record.status == TRAINED:
        return f"evaluate the model, which is saved: rlhf finish {shlex.quote(str(run.folder))}"
    return how_to_continue(run.folder)


def after_signal(run) -> str:
    """Half a sentence on what a signal has left, and how to continue."""
    if run.record.status == TRAINED:
        return f"the model is trained and saved, not evaluated: rlhf finish {shlex.quote(str(run.folder))}"
    if checkpoints_of(run.folder):
        return f"at step {run.record.steps}: continue with {resuming_command()}"
    if run.trainer is None:
        return "nothing was trained"
    if has_only_early_files(run.folder):
        return f"there is no checkpoint: start again with {resuming_command('auto')}"
    return "there is no checkpoint: start again, after removing the folder"


def after_failed_evaluation(run) -> str:
    """The line after an error of the evaluation: where the model is, and how to evaluate it again.

    A checkpoint of the last step is made where there is none.
    """
    saved = f"the model is trained, and saved in {run.folder}"
    if not run.last_checkpoint().is_dir() and run.can_save_last_step():
        try:
            run.trainer._save_checkpoint(run.trainer.model, None)
        except Exception as error:  # this is help after another error, which must be seen
            return (
                f"{saved}; it cannot be evaluated again, for no checkpoint can be written: {error}"
            )
    if run.last_checkpoint().is_dir():
        return f"{saved}; evaluate it again with: rlhf finish {shlex.quote(str(run.folder))}"
    return f"{saved}; it cannot be evaluated again, for there is no checkpoint of its last step"


def left_by_exit(error: SystemExit) -> UserError:
    """The error of a function that the run called and that called sys.exit(): the run would end as if it were done."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"{frame.filename}:{frame.lineno}: the run was left by sys.exit({error.code!r}) in {frame.name}: raise an exception "
        "instead"
    )
