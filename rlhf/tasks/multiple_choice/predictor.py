"""A trained multiple choice model: a text and its choices -> the right choice and the probability of each."""

import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch

from rlhf.data.rows import CHECKS
from rlhf.errors import UserError
from rlhf.models.parts import context_length, fit_tokenizer
from rlhf.tasks.answers import Answers, Table
from rlhf.tasks.forward import check_texts, load_trained, run_batches
from rlhf.tasks.multiple_choice.encode import choice_inputs, label_index
from rlhf.tasks.multiple_choice.metrics import by_number_of_choices, choice_accuracy


class OneChoiceAtATime:
    """The model for batches of single sequences (B, L): its head expects (B, K, L), here with K = 1."""

    def __init__(self, model):
        self.model = model
        self.device = model.device

    def __call__(self, **inputs):
        return self.model(**{name: value.unsqueeze(1) for name, value in inputs.items()})


class MultipleChoicePredictor:
    """The run folder of recipes/multiple_choice.py, or a multiple choice model of the Hub, ready to predict."""

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_trained(folder, "multiple_choice", device)
        # A model of the Hub may come with a tokenizer without token types.
        fit_tokenizer(self.tokenizer, self.model, pairs=True)
        longest = min(context_length(self.model), self.tokenizer.model_max_length)
        self.max_length = getattr(self.model.config, "trained_max_length", None) or longest

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows with text and choices -> {label, choice, probabilities}, in their order.

        label: index of the predicted choice. choice: its text. probabilities: one per choice, in the order given.
        batch_size counts choices: each is scored alone, so a row may have any number of them.
        """
        for i, row in enumerate(rows, start=1):
            check_texts(row, ("text",), i)
            reason = CHECKS["choices"](row.get("choices"))
            if reason:
                raise UserError(f"row {i}: choices: {reason}")
        encoded = choice_inputs(self.tokenizer, rows, Counter(), max_length=self.max_length)
        features = list(chain.from_iterable(encoded))  # one per choice, in the order of the rows
        scores = torch.empty(len(features))
        scorer = OneChoiceAtATime(self.model)
        for i, outputs in run_batches(scorer, self.tokenizer, features, batch_size=batch_size):
            scores[i] = outputs["logits"].item()
        # Back to rows: the scores of a row follow one another.
        sizes = [len(row["choices"]) for row in rows]
        results = []
        for row, logits in zip(rows, scores.split(sizes)):
            probabilities = logits.softmax(0).tolist()
            label = int(logits.argmax())
            choice = row["choices"][label]
            results.append({"label": label, "choice": choice, "probabilities": probabilities})
        return results


class MultipleChoiceAnswers(Answers):
    """Accuracy of predicted choices, over all rows and by number of choices."""

    overall = ("rows", "accuracy", "accuracy_low", "accuracy_high")
    of_count = ("choices", "rows", "accuracy", "chance")

    def __init__(self, predictor, run_config: dict):
        super().__init__(predictor, run_config)
        self.truth: list[int] = []
        self.predicted: list[int] = []
        self.counts: list[int] = []

    def add(self, answer, prediction: dict) -> bool:
        self.truth.append(label_index({"label": answer}))
        self.predicted.append(prediction["label"])
        self.counts.append(len(prediction["probabilities"]))
        return True

    def report(self) -> list[str | Table]:
        overall = choice_accuracy(self.truth, self.predicted)
        by_count = by_number_of_choices(self.truth, self.predicted, self.counts)
        parts: list[str | Table] = [Table(self.overall, [overall])]
        # With one number of choices, the table would repeat the line above it.
        if len(by_count) > 1:
            parts += ["", Table(self.of_count, by_count)]
        return parts
