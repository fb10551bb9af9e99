"""Learns the vocabulary of a Unigram tokenizer, pieces of words with probabilities, by EM and pruning.

Source: Kudo 2018, arXiv 1804.10959, section 3.2. The probability of a cut of a word is the product of the probabilities
of its pieces, and every way to cut the word counts. The first pieces are the substrings of the words. EM fits their
probabilities. Then the pieces whose loss would reduce the likelihood least are dropped, a quarter at a time, until
`size` are left. Single characters are always kept.

Why not the trainer of `tokenizers`:
- It sums in the order of a hash table, so each run gives other pieces.
- It took a minute for 10,000 Korean reviews, and this takes ten seconds for 45,000. Here all words of one length are one
  batch, and a step of the lattice is one array operation.

Omitted from SentencePiece's trainer: the sparse prior (digamma), and counting only in the best cut. Expected counts serve
for both.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Longest piece in characters. Longer words (URLs, laughter) are cut into parts of this length first.
MAX_PIECE_LENGTH = 16
MAX_SEEDS = 1_000_000  # as in SentencePiece
PRUNING_SHARE = 0.75  # of the pieces that a round of pruning keeps
EM_STEPS = 2  # before each pruning, as in SentencePiece
# Later EM steps still empty some pieces, so pruning stops above the size. The last cut is exact.
SIZE_SLACK = 1.1


def train_unigram(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """At most `size` (piece, log-probability) from word counts, the most probable first. Fewer if the words have no more.

    A piece of several characters occurs in the words at least twice as a substring, and at least once in the cuts.
    """
    parts = _split_long_words(words)
    pieces, counts = _seeds(parts)
    lattice = _Lattice(parts, pieces)
    is_character = np.array([len(piece) == 1 for piece in pieces])  # (V,)
    done = False
    while not done:
        for _ in range(EM_STEPS):
            counts = lattice.expected_counts(_shares(counts))
        kept = is_character | (counts >= 1)
        done = kept.sum() <= SIZE_SLACK * size
        if done:
            target = size
        else:
            target = max(int(SIZE_SLACK * size), int(PRUNING_SHARE * kept.sum()))
        if kept.sum() > target:
            # The likelihood that the corpus loses without a piece is what each of its uses saves.
            losses = counts * _saved_log_probs(pieces, _shares(counts))
            losses = np.where(kept, losses, -np.inf)
            kept = _most_valuable(losses, is_character, target)
        pieces = [piece for piece, keep in zip(pieces, kept, strict=True) if keep]
        lattice.keep(kept)
        counts, is_character = counts[kept], is_character[kept]
    counts = lattice.expected_counts(_shares(counts))
    log_probs = np.log(_shares(counts)).tolist()
    return sorted(zip(pieces, log_probs, strict=True), key=lambda pair: (-pair[1], pair[0]))


def _split_long_words(words: Mapping[str, int]) -> Counter[str]:
    """Counts of the parts of at most MAX_PIECE_LENGTH characters into which the words are cut."""
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(0, len(word), MAX_PIECE_LENGTH):
            parts[word[start : start + MAX_PIECE_LENGTH]] += count
    return parts


def _seeds(parts: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """All characters and all substrings that occur at least twice, and how often each occurs, (V,)."""
    occurrences: Counter[str] = Counter()
    for word, count in parts.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                occurrences[word[start:end]] += count
    characters = sorted(piece for piece in occurrences if len(piece) == 1)
    longer = [piece for piece, count in occurrences.items() if len(piece) > 1 and count > 1]
    # The pieces that cover the most text come first. The spelling decides between equals, so that runs agree.
    longer.sort(key=lambda piece: (-occurrences[piece] * len(piece), piece))
    pieces = characters + longer[:MAX_SEEDS]
    return pieces, np.array([occurrences[piece] for piece in pieces], dtype=float)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Probabilities from counts, the M-step: (V,) -> (V,)."""
    counts = np.maximum(counts, 0.01)  # a character that no cut uses keeps a small probability
    return counts / counts.sum()


def _saved_log_probs(pieces: list[str], shares: np.ndarray) -> np.ndarray:
    """The log-probability that one use of a piece saves over the best cut into other pieces, (V,). inf for characters."""
    lattice = _Lattice(dict.fromkeys(pieces, 1), pieces)
    with np.errstate(divide="ignore"):  # log 0 of the characters, which cannot be cut
        return np.log(shares) - np.log(lattice.best_cut(shares))


