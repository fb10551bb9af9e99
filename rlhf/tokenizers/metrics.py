"""Measures how well a tokenizer fits a text: how many tokens it needs, and how many of them are unknown."""

import numpy as np


def tokenization_report(tokenizer, texts: list[str]) -> dict[str, float]:
    """vocab_size, tokens_per_word, tokens_per_character, unknown_rate and single_token_words over all texts.

    A word is a run of characters between white space. A token belongs to the word in which it ends, and a lone space
    to the next word.

    unknown_rate: unknown tokens / tokens.
    single_token_words: the share of the words that are one token, which is not unknown.
    """
    unknown = _unknown_id(tokenizer)
    tokens = words = unknown_tokens = single_token_words = characters = 0
    for text in texts:
        encoded = _encode(tokenizer, text)
        token_ends = [end for _, end in encoded["offset_mapping"]]
        word_ends = _word_ends(text)
        known = np.array([token != unknown for token in encoded["input_ids"]], dtype=bool)  # (T,)
        # The first word that ends at or after a token's end is the token's word.
        word_of_token = np.searchsorted(word_ends, token_ends)  # (T,)
        token_counts = _count_per_word(word_of_token, len(word_ends))
        known_counts = _count_per_word(word_of_token[known], len(word_ends))
        tokens += len(known)
        words += len(word_ends)
        characters += len(text)
        unknown_tokens += int((~known).sum())
        single_token_words += int(((token_counts == 1) & (known_counts == 1)).sum())
    return {
        "vocab_size": len(tokenizer),
        "tokens_per_word": tokens / max(1, words),
        "tokens_per_character": tokens / max(1, characters),
        "unknown_rate": unknown_tokens / max(1, tokens),
        "single_token_words": single_token_words / max(1, words),
    }


def cut_text(tokenizer, text: str) -> str:
    """The text with a bar after each token, and unknown tokens in square brackets.

    Bars without text between them belong to tokens that are parts of one character.
    """
    encoded = _encode(tokenizer, text)
    unknown = _unknown_id(tokenizer)
    pieces = []
    start = 0
    for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        end = max(start, end)  # the parts of a character all have the offsets of the whole one
        piece = text[start:end]
        if token == unknown:
            piece = f"[{piece}]"
        pieces.append(piece)
        start = end
    return "|".join(pieces)


def _encode(tokenizer, text: str):
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)


def _unknown_id(tokenizer) -> int | None:
    """The id of unknown tokens. None for byte-level tokenizers, which know every byte."""
    if tokenizer.unk_token == tokenizer.eos_token:
        return None  # GPT-2's unk_token is only its end of text
    return tokenizer.unk_token_id


def _word_ends(text: str) -> np.ndarray:
    """The index after the last character of each word, (words,)."""
    is_space = [letter.isspace() for letter in text]
    space = np.array([*is_space, True])  # the end of the text ends a word too
    return np.flatnonzero(space[1:] & ~space[:-1]) + 1


def _count_per_word(word_of_token: np.ndarray, words: int) -> np.ndarray:
    """Tokens of each word, (words,). Tokens after the last word, which are white space, do not count."""
    return np.bincount(word_of_token, minlength=words + 1)[:words]
