"""Bits per byte of a causal model on text: the same unit for every tokenizer.

bits per byte = sum over predicted tokens of -log2 p(token | tokens before it in its row) / UTF-8 bytes of these tokens

The first token of a row is never predicted, so neither its bits nor its bytes count. The end of a text has bits and no
bytes. The bytes are those of the decoded tokens: a tokenizer that lowers the case is measured on lower-case text.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from rlhf.data.padding import IGNORED


def causal_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, 2) float64: nats and number of the predicted tokens of each row.

    logits: (B, L, V); labels: (B, L), IGNORED at padding.
    """
    # The targets are shifted and not the logits, which a copy would double.
    targets = pad(labels, (0, 1), value=IGNORED)[:, 1:]
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    losses = losses.view_as(targets).double()
    counts = (targets != IGNORED).double()
    return torch.stack([losses.sum(1), counts.sum(1)], dim=1)


def mean_nats(sums: Tensor) -> Tensor:
    """The mean loss of a batch, from its `causal_sums`."""
    nats, tokens = sums.sum(0)
    return (nats / tokens).float()


def causal_metrics(prediction) -> dict:
    """Nats and number of all predicted tokens. prediction: transformers' EvalPrediction, of `causal_sums`."""
    nats, tokens = prediction.predictions.sum(0)
    return {"nats": float(nats), "tokens": int(tokens)}


def predicted_bytes(tokenizer, rows: Sequence[dict]) -> tuple[int, int]:
    """(UTF-8 bytes of the predicted tokens of rows, unknown tokens among them). Special tokens have no bytes."""
    unknown_id = tokenizer.unk_token_id
    if unknown_id == tokenizer.eos_token_id:  # GPT-2 spells every byte, and has one token for both
        unknown_id = None
    bytes_of = byte_counter(tokenizer)
    total, unknown = 0, 0
    for row in rows:
        ids = row["input_ids"].tolist()
        if unknown_id is not None:
            unknown += ids[1:].count(unknown_id)
        # The difference, since a token may be a part of a letter, or begin with a space that a text may not.
        total += bytes_of(ids) - bytes_of(ids[:1])
    return total, unknown


def byte_counter(tokenizer):
    """A function from token ids to their UTF-8 bytes.

    Tokens of byte-level BPE have a letter per byte, and may end within a letter of the text, so that each counts by itself.
    """
    special = set(tokenizer.all_special_ids)
    if tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
        sizes = [0] * len(tokenizer)
        for token, index in tokenizer.get_vocab().items():
            sizes[index] = 0 if index in special else len(token)
        for index, token in tokenizer.added_tokens_decoder.items():
            if index not in special:
                sizes[index] = len(str(token).encode())  # it is written as it is
        return lambda ids: sum(sizes[token] for token in ids)

    @cache
    def decoded_bytes(ids: tuple[int, ...]) -> int:
        return len(tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())

    return lambda ids: decoded_bytes(tuple(token for token in ids if token not in special))
