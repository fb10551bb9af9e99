"""The first embeddings of a model from word vectors: the rows of those tokens that are words."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlhf.errors import UserError
from rlhf.runs.keys import Unused
from rlhf.runs.run import Run
from rlhf.word_vectors.vectors import WordVectors, load_vectors


@dataclass
class EmbeddingSettings:
    """The word vectors that a model from scratch starts from."""

    embeddings_from: str | None = field(
        default=None,
        metadata={
            "help": "from_scratch: run folder of word_vectors.py whose vectors the embeddings of known words start from."
        },
    )

    UNUSED: ClassVar[tuple] = (
        Unused(
            ("embeddings_from",),
            "a checkpoint has trained embeddings; set from_scratch: true too",
            lambda run: run.from_scratch,
        ),
    )


@dataclass(frozen=True)
class EmbeddingRows:
    """Rows of an embedding matrix. ids: (N,) of the tokens. rows: (N, D). words: how many words are among them."""

    ids: Tensor
    rows: Tensor
    words: int


def check_vector_size(settings) -> None:
    """UserError where `embeddings_from` holds no vectors of `hidden_size` numbers. Read before the rows and the model."""
    if settings.embeddings_from:
        check_size(
            settings.embeddings_from, load_vectors(settings.embeddings_from), settings.hidden_size
        )


def check_size(folder: str, vectors: WordVectors, size: int) -> None:
    if vectors.size != size:
        raise UserError(
            f"embeddings_from={folder}: its vectors have {vectors.size} numbers, and hidden_size is {size}: set "
            f"hidden_size: {vectors.size}, or train vectors with vector_size: {size}"
        )


def embedding_matrix(folder: str, tokenizer, size: int) -> EmbeddingRows:
    """The embeddings of those tokens of a tokenizer that are words with a vector.

    A token is a word if its text is one, with or without the mark of a space before it: "Ġred" and "red" of GPT-2's kind,
    "▁red" of XLM-R's, "red" of BERT's, but not "##red", which only continues a word. Special tokens have no vector.
    UserError where the vectors have another size, or no token is a word of theirs.
    """
    vectors = load_vectors(folder)
    check_size(folder, vectors, size)
    # A role token of a chat may be spelt like a word.
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ids, rows = [], []
    # by id, so that the rows do not depend on the order of a hash table
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if token in special:
            continue
        # The tokenizer knows its own marks, and how bytes become letters.
        row = vectors.find(tokenizer.convert_tokens_to_string([token]).strip())
        if row is not None:
            ids.append(token_id)
            rows.append(row)
    if not ids:
        raise UserError(
            f"embeddings_from={folder}: no token of {tokenizer.name_or_path!r} is one of its {len(vectors)} words: train "
            "the vectors on text of the same language"
        )
    return EmbeddingRows(torch.tensor(ids), vectors.vectors[rows], len(set(rows)))


def start_from_vectors(run: Run, settings: EmbeddingSettings, model, tokenizer) -> None:
    """Start the embeddings of a new model from `embeddings_from`, if the settings name it, and record its run."""
    if not settings.embeddings_from:
        return
    run.say(start_embeddings(model, tokenizer, settings.embeddings_from))
    run.parent("word_vectors", settings.embeddings_from)


@torch.no_grad()
def start_embeddings(model, tokenizer, folder: str) -> str:
    """Replace the embeddings of known words in a new model, and return a sentence about how many.

    The other rows keep their random numbers.
    """
    weight = model.get_input_embeddings().weight  # (V, D)
    known = embedding_matrix(folder, tokenizer, weight.shape[1])
    # As they are: scaled to the spread of the random rows they trained no better (docs/word_vectors.md).
    weight[known.ids] = known.rows.to(weight)
    return (
        f"{folder}: {len(known.ids)} of {len(tokenizer)} tokens start from the vectors of {known.words} words, the others "
        "at random"
    )
