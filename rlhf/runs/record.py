"""The record of a run: what every later view (report, card, app, benchmarks) reads.

A run folder is a plain `from_pretrained` folder with `run.json` (this record), `metrics.jsonl`, `samples.jsonl`,
`plots/*.png` and `README.md` (the model card) beside it. Nothing here needs torch.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf.tasks.table import TASKS

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "accelerate",
    "gradio",
    "tokenizers",
)
RECORD = "run.json"
# End of the name of a model class -> kind of model.
ARCHITECTURES = {
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "LMHeadModel": "causal",
    "ForCausalLM": "causal",
} | {task.architecture: name for name, task in TASKS.items()}


@dataclass
class RunRecord:
    """One run of one recipe.

    recipe: name of the recipe ("sft"); command: the exact command line; config: every setting that differs from its
    default; data: name, rows and sha256 of each file or data set that was read; parents: role -> run folder or Hub id
    with the sha256 of its weights; metrics: final numbers, each with n where it is a mean; seconds: wall time;
    status: "running", "done" or "failed".
    """

    recipe: str
    command: str = ""
    config: dict = field(default_factory=dict)
    seed: int = 0
    data: list[dict] = field(default_factory=list)
    parents: dict[str, dict] = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    status: str = "running"

    @classmethod
    def begin(cls, recipe: str, *, config: dict, seed: int) -> "RunRecord":
        return cls(
            recipe=recipe,
            command=command_line(),
            config=config,
            seed=seed,
            versions=package_versions(),
            machine={"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def save(self, folder: str | os.PathLike) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str) + "\n"
        temporary = folder / (RECORD + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / RECORD)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "RunRecord":
        known = {f for f in cls.__dataclass_fields__}
        content = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        return cls(**{key: value for key, value in content.items() if key in known})


def command_line() -> str:
    """The command as a person would type it: `accelerate launch` is not in sys.argv, so it is put back; tokens are not."""
    script = (
        os.path.relpath(sys.argv[0]) if sys.argv and os.path.exists(sys.argv[0]) else sys.argv[0]
    )
    prefix = "accelerate launch" if "recipes" in Path(script).parts else "python"
    secret = re.compile(r"(--\w*token)([= ])\S+")
    return secret.sub(r"\1\2***", " ".join([prefix, script, *sys.argv[1:]]))


def package_versions() -> dict[str, str]:
    """Versions of Python, of the packages a result depends on, and of this code (`code`: git commit, + when dirty)."""
    found = {"python": platform.python_version(), "code": code_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_version() -> str:
    """Commit of this checkout, with a + when files differ from it; "unknown" outside a git checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def file_sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def parent(path: str | None) -> dict:
    """How a parent model is named in a record: its path or Hub id, and the sha256 of its weights where it is local."""
    if not path:
        return {}
    entry = {"name": path}
    weights = sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else []
    if weights:
        entry["sha256"] = file_sha256(weights[0])
    if os.path.isfile(os.path.join(path, RECORD)):
        entry["recipe"] = RunRecord.load(path).recipe
    return entry


def read_jsonl(path: str | os.PathLike) -> list[dict]:
    """Lines of metrics.jsonl or samples.jsonl; [] when there is no such file. A torn last line is left out."""
    if not os.path.exists(path):
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_object(path: str | os.PathLike) -> dict:
    """The JSON object in a file; {} where there is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def model_kind(folder: str | os.PathLike) -> str:
    """The kind of model in a folder: a value of ARCHITECTURES, "reward", or "" where config.json names none of these."""
    kind = _kind_by_architecture(folder)
    # A reward model is a text classifier with one output: only the recipe tells the two apart.
    if kind == ARCHITECTURES["ForSequenceClassification"]:
        recipe = read_object(Path(folder) / RECORD).get("recipe")
        if recipe == "reward":
            return "reward"
    return kind


def _kind_by_architecture(folder: str | os.PathLike) -> str:
    architectures = read_object(Path(folder) / "config.json").get("architectures") or []
    for name in architectures:
        for ending, kind in ARCHITECTURES.items():
            if name.endswith(ending):
                return kind
    return ""


def find_runs(root: str | os.PathLike) -> list[Path]:
    """Folders below `root` that hold a finished run, newest first."""
    records = [path for path in Path(root).rglob(RECORD) if "checkpoint-" not in str(path)]
    records.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in records if RunRecord.load(path.parent).status == "done"]
