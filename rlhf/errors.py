"""The two ways in which a run ends early: by an error that a user can repair, and by a signal."""

import signal


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
