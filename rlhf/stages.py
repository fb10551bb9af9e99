"""Run several commands one after the other, with one import of the libraries for all of them.

    python -m rlhf.stages < FILE

Standard input has one command a line, as behind `rlhf`: `sft --config demo`. Blank lines and lines with # are passed over.
The libraries take most of the start of a command, so they are imported once, and each command runs in a process forked from
that one. It has the arguments, the environment and the random state of a process of its own: a test compares the weights.
Where a fork is not safe (not Linux), each command is a new process. The first that fails ends the line with its exit code.
"""

import gc
import os
import shlex
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib import import_module

from rlhf.__main__ import COMMANDS
from rlhf.__main__ import main as run_command
from rlhf.commands.recipes import find_scripts
from rlhf.data.parallel import end_with
from rlhf.errors import UserError

# What the recipes import late: transformers looks for a model's class only when it is asked for.
LATE = (
    "matplotlib.pyplot",
    "rlhf.runs.card",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt2.configuration_gpt2",
    "transformers.trainer",
)


def main() -> int:
    commands = read_commands(sys.stdin)
    recipes = {name for name, script in find_scripts().items() if script.is_recipe}
    forks = sys.platform == "linux"
    loaded = False
    for argv in commands:
        if forks and not loaded and argv[0] in recipes:  # what comes before starts at once
            preload(commands)
            loaded = True
        print(f"\n$ rlhf {shlex.join(argv)}", flush=True)
        code = run_forked(argv) if forks else run_new(argv)
        if code:
            print(f"stopped at: rlhf {shlex.join(argv)}", file=sys.stderr)
            return code
    return 0


def read_commands(lines) -> list[list[str]]:
    """The arguments of each command. UserError for a line that is not one."""
    commands = []
    known = {*find_scripts(), *COMMANDS}
    for number, line in enumerate(lines, start=1):
        try:
            argv = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"line {number}: {error}: {line.strip()!r:.80}") from error
        if argv and argv[0] not in known:
            raise UserError(f"line {number}: no command {argv[0]!r}; known: {', '.join(known)}")
        if argv:
            commands.append(argv)
    return commands


def preload(commands: list[list[str]]) -> None:
    """Import what the commands need, and start no thread: a forked process has none of them."""
    scripts = find_scripts()
    for name in dict.fromkeys(argv[0] for argv in commands):
        import_module(f"rlhf.recipes.{name}" if name in scripts else COMMANDS[name][0])
    for name in LATE:
        import_module(name)
    gc.freeze()  # what is shared is not looked through again by each process


def run_forked(argv: list[str]) -> int:
    """The exit code of a command in a forked process; signals that reach this process go on to it.

    After a signal no other command starts, also where it came too late for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child, caught = 0, []

    def note(number, frame):
        caught.append(number)
        # Ctrl-C reaches every process of the terminal, the command among them, which saves and ends.
        if child and number != signal.SIGINT:
            with suppress(ProcessLookupError):
                os.kill(child, number)

    # Before the fork, so that no signal is lost between the two.
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        for number, handler in before.items():
            signal.signal(number, handler)
        end_with(parent, signal.SIGTERM)
        leave(argv)
    for number in caught:  # came before there was a child
        os.kill(child, number)
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    # It had ended before the signal reached it.
    if code == 0 and caught:
        return 128 + caught[0]
    return code if code >= 0 else 128 - code  # as a shell counts


def leave(argv: list[str]) -> None:
    """Run a command in this process, which ends with its exit code."""
    code = 1
    try:
        sys.stdin = open(os.devnull, encoding="utf-8")
        sys.argv = ["rlhf", *argv]  # the record keeps the command
        code = run_command(argv)
        if not isinstance(code, int):  # the reason, as in sys.exit("no data")
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_new(argv: list[str]) -> int:
    """The exit code of a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rlhf", *argv], stdin=subprocess.DEVNULL
    ).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
