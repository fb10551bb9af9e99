"""The runs of a folder as the app shows them, read from their files alone: run.json, rows, card, report and plots.

Any of these may be half written, torn or somebody else's. Nothing here fails because of a file, and nothing reads more of
one than a page can show.
"""

import json
import math
import os
import socket
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from rlhf.runs.lock import LOCK
from rlhf.runs.record import (
    EVALUATION_FAILED,
    FAILED,
    INTERRUPTED,
    RECORD,
    RUNNING,
    TRAINED,
    read_object,
)
from rlhf.runs.verified_save import how_to_continue
from rlhf.serving.jobs.allowed import is_text

MOST_RUNS = 500
DEPTH = 5  # folders below the folder of the runs
MOST_ROWS = 20_000  # of metrics that are kept in memory
MOST_BYTES = 64_000_000  # of a file of rows
TEXT_BYTES = 200_000  # of a card or a report
SAMPLE_BYTES = 400_000  # of the end of samples.jsonl
SAMPLES = 12
PICTURE_BYTES = 2_000_000
PICTURES = 8
READERS_KEPT = 32
KEY_NUMBERS = 3
# The numbers that say most about a run, where it has them.
FIRST_NUMBERS = (
    "score", "kl", "accuracy", "f1", "exact_match", "pearson", "spearman", "masked_accuracy", "perplexity", "eval_loss",
    "loss", "tokens_per_word", "vocab_size",
)  # fmt: skip
CUT_OFF = "cut off"  # says "running", and its process is gone


@dataclass
class RunSummary:
    """One run in the list.

    name: its folder below the folder of the runs. recipe: or the algorithm of a policy gradient.
    status: of its record, or CUT_OFF. numbers: name -> value of its most telling numbers.
    """

    name: str
    recipe: str
    status: str
    started: str = ""
    steps: int = 0
    seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


_summaries: dict[str, tuple[tuple, dict]] = {}  # record -> (its version, its content)


def list_runs(root: Path) -> list[RunSummary]:
    """Every run below a folder, the newest first. Hidden folders, checkpoints and links are passed over."""
    folders = list(run_folders(root))
    # By the time of the record, since to read them all takes long.
    if len(folders) > MOST_RUNS:
        folders = sorted(folders, key=_changed)[-MOST_RUNS:]
    summaries = [summary_of(root, folder) for folder in folders]
    return sorted(summaries, key=lambda run: run.started, reverse=True)


def _changed(folder: Path) -> float:
    try:
        return (folder / RECORD).stat().st_mtime
    except OSError:
        return 0


def run_folders(root: Path):
    """The folders below root that hold a record."""
    for path, folders, files in os.walk(root):
        depth = len(Path(path).relative_to(root).parts)
        folders[:] = sorted(name for name in folders if _may_hold_runs(name, depth))
        if RECORD in files:
            yield Path(path)


def _may_hold_runs(name: str, depth: int) -> bool:
    is_own = name.startswith((".", "checkpoint-")) or name in ("plots", "value_model", "report")
    # Bytes that are no UTF-8 cannot be shown, nor sent back as the name of a run.
    return depth < DEPTH and not is_own and is_text(name)


def summary_of(root: Path, folder: Path) -> RunSummary:
    """The line of one run in the list. A record that cannot be read has no recipe."""
    record = _record(folder)
    config = record.get("config")
    algorithm = config.get("algorithm") if isinstance(config, dict) else None
    metrics = record.get("metrics")
    return RunSummary(
        name=folder.relative_to(root).as_posix(),
        recipe=str(algorithm or record.get("recipe") or "?"),
        status=status_of(folder, record),
        started=str(record.get("started") or ""),
        steps=int(number(record.get("steps"))),
        seconds=number(record.get("seconds")),
        numbers=key_numbers(metrics if isinstance(metrics, dict) else {}),
    )


