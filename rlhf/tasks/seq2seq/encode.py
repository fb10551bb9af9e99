"""Pairs of texts as token ids: the source that is read, and the target that is written."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from rlhf.data.encodings import encode_once
from rlhf.data.examples import COLUMNS, dataset_of
from rlhf.data.stored_numbers import NUMBER
from rlhf.data.stored_rows import take

TOGETHER = 1000  # texts that a tokenizer gets at once


def check_text(value) -> str | None:
    """The reason why a source cannot be read, or None. A conversation has no single text."""
    if not isinstance(value, str):
        return "a string is expected: a list of messages is for recipes/sft.py"
    if not value.strip():
        return "an empty text"
    return None


check_text.fingerprint = "a text"  # what decides it, for the cache of checked rows


def encode_pairs(tokenizer, rows: Sequence[dict], *, prefix: str, start: int, longest: tuple):
    """(data set with input_ids and labels, the rows that are in it).

    rows: with `prompt`, the source, and `completion`, the target.
    prefix: text before each source. start: the token that a target begins with, which is not predicted.
    longest: tokens of a source and of a target; rows with longer ones are dropped.
    """
    columns = COLUMNS | {"row": NUMBER}
    settings = {"prefix": prefix, "start": start, "longest": longest}
    encoded = encode_once(pairs, tokenizer, rows, columns, **settings)
    kept = np.array(encoded.columns["row"], dtype=np.int64)
    return dataset_of(encoded.only(*COLUMNS)), take(rows, kept)


def pairs(
    tokenizer,
    rows: Sequence[dict],
    counts: Counter[str],
    *,
    prefix: str,
    start: int,
    longest: Sequence[int],
) -> Iterator[dict]:
    """Yields what `encode_pairs` describes, with the index of the row."""
    numbered = enumerate(rows)
    while part := list(islice(numbered, TOGETHER)):
        sources = encode_sources(tokenizer, [row["prompt"] for _, row in part], prefix)
        # Marian's tokenizers have other pieces for the target.
        targets = tokenizer(text_target=[row["completion"] for _, row in part])["input_ids"]
        for (index, _), source, target in zip(part, sources, targets, strict=True):
            # BERT's [CLS]: the decoder begins with it, and does not predict it.
            if target[0] == start:
                target = target[1:]
            if len(source) <= longest[0] and len(target) <= longest[1]:
                yield {"input_ids": source, "labels": target, "row": index}


def encode_sources(tokenizer, texts: list[str], prefix: str) -> list[list[int]]:
    """Token ids of the sources, each with its end of text."""
    return tokenizer([prefix + text for text in texts])["input_ids"]


def unknown_tokens(tokenizer, encoded) -> int:
    """Tokens of the targets that stand for what the tokenizer cannot spell."""
    unknown = tokenizer.unk_token_id
    # GPT-2 gives one token to all special purposes, and can spell every text.
    if unknown is None or unknown == tokenizer.eos_token_id:
        return 0
    return sum(labels.count(unknown) for labels in encoded["labels"])
