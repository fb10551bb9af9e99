"""A trained NER model: tokens or raw text -> tags and entities."""

import os
from collections.abc import Sequence

from rlhf.data.words import JOINTS, cut_words
from rlhf.models.parts import context_length
from rlhf.tasks.answers import Answers, Table
from rlhf.tasks.forward import load_trained, run_batches
from rlhf.tasks.ner.encode import cut_windows, decode_windows, entities, find_scheme, join, to_bio
from rlhf.tasks.ner.metrics import tagging_report

TYPES_SHOWN = 20  # rows of the table of types


class NerPredictor:
    """The run folder of recipes/ner.py, or a token classification model of the Hub, ready to predict.

    units: "words" or "characters", what the model was trained to tag. Raw text is cut into them in the same way as
    the training rows.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_trained(folder, "ner", device)
        config = self.model.config
        self.labels = [config.id2label[i] for i in range(len(config.id2label))]
        self.units = getattr(config, "trained_units", "words")
        self.joints = getattr(config, "trained_joints", JOINTS)
        longest = min(context_length(self.model), self.tokenizer.model_max_length)
        self.max_length = getattr(config, "trained_length", longest)

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows {"tokens"} or {"text"} -> {"tokens", "tags", "entities": [{"type", "text", "start", "end", "score"}]}.

        tags: one BIO tag per token.
        start, end: characters of the text, or of the joined tokens where only these were given.
        score: mean probability of the tags that make the entity.
        A long text is read in windows.
        """
        cut_rows = [self._cut(row) for row in rows]
        # Tags may be in the rows too, and are not for the model.
        units = [{"tokens": tokens} for tokens, _, _ in cut_rows]
        parts = cut_windows(self.tokenizer, units, units=self.units, max_length=self.max_length)
        tags_of_parts, probabilities = self._best_tags(parts, len(rows), batch_size)
        tags_of_rows = decode_windows(parts, tags_of_parts, units)
        results = []
        for i, (tokens, text, spans) in enumerate(cut_rows):
            tags = tags_of_rows[i]
            marked = _entities(text, spans, tags, probabilities[i])
            results.append({"tokens": tokens, "tags": tags, "entities": marked})
        return results

    def _best_tags(self, parts, row_count: int, batch_size: int):
        """(tags of each window, {unit: probability of its tag} of each row)."""
        tags: list[list[str]] = [[] for _ in parts]
        probabilities: list[dict[int, float]] = [{} for _ in range(row_count)]
        inputs = [part.inputs for part in parts]
        for i, outputs in run_batches(self.model, self.tokenizer, inputs, batch_size=batch_size):
            best, numbers = outputs["logits"].softmax(-1).max(-1)  # (L, labels) -> (L,)
            for token, unit, _ in parts[i].heads:
                tags[i].append(self.labels[numbers[token]])
                probabilities[parts[i].row][unit] = best[token].item()
        return tags, probabilities

    def _cut(self, row: dict) -> tuple[list[str], str, list[tuple[int, int]]]:
        """Units of a row, its text, and (start, end) of each unit in it."""
        # Spans of given tokens are those in the joined text, which the caller gets to see.
        if "tokens" in row:
            tokens = list(row["tokens"])
            text, starts = join(tokens, self.units)
            spans = [(start, start + len(token)) for start, token in zip(starts, tokens)]
            return tokens, text, spans
        text = row["text"]
        if self.units == "words":
            spans = cut_words(text, self.joints)
        else:
            spans = [(i, i + 1) for i in range(len(text))]
        return [text[start:end] for start, end in spans], text, spans


def _entities(
    text: str,
    spans: Sequence[tuple[int, int]],
    tags: Sequence[str],
    probabilities: dict[int, float],
) -> list[dict]:
    results = []
    for kind, first, last in entities(tags):
        start, end = spans[first][0], spans[last][1]
        # A unit without tokens, such as a control character, was not predicted.
        known = [probabilities[unit] for unit in range(first, last + 1) if unit in probabilities]
        score = sum(known) / len(known)
        entity = {"type": kind, "text": text[start:end], "start": start, "end": end}
        results.append(entity | {"score": score})
    return results


class NerAnswers(Answers):
    """Precision, recall and F1 of predicted entities; the answers may be in any tagging scheme."""

    overall = ("sentences", "entities", "precision", "recall", "f1")
    of_type = ("type", "entities", "marked", "precision", "recall", "f1")

    def __init__(self, predictor, run_config: dict):
        super().__init__(predictor, run_config)
        self.tags: list[list[str]] = []
        self.predicted: list[list[str]] = []
        self.tokens: list[list[str]] = []

    def add(self, answer, prediction: dict) -> bool:
        # The row was cut into other tokens than its tags count.
        if len(answer) != len(prediction["tags"]):
            return False
        self.tags.append(answer)
        self.predicted.append(prediction["tags"])
        self.tokens.append(prediction["tokens"])
        return True

    def report(self) -> list[str | Table]:
        scheme = find_scheme(self.tags)
        # Predictions are BIO. The answers are brought into the same scheme.
        truth = [to_bio(tags, scheme)[0] for tags in self.tags]
        report = tagging_report(truth, self.predicted, self.tokens)
        types = Table(self.of_type, report["types"], limit=TYPES_SHOWN)
        return [Table(self.overall, [report]), "", types]
