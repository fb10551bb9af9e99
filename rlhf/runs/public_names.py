"""The names that readers of a shared run see: Hub ids where they are known, and no private folders.

A record keeps paths as they were given. In a card and in a shared record a folder that is on the Hub goes by its id, and any
other absolute path by its last part.
"""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.ancestry import THIS_RUN, Node, lineage, lineage_of
from rlhf.runs.durable import write_text
from rlhf.runs.known_secrets import without_secrets
from rlhf.runs.parents import hub_id_in, hub_id_of, load_record
from rlhf.runs.record import RECORD, read_jsonl

SAMPLES = "samples.jsonl"
# An absolute path in the middle of a text.
PATH_IN_TEXT = re.compile(r"(?<![\w./~-])(?:~|[A-Za-z]:)?[/\\](?:[\w.+@-]+[/\\])+([\w.+@-]+)")


class PublicNames:
    """Maps the names of a run's record to those that readers see.

    hub_ids: path as recorded -> Hub id, for every model and data set of the lineage that has one.
    """

    def __init__(self, root: Node, hub_ids: dict[str, str] | None = None):
        self.hub_ids: dict[str, str] = {}
        for _, node in root.walk():
            # The run's own name does not change with its first push, or the second would differ.
            if node.is_on_hub or node.stage == THIS_RUN:
                continue
            hub_id = hub_id_in(node.entry.get("hub_id")) or hub_id_of(node.folder, node.sha256)
            if hub_id:
                self.hub_ids[node.name] = hub_id
        self.hub_ids |= hub_ids or {}

    def __call__(self, name: str) -> str:
        """The name to show for a path or a Hub id."""
        if name in self.hub_ids:
            return self.hub_ids[name]
        path = Path(name)
        # Relative paths say where a file is in the project, unless they climb out of it.
        if _is_absolute(name) or ".." in path.parts:
            return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
        return name

    def command(self, text: str) -> str:
        """A command line with every path as readers may see it."""
        try:
            words = shlex.split(text)
        except ValueError:  # an open quote
            return self.text(text)
        shown = []
        for word in words:
            key, separator, value = word.partition("=")
            if separator and key.startswith("-"):
                shown.append(key + separator + self(value))
            else:
                shown.append(self(word))
        return shlex.join(shown)

    def text(self, text: str) -> str:
        """A text with every path in it as readers may see it."""
        # A longer path may begin with a shorter one.
        for name in sorted(self.hub_ids, key=len, reverse=True):
            text = text.replace(name, self.hub_ids[name])
        return PATH_IN_TEXT.sub(lambda match: match[1], text)

    def value(self, value):
        """Any value of a record. Texts that are a path, and keys, are replaced, and secrets are hidden."""
        if isinstance(value, dict):
            shown = {self._key(name): self.value(inner) for name, inner in value.items()}
            # The entry of a parent, which is then known to be on the Hub.
            if value.get("name") in self.hub_ids:
                shown["hub_id"] = shown["name"]
            return shown
        if isinstance(value, list | tuple):
            return [self.value(inner) for inner in value]
        if isinstance(value, str) and (value in self.hub_ids or _is_path(value)):
            value = self(value)
        return without_secrets(value) if isinstance(value, str) else value

    def _key(self, key):
        """A key may be a path, or a path with the state of it behind an @ (`runs.parents.entry_key`)."""
        if not isinstance(key, str):
            return key
        name, separator, state = key.rpartition("@")
        if separator and (name in self.hub_ids or _is_path(name)):
            return f"{self(name)}@{state}"
        return self.value(key)


def public_record(folder: str | Path, hub_ids: dict[str, str] | None = None) -> dict:
    """The content of run.json to share: without private folders, tokens and errors' paths, and otherwise as it is."""
    folder = Path(folder)
    record = load_record(folder)
    if record is None:
        raise UserError(f"{folder}: no readable {RECORD}: give the folder of a recipe's run")
    names = PublicNames(lineage_of(record, folder), hub_ids)
    content = names.value(asdict(record))
    content["command"] = without_secrets(names.command(record.command))
    content["error"] = without_secrets(names.text(record.error))
    for part, recorded in zip(content["parts"], record.parts, strict=True):
        part["command"] = without_secrets(names.command(str(recorded.get("command", ""))))
    content["config"].pop("hub_token", None)
    return content


def public_rows(path: Path, names: PublicNames) -> str:
    """A file of JSON lines with the names that readers may see."""
    rows = [json.dumps(names.value(row), ensure_ascii=False) for row in read_jsonl(path)]
    return "".join(f"{row}\n" for row in rows)


def write_public(
    run: str | Path, target: str | Path, hub_ids: dict[str, str] | None = None
) -> None:
    """Write the files of a run in which private folders may be named, as they are shared, into another folder."""
    run, target = Path(run), Path(target)
    text = json.dumps(public_record(run, hub_ids), indent=2, ensure_ascii=False, default=str)
    write_text(target / RECORD, f"{text}\n")
    if (run / SAMPLES).is_file():
        names = PublicNames(lineage(run), hub_ids)
        write_text(target / SAMPLES, public_rows(run / SAMPLES, names))


def _is_absolute(name: str) -> bool:
    return name.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[/\\]", name) is not None


def _is_path(text: str) -> bool:
    """True for an absolute path of two parts or more. A prompt such as /help has one."""
    separators = text.count("/") + text.count("\\")
    return _is_absolute(text) and separators > 1 and "\n" not in text
