"""Multiple choice: a text and K answers, one of which is right -> K token sequences, and batches of rows with any K.

As in the SWAG experiment of the BERT paper (arXiv 1810.04805, section 4.4), each choice is read as the second text of a
pair, the head gives it one score, and a softmax over the K scores is the prediction. Deviation: K may differ between
rows. A batch repeats the last choice of the shorter rows, and the loss ignores these repetitions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from rlhf.data.padding import IGNORED
from rlhf.tasks.classification.encode import encode_texts

RIGHT = 1


class ChoiceRows(list):
    """Encoded rows with their lengths, by which the trainer arranges batches: tokens of the longest choice."""

    @property
    def lengths(self) -> list[int]:
        return [max(map(len, row["input_ids"])) for row in self]


def encode_choices(
    tokenizer, rows: Sequence[dict], *, max_length: int
) -> tuple[list[list[dict]], int]:
    """(for each row the token ids of its choices, the number of sequences that were cut)."""
    # All choices of all rows in one call: the tokenizer is fast on long lists.
    pairs = []
    for row in rows:
        for choice in row["choices"]:
            pairs.append({"text": row["text"], "text_pair": choice})
    encoded, cut = encode_texts(tokenizer, pairs, pairs=True, max_length=max_length)
    features, start = [], 0
    for row in rows:
        end = start + len(row["choices"])
        features.append(encoded[start:end])
        start = end
    return features, cut


def label_index(row: dict) -> int:
    """The index of the right choice; in a table it is a string."""
    return int(row["label"])


def training_rows(tokenizer, rows: Sequence[dict], *, max_length: int) -> tuple[ChoiceRows, int]:
    """Rows for the trainer, each input a list of K sequences, and the number of sequences that were cut."""
    encoded, cut = encode_choices(tokenizer, rows, max_length=max_length)
    features = ChoiceRows()
    for row, choices in zip(rows, encoded):
        feature: dict = {}
        for name in choices[0]:
            feature[name] = [choice[name] for choice in choices]
        feature["labels"] = label_index(row)
        features.append(feature)
    return features, cut


class PadChoices:
    """Rows of `training_rows` -> a batch: inputs (B, K, L) and labels (B, K), K and L the largest of the batch.

    labels: 1 for the right choice, 0 for a wrong one, IGNORED for a repetition.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        # K of the batch
        widest = max(len(row["input_ids"]) for row in rows)
        names = [name for name in rows[0] if name != "labels"]
        labels = torch.full((len(rows), widest), IGNORED)
        sequences = []
        for i, row in enumerate(rows):
            count = len(row["input_ids"])
            labels[i, :count] = 0
            labels[i, row["labels"]] = RIGHT
            for k in range(widest):
                # A repeated choice costs time but, unlike an empty one, no attention without any key.
                k = min(k, count - 1)
                sequences.append({name: row[name][k] for name in names})
        batch = self.tokenizer.pad(sequences, return_tensors="pt")  # (B * K, L)
        inputs = {name: batch[name].view(len(rows), widest, -1) for name in names}
        return inputs | {"labels": labels}


def choice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits) of the right choice, over the choices that are not repetitions. Both (B, K) -> (B,)."""
    assert logits.shape == labels.shape, (logits.shape, labels.shape)
    # exp(-inf) = 0: a repetition takes no probability and gets no gradient.
    scores = logits.masked_fill(labels == IGNORED, float("-inf"))
    right = labels.eq(RIGHT).int().argmax(1, keepdim=True)  # (B, 1)
    return -log_softmax(scores, -1).gather(1, right).squeeze(1)
