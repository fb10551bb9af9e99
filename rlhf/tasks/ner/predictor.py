"""A finished tagger: tokens or raw text in, tags and entities out."""

import os
from collections.abc import Sequence

from rlhf.data.words import JOINTS, cut_words
from rlhf.models.parts import context_length
from rlhf.tasks.forward import load_finished, run_batches
from rlhf.tasks.ner.encode import decode_windows, entities, join, windows


class Tagger:
    """The run folder of recipes/ner.py (or a token classification model of the Hub), ready to predict.

    units: "words" or "characters", what the model was trained to tag; raw text is cut into them, words as those of the
    training rows were.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.model, self.tokenizer = load_finished(folder, "tagger", device)
        config = self.model.config
        self.labels = [config.id2label[number] for number in range(len(config.id2label))]
        self.units = getattr(config, "trained_units", "words")
        self.joints = getattr(config, "trained_joints", JOINTS)
        longest = min(context_length(self.model), self.tokenizer.model_max_length)
        self.max_length = getattr(config, "trained_length", longest)

    def predict(self, rows: Sequence[dict], batch_size: int = 32) -> list[dict]:
        """Rows {"tokens"} or {"text"} -> {"tokens", "tags", "entities": [{"type", "text", "start", "end", "score"}]}.

        tags: one BIO tag per token. start, end: characters of the text (of the joined tokens, where only these were
        given). score: mean probability of the tags that make the entity. Windows of a long text need no care.
        """
        cut = [self._cut(row) for row in rows]
        units = [{"tokens": tokens} for tokens, _, _ in cut]
        found = windows(self.tokenizer, units, units=self.units, max_length=self.max_length)
        marks: list[list[str]] = [[] for _ in found]
        chances: list[dict[int, float]] = [{} for _ in rows]  # unit -> probability of its tag
        inputs = [window.inputs for window in found]
        for place, outputs in run_batches(
            self.model, self.tokenizer, inputs, batch_size=batch_size
        ):
            best, numbers = outputs["logits"].softmax(-1).max(-1)  # (L, labels) -> (L,)
            for token, unit, _ in found[place].heads:
                marks[place].append(self.labels[numbers[token]])
                chances[found[place].row][unit] = best[token].item()
        tagged = decode_windows(found, marks, units)
        return [
            {"tokens": tokens, "tags": tags, "entities": _entities(text, spans, tags, chance)}
            for (tokens, text, spans), tags, chance in zip(cut, tagged, chances, strict=True)
        ]

    def _cut(self, row: dict) -> tuple[list[str], str, list[tuple[int, int]]]:
        """Units of a row, its text, and (start, end) of each unit in it."""
        if "tokens" in row:
            tokens = list(row["tokens"])
            text, starts = join(tokens, self.units)
            return (
                tokens,
                text,
                [(start, start + len(token)) for start, token in zip(starts, tokens)],
            )
        text = row["text"]
        spans = (
            cut_words(text, self.joints)
            if self.units == "words"
            else [(place, place + 1) for place in range(len(text))]
        )
        return [text[start:end] for start, end in spans], text, spans


def _entities(
    text: str, spans: Sequence[tuple[int, int]], tags: Sequence[str], chance: dict[int, float]
) -> list[dict]:
    found = []
    for kind, first, last in entities(tags):
        start, end = spans[first][0], spans[last][1]
        known = [chance[unit] for unit in range(first, last + 1) if unit in chance]
        score = sum(known) / len(known)
        found.append(
            {"type": kind, "text": text[start:end], "start": start, "end": end, "score": score}
        )
    return found
