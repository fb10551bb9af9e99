"""The vectors of words: their files in a run folder, similarity, and nearest words.

A run folder holds `word_vectors.safetensors` with `vectors` (V, D), the context vectors `outputs` (V, D) and `counts` (V,),
and `words.json` with the V words in the same order and how a text is cut into them. Nothing here needs gensim.
"""

import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.data.words import cut_words
from rlhf.errors import UserError
from rlhf.models.snapshots import model_folder

WEIGHTS = "word_vectors.safetensors"
WORDS = "words.json"
TEXT = "vectors.txt"  # gensim's and word2vec's own form
NO_JOINTS = ("", "")  # every hyphen and apostrophe is a word, as BERT's tokenizer has it


def words_of(text: str, *, lowercase: bool) -> list[str]:
    """The words of a text in NFC: runs of letters and digits, and every other sign by itself, as BERT cuts a text."""
    # Korean typed on a Mac comes as letters of syllables.
    text = unicodedata.normalize("NFC", text)
    if lowercase:
        text = text.lower()
    return [text[start:end] for start, end in cut_words(text, NO_JOINTS)]


@dataclass
class WordVectors:
    """V words, the most frequent first, and their vectors.

    vectors, outputs: (V, D) fp32, v and u of `train`. counts: (V,), how often each word occurs in the training text.
    lowercase: whether texts were lowercased before they were cut.
    """

    words: list[str]
    vectors: Tensor
    outputs: Tensor
    counts: Tensor
    lowercase: bool
    index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self):
        self.index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @property
    def size(self) -> int:
        """D, the numbers of a vector."""
        return self.vectors.shape[1]

    def key(self, word: str) -> str:
        """A word as the training text was normalised."""
        word = unicodedata.normalize("NFC", word)
        return word.lower() if self.lowercase else word

    def find(self, word: str) -> int | None:
        """The row of a word; None if it is unknown."""
        return self.index.get(self.key(word))

    def units(self) -> Tensor:
        """The vectors divided by their lengths (V, D), so that a product is a cosine."""
        return torch.nn.functional.normalize(self.vectors, dim=1)

    def nearest(self, row: int, count: int) -> list[tuple[str, float]]:
        """(word, cosine) of the `count` other words whose vectors point most in the direction of this row's."""
        units = self.units()
        cosines = units @ units[row]  # (V,)
        cosines[row] = -torch.inf  # itself, at 1
        best = cosines.topk(min(count, len(self) - 1))
        return [(self.words[i], value) for value, i in zip(*map(Tensor.tolist, best), strict=True)]

    def save(self, folder: str | os.PathLike) -> None:
        """Write both files into a folder."""
        # outputs too: with them the training can be continued, and the loss measured on other text
        tensors = {"vectors": self.vectors, "outputs": self.outputs, "counts": self.counts}
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, Path(folder, WEIGHTS)
        )
        content = {"lowercase": self.lowercase, "words": self.words}
        text = json.dumps(content, ensure_ascii=False, indent=0)
        Path(folder, WORDS).write_text(text + "\n", encoding="utf-8")

    def save_text(self, folder: str | os.PathLike) -> None:
        """Write vectors.txt: a line "V D", then a line per word, which gensim's KeyedVectors read."""
        with open(Path(folder, TEXT), "w", encoding="utf-8") as file:
            file.write(f"{len(self)} {self.size}\n")
            for word, vector in zip(self.words, self.vectors.tolist(), strict=True):
                numbers = " ".join(f"{number:.7g}" for number in vector)
                file.write(f"{word} {numbers}\n")


def load_vectors(path: str) -> WordVectors:
    """The vectors of a run folder of recipes/word_vectors.py, or of one on the Hub. UserError where there are none."""
    folder = Path(model_folder(path))
    try:
        content = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        vectors = WordVectors(content["words"], **tensors, lowercase=content["lowercase"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{path}: no word vectors ({WEIGHTS} and {WORDS}) can be read there: give a run folder of "
            f"recipes/word_vectors.py ({error})"
        ) from error
    # Each file may be whole, and of another run.
    check_shapes(path, vectors)
    return vectors


def check_shapes(path: str, vectors: WordVectors) -> None:
    """UserError where the two files do not belong together, or hold numbers that are not finite."""
    shapes = {vectors.vectors.shape[0], vectors.outputs.shape[0], len(vectors.counts), len(vectors)}
    if len(shapes) > 1 or len(vectors.index) != len(vectors):
        raise UserError(
            f"{path}: {WORDS} has {len(vectors)} words and {WEIGHTS} vectors of {len(vectors.vectors)}: they are not of "
            "one run; train the vectors again"
        )
    if not torch.isfinite(vectors.vectors).all():
        raise UserError(
            f"{path}: {WEIGHTS} holds numbers that are not finite: train the vectors again with a smaller alpha"
        )


def shown_words(vectors: WordVectors, count: int) -> list[str]:
    """Words of letters alone from frequent to rare, at ranks that grow by the same factor."""
    # Signs are among the most frequent words, and say little.
    known = [word for word in vectors.words if word.isalpha() and len(word) > 1]
    if not known:
        return vectors.words[:count]
    ranks = [round(len(known) ** (i / count)) - 1 for i in range(count)]
    return [known[rank] for rank in dict.fromkeys(ranks)]


def principal_plane(points: Tensor) -> tuple[Tensor, list[float]]:
    """Points (N, D) -> their coordinates (N, 2) on the two axes of most variance, and each axis's share of it.

    Principal component analysis: X - mean = U S V^T, coordinates U S.
    """
    centred = points - points.mean(0)
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    coordinates = torch.zeros(len(points), 2)
    # fewer where there are two words, or vectors of one number
    axes = min(2, len(sizes))
    coordinates[:, :axes] = left[:, :axes] * sizes[:axes]
    # Words of one vector have no variance to share.
    variance = sizes.square() / sizes.square().sum().clamp(min=1e-30)
    return coordinates, variance[:2].tolist()


def with_neighbours(vectors: WordVectors, words: Sequence[str], count: int) -> list[str]:
    """The words and the `count` nearest of each, each once."""
    chosen = []
    for word in words:
        row = vectors.find(word)
        chosen.append(vectors.words[row])
        chosen += [near for near, _ in vectors.nearest(row, count)]
    return list(dict.fromkeys(chosen))
