"""A Space of Hugging Face that starts the chat with chosen models: the folder that is pushed.

app.py            five lines that call rlhf.serving.space
rlhf/             a copy of this package, because the Space has to install the same code
models/NAME/      weights, config and tokenizer of each model, with a short record without paths
models.json       these folders, and ids of models of the Hub, which the Space loads itself
requirements.txt  the packages that the chat needs, with the versions of this machine
README.md         the header that Spaces read, and the list of the models
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

import rlhf
from rlhf.errors import UserError
from rlhf.markdown import markdown_table
from rlhf.models.stale_weights import unread_weights
from rlhf.runs.record import RECORD, USABLE, RunRecord, model_kind, read_object

# The packages that the server imports. The others are for training.
NEEDED = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "peft", "accelerate", "numpy", "pyarrow",
    "gradio", "fastapi", "uvicorn", "pydantic", "prometheus-client", "markdown-it-py", "psutil", "PyYAML", "rich",
    "krippendorff", "choix",
)  # fmt: skip
# The build without CUDA, which has gigabytes. pip prefers its version, 2.13.0+cpu, to 2.13.0.
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# Of a run. Samples and metrics hold training data, and the value model is not served.
MODEL_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "chat_template.jinja", "examples.json",
)  # fmt: skip
CODE = ("*.py", "*.css", "*.js")
NOT_COPIED = ("recipes", "__pycache__")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")  # and a revision
TITLE = "Chat"
APP = '''"""Chat with the models in models/. Hugging Face Spaces starts this file."""

import sys
from pathlib import Path

from rlhf.serving.space import serve_folder

if __name__ == "__main__":
    sys.exit(serve_folder(Path(__file__).resolve().parent))
'''


@dataclass(frozen=True)
class SpaceFolder:
    """A folder that is ready to be pushed. models: name -> what it is. size: of all files in bytes."""

    folder: Path
    models: dict[str, str]
    size: int


def space_folder(
    runs: Sequence[str | Path], target: str | Path, *, title: str = TITLE, link: bool = False
) -> SpaceFolder:
    """Write a Space into a folder, which is made. The same models give the same bytes.

    runs: folders of finished runs, or ids of chat models on the Hub. The first is the default of the chat.
    link: make links to the weights, for a folder that is pushed and removed.
    UserError for a run that cannot be tried, and for a folder that is there already.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: give another folder")
    # A folder comes first: `runs/ppo` could be an id of the Hub, too.
    local, ids = [], []
    for run in map(str, runs):
        if Path(run).is_dir():
            local.append(Path(run))
        elif HUB_ID.fullmatch(run):
            ids.append(run)
        else:
            raise UserError(f"{run}: no such run: give the folder of a run, or an id of the Hub")
    # Everything that can be refused comes before a file is written.
    kinds = [check_run(run) for run in local]
    if "causal" not in kinds and not ids and not any(is_task(kind) for kind in kinds):
        raise UserError("a Space needs a model that answers: give one of SFT or PPO, too")
    target.mkdir(parents=True, exist_ok=True)
    models: dict[str, str] = {}
    for run, kind in zip(local, kinds):
        name = free_name(run, models)
        copy_model(run, target / name, link)
        models[name] = kind
    for name in ids:
        models[name] = "causal, from the Hub"
    listed = json.dumps({"models": list(models)}, indent=2)
    (target / "models.json").write_text(f"{listed}\n", encoding="utf-8")
    copy_code(target / "rlhf")
    (target / "app.py").write_text(APP, encoding="utf-8")
    (target / "requirements.txt").write_text(requirements(), encoding="utf-8")
    (target / "README.md").write_text(readme(title, models, ids), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return SpaceFolder(target, models, size)


# ---- models -----------------------------------------------------------------------------------------------------------


def check_run(run: Path) -> str:
    """The kind of the model of a run. UserError for one that cannot be tried."""
    status = read_object(run / RECORD).get("status", "done")
    if status not in USABLE:
        raise UserError(f"{run} is not finished ({status}): wait for its end, or finish it")
    kind = model_kind(run)
    if (run / "adapter_config.json").is_file():
        kind = "causal"  # merged below
    if kind not in ("causal", "reward") and not is_task(kind):
        raise UserError(
            f"{run}: no model that can be tried: give a run of SFT, PPO, reward or a task"
        )
    return kind


def is_task(kind: str) -> bool:
    from rlhf.task_table import TASKS

    return kind in TASKS


def free_name(run: Path, taken: dict[str, str]) -> str:
    """The folder of a model, models/NAME: the last part of its path, with a number where another has that name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name).strip("-.") or "model"
    name, i = f"models/{plain}", 2
    while name in taken:
        name, i = f"models/{plain}-{i}", i + 1
    return name


def copy_model(run: Path, target: Path, link: bool) -> None:
    """Copy the files that a model is loaded from. A LoRA adapter is merged, because its base is not in the Space."""
    target.mkdir(parents=True)
    if (run / "adapter_config.json").is_file():
        from rlhf.models.load import load_policy, load_tokenizer, save

        save(load_policy(str(run)), load_tokenizer(str(run)), target)
    else:
        unread = unread_weights(run)
        for pattern in MODEL_FILES:
            for path in sorted(run.glob(pattern)):
                if path.name in unread:
                    continue
                if link and path.suffix == ".safetensors":
                    (target / path.name).symlink_to(path.resolve())
                else:
                    shutil.copyfile(path, target / path.name)
    if not any(target.glob("*.safetensors")):
        raise UserError(f"{run}: no weights as safetensors: save the model with save_pretrained")
    if (run / RECORD).is_file():
        write_record(RunRecord.load(run), target)


def write_record(record: RunRecord, target: Path) -> None:
    """Write the few facts that the chat shows. Commands and settings hold paths of this machine."""
    # The chat shows the algorithm as the stage of the model.
    algorithm = record.config.get("algorithm")
    content = {
        "recipe": record.recipe,
        "status": record.status,
        "started": record.started,
        "metrics": record.metrics,
        "config": {"algorithm": algorithm} if algorithm else {},
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (target / RECORD).write_text(f"{text}\n", encoding="utf-8")


# ---- the rest ---------------------------------------------------------------------------------------------------------


def copy_code(target: Path) -> None:
    """Copy this package without the recipes."""
    package = Path(rlhf.__file__).parent
    for pattern in CODE:
        for path in sorted(package.rglob(pattern)):
            parts = path.relative_to(package).parts
            if any(name in parts for name in NOT_COPIED):
                continue
            copy = target.joinpath(*parts)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def requirements() -> str:
    """The packages of the chat with the versions that are installed here."""
    # pip reads options and packages from one file.
    lines = [f"--extra-index-url {CPU_WHEELS}"]
    for name in NEEDED:
        # "+cpu" is the build of this machine.
        lines.append(f"{name}=={version(name).partition('+')[0]}")
    return "\n".join(lines) + "\n"


def readme(title: str, models: dict[str, str], ids: list[str]) -> str:
    """The README: the header that Spaces read, and the list of the models."""
    header = {
        "title": title,
        "emoji": "💬",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "pinned": False,
    }
    if ids:
        repos = [name.partition("@")[0] for name in ids]
        # Loaded when the Space is built, so that the first visitor does not wait for it.
        header |= {"models": repos, "preload_from_hub": repos}
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    rows = [(name.removeprefix("models/"), kind) for name, kind in models.items()]
    table = markdown_table(("model", "kind"), rows)
    return (
        f"---\n{text}---\n\n# {title}\n\n{table}\n\nThe Space answers everybody and keeps nothing: no message, no rating. "
        "`rlhf/` is a copy of the code that trained and serves these models. To start it on another machine:\n\n"
        "```sh\npip install -r requirements.txt\npython app.py\n```\n"
    )
