"""Multiple choice: a text and K answers, one of which is right -> K token sequences, and batches of rows with any K.

As in the SWAG experiment of the BERT paper (arXiv 1810.04805, section 4.4), each choice is read as the second text of a
pair, the head gives it one score, and a softmax over the K scores is the prediction. Deviation: K may differ between
rows. A batch repeats the last choice of the shorter rows, and the loss ignores these repetitions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from rlhf.data.encodings import EncodedRows, encode_once, input_columns
from rlhf.data.padding import IGNORED
from rlhf.data.stored_numbers import LISTS, NUMBER
from rlhf.tasks.classification.encode import text_inputs

RIGHT = 1


def choice_inputs(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, max_length: int
) -> Iterator[list[dict]]:
    """Yields for each row the inputs of its choices. Counts the sequences that were cut."""
    # One stream of all choices of all rows: the tokenizer is fast on long lists.
    pairs = (
        {"text": row["text"], "text_pair": choice} for row in rows for choice in row["choices"]
    )
    encoded = text_inputs(tokenizer, pairs, counts, pairs=True, max_length=max_length)
    for row in rows:
        yield list(islice(encoded, len(row["choices"])))


def label_index(row: dict) -> int:
    """The index of the right choice; in a table it is a string."""
    return int(row["label"])


def training_rows(tokenizer, rows: Sequence[dict], *, max_length: int) -> tuple[EncodedRows, int]:
    """Rows for the trainer, each input a list of K sequences, and the number of sequences that were cut."""
    columns = input_columns(tokenizer, LISTS) | {"labels": NUMBER}
    encoded = encode_once(labelled_choices, tokenizer, rows, columns, max_length=max_length)
    return encoded, encoded.counts["cut"]


def labelled_choices(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, max_length: int
) -> Iterator[dict]:
    """Yields what `training_rows` describes."""
    encoded = choice_inputs(tokenizer, rows, counts, max_length=max_length)
    for row, choices in zip(rows, encoded, strict=True):
        feature: dict = {name: [choice[name] for choice in choices] for name in choices[0]}
        yield feature | {"labels": label_index(row)}


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