def _record(folder: Path) -> dict:
    """run.json, read again only when it has changed."""
    path = folder / RECORD
    try:
        stat = path.stat()
    except OSError:
        return {}
    # A record is replaced in one step, so its time, size and file tell a new one.
    version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    known = _summaries.get(str(path))
    if known is None or known[0] != version:
        is_read = S_ISREG(stat.st_mode) and stat.st_size <= MOST_BYTES
        content = read_object(path) if is_read else {}
        known = (version, content)
        _summaries[str(path)] = known
    return known[1]


def status_of(folder: Path, record: dict) -> str:
    """The status of a run. One that says it runs, and whose process is gone, is cut off."""
    status = str(record.get("status") or "?")
    if status != RUNNING:
        return status
    holder = read_object(folder / LOCK)
    if holder.get("host") not in (None, socket.gethostname()):
        return status  # on another machine
    pid = holder.get("pid")
    if isinstance(pid, int) and _exists(pid):
        return status
    return CUT_OFF


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def number(value) -> float:
    """A finite number, or 0."""
    return value if is_finite(value) else 0


def is_finite(value) -> bool:
    """True for a number that a float can hold. JSON may have whole numbers of any length."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN too.
    return is_number and abs(value) <= sys.float_info.max


def key_numbers(metrics: dict, most: int = KEY_NUMBERS) -> dict[str, float]:
    """The most telling numbers of a run: those of FIRST_NUMBERS, then the others in their order."""
    numbers = {}
    for name, value in metrics.items():
        says_little = "rows" in name or name.endswith(("_before", "_n"))
        if is_finite(value) and not says_little:
            numbers[name] = value
    first = [name for name in FIRST_NUMBERS if name in numbers]
    others = [name for name in numbers if name not in first]
    return {name: numbers[name] for name in (first + others)[:most]}


# ---- one run ---------------------------------------------------------------------------------------------------------


def details(root: Path, folder: Path) -> dict:
    """The facts of one run that a page shows: its summary, error, command, settings, numbers and how to continue."""
    record = _record(folder)
    summary = summary_of(root, folder)
    metrics = record.get("metrics") if isinstance(record.get("metrics"), dict) else {}
    config = record.get("config") if isinstance(record.get("config"), dict) else {}
    return {
        "name": summary.name,
        "recipe": summary.recipe,
        "status": summary.status,
        "started": summary.started,
        "steps": summary.steps,
        "seconds": summary.seconds,
        "error": str(record.get("error") or ""),
        "command": str(record.get("command") or ""),
        "settings": config,
        "metrics": key_numbers(metrics, most=200),
        "parents": _parents(record.get("parents")),
        "continue": continue_text(folder, summary.status, str(record.get("command") or "")),
    }


def _parents(parents) -> dict[str, str]:
    names = {}
    if isinstance(parents, dict):
        for role, entry in parents.items():
            if isinstance(entry, dict):
                names[str(role)] = str(entry.get("name", ""))
    return names


def continue_text(folder: Path, status: str, command: str) -> str:
    """Advice for a run that has not come to its end; "" for one that is done or runs."""
    if status in (TRAINED, EVALUATION_FAILED):
        return f"rlhf finish {folder}"
    if status in (FAILED, INTERRUPTED, CUT_OFF):
        return f"{how_to_continue(folder)}\n{command}".strip()
    return ""


class Rows:
    """The rows of a file of JSON lines that grows. Each look reads only what is new."""

    def __init__(self, path: Path):
        self.path = path
        self._start()

    def _start(self) -> None:
        self.rows: list[dict] = []
        self.bytes_read = 0
        self._file_id: int | None = None
        self._rest = b""

    def look(self) -> list[dict]:
        """All rows so far. A file that was replaced or cut back, as by a resumed run, is read again from its start."""
        try:
            stat = self.path.stat()
        except OSError:
            self._start()
            return []
        # A pipe would block the page, and a folder has no rows.
        if not S_ISREG(stat.st_mode):
            return []
        if stat.st_ino != self._file_id or stat.st_size < self.bytes_read:
            self._start()
            self._file_id = stat.st_ino
        # Of a file that is larger than a page needs, the rest is not read.
        size = min(stat.st_size, MOST_BYTES) - self.bytes_read
        if size > 0:
            try:
                with open(self.path, "rb") as file:
                    file.seek(self.bytes_read)
                    content = file.read(size)
            except OSError:  # gone since, or not ours to read
                return self.rows
            self.bytes_read += len(content)
            self._add(content)
        return self.rows

    def _add(self, content: bytes) -> None:
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            row = row_of(line)
            if row is not None:
                self.rows.append(row)
        if len(self.rows) > MOST_ROWS:
            # A curve of so many points is drawn from a part of them anyway.
            self.rows = self.rows[: -MOST_ROWS // 2 : 2] + self.rows[-MOST_ROWS // 2 :]


def row_of(line: bytes) -> dict | None:
    """The row of a line; None for a torn one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class RowsOfRuns:
    """The readers of the runs that people looked at last."""

    def __init__(self):
        self._readers: OrderedDict[Path, Rows] = OrderedDict()
        self._lock = threading.Lock()

    def metrics(self, folder: Path) -> list[dict]:
        """The rows of metrics.jsonl so far."""
        path = folder / "metrics.jsonl"
        with self._lock:
            reader = self._readers.setdefault(path, Rows(path))
            self._readers.move_to_end(path)
            while len(self._readers) > READERS_KEPT:
                self._readers.popitem(last=False)
            return list(reader.look())

    def curves(self, folder: Path) -> dict[str, dict[str, list[tuple]]]:
        """Metric -> "training" or "evaluation" -> (step, value) pairs, of finite numbers."""
        from rlhf.runs.progress import curves_of  # transformers takes seconds to import

        rows = []
        for row in self.metrics(folder):
            if is_finite(row.get("step")):
                rows.append({name: value for name, value in row.items() if not _is_huge(value)})
        curves = {}
        for name, lines in curves_of(rows).items():
            kept = {}
            for label, points in lines.items():
                points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
                if len(points) > 1:
                    kept[label] = points
            if kept:
                curves[str(name)] = kept
        return curves


