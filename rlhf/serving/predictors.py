"""Trained encoders, opened and asked by their task: what `python -m rlhf predict` and the app share."""

import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from rlhf.data.rows import CHECKS
from rlhf.errors import UserError
from rlhf.runs.record import read_jsonl, read_object
from rlhf.serving.engine.model_cache import LOADING, ModelCache, check_served
from rlhf.task_table import PREDICTED, TASKS

LIST_FORMS = ("choices",)  # forms of columns (rlhf.data.rows.FORMS) that are lists of texts
EXAMPLE_CHARACTERS = 600  # of the longest text that is offered as an example


def resolve(name: str):
    """The class that the table of tasks names as "module:Class"."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def open_encoder(kind: str, folder: str, device: str = "cpu"):
    """The predictor of a run folder. kind: a key of PREDICTED."""
    # Here, so that the app starts without them
    from transformers.utils.logging import disable_progress_bar

    from rlhf.serving.engine.models import check_device

    # An unusable device would be an error after the weights are read.
    check_device(device)
    disable_progress_bar()  # loading takes a second: a bar would only litter a server's terminal
    predictor = resolve(PREDICTED[kind].predictor)
    return predictor(folder, device=device)


def columns_of(kind: str, folder: str) -> tuple[list[str], list[str]]:
    """(columns that a model needs, further columns that it takes).

    Where a task has optional columns, `trained_pairs` in the config says whether the model was trained on them. A model
    that does not say takes both forms.
    """
    task = PREDICTED[kind]
    needed, optional = list(task.texts), list(task.optional)
    if not optional:
        return needed, []
    pairs = read_object(Path(folder) / "config.json").get("trained_pairs")
    if pairs is None:
        return needed, optional
    if pairs:
        return needed + optional, []
    return needed, []


def is_list(kind: str, column: str) -> bool:
    """True where the values of a task's column are lists of texts. In a text box each has a line of its own."""
    forms = {rows.columns.get(column) for rows in TASKS[kind].rows.values()}
    return not forms.isdisjoint(LIST_FORMS)


class Encoders:
    """Serves trained encoders, `runs`: kind -> name -> folder. Of each kind the one used last stays in memory.

    device: its name, or a function that returns it at the first prediction.
    characters: the most that a request may hold. The check is here because the API bypasses the browser's own.
    """

    def __init__(
        self,
        runs: dict[str, dict[str, str]],
        device: str | Callable[[], str] = "cpu",
        *,
        characters: int = 20_000,
    ):
        self.characters, self.device = characters, device
        self.turn = threading.Lock()  # one request at a time: each uses all cores
        self.runs: dict[str, dict[str, str]] = {}
        self.opened: dict[str, ModelCache] = {}
        self.refresh(runs)

    def refresh(self, runs: dict[str, dict[str, str]]) -> None:
        """Serve these from now on."""
        # Each kind has its own: a page with four tabs would otherwise load a model at each change of tab.
        for kind in runs:
            if kind not in self.opened:
                self.opened[kind] = ModelCache(partial(self._open, kind), keep=1)
        self.runs = runs

    def _open(self, kind: str, name: str):
        device = self.device() if callable(self.device) else self.device
        with LOADING:
            return open_encoder(kind, self.runs[kind][name], device)

    def _folder(self, kind: str, name: str) -> Path:
        """The folder of a model; UserError where there is none of this name."""
        check_served(name, self.runs.get(kind, {}), TASKS[kind].title + " model")
        return Path(self.runs[kind][name])

    def columns(self, kind: str, name: str) -> list[str]:
        """Those that may be given to `predict`."""
        needed, taken = columns_of(kind, str(self._folder(kind, name)))
        return needed + taken

    def labels(self, kind: str, name: str) -> list[str]:
        """The names in the model's config, in its order."""
        config = read_object(self._folder(kind, name) / "config.json")
        names = config.get("id2label") or {}  # JSON keys are strings: "10" would sort before "2"
        return [names[number] for number in sorted(names, key=int)]

    def examples(self, kind: str, name: str, count: int = 5) -> list[dict[str, str]]:
        """Rows to try: short ones that the run held out, if it left any."""
        folder = self._folder(kind, name)
        needed, _ = columns_of(kind, str(folder))
        rows = []
        for sample in read_jsonl(folder / "samples.jsonl"):
            row = {column: as_text(kind, column, sample.get(column)) for column in needed}
            if all(map(_is_short_text, row.values())) and row not in rows:
                rows.append(row)
        return rows[:count]

    def predict(self, kind: str, name: str, row: dict[str, str]) -> dict:
        """The prediction for a row of texts, where a list is a text with a line for each item.

        UserError where a text that is needed is empty, or all are too long.
        """
        needed, taken = columns_of(kind, str(self._folder(kind, name)))
        # Columns that the model does not read are dropped, an empty optional text too.
        texts = {}
        for column in needed + taken:
            text = row.get(column) or ""
            check_text(column, text, needed=column in needed)
            if text.strip():
                texts[column] = text
        size = sum(map(len, texts.values()))
        if size > self.characters:
            raise UserError(
                f"{size} characters: at most {self.characters} are read here; "
                "use `python -m rlhf predict` for more"
            )
        values = {column: as_value(kind, column, text) for column, text in texts.items()}
        with self.turn:
            [prediction] = self.opened[kind][name].predict([values])
        return prediction


def as_text(kind: str, column: str, value):
    """A list column as text, a line for each item; any other value as it is."""
    if not is_list(kind, column) or not isinstance(value, list):
        return value
    lines = [" ".join(str(item).split()) for item in value]
    return "\n".join(lines)


def as_value(kind: str, column: str, text: str) -> str | list[str]:
    """The value of a column from its text box; UserError where a list does not fit its form."""
    if not is_list(kind, column):
        return text
    # Empty lines are a matter of taste, not empty items.
    items = [line.strip() for line in text.splitlines() if line.strip()]
    reason = CHECKS[column](items)
    if reason:
        raise UserError(f"the {column}, one per line: {reason}")
    return items


def check_text(column: str, text, *, needed: bool) -> None:
    """UserError for what a browser or a script should not have sent."""
    name = column.replace("_pair", " to compare with")
    if not isinstance(text, str):
        raise UserError(f"the {name} must be a string")
    if needed and not text.strip():
        raise UserError(f"the {name} is empty: write something to read")
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise UserError(
            f"the {name} holds a NUL or half a character (a lone surrogate): send valid Unicode"
        )


def _is_short_text(value) -> bool:
    return isinstance(value, str) and 0 < len(value) <= EXAMPLE_CHARACTERS
