"""The two ways in which a run ends early: by an error that a user can repair, and by a signal."""

import errno
import signal

# Errors of the system that say that a disk takes no more. EDQUOT: the user's share of it is full.
DISK_REFUSES = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS)
# The same in the messages of libraries that keep no errno: safetensors, and torch.save, which does not say why it failed.
DISK_REFUSES_TEXTS = (
    "no space left on device",
    "disk quota exceeded",
    "read-only file system",
    "os error 28",
    "pytorchstreamwriter failed",
    "unexpected pos",
)


class UserError(ValueError):
    """Bad input: the message names the place, what was given, what is allowed, and the remedy.

    Recipes and commands print it without a traceback and leave with exit code 2.
    said: another process prints it.
    """

    said = False


class Interrupted(BaseException):
    """The run was stopped by a signal. No `except Exception` catches it, as with KeyboardInterrupt.

    number: of the signal. The exit code is 128 + number, as a shell counts: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int):
        self.number = int(number)
        self.message = "nothing was trained"
        super().__init__(self.number)

    @property
    def exit_code(self) -> int:
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}: {self.message}"


def of_the_disk(error: BaseException) -> bool:
    """True of an error that says that the disk is full or takes no writes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in DISK_REFUSES:
            return True
        message = str(seen).lower()
        if any(text in message for text in DISK_REFUSES_TEXTS):
            return True
        # A failing close of the file comes first, what it failed for is its context.
        seen = seen.__cause__ or seen.__context__
    return False
