"""The record of a run, which every later view (report, card, app, benchmarks) reads.

A run folder is a plain `from_pretrained` folder that also holds `run.json` (this record), `metrics.jsonl`, `samples.jsonl`,
`plots/*.png` and `README.md` (the model card). Nothing here needs torch.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf.runs.durable import write_text
from rlhf.task_table import TASKS

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "accelerate",
    "gradio",
    "tokenizers",
    "gensim",
)
RECORD = "run.json"
# Values of a record's status. A model is saved from TRAINED on.
RUNNING, TRAINED, DONE = "running", "trained", "done"
FAILED, EVALUATION_FAILED, INTERRUPTED = "failed", "evaluation failed", "interrupted"
USABLE = (DONE, TRAINED, EVALUATION_FAILED)  # whose model can be tried and compared
ROOT = Path(__file__).resolve().parents[2]  # of this checkout
# What the name of a model class ends in -> what the model is.
ARCHITECTURES = {
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "LMHeadModel": "causal",
    "ForCausalLM": "causal",
} | {task.architecture: name for name, task in TASKS.items()}
SEQ2SEQ = "seq2seq"  # a model that writes a text for a text, where its config says that it is an encoder-decoder
SEQ2SEQ_ENDINGS = ("ForConditionalGeneration", "MTModel")


@dataclass
class RunRecord:
    """One run of one recipe.

    recipe: name of the recipe ("sft").
    command: the command line.
    config: every setting that differs from its default.
    data: name, rows and sha256 of each file or data set that was read, with the sha256 of each local file as `files`.
    parents: role -> run folder or Hub id with the sha256 of its weights, or a feedback store (`runs.parents`).
    ancestors: the history of each parent, key -> its own data and parents, so that a lineage needs no other folder.
    weights: the sha256 of all weights of this run, and of each file as `files`; {} until it is done.
    metrics: final numbers, each with n where it is a mean.
    steps: optimiser steps made by the last checkpoint, or by the end.
    seconds: wall time; of a resumed run the sum over its parts.
    cpu_seconds: processor time of all threads of the main process, which other programs do not lengthen as they do the
        wall time; of a resumed run the sum over its parts.
    parts: of a resumed run, each part with its start, seconds, command, and the step that it began from.
    machine: `cpu`, its name, `cores`, and `gpu`, the name of the GPU that was used.
    precision: what it computed in, the reason, and the measured rates (`runs.precision.Precision`).
    peak_memory_gb: most memory of the main process, in GB of 2^30 bytes; of a resumed run the largest of its parts.
    peak_gpu_memory_gb: most memory of its tensors on the GPU; None without a CUDA device.
    template_date: the day that chat templates wrote as today, YYYY-MM-DD. A resumed run keeps it.
    status: "running", "trained" (the model is saved, its evaluation is not finished), "done", "failed",
        "evaluation failed" (the model is saved) or "interrupted" (by a signal, before the end of the training).
    error: the message of what ended the run, with the process where there are several.
    """

    recipe: str
    command: str = ""
    config: dict = field(default_factory=dict)
    seed: int = 0
    data: list[dict] = field(default_factory=list)
    parents: dict[str, dict] = field(default_factory=dict)
    ancestors: dict[str, dict] = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    precision: dict = field(default_factory=dict)
    started: str = ""
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    parts: list[dict] = field(default_factory=list)
    peak_memory_gb: float = 0.0
    peak_gpu_memory_gb: float | None = None
    template_date: str = ""
    status: str = RUNNING
    error: str = ""

    @classmethod
    def begin(cls, recipe: str, *, config: dict, seed: int) -> "RunRecord":
        """Start a record with everything that is known before the run."""
        return cls(
            recipe=recipe,
            command=command_line(),
            config=config,
            seed=seed,
            versions=package_versions(),
            machine={"cpu": cpu_name(), "cores": os.cpu_count()},
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),  # UTC
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write run.json, in one step, so that no reader sees half of it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str)
        write_text(folder / RECORD, f"{text}\n")

    def continue_from(self, before: "RunRecord", step: int) -> None:
        """Keep what the earlier parts of a resumed run knew. before: their record; step: of the checkpoint."""
        parts = list(before.parts)
        if not parts:
            parts.append(before.part(seconds=before.seconds, from_step=0))
        parts.append(self.part(seconds=0.0, from_step=step))
        self.parts = parts
        # The command that makes the whole run. The others are in the parts.
        self.command, self.started = before.command, before.started
        self.steps, self.seconds = step, before.seconds
        self.cpu_seconds = before.cpu_seconds
        self.peak_memory_gb = before.peak_memory_gb
        self.peak_gpu_memory_gb = before.peak_gpu_memory_gb
        for name, value in before.metrics.items():
            if name.endswith("_before"):  # measured before the first step, which is not made again
                self.metrics[name] = value

    def part(self, *, seconds: float, from_step: int) -> dict:
        """This run as an entry of `parts`."""
        return {
            "started": self.started,
            "seconds": seconds,
            "command": self.command,
            "from_step": from_step,
        }

    def set_seconds(self, seconds: float) -> None:
        """Set the wall time of this part, and the sum."""
        self.seconds = seconds
        if self.parts:
            self.parts[-1]["seconds"] = seconds
            self.seconds = round(sum(part["seconds"] for part in self.parts), 1)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "RunRecord":
        """Read run.json. Keys of other versions are ignored."""
        text = (Path(folder) / RECORD).read_text(encoding="utf-8")
        content = json.loads(text)
        known = cls.__dataclass_fields__
        return cls(**{key: value for key, value in content.items() if key in known})


def cpu_name() -> str:
    """The name of the processor as its maker gives it, else the architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")  # Linux
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    if match:
        return match[1].strip()
    return platform.processor() or platform.machine()


