"""Two runs never share an output folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rlhf.runs import lock
from rlhf.runs.lock import LOCK, locked
from rlhf.runs.record import RunRecord

HOLD = """
import sys, time
from rlhf.runs.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_of_two_runs_is_refused_before_it_touches_anything(
    toy, holder, tmp_path, capsys
):
    before = sorted(os.listdir(tmp_path))
    assert toy.run(tmp_path, "--max_steps", 2) == 2
    said = f"output_dir {tmp_path} is in use by process {holder.pid} on {socket.gethostname()}"
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert sorted(os.listdir(tmp_path)) == before == [LOCK]
    # A kill frees it, although the file stays.
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    assert toy.run(tmp_path, "--max_steps", 2) == 0
    assert not (tmp_path / LOCK).exists()
    assert RunRecord.load(tmp_path).status == "done"


def test_a_refused_run_leaves_no_folder(toy, tmp_path):
    assert toy.run(tmp_path / "new", "--max_steps", 2, "--resume_from_checkpoint", "true") == 2
    assert not (tmp_path / "new").exists()


def test_a_lock_that_was_removed_and_made_again_is_one_lock(tmp_path, refused):
    """Its owner ends between our opening of the file and our locking: then the file is another one."""
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        with locked(tmp_path):
            assert "is in use by" in refused(locked(tmp_path).__enter__)
    descriptor = os.open(tmp_path / LOCK, os.O_CREAT | os.O_RDWR)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).touch()
    assert not lock._is_the_file(descriptor, tmp_path / LOCK)
    os.close(descriptor)


@pytest.fixture
def without_locks(monkeypatch):
    """A file system on which flock fails, as some network ones do."""

    def flock(descriptor, operation):
        raise OSError(lock.NO_LOCKS[0], "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.mark.parametrize("module", ["flock fails", "no flock"])
def test_without_locks_the_file_is_the_lock(without_locks, monkeypatch, tmp_path, refused, module):
    if module == "no flock":
        monkeypatch.setattr(lock, "fcntl", None)
    path = tmp_path / LOCK
    with locked(tmp_path):
        owner = json.loads(path.read_text())
        assert owner == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not path.exists()

    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    message = refused(locked(tmp_path).__enter__)
    assert "process 1 on elsewhere" in message and f"if it is gone, remove {path}" in message
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 1}))  # init lives
    assert "process 1 on" in refused(locked(tmp_path).__enter__)

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid}))
    with locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_forked_worker_does_not_hold_the_lock(tmp_path):
    """A worker of a data loader may live a little longer than its run that was killed."""
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    with locked(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
