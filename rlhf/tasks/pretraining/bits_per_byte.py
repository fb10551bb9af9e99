"""Bits per byte of a causal model on text: the same unit for every tokenizer.

bits per byte = sum over predicted tokens of -log2 p(token | tokens before it in its row) / UTF-8 bytes of these tokens

The first token of a row is never predicted, so neither its bits nor its bytes count. The end of a text has bits and no
bytes. The bytes are those of the decoded tokens: a tokenizer that lowers the case is measured on lower-case text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf.data.padding import IGNORED


def causal_sums(logits, labels: Tensor) -> Tensor:
    """(B, 2) float64: nats and number of the predicted tokens of each row.

    logits: (B, L, V), or a tuple that begins with them; labels: (B, L), IGNORED at padding.
    """
    if isinstance(logits, tuple | list):
        logits = logits[0]
    targets = labels[:, 1:]
    counts = targets != IGNORED
    losses = cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.double().sum(1), counts.double().sum(1)], dim=1)


def causal_metrics(prediction) -> dict:
    """Nats and number of all predicted tokens. prediction: transformers' EvalPrediction, of `causal_sums`."""
    nats, tokens = prediction.predictions.sum(0)
    return {"nats": float(nats), "tokens": int(tokens)}


def predicted_bytes(tokenizer, rows: Sequence[dict]) -> tuple[int, int]:
    """(UTF-8 bytes of the predicted tokens of rows, unknown tokens among them). Special tokens have no bytes."""
    unknown_id = tokenizer.unk_token_id
    if unknown_id == tokenizer.eos_token_id:  # GPT-2 spells every byte, and has one token for both
        unknown_id = None
    total, unknown = 0, 0
    for row in rows:
        ids = row["input_ids"].tolist()
        if unknown_id is not None:
            unknown += ids[1:].count(unknown_id)
        # The difference, since a token may be a part of a letter, or begin with a space that a text may not.
        total += _bytes_of(tokenizer, ids) - _bytes_of(tokenizer, ids[:1])
    return total, unknown


def _bytes_of(tokenizer, ids: list[int]) -> int:
    """UTF-8 bytes of tokens. Those of byte-level BPE have a letter per byte, and may end within a letter of the text."""
    special = set(tokenizer.all_special_ids)
    ids = [token for token in ids if token not in special]
    if _is_byte_level(tokenizer):
        return sum(len(token) for token in tokenizer.convert_ids_to_tokens(ids))
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return len(text.encode())


def _is_byte_level(tokenizer) -> bool:
    return tokenizer.is_fast and "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