def _is_huge(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and not is_finite(value)


def tail_rows(path: Path, most: int, size: int = SAMPLE_BYTES) -> list[dict]:
    """The last rows of a file of JSON lines, without reading all of it."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(length - size, 0))
            lines = file.read(size).split(b"\n")
    except OSError:
        return []
    if length > size:
        lines = lines[1:]  # cut
    rows = [row_of(line) for line in lines if line.strip()]
    return [row for row in rows if row is not None][-most:]


def samples(folder: Path) -> list[dict]:
    """The newest samples of a run: those of its last step that has some."""
    rows = tail_rows(folder / "samples.jsonl", most=200)
    if not rows:
        return []
    last = rows[-1].get("step")
    return [row for row in rows if row.get("step") == last][:SAMPLES]


def alarms(folder: Path) -> list[dict]:
    """The newest alarms of a run, the last one first."""
    return tail_rows(folder / "alarms.jsonl", most=20)[::-1]


def text_of(path: Path, size: int = TEXT_BYTES) -> str:
    """The beginning of a text file; "" where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(size).decode("utf-8", errors="replace")
    except OSError:
        return ""


def card(folder: Path) -> str:
    """The model card without its metadata, as Markdown."""
    text = text_of(folder / "README.md")
    if text.startswith("---\n"):
        _, end, body = text[4:].partition("\n---\n")
        text = body if end else text
    return text.strip()


def report(folder: Path) -> str:
    """The report of `rlhf report` on this run, as Markdown."""
    return text_of(folder / "report" / "report.md").strip()


def pictures(folder: Path) -> list[Path]:
    """The plots of a run and of its report. Links are not followed, and the curves are drawn by the page itself."""
    paths = []
    for pattern in ("plots/*.png", "report/*.png"):
        for path in sorted(folder.glob(pattern)):
            is_file = path.is_file() and not path.is_symlink()
            if is_file and path.name != "curves.png" and path.stat().st_size <= PICTURE_BYTES:
                paths.append(path)
    return paths[:PICTURES]
