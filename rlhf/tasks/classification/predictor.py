"""A trained classifier: texts, or pairs of texts -> labels and their probabilities, encoded exactly as in training."""

import os
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from rlhf.models.parts import context_length
from rlhf.models.scores import score_centre
from rlhf.tasks.answers import Answers, Table
from rlhf.tasks.classification.encode import encode_texts, names_of, number
from rlhf.tasks.classification.metrics import (
    THRESHOLD,
    classification_report,
    multi_label_report,
    regression_report,
)
from rlhf.tasks.forward import check_texts, load_trained, run_batches

CLASSES_SHOWN = 20  # rows of the table of classes, and labels in a message
UNKNOWN_SHOWN = 5  # labels in the remark on labels that the model does not have


def softmax_or_sigmoid(logits: Tensor, problem: str) -> Tensor:
    """Logits (..., K) -> probabilities (..., K), which add up to 1 where a text has one label."""
    if problem == "multi_label_classification":
        return logits.sigmoid()
    return logits.softmax(-1)


class ClassificationPredictor:
    """The run folder of recipes/classification.py, or a sequence classification model of the Hub, ready to predict.

    labels: their names.
    pairs: whether it reads two texts; None: either. max_length: tokens; longer rows are cut. The recipe leaves these
    two in the config. Other models take pairs or not, and as many tokens as they have positions.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_trained(folder, "classification", device)
        config = self.model.config
        self.problem = config.problem_type
        # transformers guesses in the same way when it computes a loss.
        if not self.problem:
            one_number = config.num_labels == 1
            self.problem = "regression" if one_number else "single_label_classification"
        self.labels = [config.id2label[i] for i in range(config.num_labels)]
        self.pairs = getattr(config, "trained_pairs", None)
        widest = min(context_length(self.model), self.tokenizer.model_max_length)
        self.max_length = getattr(config, "trained_max_length", None) or widest

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """{"text", maybe "text_pair"} -> {"label", "probabilities"}, in the order of the rows.

        label: a name; for several labels the likely names, the likeliest first; for regression a number.
        probabilities: of every label, the likeliest first; {} for regression.
        UserError names the row that lacks a text.
        """
        for i, row in enumerate(rows, start=1):
            check_texts(row, self._columns(row), i)
        features = self._encode(rows)
        results: list[dict] = [{}] * len(rows)
        for i, outputs in run_batches(self.model, self.tokenizer, features, batch_size=batch_size):
            results[i] = self._prediction(outputs["logits"])
        return results

    def _encode(self, rows: Sequence[dict]) -> list[dict]:
        """Token ids of each row; single texts and pairs may be mixed."""
        features: list[dict] = [{}] * len(rows)
        # The tokenizer takes lists of texts or lists of pairs, not a mixture.
        for pairs in (False, True):
            indices = [i for i, row in enumerate(rows) if self._is_pair(row) == pairs]
            if not indices:
                continue
            group = [rows[i] for i in indices]
            encoded, _ = encode_texts(
                self.tokenizer, group, pairs=pairs, max_length=self.max_length
            )
            for i, feature in zip(indices, encoded):
                features[i] = feature
        return features

    def _is_pair(self, row: dict) -> bool:
        if self.pairs is not None:
            return self.pairs
        return row.get("text_pair") is not None

    def _columns(self, row: dict) -> tuple[str, ...]:
        if self._is_pair(row):
            return ("text", "text_pair")
        return ("text",)

    def _prediction(self, logits: Tensor) -> dict:
        if self.problem == "regression":
            return {"label": logits.item() - score_centre(self.model), "probabilities": {}}
        probabilities = softmax_or_sigmoid(logits, self.problem)
        # stable: of equal probabilities the first label wins, as argmax has it
        order = probabilities.argsort(descending=True, stable=True).tolist()
        ranked = {self.labels[i]: probabilities[i].item() for i in order}
        label = self.labels[order[0]]
        if self.problem == "multi_label_classification":
            label = [name for name, probability in ranked.items() if probability > THRESHOLD]
        return {"label": label, "probabilities": ranked}


class ClassificationAnswers(Answers):
    """Accuracy and F1 of predicted labels, or errors and correlations of predicted numbers."""

    of_class = ("label", "rows", "precision", "recall", "f1")
    of_numbers = ("rows", "mae", "r2", "pearson", "spearman")

    def __init__(self, predictor, run_config: dict):
        super().__init__(predictor, run_config)
        self.truth: list = []
        self.predicted: list = []

    def add(self, answer, prediction: dict) -> bool:
        self.truth.append(answer)
        self.predicted.append(prediction["label"])
        return True

    def report(self) -> list[str | Table]:
        if self.predictor.problem == "regression":
            return self._report_numbers()
        return self._report_labels()

    def _report_numbers(self) -> list[str | Table]:
        # In a table, numbers are strings.
        truth, predicted = [], []
        for label, value in zip(self.truth, self.predicted):
            if number(label) is not None:
                truth.append(number(label))
                predicted.append(value)
        self.skipped += len(self.truth) - len(truth)
        if not truth:
            return ["no label is a number"]
        return [Table(self.of_numbers, [regression_report(truth, predicted)])]

    def _report_labels(self) -> list[str | Table]:
        labels = self.predictor.labels
        truth, predicted, unknown = [], [], Counter()
        for true, guess in zip(map(names_of, self.truth), map(names_of, self.predicted)):
            # A label that the model cannot predict says nothing about its quality.
            strange = [name for name in true if name not in labels]
            unknown.update(strange)
            if not strange:
                truth.append(true)
                predicted.append(guess)
        remarks = []
        if unknown:
            shown = unknown.most_common(UNKNOWN_SHOWN)
            listed = ", ".join(f"{name!r} ({count})" for name, count in shown)
            rows = len(self.truth) - len(truth)
            remarks.append(
                f"{rows} rows have a label that the model does not know, as {listed}: not scored"
            )
        if not truth:
            return [f"{remarks[0]}; its labels are {', '.join(labels[:CLASSES_SHOWN])}"]
        overall, report = self._scores(truth, predicted)
        # Labels of the model that no row has are omitted. The worst of the others come first.
        classes = [entry for entry in report["classes"] if entry["rows"]]
        classes.sort(key=lambda entry: entry["f1"])
        by_class = Table(self.of_class, classes, limit=CLASSES_SHOWN)
        return [Table(overall, [report]), "", by_class, *remarks]

    def _scores(self, truth: list[list[str]], predicted: list[list[str]]):
        """(columns of the numbers over all rows, the report)."""
        labels = self.predictor.labels
        if self.predictor.problem == "multi_label_classification":
            report = multi_label_report(
                [_marks(names, labels) for names in truth],
                [_marks(names, labels) for names in predicted],
                labels,
            )
            return ("rows", "accuracy", "f1_micro", "f1"), report
        index = {label: i for i, label in enumerate(labels)}
        report = classification_report(
            [index[names[0]] for names in truth],
            [index[names[0]] for names in predicted],
            labels,
        )
        return ("rows", "accuracy", "f1"), report


def _marks(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    """1 for each label that is among the names, else 0."""
    return [int(label in names) for label in labels]
