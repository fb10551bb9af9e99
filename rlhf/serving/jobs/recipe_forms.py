"""The keys of the recipes, and checks of settings, asked of a process of its own (`rlhf.commands.forms`).

That process imports the recipes, which takes seconds and memory that the server should not give. It starts with the first
question, and ends after some minutes without one.
"""

import json
import subprocess
import sys
import threading
import time

from rlhf.errors import UserError

IDLE = 600  # seconds without a question, after which the process ends


class RecipeForms:
    """Asks the process. One question at a time; the keys are asked once and kept."""

    def __init__(self, command: list[str] | None = None, idle: float = IDLE):
        self._command = command or [sys.executable, "-m", "rlhf.commands.forms"]
        self._idle = idle
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._timer: threading.Timer | None = None
        self._forms: dict[str, dict] = {}

    @property
    def is_ready(self) -> bool:
        """True if the keys are known, so that `forms` answers at once."""
        return bool(self._forms)

    def forms(self) -> dict[str, dict]:
        """Recipe -> summary, keys and configs (`rlhf.commands.forms.describe_recipes`)."""
        with self._lock:
            if not self._forms:
                self._forms = self._ask({"ask": "forms"})["forms"]
            return self._forms

    def check(self, recipe: str, argv: list[str], coming: list[str]) -> str | None:
        """The reason why a recipe would refuse its arguments, or None. coming: models of runs that are in line."""
        question = {"ask": "check", "recipe": recipe, "argv": argv, "coming": coming}
        with self._lock:
            return self._ask(question)["error"]

    def warm(self) -> None:
        """Start the process in the background, so that the first question need not wait."""
        threading.Thread(target=self._warm, daemon=True, name="recipe-forms").start()

    def _warm(self) -> None:
        try:
            self.forms()
        except UserError:  # whoever asks next gets it
            pass

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is not None:
            self._process.stdin.close()
            # It holds nothing that could be lost.
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _ask(self, question: dict) -> dict:
        started = time.monotonic()
        process = self._running()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        # The time without a question begins again.
        self._end_later()
        try:
            answer = json.loads(line)
        except ValueError:
            self._end()
            seconds = time.monotonic() - started
            raise UserError(
                f"the recipes cannot be read (their process ended after {seconds:.0f} s): look at the server's log"
            ) from None
        if "forms" not in answer and "error" not in answer:
            raise UserError("the recipes cannot be read: an unknown answer")
        if question["ask"] == "forms" and "forms" not in answer:
            raise UserError(f"the recipes cannot be read: {answer['error']}")
        return answer

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        return self._process

    def _end_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._idle, self.close)
        self._timer.daemon = True
        self._timer.start()
