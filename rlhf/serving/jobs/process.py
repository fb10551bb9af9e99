"""The process of a job: it has a process group of its own, outlives the server, and leaves its exit code in a file.

A process is known by its id and the time of its start, because the system gives the id of a dead process to another one.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

# It waits for a line, so that nothing runs which is not recorded: the pipe ends if the server dies before. An empty file
# tells that the line came. SIGTERM, which goes to the whole group, must not end it before the command has. The exit code is
# renamed into place, never half of it.
SCRIPT = """
exits=$1; shift
read -r go && : >"$exits.begun" || exit 125
trap : TERM INT
"$@" </dev/null
code=$?
echo $code >"$exits.tmp" && mv "$exits.tmp" "$exits"
exit $code
"""
SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET")  # variables that a run has no use for
# Private models of the Hub, and pushes. The last two are paths.
NOT_SECRET = ("HF_TOKEN", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH")


@dataclass(frozen=True)
class Process:
    """A process of this machine. started: in the system's own form, with the boot that it belongs to."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """True while this very process runs. A zombie has ended."""
        return self.started != "" and start_time(self.pid) == self.started

    def has_others(self) -> bool:
        """True while another process of its group runs, as the training of a launcher that was killed."""
        return self.started != "" and others_of_group(self.pid, self.started)

    def signal(self, number: int) -> bool:
        """Send a signal to its whole group. False where all of it has ended."""
        if not self.is_alive() and not self.has_others():
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def terminate(self) -> bool:
        """Ask it to save a checkpoint and end."""
        return self.signal(signal.SIGTERM)

    def kill(self) -> bool:
        """End it now. What it has not saved is lost."""
        return self.signal(signal.SIGKILL)


class Held:
    """A new process that waits until it is let go."""

    def __init__(self, command: list[str], *, log: Path, exits: Path, cwd: str):
        self._output = open(log, "ab", buffering=0)  # noqa: SIM115, closed in `let_go`
        self._popen = subprocess.Popen(
            ["sh", "-c", SCRIPT, "sh", str(exits), *command],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
        )
        self.process = Process(self._popen.pid, start_time(self._popen.pid))

    def let_go(self) -> None:
        """Let it run the command."""
        self._popen.stdin.write(b"go\n")
        self._popen.stdin.close()
        self._output.close()  # the process has its own

    def drop(self) -> None:
        """End it before it has run anything."""
        self._popen.stdin.close()
        self._output.close()
        self._popen.wait()

    def reap(self) -> None:
        """Forget an ended child, which would stay as a zombie."""
        self._popen.poll()


def environment() -> dict[str, str]:
    """The variables of a job: those of the server without its keys. What it prints reaches the log at once."""
    variables = {}
    # A recipe is code that people choose settings for: it gets no key of the service.
    for name, value in os.environ.items():
        is_secret = any(word in name.upper() for word in SECRETS) and name not in NOT_SECRET
        if not is_secret:
            variables[name] = value
    return variables | {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def start_time(pid: int) -> str:
    """The time at which a process started, in a form that only serves to compare; "" where it has ended."""
    if Path("/proc/self/stat").exists():
        fields = _fields(Path(f"/proc/{pid}/stat"))
        return f"{_boot()}/{fields[19]}" if fields else ""
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()


def _fields(stat: Path) -> list[str]:
    """The facts of the system about a process: state, parent, group, session, ...; [] for one that has ended."""
    try:
        # After the name, which may hold spaces and brackets. The 20th is the time of its start, in ticks since the boot.
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    # Ended, and its parent has not asked how.
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return []
    return fields


def others_of_group(pid: int, started: str) -> bool:
    """True if a process of the group and session `pid` runs that is not older than its first one. Only on Linux."""
    boot, _, ticks = started.rpartition("/")
    # After a restart of the machine the same number is another group.
    if boot != _boot():
        return False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(stat)
        # Its own session: a job begins one, and its children stay in it.
        if fields and fields[2:4] == [str(pid)] * 2 and int(fields[19]) >= int(ticks):
            return True
    return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return "boot"


def has_begun(exits: Path) -> bool:
    """True if the job was let go: its server lived long enough to say so."""
    return exits.with_name(f"{exits.name}.begun").exists()


def exit_code(path: Path) -> int | None:
    """The exit code that a job has left; None where it was killed before it could."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
