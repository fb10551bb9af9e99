"""Runs that the app starts: one at a time, the others wait in line.

A job is a process with a group of its own, so it outlives the server. Its record, its log and its exit code are files in
`runs/.jobs`. One server at a time owns the line (a lock there): it starts the next job and notes how one has ended. Any
server may add a job, or stop one. When the owner dies, another takes over, and adopts the job that runs.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import short_path
from rlhf.runs.lock import LOCK, locked
from rlhf.runs.record import DONE as RUN_IS_DONE
from rlhf.runs.record import RECORD, read_object
from rlhf.runs.verified_save import checkpoints_of
from rlhf.serving.jobs.allowed import Allowed, folder_of
from rlhf.serving.jobs.command import program, shell_text, words
from rlhf.serving.jobs.process import Held, exit_code, has_begun
from rlhf.serving.jobs.recipe_forms import RecipeForms
from rlhf.serving.jobs.records import (
    DONE,
    JOB_FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
    JobRecords,
)

logger = logging.getLogger(__name__)

RESUME = "resume_from_checkpoint"
SHARE = "share"  # the command that pushes to the Hub, and the recipe of such a job
POLL = 0.5  # seconds between two looks at the line
GRACE = 120  # seconds that the rest of a job has to save a checkpoint, after its first process was killed
LONGEST_LINE = 50  # jobs
ENDED_BY_SIGNAL = (128 + signal.SIGTERM, 128 + signal.SIGINT)
KILLED = 128 + signal.SIGKILL
TAIL = 64_000  # bytes of a log that are searched for the reason
LONGEST_REASON = 600  # characters


class Jobs:
    """The line of jobs in a folder of runs.

    allowed: the files that people may name. forms: the keys of the recipes. command: the words before the recipe's name.
    on_finished: called with each job that has ended, from a thread.
    """

    def __init__(
        self,
        runs: Path,
        *,
        allowed: Allowed | None = None,
        forms: RecipeForms | None = None,
        command: list[str] | None = None,
        on_finished: Callable[[Job], None] | None = None,
    ):
        # Another server may have started in another folder.
        self.runs = Path(runs).absolute()
        self.allowed = allowed or Allowed(anything=True)
        self.on_finished = on_finished
        self._forms = forms or RecipeForms()
        self._command = command
        self._records = JobRecords(self.runs)
        self._lock = ExitStack()  # holds the line's lock while this server owns it
        self._lock_file: tuple | None = None
        self._owns = False
        self._children: dict[str, Held] = {}
        self._ending: dict[
            str, float
        ] = {}  # job whose first process is gone, and others are not -> since when
        self._seen_ended = {job.id for job in self._records.all() if job.has_ended}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="jobs")
        self._thread.start()

    # ---- what people ask -------------------------------------------------------------------------------------------

    def recipes(self) -> dict[str, dict]:
        """Recipe -> summary, keys and configs. The first call takes seconds."""
        return self._forms.forms()

    def warm(self) -> None:
        """Read the recipes in the background."""
        if not self._forms.is_ready:
            self._forms.warm()

    @property
    def is_warm(self) -> bool:
        """True if `recipes` answers at once."""
        return self._forms.is_ready

    def command(
        self, recipe: str, arguments: dict, name: str, *, config: str = "", layout: str = ""
    ) -> list[str]:
        """The words of the command that `start` would run. UserError for what is not allowed or not known."""
        # The keys are those of the recipe itself, so what it does not know never reaches its command line.
        form = self.recipes().get(recipe)
        if form is None:
            raise UserError(f"no recipe {recipe!r}: one of {', '.join(self.recipes())}")
        if not isinstance(arguments, dict):
            raise UserError("the settings are a map: key -> value")
        self.allowed.check_arguments(arguments)
        folder = folder_of(self.runs, name)
        head = self._command or program(layout)
        return [*head, recipe, *words(form, config, arguments, folder)]

    def check(self, recipe: str, command: list[str], coming: Sequence[str] = ()) -> None:
        """UserError where the recipe would refuse the settings of its command, or a file that they name is missing.

        coming: folders of models that are still to be trained, apart from those of the jobs in line.
        """
        in_line = [job for job in self.list() if not job.has_ended]
        folders = [short_path(Path(job.folder).absolute()) for job in in_line]
        folders += [job.folder for job in in_line]
        argv = command[command.index(recipe) + 1 :]
        problem = self._forms.check(recipe, argv, [*folders, *coming])
        if problem:
            raise UserError(problem)

    def start(
        self,
        recipe: str,
        arguments: dict,
        name: str,
        *,
        config: str = "",
        layout: str = "",
        after: str = "",
    ) -> Job:
        """Put a run in line. UserError for settings that the recipe refuses, and for a name that is taken.

        arguments: key -> value of the recipe's settings. name: of the run, as demo/ppo, below the folder of the runs.
        config: the name of one of the recipe's YAMLs. layout: of `rlhf layouts`. after: a job that must be done first.
        """
        command = self.command(recipe, arguments, name, config=config, layout=layout)
        self.check(recipe, command)
        folder = folder_of(self.runs, name)
        resumes = str(arguments.get(RESUME) or "false").lower() != "false"
        # A file of that name, too.
        is_taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
        if is_taken and not resumes:
            raise UserError(f"name {name!r}: {folder} is there already, choose another name")
        if after:  # must exist
            self._records.load(after)
        job = self._new(recipe, name, command)
        job.config, job.layout, job.after = config, layout, after
        job.arguments = dict(arguments)
        self._add(job)
        return job

    def share(self, arguments: Sequence[str], name: str, settings: dict) -> Job:
        """Put a push to the Hub in line. It does not wait for runs: it hardly needs the processor.

        arguments: of `rlhf share`. name: what is shared, for the list. settings: they are kept with the job.
        """
        job = self._new(SHARE, "", self.share_command(arguments))
        job.name, job.arguments = name, dict(settings)
        # It makes no run, and has no folder that another job could want.
        job.folder = str(self._records.path(job.id, "share"))
        self._add(job)
        return job

    def share_command(self, arguments: Sequence[str]) -> list[str]:
        """The words of the command that `share` would run."""
        return [*(self._command or program()), SHARE, *arguments]

    def _new(self, recipe: str, name: str, command: Sequence[str]) -> Job:
        """The record of a job that is not in line yet. name: of its run; "" for none."""
        folder = folder_of(self.runs, name) if name else self.runs
        job_id = self._records.new_id()
        return Job(
            id=job_id,
            name=folder.relative_to(self.runs).as_posix(),
            recipe=recipe,
            command=list(command),
            folder=str(folder),
            cwd=os.getcwd(),
            log=str(self._records.path(job_id, "log")),
            created=now(),
        )

    def _add(self, job: Job) -> None:
        """Write the record of a new job, unless its folder is in use or the line is full."""
        with self._records.changes():
            # Under the lock: two people may press Start at once.
            open_jobs = [other for other in self._records.all() if not other.has_ended]
            if any(other.folder == job.folder for other in open_jobs):
                raise UserError(f"name {job.name!r}: a job with this name is in line or runs")
            if len(open_jobs) >= LONGEST_LINE:
                raise UserError(f"{len(open_jobs)} jobs are in line: wait until some are done")
            self._records.save(job)

    def resume(self, job_id: str) -> Job:
        """Put an ended job in line again, from its newest checkpoint; from the beginning where it has none."""
        job = self.get(job_id)
        if not job.has_ended:
            raise UserError(f"{job.name} has not ended")
        if job.state == DONE:
            raise UserError(f"{job.name} is done")
        if job.recipe == SHARE:
            raise UserError(f"{job.name} is a push: share it again in the tab Share")
        value = "true" if checkpoints_of(Path(job.folder)) else "auto"
        # The settings were checked when it began, and a second check would take seconds.
        again = self._new(job.recipe, job.name, resuming(job.command, value))
        again.config, again.layout, again.cwd = job.config, job.layout, job.cwd
        again.arguments = job.arguments | {RESUME: value}
        self._add(again)
        return again

    def list(self) -> list[Job]:
        """Every job, the oldest first."""
        return self._records.all()

    def get(self, job_id: str) -> Job:
        """One job. UserError where there is none."""
        return self._records.load(job_id)

    def of_run(self, name: str) -> Job | None:
        """The newest job of a run, by its name."""
        jobs = [job for job in self.list() if job.name == name]
        return jobs[-1] if jobs else None

    def stop(self, job_id: str, *, at_once: bool = False) -> Job:
        """Ask a running job to save a checkpoint and end, or take a waiting one out of the line.

        at_once: kill it; what it has not saved is lost.
        """

        def note(job: Job) -> None:
            if job.has_ended:
                raise UserError(f"{job.name} has ended: {job.state}")
            if job.state == WAITING:
                job.state, job.ended = STOPPED, now()
                job.reason = "taken out of the line before it began"
                return
            # The run ends at once at a second signal, and would lose its checkpoint.
            is_second = job.stopping != ""
            job.stopping = "now" if at_once else "asked"
            if at_once:
                job.process.kill()
            elif not is_second:
                job.process.terminate()

        return self._records.change(job_id, note)

    def shown_command(self, job: Job) -> str:
        """The command of a job, to paste into a terminal."""
        return shell_text(job.command, job.cwd)

    def close(self) -> None:
        """Give the line to another server. A job that runs goes on."""
        self._closing.set()
        self._thread.join(timeout=5)
        self._lock.close()
        self._owns = False
        self._forms.close()

    # ---- the line --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        problem = ""
        while not self._closing.is_set():
            try:
                self._look()
                problem = ""
            except (UserError, OSError) as error:
                # A full disk, or a folder that is gone for a moment: the next look tries again.
                if str(error) != problem:  # said once
                    problem = str(error)
                    logger.warning("jobs: %s", problem)
            except Exception:  # one job must not end the line of all others
                logger.exception("jobs")
            self._closing.wait(POLL)

    def _look(self) -> None:
        """Look once at the line: own it, note what has ended, start the next."""
        if not self.runs.is_dir():
            return
        self._own()
        if self._owns:
            jobs = self._records.all()
            running = [job for job in jobs if job.state == RUNNING]
            for job in running:
                self._forget_child(job)
                if not job.process.is_alive() and not self._others_run(job):
                    self._records.change(job.id, self._note_end)
            jobs = self._records.all()
            # One run and one push at a time.
            for is_push in (False, True):
                line = [job for job in jobs if (job.recipe == SHARE) == is_push]
                if not any(job.state == RUNNING for job in line):
                    self._start_next(line)
        self._tell()

    def _others_run(self, job: Job) -> bool:
        """True while the group of a job has processes, though its first one was killed. They are asked to end.

        A run that lost its launcher would train on next to the following job.
        """
        # The usual end: the first process waits for its command.
        if not job.process.has_others():
            self._ending.pop(job.id, None)
            return False
        since = self._ending.get(job.id)
        # A run saves a checkpoint on SIGTERM, and a second one would lose it.
        if since is None:
            self._ending[job.id] = time.monotonic()
            job.process.terminate()
        elif time.monotonic() - since > GRACE:
            job.process.kill()
        return True

    def _own(self) -> None:
        folder = self._records.folder
        if self._owns and file_id(folder / LOCK) != self._lock_file:
            # The folder was removed, or another is in its stead.
            self._lock.close()
            self._owns = False
        if self._owns or self._closing.is_set():
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(folder))
        except UserError:  # another server's
            return
        # To notice when the folder is replaced.
        self._lock_file = file_id(folder / LOCK)
        self._owns = True

    def _start_next(self, jobs: Sequence[Job]) -> None:
        states = {job.id: job.state for job in jobs}
        for job in jobs:
            if job.state != WAITING:
                continue
            before = states.get(job.after, DONE)
            if before == DONE:
                with self._records.changes():
                    self._start(job.id)
                return
            if before in (JOB_FAILED, STOPPED):
                self._records.change(job.id, _note_missing)

    def _start(self, job_id: str) -> None:
        """Start a job and note its process. Nothing runs that is not noted."""
        job = self._records.load(job_id)
        if job.state != WAITING:  # somebody took it out of the line
            return
        log, exits = Path(job.log), self._records.path(job.id, "exit")
        try:
            log.write_text(self._head_of_log(job), encoding="utf-8")
            child = Held(job.command, log=log, exits=exits, cwd=job.cwd)
        except OSError as error:
            job.state, job.ended, job.reason = JOB_FAILED, now(), f"cannot start: {error}"
            self._records.save(job)
            return
        job.state, job.started = RUNNING, now()
        job.pid, job.pid_started = child.process.pid, child.process.started
        try:
            self._records.save(job)
        except OSError:
            child.drop()
            raise
        self._children[job.id] = child
        child.let_go()

    def _head_of_log(self, job: Job) -> str:
        return f"$ {self.shown_command(job)}\n"

    def _forget_child(self, job: Job) -> None:
        child = self._children.get(job.id)
        if child is not None:
            child.reap()

    def _note_end(self, job: Job) -> None:
        """Note how a job ended whose process is gone."""
        self._children.pop(job.id, None)
        exits = self._records.path(job.id, "exit")
        code = exit_code(exits)
        if code is None and not has_begun(exits) and not job.stopping:
            # The server was killed before it let the job go.
            job.state, job.started, job.pid, job.pid_started = WAITING, "", 0, ""
            return
        job.ended = now()
        if code is None and _is_done_since(job):
            code = 0  # killed after its work, as by a shutdown of the machine
        if code == 0:
            job.state = DONE
            return
        # A setting of the command may hold lines of its own.
        lines = last_lines(Path(job.log), start=len(self._head_of_log(job).encode()))
        # Also one that was stopped before it listened to signals.
        if code in ENDED_BY_SIGNAL or job.stopping:
            job.state, job.reason = STOPPED, lines or "stopped"
            return
        job.state = JOB_FAILED
        if code is None or code == KILLED:
            job.reason = "its process was killed (out of memory, or by hand), the disk is full, or the machine was restarted"
            if lines:
                job.reason += f"; the end of its log: {lines}"
            return
        job.reason = lines or f"it ended with exit code {code}"

    def _tell(self) -> None:
        """Call on_finished for the jobs that have ended since the last look, whoever started them."""
        for job in self._records.all():
            if job.has_ended and job.id not in self._seen_ended:
                self._seen_ended.add(job.id)
                if self.on_finished is not None:
                    self._call_back(job)

    def _call_back(self, job: Job) -> None:
        try:
            self.on_finished(job)
        except Exception:  # the line must go on
            logger.exception("jobs: after %s", job.name)


def resuming(command: Sequence[str], value: str) -> list[str]:
    """The command with another value of resume_from_checkpoint."""
    words, given = [], iter(command)
    for word in given:
        if word == f"--{RESUME}":
            next(given, None)  # its value
        elif not word.startswith(f"--{RESUME}="):
            words.append(word)
    return [*words, f"--{RESUME}", value]


def _note_missing(job: Job) -> None:
    if job.state == WAITING:
        job.state, job.ended = STOPPED, now()
        job.reason = f"the run before it ({job.after}) was not done"


def _is_done_since(job: Job) -> bool:
    """True if the run's own record says that it is done, in this job and not in an earlier one."""
    path = Path(job.folder) / RECORD
    if read_object(path).get("status") != RUN_IS_DONE:
        return False
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))
    return changed >= job.started


def file_id(path: Path) -> tuple | None:
    """Device and inode, by which a file is told from one that took its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def now() -> str:
    """The time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_tail(path: Path, size: int = TAIL, start: int = 0) -> str:
    """The last bytes of a text file after `start`, from the beginning of a line; of a progress bar the last state."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(length - size, start))
            content = file.read(size)
    except OSError:
        return ""
    text = content.decode("utf-8", errors="replace")
    if length - size > start:
        text = text.partition("\n")[2]
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        states = [part for part in line.split("\r") if part]
        lines.append(states[-1] if states else "")
    return "\n".join(lines)


def last_lines(path: Path, start: int = 0) -> str:
    """The reason that a run printed at its end: from its last line with `error`, else its last line; "" for none.

    start: bytes of the command, which is first in the log.
    """
    # A progress bar and blank lines say no reason.
    lines = [line for line in read_tail(path, start=start).splitlines() if line.strip()]
    if not lines:
        return ""
    for line in reversed(lines[-20:]):
        if line.startswith("error"):
            return line[:LONGEST_REASON]
    return lines[-1][:LONGEST_REASON]
