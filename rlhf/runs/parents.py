"""The entries of a run's record about what it came from: models, feedback and data, each with its hashes.

The record also keeps the history of each parent (`RunRecord.ancestors`), so that a lineage needs no other folder: a parent
may be moved, removed, or only be on the Hub. `runs.ancestry` joins the entries to a tree.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path

import yaml

from rlhf.data.files import READERS, suffix
from rlhf.data.judgements import is_event
from rlhf.data.load import is_local
from rlhf.digests import file_sha256, files_sha256, joined_sha256, weight_files
from rlhf.feedback.store import NAME as EVENTS
from rlhf.models.snapshots import split_revision
from rlhf.online import cache_of, cached_commit
from rlhf.runs.record import RECORD, RunRecord, read_object

# Files next to the weights that decide how a model computes. Those of the tokenizer are the model of a tokenizer run.
DECIDING = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "words.json",
)
TOKENIZER = "tokenizer.json"
# In the folder of a run that was shared (`hub.share`): repo, commit, and when that run had started.
SHARED = "hub.json"
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
LONGEST_NAME = 4096  # characters of a path
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # name or user/name
SAMPLE_RECORD = "sample.json"  # next to the rows that `rlhf sample` has made
# What a card takes over from the card of the model that the weights come from.
FROM_THE_CARD = ("license", "license_name", "license_link", "language")


def model_digests(folder: str | os.PathLike) -> dict:
    """`sha256` of all weights of a folder, or of its tokenizer where it has none, and `files`: name -> sha256."""
    folder = Path(folder)
    weights = files_sha256(weight_files(folder))
    others = files_sha256([folder / name for name in DECIDING if (folder / name).is_file()])
    sha256 = joined_sha256(weights) or others.get(TOKENIZER, "")
    if not weights and not others:
        return {}
    entry = {"sha256": sha256, "files": weights | others}
    return {name: value for name, value in entry.items() if value}


def parent_entry(path: str | None, *, revision: str | None = None) -> dict:
    """A parent model in a record; {} without a path.

    name: its path or Hub id. revision: the commit of a Hub model, and none of a folder. sha256: of all its weights.
    files: name -> sha256. recipe, code, seed: of the run that made it. license and language: of its card.
    hub_id: that it was shared as.
    """
    if not path:
        return {}
    entry = {"name": path}
    folder = Path(path)
    if not folder.is_dir():
        name, revision = split_revision(path, revision)
        entry["name"] = name
        folder = hub_folder(name, revision)
        commit = folder.name if folder else revision
        if commit:
            entry["revision"] = commit
        if folder is None:
            return entry
    entry |= model_digests(folder)
    record = read_object(folder / RECORD)
    # Of a folder that a recipe has made.
    made_by = {"recipe": record.get("recipe"), "seed": record.get("seed")}
    versions = record.get("versions")
    if isinstance(versions, dict):
        made_by["code"] = versions.get("code")
    made_by["hub_id"] = hub_id_of(folder)
    entry |= {name: value for name, value in made_by.items() if value not in (None, "")}
    return entry | card_facts(folder)


def card_facts(folder: Path) -> dict:
    """The licence and the languages that a model's card or config states; {} where it states none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        content = yaml.safe_load(FRONT_MATTER.match(text)[1])
    except (OSError, TypeError, ValueError, yaml.YAMLError):  # no card, or a torn one
        content = None
    if not isinstance(content, dict):
        content = {}
    # Few configs have one.
    licence = read_object(folder / "config.json").get("license")
    if "license" not in content and isinstance(licence, str):
        content["license"] = licence
    facts = {
        "license": licence_in(content.get("license")),
        "language": languages_in(content.get("language")),
    }
    for name in ("license_name", "license_link"):
        if isinstance(content.get(name), str):
            facts[name] = content[name]
    if isinstance(content.get("license"), list) and facts["license"] == "other":
        facts.setdefault("license_name", ", ".join(map(str, content["license"])))
    facts = {name: facts[name] for name in FROM_THE_CARD if facts.get(name)}
    # `other` alone says nothing. With a name it does.
    if facts.get("license") == "other" and "license_name" not in facts:
        facts.pop("license")
    return facts


def licence_in(value) -> str:
    """The licence of a card's metadata; of several `other`, and "" for other types."""
    if isinstance(value, list) and len(value) > 1:
        return "other"
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else ""


def languages_in(value) -> str | list[str]:
    """The languages of a card's metadata. YAML reads the code of Norwegian, no, as False."""
    if not isinstance(value, list):
        value = [value]
        [language] = languages_in(value) or [""]
        return language
    codes = ["no" if code is False else code for code in value]
    return [code for code in codes if isinstance(code, str)]


