"""The lineage of a run as a tree: base model, SFT, reward model, feedback and data, each with its hashes.

It is built from the run's record alone. Only for records of older versions, which hold no history of their parents, the
folders of the parents are read as well. `hub.lineage` draws the tree in the terminal and recomputes the hashes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import UserError
from rlhf.models.snapshots import split_revision
from rlhf.runs.parents import (
    entry_key,
    history,
    hub_id_in,
    is_in_cache,
    load_record,
    model_digests,
    parent_folder,
)
from rlhf.runs.record import RECORD, RunRecord

# Roles of parents whose weights a run did not start from.
NOT_THE_ORIGIN = ("reward", "value", "ref", "tokenizer", "feedback", "sampled", "word_vectors")
THIS_RUN = "this run"
SHORT = 12  # characters of a hash in a picture


@dataclass
class Node:
    """One model, tokenizer or feedback store of a lineage.

    stage: the role that it played for its child ("policy", "reward", "base", "feedback"), or "this run".
    name: the path or Hub id, as recorded. folder: where it is now; None if it is not on this machine.
    revision: the commit of a Hub model. sha256: of all weights; of a store, of its file. files: name -> sha256.
    data: entries of the record, with name, rows and sha256. parents: what it came from.
    entry: all that the child's record holds about it.
    """

    stage: str
    name: str
    folder: Path | None = None
    revision: str = ""
    sha256: str = ""
    files: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    code: str = ""
    data: list[dict] = field(default_factory=list)
    parents: list["Node"] = field(default_factory=list, repr=False)
    entry: dict = field(default_factory=dict)

    @property
    def is_feedback(self) -> bool:
        """True for a feedback store."""
        return "events" in self.entry

    @property
    def is_on_hub(self) -> bool:
        """True for a model that was loaded from the Hub."""
        if self.stage == THIS_RUN or not came_from_hub(self.entry):
            return False
        return self.folder is None or is_in_cache(self.folder)

    def walk(self) -> Iterator[tuple[int, "Node"]]:
        """(depth, node) of this node and all that it came from, depth first; the past of two children only once."""
        walked: set[int] = set()
        waiting = [(0, self)]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node
            if id(node.parents) not in walked:
                walked.add(id(node.parents))
                waiting += [(depth + 1, parent) for parent in reversed(node.parents)]


def lineage(folder: str | Path) -> Node:
    """The tree of everything that a run came from. UserError where the folder holds no record."""
    folder = Path(folder)
    record = load_record(folder)
    if record is None:
        raise UserError(f"{folder} holds no readable {RECORD}: give the folder of a recipe's run")
    return lineage_of(record, folder)


def lineage_of(record: RunRecord, folder: Path) -> Node:
    """The tree of a record. folder: of its run."""
    # Only what the record lacks is read from the folders.
    histories = history(record.parents, folder, record.ancestors)
    # Records of older versions do not hold the digests of their own weights.
    weights = record.weights or model_digests(folder)
    root = Node(
        stage=THIS_RUN,
        name=str(folder),
        folder=folder,
        sha256=weights.get("sha256", ""),
        files=weights.get("files", {}),
        recipe=record.recipe,
        code=record.versions.get("code", ""),
        data=record.data,
        entry={} if record.weights else {"hashed_now": True},
    )
    root.parents = _parents(record.parents, folder, histories)
    return root


def _parents(parents: dict, child: Path, histories: dict) -> list[Node]:
    """The parents of a run, each with its own. A loop of RLHF may have thousands of rounds, so nothing here is recursive."""
    # (key, folder) -> parents, which children share: their number doubles with each round.
    made: dict[tuple, list[Node]] = {}
    nodes: list[Node] = []
    # Of each step on the way: entries that are left, the child's folder, its list of parents, and the keys on the way
    # there, because a record may name a run that came from this one.
    way = [(iter(parents.items()), child, nodes, frozenset())]
    while way:
        entries, child, siblings, seen = way[-1]
        role, entry = next(entries, (None, None))
        if role is None:
            way.pop()
            continue
        if not _names_something(entry):
            continue
        key = entry_key(entry)
        past = histories.get(key, {})
        node = _node(role, entry, child, past)
        siblings.append(node)
        if key in seen:
            continue
        # Where a parent was, its own parents were probably near.
        home = node.folder or child.resolve().parent / Path(node.name).name
        if (key, home) not in made:
            made[key, home] = []
            past_parents = past.get("parents", {})
            way.append((iter(past_parents.items()), home, made[key, home], seen | {key}))
        node.parents = made[key, home]
    return nodes


def _node(role: str, entry: dict, child: Path, past: dict) -> Node:
    """A parent without its own. child: the folder of the run that names it. past: its history."""
    return Node(
        stage=role,
        name=entry["name"],
        folder=parent_folder(entry["name"], child, entry.get("revision")),
        revision=entry.get("revision", ""),
        sha256=entry.get("sha256", ""),
        files=entry.get("files", {}),
        recipe=entry.get("recipe") or past.get("recipe", ""),
        code=entry.get("code") or past.get("code", ""),
        data=past.get("data", []),
        entry=entry,
    )


def _names_something(entry) -> bool:
    return isinstance(entry, dict) and bool(entry.get("name"))


@dataclass(frozen=True)
class Line:
    """One line of a lineage as a table or a tree.

    depth: steps from the run. made_by: the recipe, or the number of events or rows. is_data: True for a source of rows.
    again: True for a model that is above already, with all that it came from.
    """

    depth: int
    stage: str
    name: str
    made_by: str
    code: str = ""
    revision: str = ""
    sha256: str = ""
    is_data: bool = False
    again: bool = False


def lines(root: Node) -> list[Line]:
    """Every model, feedback store and source of rows of a lineage, depth first, and what two models share only once."""
    listed: set[tuple] = set()
    made: list[Line] = []
    waiting = [(0, root)]
    while waiting:
        depth, node = waiting.pop()
        key = (node.name, node.revision, node.sha256)
        made_by = f"{node.entry['events']} events" if node.is_feedback else node.recipe
        facts = (made_by, node.code, node.revision, node.sha256)
        again = key in listed and bool(node.parents or node.data)
        made.append(Line(depth, node.stage, node.name, *facts, again=again))
        if again:
            continue
        # Before its parents: a record may lead back to it.
        listed.add(key)
        made += [_data_line(entry, depth + 1) for entry in node.data]
        waiting += [(depth + 1, parent) for parent in reversed(node.parents)]
    return made


def _data_line(entry: dict, depth: int) -> Line:
    return Line(
        depth,
        "data",
        str(entry.get("name", "")),
        f"{entry.get('rows', '?')} rows",
        revision=str(entry.get("revision") or ""),
        sha256=str(entry.get("sha256") or ""),
        is_data=True,
    )


# ---- the base model ----------------------------------------------------------------------------------------------


def came_from_hub(entry: dict) -> bool:
    """True for a parent that was a Hub id. A folder that is gone looks like one, but has a digest without a commit."""
    name = entry.get("name", "")
    # The second: of a record that was shared, in which the folder goes by its Hub id.
    if entry.get("revision") or entry.get("hub_id") == name:
        return is_hub_id(name)
    was_local = entry.get("sha256") or entry.get("recipe")
    return not was_local and is_hub_id(name) and not Path(name).exists()


def is_hub_id(name: str) -> bool:
    """True for a text in the form of a Hub id: name or user/name."""
    return bool(hub_id_in(name))


def is_hub_data(entry: dict) -> bool:
    """True for the entry of a data set of the Hub. A folder of the same name may be anywhere, so only the record counts."""
    return "revision" in entry and is_hub_id(str(entry.get("name", "")))


def origins(node: Node) -> list[Node]:
    """The models whose weights a run goes back to, its own parent first: SFT, then the base model."""
    nodes: list[Node] = []
    while True:
        started_from = [parent for parent in node.parents if is_origin(parent.stage)]
        if not started_from:
            return nodes
        node = started_from[0]  # others would be models to compare with
        nodes.append(node)


def is_origin(stage: str) -> bool:
    """True for the role of a parent whose weights a run starts from."""
    return not any(name in stage for name in NOT_THE_ORIGIN)


def base_model(folder: Path, record: RunRecord) -> str | None:
    """The Hub model whose weights a run goes back to, through local runs; None for one trained from scratch."""
    return base_of(lineage_of(record, folder))


def base_of(node: Node) -> str | None:
    """The nearest Hub model whose weights a run goes back to; None where there is none."""
    for origin in origins(node):
        if origin.is_on_hub:
            return split_revision(origin.name)[0]
    return None


# ---- Mermaid -----------------------------------------------------------------------------------------------------


def mermaid(root: Node, shown=str) -> str:
    """The lineage as a Mermaid flow chart: what came first is at the left, and each model is drawn once.

    shown: a function from a recorded name to the one that readers may see.
    """
    chart = _Chart(shown)
    chart.add(root)
    return "\n".join(["flowchart LR", *chart.boxes, *chart.arrows])


class _Chart:
    def __init__(self, shown):
        self.shown = shown
        self.ids: dict[tuple, str] = {}
        self.boxes: list[str] = []
        self.arrows: list[str] = []

    def add(self, root: Node) -> None:
        """Draw a node with everything before it."""
        waiting: list[tuple[Node, Node | None]] = [(root, None)]
        while waiting:
            node, child = waiting.pop()
            if child is not None:
                # All before the node is drawn.
                self._arrow(self.ids[self._key(node)], self.ids[self._key(child)], node.stage)
            # The SFT model of a policy and of its reward model is one box.
            elif self._key(node) not in self.ids:
                self._draw(node)
                for parent in reversed(node.parents):
                    waiting += [(parent, node), (parent, None)]

    def _key(self, node: Node) -> tuple:
        return ("model", node.sha256 or node.revision or node.name, self.shown(node.name))

    def _draw(self, node: Node) -> None:
        """The box of a node, and its data."""
        opening, closing = "[", "]"  # a box; data are a cylinder
        lines = [self.shown(node.name), node.recipe]
        if node.is_feedback:
            opening, closing = "[(", ")]"
            lines = [self.shown(node.name), f"{node.entry['events']} events"]
        if node.revision:
            lines.append(f"revision {node.revision[:SHORT]}")
        if node.sha256:
            lines.append(f"sha256 {node.sha256[:SHORT]}")
        own = self._box(self._key(node), lines, opening, closing)
        # A feedback store is both data and a parent. Its box as a parent says more.
        stores = {parent.name for parent in node.parents if parent.is_feedback}
        for entry in node.data:
            if entry.get("name") not in stores:
                self._arrow(self._data(entry), own, "data")

    def _data(self, entry: dict) -> str:
        name = self.shown(str(entry.get("name", "")))
        key = ("data", entry.get("sha256") or entry.get("revision") or "", name)
        if key in self.ids:
            return self.ids[key]
        lines = [name, f"{entry.get('rows', '?')} rows"]
        for label in ("revision", "sha256"):
            if entry.get(label):
                lines.append(f"{label} {str(entry[label])[:SHORT]}")
        return self._box(key, lines, "[(", ")]")

    def _box(self, key: tuple, lines: list[str], opening: str, closing: str) -> str:
        own = f"n{len(self.ids)}"
        self.ids[key] = own
        text = "<br>".join(_escaped(line) for line in lines if line)
        self.boxes.append(f'    {own}{opening}"{text}"{closing}')
        return own

    def _arrow(self, start: str, end: str, label: str) -> None:
        arrow = f'    {start} -->|"{_escaped(label)}"| {end}'
        if arrow not in self.arrows:
            self.arrows.append(arrow)


def _escaped(text: str) -> str:
    """A text inside quotes of Mermaid, where only codes stand for marks of its own and of HTML."""
    marks = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;", "|": "#124;"}
    return "".join(marks.get(character, character) for character in " ".join(text.split()))
