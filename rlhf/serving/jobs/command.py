"""The command of a job: settings of a form as the words of a command line, and as text to paste into a terminal."""

import json
import os
import shlex
import sys
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path
from rlhf.runs.settings import check_key
from rlhf.serving.jobs.allowed import is_text

NOT_SETTINGS = {
    "output_dir": "the name of the run decides its folder",
    "config": "choose a settings file by its name",
}
LONGEST_VALUE = 10_000  # characters


def program(layout: str = "") -> list[str]:
    """The words that start `rlhf`: this Python, with accelerate where a layout of processes is named."""
    python = sys.executable
    if not layout:
        return [python, "-m", "rlhf"]
    path = layouts().get(layout)
    if path is None:
        raise UserError(f"no layout {layout!r}: one of {', '.join(layouts())}")
    launch = [python, "-m", "accelerate.commands.accelerate_cli", "launch"]
    return [*launch, "--config_file", short_path(path), "-m", "rlhf"]


def layouts() -> dict[str, Path]:
    """Name -> file of the layouts of processes (`rlhf layouts`)."""
    return {path.stem: path for path in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}


def words(form: dict, config: str, arguments: dict, folder: Path) -> list[str]:
    """The arguments of a recipe: `--config NAME --key value ... --output_dir FOLDER`.

    form: of the recipe (`rlhf.commands.forms.describe_recipes`). UserError for what the recipe does not know.
    """
    keys = {key["name"]: key for key in form["keys"]}
    command = []
    if config:
        names = [entry["name"] for entry in form["configs"]]
        if config not in names:
            raise UserError(f"no config {config!r}: one of {', '.join(names)}")
        command += ["--config", config]
    for name, value in arguments.items():
        if name in NOT_SETTINGS:
            raise UserError(f"{name}: {NOT_SETTINGS[name]}")
        check_key(str(name), list(keys), "the form")
        command += flag(keys[name], value)
    return [*command, "--output_dir", short_path(folder.absolute())]


def flag(key: dict, value) -> list[str]:
    """The words of one setting; none for a value that is not given."""
    name = key["name"]
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, bool):
        return [f"--{name}", str(value).lower()]
    if key["kind"] == "list":
        return [f"--{name}", *_items(name, value)]
    if isinstance(value, dict):
        text = _map(key, value)
    elif isinstance(value, str | int | float):
        text = _text(name, value)
    else:
        raise UserError(f"{name}: a {type(value).__name__} is not a value")
    _check_text(name, text)
    # Else a value such as --help would be a flag of its own.
    if text.startswith("-"):
        return [f"--{name}={text}"]
    return [f"--{name}", text]


def _map(key: dict, value: dict) -> str:
    if key["name"] == "columns":  # the form that its flag has
        return ",".join(f"{ours}={theirs}" for ours, theirs in value.items())
    return json.dumps(value)


def _items(name: str, value) -> list[str]:
    """The items of a list, or of a text that a shell would split in the same way."""
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise UserError(f"{name}: {error} in {value!r}") from error
    items = value if isinstance(value, list) else [value]
    texts = [_text(name, item) for item in items]
    for text in texts:
        _check_text(name, text)
        if text.startswith("-") and not _is_number(text):
            raise UserError(f"{name}: {text!r} would be read as a flag")
    return texts


def _text(name: str, value) -> str:
    try:
        return str(value)
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f"{name}: not a value") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_text(name: str, text: str) -> None:
    if "\0" in text or len(text) > LONGEST_VALUE or not is_text(text):
        raise UserError(f"{name}: not a value")


def shell_text(command: list[str], cwd: str) -> str:
    """The command as text for a terminal, from whatever folder: one flag a line."""
    head = list(command)
    if os.path.isabs(head[0]) and Path(head[0]).is_relative_to(cwd):
        head[0] = os.path.relpath(head[0], cwd)
    lines, line = [], []
    for word in head:
        if word.startswith("--") and line:
            lines.append(shlex.join(line))
            line = []
        line.append(word)
    lines.append(shlex.join(line))
    return f"cd {shlex.quote(cwd)} && \\\n" + " \\\n    ".join(lines)