def hub_id_of(folder: str | Path | None, sha256: str = "") -> str:
    """The Hub id that a run folder was shared as; "" where none is known, and where the folder holds another run since.

    sha256: of the weights that are meant; "" for those that are there.
    """
    if folder is None:
        return ""
    shared, record = read_object(Path(folder) / SHARED), read_object(Path(folder) / RECORD)
    now = (record.get("weights") or {}).get("sha256", "")
    is_other = bool(sha256 and now) and sha256 != now
    if is_other or shared.get("started") != record.get("started"):
        return ""
    return hub_id_in(shared.get("repo"))


def hub_id_in(value) -> str:
    """The value where it has the form of a Hub id, else "": a record from the Hub may hold anything."""
    is_id = isinstance(value, str) and HUB_ID.fullmatch(value)
    return value if is_id else ""


# ---- history -----------------------------------------------------------------------------------------------------


def entry_key(entry: dict) -> str:
    """The key of a parent in `RunRecord.ancestors`: its name, with the digest or commit that says which state of it."""
    state = entry.get("sha256") or entry.get("revision") or ""
    return f"{entry.get('name', '')}@{state}"


def parent_folder(name: str, child: Path, revision: str | None = None) -> Path | None:
    """The folder of a parent: where it was, moved together with its child, or in the cache of the Hub."""
    if not name:
        return None
    # A folder next to the run may have the name of a Hub model.
    if revision and not Path(name).is_dir():
        return hub_folder(name, revision)
    here = home_of(name, child)
    if here is not None or is_local(name):
        return here
    return hub_folder(name)


def home_of(name: str, child: Path) -> Path | None:
    """The folder of a parent on this machine: where it was, or moved together with its child."""
    for folder in (Path(name), child.resolve().parent / Path(name).name):
        if name and folder.is_dir() and folder.resolve() != child.resolve():
            return folder
    return None


def hub_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a Hub model in the local cache, named after its commit; None if it was not downloaded.

    revision: a branch, a tag or a commit; None: main, which from_pretrained takes.
    """
    commit = cached_commit(name, revision)
    folder = cache_of(name) / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def is_in_cache(folder: Path) -> bool:
    """True for a folder of the Hub's cache."""
    return folder.parent.name == "snapshots"


def history(parents: dict[str, dict], child: Path, known: dict[str, dict] | None = None) -> dict:
    """key of a parent -> its own data and parents, for everything that `parents` came from.

    child: the folder of the run that names these parents. known: histories that its record holds already.
    Records of older versions hold none: there the folders of the parents are read.
    """
    histories = dict(known or {})
    waiting = [(child, entry) for entry in parents.values()]
    while waiting:
        child, entry = waiting.pop()
        if not isinstance(entry, dict) or not entry.get("name") or entry_key(entry) in histories:
            continue
        folder = parent_folder(entry["name"], child, entry.get("revision"))
        record = load_record(folder) if folder else None
        if record is None or is_replaced(entry, record):
            continue
        histories[entry_key(entry)] = {
            "recipe": record.recipe,
            "code": record.versions.get("code", ""),
            "data": record.data,
            "parents": record.parents,
        }
        # What this parent's own record knows needs no folder.
        histories = record.ancestors | histories
        waiting += [(folder, parent) for parent in record.parents.values()]
    return histories


def is_replaced(entry: dict, record: RunRecord) -> bool:
    """True where the folder of a parent now holds the model of another run."""
    now = record.weights.get("sha256")
    return bool(now and entry.get("sha256")) and now != entry["sha256"]


def load_record(folder: Path) -> RunRecord | None:
    """The record of a folder; None where there is none that can be read, or whose values are of other types."""
    try:
        record = RunRecord.load(folder)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return record if is_well_formed(record) else None


def is_well_formed(record: RunRecord) -> bool:
    """False for a record that somebody edited, or that is of another tool: a lineage follows its texts and maps."""
    maps = ("config", "parents", "ancestors", "weights", "metrics", "versions", "machine")
    texts = ("recipe", "command", "started", "status", "error")
    if not all(isinstance(getattr(record, name), dict) for name in maps):
        return False
    if not all(isinstance(getattr(record, name), str) for name in texts):
        return False
    numbers = (record.seconds, record.peak_memory_gb, record.peak_gpu_memory_gb or 0)
    if not all(isinstance(value, int | float) for value in numbers):
        return False
    histories = [{"data": record.data, "parents": record.parents}, *record.ancestors.values()]
    return _is_entry(record.weights) and all(map(_is_history, histories))