def command_line() -> str:
    """Return the command to paste to start this program again, with secrets replaced by ***.

    `accelerate launch` is not in sys.argv and is put back: before `-m rlhf`, and before a script of recipes/.
    """
    path = Path(sys.argv[0])
    if path.name == "__main__.py" and path.parent.name == "rlhf":
        program = ["accelerate", "launch", "-m", "rlhf"]
    elif path.stem == "rlhf":  # the console script; rlhf.exe on Windows
        program = ["rlhf"]
    else:
        script = os.path.relpath(path) if path.exists() else str(path)
        prefix = ["accelerate", "launch"] if "recipes" in Path(script).parts else ["python"]
        program = [*prefix, script]
    secret = re.compile(r"(--[\w-]*token)([= ])\S+")
    return secret.sub(r"\1\2***", shlex.join([*program, *sys.argv[1:]]))


def resuming_command(value: str = "true") -> str:
    """The command to paste to continue this run. value: of resume_from_checkpoint, by default its newest checkpoint."""
    words = []
    given = iter(shlex.split(command_line()))
    for word in given:
        if word == "--resume_from_checkpoint":
            next(given, None)  # its value
        elif not word.startswith("--resume_from_checkpoint="):
            words.append(word)
    return shlex.join([*words, "--resume_from_checkpoint", value])


def package_versions() -> dict[str, str]:
    """Versions of Python, of the packages a result depends on, and of this code (`code`: git commit, + when dirty)."""
    versions = {"python": platform.python_version(), "code": code_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # gradio is optional
            continue
    return versions


def code_version() -> str:
    """Commit of this checkout, with a + when files differ from it; "unknown" outside a git checkout.

    A package installed inside somebody's repository is not part of it: git must track this very file.
    """
    try:
        _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed_files = _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changed_files else commit


def _git(*args: str) -> str:
    command = ["git", "-C", str(ROOT), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Rows of metrics.jsonl, samples.jsonl or alarms.jsonl; [] when there is no such file. Torn lines are dropped."""
    rows, _ = read_rows(path)
    return rows


def read_rows(path: str | os.PathLike) -> tuple[list[dict], int]:
    """(the rows of a file of JSON lines, the number of lines that are not rows).

    A line is torn where its run was killed, or is writing at this moment. Those after it are whole.
    """
    if not os.path.exists(path):
        return [], 0
    rows, torn = [], 0
    # Bytes: a torn line may end within a character, and text may hold other line breaks than \n.
    for line in Path(path).read_bytes().split(b"\n"):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            torn += 1
    return rows, torn


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:  # of JSON and of UTF-8
        return None
    return row if isinstance(row, dict) else None


def cut_rows(path: str | os.PathLike, step: int, *, size: int | None = None) -> int:
    """Cut a file of rows back to a step, in one step: rows of later steps go, and torn lines. Returns how many were torn.

    A resumed run makes these steps again. A row without a step stays.

    size: bytes of the file at that step, which tell rows of the same step apart that came later; None: unknown.
    """
    path = Path(path)
    if not path.exists():
        return 0
    content = path.read_bytes()
    kept, torn, end = [], 0, 0
    for line in content.split(b"\n"):
        end += len(line) + 1
        row = _row(line)
        if row is None:
            torn += bool(line.strip())
            continue
        is_later = size is not None and end > size
        if not is_later and row.get("step", step) <= step:
            kept.append(line.decode() + "\n")
    text = "".join(kept)
    if text.encode() != content:
        write_text(path, text)
    return torn


def read_object(path: str | os.PathLike) -> dict:
    """The JSON object in a file; {} if there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def model_kind(folder: str | os.PathLike) -> str:
    """The kind of model in a folder: a value of ARCHITECTURES, SEQ2SEQ, "reward", or "" where config.json names none."""
    kind = _kind_by_architecture(folder)
    # A reward model is a text classifier with one output: only the recipe tells the two apart.
    if kind == ARCHITECTURES["ForSequenceClassification"]:
        recipe = read_object(Path(folder) / RECORD).get("recipe")
        if recipe == "reward":
            return "reward"
    return kind


def _kind_by_architecture(folder: str | os.PathLike) -> str:
    config = read_object(Path(folder) / "config.json")
    architectures = config.get("architectures") or []
    # Decoders that read images besides text have the same ending.
    is_encoder_decoder = config.get("is_encoder_decoder") is True
    for name in architectures:
        if is_encoder_decoder and name.endswith(SEQ2SEQ_ENDINGS):
            return SEQ2SEQ
        for ending, kind in ARCHITECTURES.items():
            if name.endswith(ending):
                return kind
    return ""


def find_runs(root: str | os.PathLike) -> list[Path]:
    """Folders below `root` that hold the model of a run, newest first. Its evaluation may have failed."""
    # A checkpoint may hold a copy of the record.
    records = []
    for path in Path(root).rglob(RECORD):
        if not path.parent.name.startswith("checkpoint-"):
            records.append(path)
    records.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    folders = [path.parent for path in records]
    # A record that cannot be read, after a full disk for instance, is not of a finished run.
    return [folder for folder in folders if read_object(folder / RECORD).get("status") in USABLE]
