"""Pairs of texts as token ids: the source that is read, and the target that is written."""

from collections.abc import Iterator, Sequence
from itertools import islice

from rlhf.data.examples import stored_pairs
from rlhf.data.fingerprints import encoding_key, module_fingerprint

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
    code = module_fingerprint(__name__)
    key = encoding_key("seq2seq", rows, tokenizer, code, prefix, start, longest)
    encoded, kept = stored_pairs(key, lambda: _pairs(tokenizer, rows, prefix, start), longest)
    return encoded, [rows[i] for i in kept]


def _pairs(tokenizer, rows, prefix: str, start: int) -> Iterator[tuple[list[int], list[int]]]:
    texts = iter(rows)
    while part := list(islice(texts, TOGETHER)):
        sources = encode_sources(tokenizer, [row["prompt"] for row in part], prefix)
        # Marian's tokenizers have other pieces for the target.
        targets = tokenizer(text_target=[row["completion"] for row in part])["input_ids"]
        for source, target in zip(sources, targets, strict=True):
            # BERT's [CLS]: the decoder begins with it, and does not predict it.
            yield source, target[1:] if target[0] == start else target


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
