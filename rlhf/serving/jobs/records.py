"""The records of the jobs: one JSON file each in `runs/.jobs`, which several servers may read and change."""

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.durable import write_text
from rlhf.serving.jobs.process import Process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FOLDER = ".jobs"
ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
WAITING, RUNNING = "waiting", "running"
DONE, JOB_FAILED, STOPPED = "done", "failed", "stopped"
ENDED = (DONE, JOB_FAILED, STOPPED)


@dataclass
class Job:
    """A run that the app starts.

    id: its name in the line; in the order of the time. name: of the run, below the folder of the runs.
    recipe, config, arguments, layout: what the command was made of. config: the name of a YAML of the recipe, or "".
    command: the words of the command line. cwd: the folder that it runs in. folder: of the run.
    state: waiting, running, done, failed or stopped.
    created, started, ended: UTC, ISO 8601; "" before it happens.
    reason: why it failed or stopped.
    log: the file with all that it prints.
    pid, pid_started: its process (`job_process.Process`); 0 before it starts.
    stopping: "" unless somebody asked it to stop.
    after: the id of a job that must be done first, or "".
    """

    id: str
    name: str
    recipe: str
    command: list[str]
    folder: str
    cwd: str
    log: str
    config: str = ""
    layout: str = ""
    arguments: dict = field(default_factory=dict)
    state: str = WAITING
    created: str = ""
    started: str = ""
    ended: str = ""
    reason: str = ""
    pid: int = 0
    pid_started: str = ""
    stopping: str = ""
    after: str = ""

    @property
    def process(self) -> Process:
        """The process that it runs in."""
        return Process(self.pid, self.pid_started)

    @property
    def has_ended(self) -> bool:
        """True in a state that never changes."""
        return self.state in ENDED


class JobRecords:
    """Reads and writes the records. Every change is made under a lock that all servers share."""

    def __init__(self, runs: Path):
        self.folder = runs / FOLDER
        self._ended: dict[str, Job] = {}  # records that never change

    def new_id(self) -> str:
        """An id that sorts by time."""
        # Microseconds, so that the ids of one server sort as they were made.
        seconds, rest = divmod(time.time_ns(), 10**9)
        day = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
        new = f"{day}-{rest // 1000:06d}"
        # A clock that was set back must not put a job in front of those that wait.
        newest = max((path.stem[:-2] for path in self._paths()), default="")
        if new <= newest:
            new = newest[:-6] + f"{int(newest[-6:]) + 1:06d}"[-6:]
        return f"{new}{secrets.token_hex(1)}"

    def _paths(self) -> list[Path]:
        """The records in the order of their ids."""
        return sorted(path for path in self.folder.glob("*.json") if ID.fullmatch(path.stem))

    def path(self, job_id: str, ending: str = "json") -> Path:
        """A file of a job. UserError for what does not look like an id."""
        if not isinstance(job_id, str) or not ID.fullmatch(job_id):
            raise UserError(f"no job {str(job_id)[:40]!r}")
        return self.folder / f"{job_id}.{ending}"

    def save(self, job: Job) -> None:
        """Write a record, whole or not at all. Call it within `changes`."""
        text = json.dumps(asdict(job), indent=2, ensure_ascii=False)
        write_text(self.path(job.id), f"{text}\n")

    def load(self, job_id: str) -> Job:
        """Read a record. UserError where there is none."""
        path = self.path(job_id)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(Job)}
            job = Job(**{key: value for key, value in content.items() if key in known})
            _check(job, job_id)
            # The folder may have been moved, or be known under another path to the server that wrote the record.
            job.log = str(self.path(job_id, "log"))
            return job
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"no job {job_id!r}") from error

    def all(self) -> list[Job]:
        """Every job, the oldest first. Files that are no records are passed over."""
        jobs = []
        for path in self._paths():
            job = self._ended.get(path.stem)
            if job is None:
                try:
                    job = self.load(path.stem)
                except UserError:
                    continue
                # An ended job never changes, so it is read once.
                if job.has_ended:
                    self._ended[job.id] = job
            jobs.append(job)
        return jobs

    def change(self, job_id: str, function: Callable[[Job], None]) -> Job:
        """Read a record, change it with the function, and write it. No other server changes it meanwhile."""
        with self.changes():
            job = self.load(job_id)
            function(job)
            self.save(job)
        return job

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Hold the lock that every change needs; for milliseconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".changes", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)  # frees the lock


def _check(job: Job, job_id: str) -> None:
    """ValueError for a record that another tool or hand has damaged."""
    for item in fields(Job):
        # All others are texts.
        kind = {"command": list, "arguments": dict, "pid": int}.get(item.name, str)
        if type(getattr(job, item.name)) is not kind:
            raise ValueError(f"{item.name} is no {kind.__name__}")
    states = (WAITING, RUNNING, *ENDED)
    is_command = job.command and all(isinstance(word, str) for word in job.command)
    if job.id != job_id or job.state not in states or not is_command:
        raise ValueError("not the record of a job")
