"""A finished classifier: texts -> labels and their probabilities, read exactly as in training."""

import os
from collections.abc import Sequence

from torch import Tensor

from rlhf.models.parts import context_length
from rlhf.tasks.classification.encode import encode_texts
from rlhf.tasks.classification.metrics import THRESHOLD
from rlhf.tasks.forward import check_texts, load_finished, run_batches


def softmax_or_sigmoid(logits: Tensor, problem: str) -> Tensor:
    """Logits (..., K) -> probabilities (..., K): they add up to 1 where a text has one label."""
    return logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)


class Classifier:
    """labels: their names; pairs: whether it reads two texts (None: either); max_length: tokens, longer rows are cut.

    The last two are what recipes/classification.py left in the config; models of others have the widest.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_finished(folder, "classifier", device)
        config = self.model.config
        self.problem = config.problem_type or (
            "regression" if config.num_labels == 1 else "single_label_classification"
        )
        self.labels = [config.id2label[i] for i in range(config.num_labels)]
        self.pairs = getattr(config, "trained_pairs", None)
        widest = min(context_length(self.model), self.tokenizer.model_max_length)
        self.max_length = getattr(config, "trained_max_length", None) or widest

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """{"text", maybe "text_pair"} -> {"label", "probabilities"}, in the order of the rows.

        label: a name; the likely names, the likeliest first, of several; a number for regression. probabilities: of every
        label, the likeliest first; {} for regression. UserError names the row that lacks a text.
        """
        for place, row in enumerate(rows, start=1):
            check_texts(row, ("text", "text_pair")[: 1 + self._is_pair(row)], place)
        features: list[dict] = [{}] * len(rows)
        for pairs in (False, True):
            places = [place for place, row in enumerate(rows) if self._is_pair(row) == pairs]
            if places:
                own = [rows[place] for place in places]
                encoded, _ = encode_texts(
                    self.tokenizer, own, pairs=pairs, max_length=self.max_length
                )
                for place, feature in zip(places, encoded):
                    features[place] = feature
        found: list[dict] = [{}] * len(rows)
        for place, outputs in run_batches(
            self.model, self.tokenizer, features, batch_size=batch_size
        ):
            found[place] = self._prediction(outputs["logits"])
        return found

    def _is_pair(self, row: dict) -> bool:
        return self.pairs if self.pairs is not None else row.get("text_pair") is not None

    def _prediction(self, logits: Tensor) -> dict:
        if self.problem == "regression":
            return {"label": logits.item(), "probabilities": {}}
        probabilities = softmax_or_sigmoid(logits, self.problem)
        order = probabilities.argsort(descending=True, stable=True).tolist()
        ranked = {self.labels[i]: probabilities[i].item() for i in order}
        if self.problem == "multi_label_classification":
            return {
                "label": [name for name, p in ranked.items() if p > THRESHOLD],
                "probabilities": ranked,
            }
        return {"label": self.labels[order[0]], "probabilities": ranked}
