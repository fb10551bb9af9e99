"""One run at a time in an output folder: `.lock`, freed by the kernel however its process dies."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
# A file system that has no locks, as some network ones.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of an existing folder. UserError, and nothing changed, while another process holds it."""
    path = Path(folder) / LOCK
    descriptor = _take(path)
    if descriptor is None:
        _take_by_name(path)
    forget = descriptor is not None and _close_in_children(descriptor)
    try:
        yield
    finally:
        # Removed while it is still held: who opened it meanwhile notices in `_take`. Not another's, in a new folder.
        if descriptor is None or _is_the_file(descriptor, path):
            path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
            forget()


def _take(path: Path) -> int | None:
    """Open and lock the file. None where the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return None
            raise _refusal(path) from error
        if _is_the_file(descriptor, path):
            break
        os.close(descriptor)  # its owner has ended and removed it
    with suppress(OSError):  # on a full disk the message names no owner
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _owner().encode())
    return descriptor


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner() -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def _holder(path: Path) -> dict:
    """The host and pid in the file; {} where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _refusal(path: Path) -> UserError:
    holder = _holder(path)
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}"
    return UserError(
        f"output_dir {path.parent} is in use by {who}: wait for it, stop it, or choose another output_dir"
    )


def _take_by_name(path: Path) -> None:
    """Without locks: the file itself is the lock. One that a dead process of this machine has left is taken over."""
    holder = _holder(path)
    here = holder.get("host") == socket.gethostname()
    # An empty file is what `_take` has made before it learned that there are no locks.
    if holder and not (here and _is_dead(holder.get("pid"))):
        error = _refusal(path)
        raise UserError(f"{error}; if it is gone, remove {path}")
    path.write_text(_owner(), encoding="utf-8")


def _is_dead(pid) -> bool:
    import psutil

    return pid == os.getpid() or not psutil.pid_exists(int(pid or 0))


_open_locks: set[int] = set()


def _close_in_children(descriptor: int):
    """Let forked workers drop the lock, which they would hold after the death of this process. Returns the undoing."""
    _open_locks.add(descriptor)
    return lambda: _open_locks.discard(descriptor)


def _drop_locks() -> None:
    for descriptor in _open_locks:
        os.close(descriptor)
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)
