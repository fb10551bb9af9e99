"""How well a tokenizer fits a text: the length of what it makes of it, and what it does not know."""

import numpy as np


def tokenization_report(tokenizer, texts: list[str]) -> dict[str, float]:
    """vocab_size, tokens_per_word, tokens_per_character, unknown_rate, single_token_words over all texts.

    A word is what stands between white space; a token belongs to the word it ends in, a lone space to the next one.
    unknown_rate: unknown tokens / tokens. single_token_words: share of the words that are one token, and not unknown.
    """
    unknown = _unknown_id(tokenizer)
    tokens = words = unknown_tokens = single = 0
    for text in texts:
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        ends = _word_ends(text)
        places = np.searchsorted(ends, [end for _, end in offsets])
        known = np.array([token != unknown for token in ids], dtype=bool)
        pieces, known_pieces = (
            np.bincount(of, minlength=len(ends) + 1)[: len(ends)] for of in (places, places[known])
        )
        tokens, words = tokens + len(ids), words + len(ends)
        unknown_tokens += int((~known).sum())
        single += int(((pieces == 1) & (known_pieces == 1)).sum())
    return {
        "vocab_size": len(tokenizer),
        "tokens_per_word": tokens / max(1, words),
        "tokens_per_character": tokens / max(1, sum(map(len, texts))),
        "unknown_rate": unknown_tokens / max(1, tokens),
        "single_token_words": single / max(1, words),
    }


def cut_text(tokenizer, text: str) -> str:
    """The text with a bar after each token; unknown tokens in square brackets. Bars side by side: parts of one character."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    unknown, pieces, done = _unknown_id(tokenizer), [], 0
    for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        piece = text[done : max(done, end)]
        pieces.append(f"[{piece}]" if token == unknown else piece)
        done = max(done, end)
    return "|".join(pieces)


def _unknown_id(tokenizer) -> int | None:
    """None for byte-level tokenizers: they know every byte, and GPT-2's unk_token is only its end of text."""
    return None if tokenizer.unk_token == tokenizer.eos_token else tokenizer.unk_token_id


def _word_ends(text: str) -> np.ndarray:
    """Where each word ends, (words,)."""
    space = np.array([letter.isspace() for letter in text] + [True])
    return np.flatnonzero(space[1:] & ~space[:-1]) + 1