def _most_valuable(losses: np.ndarray, is_character: np.ndarray, size: int) -> np.ndarray:
    """Mask of the pieces to keep, (V,) bool: all characters, and the pieces of the largest loss, `size` in all."""
    order = np.argsort(np.where(is_character, -np.inf, -losses), kind="stable")
    kept = is_character.copy()
    kept[order[:size]] = True
    return kept


@dataclass
class _Batch:
    """All n words of one length. A span is a pair (start, end) of positions in them, S in all.

    words: (n,) the places of the words in the mapping.
    counts: (n,) how often each word occurs.
    pieces: (S, n) the number of the piece in each span of each word, V where the span is not a piece.
    """

    length: int
    words: np.ndarray
    counts: np.ndarray
    spans: list[tuple[int, int]]
    pieces: np.ndarray


class _Lattice:
    """Every way to cut every word into pieces.

    No word is longer than MAX_PIECE_LENGTH, so that products of probabilities stay far above the smallest float64.
    """

    def __init__(self, words: Mapping[str, int], pieces: list[str]):
        self.size = len(pieces)
        piece_numbers = {piece: number for number, piece in enumerate(pieces)}
        spellings = list(words)
        by_length: dict[int, list[int]] = {}
        for number, word in enumerate(spellings):
            by_length.setdefault(len(word), []).append(number)
        self.batches = []
        for length, numbers in sorted(by_length.items()):
            group = [spellings[number] for number in numbers]
            # Spans in the order of their ends, so that all ways to reach a start are known before it is left.
            spans = []
            for end in range(1, length + 1):
                spans += [(start, end) for start in range(end)]
            in_spans = np.empty((len(spans), len(group)), dtype=np.int32)
            for row, (start, end) in enumerate(spans):
                in_spans[row] = [piece_numbers.get(word[start:end], self.size) for word in group]
            counts = np.array([words[word] for word in group], dtype=float)
            self.batches.append(_Batch(length, np.array(numbers), counts, spans, in_spans))

    def keep(self, kept: np.ndarray) -> None:
        """Forgets the pieces outside the mask `kept`, (V,) bool, and numbers the others from 0."""
        self.size = int(kept.sum())
        numbers = np.where(kept, np.cumsum(kept) - 1, self.size)
        new_numbers = np.append(numbers, self.size).astype(np.int32)  # (V + 1,), last: not a piece
        for batch in self.batches:
            batch.pieces = new_numbers[batch.pieces]

    def expected_counts(self, shares: np.ndarray) -> np.ndarray:
        """Expected number of uses of each piece over all cuts, the E-step: (V,) -> (V,)."""
        shares = np.append(shares, 0)  # a span that is not a piece has probability 0
        total = np.zeros(self.size + 1)
        for batch in self.batches:
            uses = shares[batch.pieces]  # (S, n)
            # Probabilities of a word up to each position, and from it, over all cuts: (length + 1, n).
            before = np.zeros((batch.length + 1, len(batch.counts)))
            after = np.zeros((batch.length + 1, len(batch.counts)))
            before[0] = after[batch.length] = 1
            for row, (start, end) in enumerate(batch.spans):
                before[end] += before[start] * uses[row]
            for row in reversed(range(len(batch.spans))):
                start, end = batch.spans[row]
                after[start] += after[end] * uses[row]
            starts, ends = np.array(batch.spans).T
            uses *= before[starts] * after[ends] * (batch.counts / before[batch.length])
            total += np.bincount(
                batch.pieces.ravel(), weights=uses.ravel(), minlength=self.size + 1
            )
        return total[:-1]

    def best_cut(self, shares: np.ndarray) -> np.ndarray:
        """The probability of each word's best cut into two pieces or more, (words,). 0 for characters."""
        shares = np.append(shares, 0)
        word_count = sum(len(batch.words) for batch in self.batches)
        best = np.zeros(word_count)
        for batch in self.batches:
            # The best probability of a word up to each position, (length + 1, n).
            reached = np.zeros((batch.length + 1, len(batch.words)))
            reached[0] = 1
            for row, (start, end) in enumerate(batch.spans):
                if (start, end) == (0, batch.length):
                    continue  # the whole word is one piece
                candidate = reached[start] * shares[batch.pieces[row]]
                reached[end] = np.maximum(reached[end], candidate)
            best[batch.words] = reached[-1]
        return best