def _is_history(history) -> bool:
    """True for data and parents as `history` joins them."""
    if not isinstance(history, dict):
        return False
    data, parents = history.get("data", []), history.get("parents", {})
    if not isinstance(data, list) or not isinstance(parents, dict):
        return False
    return all(map(_is_entry, [*data, *parents.values()]))


def _is_entry(entry) -> bool:
    """True for the entry of a model or a source of rows: a map whose names and digests are texts."""
    if not isinstance(entry, dict):
        return False
    for key in ("name", "sha256", "revision", "recipe", "code"):
        value = entry.get(key)
        # No file has a longer name, and a look at one would fail.
        if value is not None and not (isinstance(value, str) and len(value) <= LONGEST_NAME):
            return False
    files = entry.get("files", {})
    counts = [entry.get(key, 0) for key in ("events", "bytes")]
    maps = [entry.get(key, {}) for key in ("files", "kinds", "models")]
    return (
        all(isinstance(item, dict) for item in maps)
        and all(isinstance(digest, str) for digest in files.values())
        and all(isinstance(item, int) for item in counts)
    )


# ---- data and feedback -------------------------------------------------------------------------------------------


def data_entry(source: dict) -> dict:
    """The entry of a source of rows, with the sha256 of each of its local files, as `files`.

    Of a data set of the Hub, with the licence that its card states: `license`, "" where there is none, `license_name` and
    `license_link`.
    """
    name = str(source.get("name", ""))
    if "revision" in source:
        facts = dataset_facts(name, source["revision"])
        facts.pop("language", None)
        return source | {"license": ""} | facts
    files = local_files(name)
    return source | {"files": files_sha256(files)} if files else dict(source)


def dataset_facts(name: str, revision: str) -> dict:
    """The licence and the languages on the card of a data set of the Hub; {} where none is stated or can be read."""
    from huggingface_hub import hf_hub_download

    try:
        # Reading the rows has put it into the cache, where a start offline sees it too.
        path = hf_hub_download(name, "README.md", repo_type="dataset", revision=revision or None)
    except Exception:  # noqa: BLE001  no card, or no network: a licence is worth no run
        return {}
    return card_facts(Path(path).parent)


def local_files(name: str) -> list[Path]:
    """The files of a local source of rows; [] for a data set of the Hub."""
    path = Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    files = []
    # Held-out files too: a split may be named.
    for file in sorted(path.iterdir()):
        if file.is_file() and suffix(file) in READERS and not file.name.startswith("."):
            files.append(file)
    return files


def sampling_record(name: str) -> dict:
    """The record of the `rlhf sample` that made a file of rows; {} for other files, and for one that was changed since."""
    path = Path(name)
    if not path.is_file():
        return {}
    record = read_object(path.parent / SAMPLE_RECORD)
    files = record.get("files")
    entry = files.get(path.name) if isinstance(files, dict) else None
    is_history = isinstance(record.get("models"), dict) and isinstance(
        record.get("ancestors"), dict
    )
    if not isinstance(entry, dict) or not is_history:
        return {}
    return record if entry.get("sha256") == file_sha256(path) else {}


def feedback_entry(name: str) -> dict:
    """The feedback store behind a source of rows, as a parent of the run; {} for other sources.

    sha256, bytes: of its file, which only grows: what was added later changes neither of the first `bytes`.
    events: their number. kinds: number by kind. models: those that wrote the answers, label -> revision.
    """
    path = Path(name)
    if path.is_dir():
        path = path / EVENTS
    if path.suffix != ".jsonl" or not path.is_file():
        return {}
    # Before it is read: events that come meanwhile are not of this run.
    size = path.stat().st_size
    kinds: Counter[str] = Counter()
    models: dict[str, str] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            event = _event(line)
            # A store begins with an event. Other rows are not feedback.
            if event is None and number == 0:
                return {}
            if event is None:
                continue
            kinds[event["event"]] += 1
            models |= _models_of(event)
    return {
        "name": name,
        "sha256": file_sha256(path, 0, size),
        "bytes": size,
        "events": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "models": dict(sorted(models.items())),
    }


def _event(line: bytes) -> dict | None:
    """The event of a line of a store; None for a torn line and for other rows."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_whole = isinstance(row, dict) and "schema" in row and "event" in row
    return row if is_whole and is_event(row) else None


def _models_of(event: dict) -> dict[str, str]:
    """label -> revision of the models that wrote the answers of an event."""
    used = [event.get("model")]
    for answer in event.get("answers") or []:
        if isinstance(answer, dict):
            used.append(answer.get("model"))
    models = {}
    for model in used:
        if isinstance(model, dict) and model.get("name"):
            models[str(model["name"])] = str(model.get("revision", ""))
    return models
