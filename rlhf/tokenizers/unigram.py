"""The vocabulary of a Unigram tokenizer: pieces of words with probabilities, learned by EM and pruning.

Source: Kudo 2018, arXiv 1804.10959, section 3.2. A word is the product of the probabilities of its pieces; every way to
cut it counts. Seeds are the substrings of the words; EM fits their probabilities; pieces whose loss would cost the
likelihood least are dropped, a quarter at a time, until `size` are left. Characters are always kept.

Why not the trainer of `tokenizers`: it sums in the order of a hash table, so each run gives other pieces, and it took a
minute for 10,000 Korean reviews, where this takes ten seconds for 45,000. Here words of one length are one batch: a step of
the lattice is one array operation. Left out of SentencePiece's trainer: the sparse prior (digamma), and counting in the
best cut only; expected counts serve for both.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

LONGEST = 16  # characters of a piece; longer words (URLs, laughter) are learned from in parts of this length
SEEDS = 1_000_000  # at most, as in SentencePiece
KEPT = 0.75  # share of the pieces that a round of pruning leaves
SLACK = (
    1.1  # EM still empties some pieces, so pruning stops short of the size; the last cut is exact
)


def train_unigram(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """Word counts -> at most `size` (piece, log-probability), the most probable first; fewer where the words have no more.

    A piece of several characters stands in the words twice or more as a substring, and once or more in the cuts.
    """
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(0, len(word), LONGEST):
            parts[word[start : start + LONGEST]] += count
    pieces, counts = _seeds(parts)
    lattice = _Lattice(parts, pieces)
    single = np.array([len(piece) == 1 for piece in pieces])
    done = False
    while not done:
        for _ in range(2):
            counts = lattice.expected_counts(_shares(counts))
        kept = single | (counts >= 1)
        done = kept.sum() <= SLACK * size
        target = size if done else max(int(SLACK * size), int(KEPT * kept.sum()))
        if kept.sum() > target:
            worth = np.where(kept, counts * _saved(pieces, _shares(counts)), -np.inf)
            kept = _first(worth, single, target)
        pieces = [piece for piece, keep in zip(pieces, kept, strict=True) if keep]
        lattice.keep(kept)
        counts, single = counts[kept], single[kept]
    scores = np.log(_shares(lattice.expected_counts(_shares(counts))))
    return sorted(zip(pieces, scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))


def _seeds(parts: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """All characters, and the substrings seen at least twice, with how often they are seen."""
    seen: Counter[str] = Counter()
    for word, count in parts.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                seen[word[start:end]] += count
    characters = sorted(piece for piece in seen if len(piece) == 1)
    longer = [piece for piece, count in seen.items() if len(piece) > 1 and count > 1]
    longer = sorted(longer, key=lambda piece: (-seen[piece] * len(piece), piece))[:SEEDS]
    pieces = characters + longer
    return pieces, np.array([seen[piece] for piece in pieces], dtype=float)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Probabilities, (V,) -> (V,): the M-step. A character that no cut uses keeps a hundredth of a count."""
    counts = np.maximum(counts, 0.01)
    return counts / counts.sum()


def _saved(pieces: list[str], shares: np.ndarray) -> np.ndarray:
    """The log-probability that one use of a piece saves over the best cut into other pieces, (V,); inf for characters."""
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log(_Lattice(dict.fromkeys(pieces, 1), pieces).best_cut(shares))


def _first(worth: np.ndarray, single: np.ndarray, size: int) -> np.ndarray:
    """Which pieces stay, (V,) bool: the characters, and those of the largest worth, `size` in all."""
    order = np.argsort(np.where(single, -np.inf, -worth), kind="stable")
    kept = single.copy()
    kept[order[:size]] = True
    return kept


class _Lattice:
    """Every way to cut every word into pieces. Words of one length are a batch; a span is a place for a piece in them.

    No word is longer than LONGEST, so that products of probabilities stay far from the smallest float64.
    """

    def __init__(self, words: Mapping[str, int], pieces: list[str]):
        self.size = len(pieces)
        numbers = {piece: number for number, piece in enumerate(pieces)}
        places: dict[int, list[int]] = {}
        listed = list(words)
        for place, word in enumerate(listed):
            places.setdefault(len(word), []).append(place)
        self.batches = []  # place in `words` (n,), counts (n,), spans, number of the piece in each span (spans, n)
        for length, group in sorted(places.items()):
            spans = [(start, end) for end in range(1, length + 1) for start in range(end)]
            found = np.empty((len(spans), len(group)), dtype=np.int32)
            for row, (start, end) in enumerate(spans):
                found[row] = [
                    numbers.get(listed[place][start:end], self.size) for place in group
                ]  # size: no piece
            counts = np.array([words[listed[place]] for place in group], dtype=float)
            self.batches.append((np.array(group), counts, spans, found))

    def keep(self, kept: np.ndarray) -> None:
        """Forget the pieces that are not kept, (V,) bool, and number the rest anew."""
        self.size = int(kept.sum())
        renumbered = np.append(np.where(kept, np.cumsum(kept) - 1, self.size), self.size).astype(
            np.int32
        )
        self.batches = [(*batch, renumbered[found]) for *batch, found in self.batches]

    def expected_counts(self, shares: np.ndarray) -> np.ndarray:
        """How often each piece is used over all cuts, weighted by their probability: the E-step. (V,) -> (V,)."""
        shares = np.append(shares, 0)
        total = np.zeros(self.size + 1)
        for _, counts, spans, found in self.batches:
            length = spans[-1][1]
            uses = shares[found]
            before, after = np.zeros((length + 1, len(counts))), np.zeros((length + 1, len(counts)))
            before[0] = after[length] = 1  # probability of the word up to, and from, each place
            for row, (start, end) in enumerate(spans):
                before[end] += before[start] * uses[row]
            for row, (start, end) in reversed(list(enumerate(spans))):
                after[start] += after[end] * uses[row]
            starts, ends = np.array(spans).T
            uses *= before[starts] * after[ends] * (counts / before[length])
            total += np.bincount(found.ravel(), weights=uses.ravel(), minlength=self.size + 1)
        return total[:-1]

    def best_cut(self, shares: np.ndarray) -> np.ndarray:
        """Probability of each word's best cut into two pieces or more, (words,); 0 for characters."""
        shares = np.append(shares, 0)
        best = np.zeros(sum(len(places) for places, *_ in self.batches))
        for places, _, spans, found in self.batches:
            reached = np.zeros((spans[-1][1] + 1, len(places)))
            reached[0] = 1
            for row, (start, end) in enumerate(spans):
                if (start, end) != (0, len(reached) - 1):
                    reached[end] = np.maximum(reached[end], reached[start] * shares[found[row]])
            best[places] = reached[-1]
        return best
