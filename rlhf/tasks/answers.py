"""The answers that rows have, collected next to a model's predictions and compared with them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """columns: names, in order. rows: {column: value}. limit: rows to show, None for all."""

    columns: Sequence[str]
    rows: Sequence[dict]
    limit: int | None = None


class Answers:
    """Compares answers with predictions; each task has its own. Of a row it keeps no more than it compares.

    predictor: the trained model. run_config: settings of the run that trained it, {} where they are not known.
    skipped: rows whose answer could not be compared, beyond those that `add` refused.
    """

    def __init__(self, predictor, run_config: dict):
        self.predictor = predictor
        # Counted by `report`, once all rows are known: labels that are not numbers, for instance.
        self.skipped = 0

    def add(self, answer, prediction: dict) -> bool:
        """Keep an answer, which has passed the checks of its column, and its prediction; False where they do not fit."""
        raise NotImplementedError

    def report(self) -> list[str | Table]:
        """The metrics of all kept rows, of which there is at least one, as tables and remarks."""
        raise NotImplementedError
