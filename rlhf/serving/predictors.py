"""Finished encoders by their kind, opened and asked: what `python -m rlhf predict` and the app share."""

import threading
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from rlhf.errors import UserError
from rlhf.runs.record import read_jsonl, read_object
from rlhf.serving.engine import ModelCache, check_device, check_served
from rlhf.tasks.classification.predictor import Classifier
from rlhf.tasks.ner.predictor import Tagger
from rlhf.tasks.question_answering.predictor import Reader

# kind of model -> what opens its folder; each has `predict(rows, batch_size)`.
PREDICTORS = {"classifier": Classifier, "tagger": Tagger, "reader": Reader}


def open_encoder(kind: str, folder: str, device: str = "cpu"):
    """The predictor of a run folder; kind: a key of PREDICTORS."""
    check_device(device)
    disable_progress_bar()  # of the weights: a second, on the terminal of a server
    return PREDICTORS[kind](folder, device=device)


def columns_of(kind: str, folder: str) -> tuple[list[str], list[str]]:
    """The columns that a model needs, and those that it takes; a classifier's config says whether it reads pairs."""
    if kind == "reader":
        return ["question", "context"], []
    pairs = (
        read_object(Path(folder) / "config.json").get("trained_pairs")
        if kind == "classifier"
        else False
    )
    return ["text", *["text_pair"] * (pairs is True)], ["text_pair"] * (pairs is None)


class Encoders:
    """Serves finished encoders, `runs`: kind -> name -> folder. Of each kind the one used last stays in memory.

    characters: the most that a request may hold. It stands here because the browser's own check is bypassed by the API.
    """

    def __init__(
        self, runs: dict[str, dict[str, str]], device: str = "cpu", *, characters: int = 20_000
    ):
        self.runs, self.characters = runs, characters
        self.turn = threading.Lock()  # one request at a time: each uses all cores
        self.opened = {
            kind: ModelCache(
                lambda name, kind=kind: open_encoder(kind, self.runs[kind][name], device), keep=1
            )
            for kind in runs
        }

    def columns(self, kind: str, name: str) -> list[str]:
        """Those that may be given to `predict`."""
        check_served(name, self.runs.get(kind, {}), kind)
        needed, taken = columns_of(kind, self.runs[kind][name])
        return needed + taken

    def labels(self, kind: str, name: str) -> list[str]:
        """The names in the model's config, in its order."""
        check_served(name, self.runs.get(kind, {}), kind)
        names = read_object(Path(self.runs[kind][name]) / "config.json").get("id2label") or {}
        return [names[number] for number in sorted(names, key=int)]

    def examples(self, kind: str, name: str, count: int = 5) -> list[dict[str, str]]:
        """Rows to try: short ones that the run held out, where it left some."""
        check_served(name, self.runs.get(kind, {}), kind)
        needed, _ = columns_of(kind, self.runs[kind][name])
        rows = []
        for row in read_jsonl(Path(self.runs[kind][name]) / "samples.jsonl"):
            row = {column: row.get(column) for column in needed}
            if (
                all(isinstance(text, str) and 0 < len(text) <= 600 for text in row.values())
                and row not in rows
            ):
                rows.append(row)
        return rows[:count]

    def predict(self, kind: str, name: str, row: dict[str, str]) -> dict:
        """The prediction for a row of texts; UserError where one that is needed is empty, or all are too long."""
        check_served(name, self.runs.get(kind, {}), kind)
        needed, taken = columns_of(kind, self.runs[kind][name])
        row = {column: row.get(column) or "" for column in needed + taken}
        for column, text in list(row.items()):
            what = column.replace("_pair", " to compare with")
            if not isinstance(text, str):
                raise UserError(f"the {what} is no text")
            if not text.strip() and column in needed:
                raise UserError(f"the {what} is empty: write something to read")
            if not text.strip():
                del row[column]
            if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
                raise UserError(
                    f"the {what} holds a NUL or half a character (a lone surrogate): send valid Unicode"
                )
        if (size := sum(map(len, row.values()))) > self.characters:
            raise UserError(
                f"{size} characters: at most {self.characters} are read here; for more: python -m rlhf predict"
            )
        with self.turn:
            [prediction] = self.opened[kind][name].predict([row])
        return prediction
