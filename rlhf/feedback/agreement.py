"""Agreement between annotators: Krippendorff's alpha over the pairs of answers that several people ordered.

A unit is a pair of answers to a prompt, and its value is one of: the first is better, tie, the second is better. These are
ordinal. Ranks themselves are no units: rank 2 of 3 answers and rank 2 of 9 are not the same, and the rank of an answer
depends on how many ties are above it. Each pair is entered in both directions, so that alpha does not depend on which of
the two is called the first. Rankings and comparisons of the same answers are counted together.

alpha = 1 - observed / expected disagreement: 1 is full agreement, 0 is that of people who choose at random.
Krippendorff, Content Analysis (2004), chapter 11, computed by the library `krippendorff`.
"""

import hashlib
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import krippendorff
import numpy as np

from rlhf.data.judgements import merged
from rlhf.data.splits import prompt_number
from rlhf.feedback.events import Event, Rating

FIRST, TIE, SECOND = 0, 1, 2  # columns of the counts, in their order
RESAMPLES = 200  # for the interval
ENOUGH = 10  # prompts; with fewer an interval says nothing

# The annotator, hashes of the different answers, and their ranks.
Judgement = tuple[str, tuple[int, ...], tuple[int, ...]]
# Of one prompt: pair of answers -> annotator -> value.
Pairs = dict[tuple[int, int], dict[str, int]]


@dataclass(frozen=True)
class Agreement:
    """Agreement on answers that at least two people ordered.

    alpha: None where fewer than two people ordered the same pair, or where no answer is ever better than another.
    low, high: of a 95 % interval, from resampled prompts; None for fewer than 10 prompts.
    prompts, pairs, annotators: that were counted. same: share of equal values among two people's values of a pair.
    """

    alpha: float | None
    low: float | None
    high: float | None
    prompts: int
    pairs: int
    annotators: int
    same: float | None


def agreement(events: Iterable[Event]) -> Agreement:
    """The agreement of all rankings and comparisons. Of two judgements of one person, the last one counts.

    People without a name are not counted, since two of them may be one.
    """
    tally = AgreementTally()
    for event in events:
        tally.add(event)
    return tally.result()


class AgreementTally:
    """Takes events one by one and keeps of each only the hashes of its texts, with their ranks."""

    def __init__(self):
        self.prompts: dict[int, list[Judgement]] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, Rating) or not event.annotator:
            return
        # Two wordings that differ in white space are one prompt.
        prompt = prompt_number({"prompt": event.messages}, "ranking")
        # Of equal texts the best rank counts, as in training.
        texts, ranks = merged([answer.text for answer in event.answers], event.ranks)
        answers = tuple(_digest(text) for text in texts)
        judgement = (sys.intern(event.annotator), answers, tuple(ranks))
        self.prompts.setdefault(prompt, []).append(judgement)

    def result(self) -> Agreement:
        return _agreement_on(self.prompts)


def _digest(text: str) -> int:
    """The hash of a text that stands for it, below 2^63."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _agreement_on(prompts: dict[int, list[Judgement]]) -> Agreement:
    shared = _shared(prompts)
    if not shared:
        return Agreement(None, None, None, 0, 0, 0, None)
    tables = [_counts(pairs) for pairs in shared]  # one per prompt
    alpha = alpha_of(np.concatenate(tables))
    low = high = None
    if alpha is not None and len(tables) >= ENOUGH:
        low, high = _interval(tables)
    people = set()
    for pairs in shared:
        for values in pairs.values():
            people.update(values)
    count = sum(len(pairs) for pairs in shared)
    return Agreement(
        alpha, low, high, len(tables), count, len(people), same_share(np.concatenate(tables))
    )


def _ordered_pairs(judgements: list[Judgement]) -> Pairs:
    """The values of the pairs of one prompt."""
    pairs: Pairs = {}
    for annotator, answers, ranks in judgements:
        for i, first in enumerate(answers):
            for j, second in enumerate(answers):
                # In the order of their hashes, so that everybody's value is about the same direction.
                if first < second:
                    values = pairs.setdefault((first, second), {})
                    values[annotator] = _value(ranks[i], ranks[j])
    return pairs


def _value(first: int, second: int) -> int:
    if first == second:
        return TIE
    return FIRST if first < second else SECOND


def _shared(prompts: dict[int, list[Judgement]]) -> list[Pairs]:
    """The pairs with values of at least two people, of each prompt that has one."""
    shared = []
    for judgements in prompts.values():
        pairs = _ordered_pairs(judgements)
        several = {pair: values for pair, values in pairs.items() if len(values) > 1}
        if several:
            shared.append(several)
    return shared


def _counts(pairs: Pairs) -> np.ndarray:
    """Counts of people by value, (2 * pairs, 3): each pair, then each pair in the other direction."""
    counts = np.zeros((len(pairs), 3), dtype=int)
    for i, values in enumerate(pairs.values()):
        for value in values.values():
            counts[i, value] += 1
    return np.concatenate([counts, counts[:, ::-1]])


def alpha_of(counts: np.ndarray) -> float | None:
    """Krippendorff's alpha of value counts (units, 3); None where all values are the same, for 0 / 0."""
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="ordinal"))


def same_share(counts: np.ndarray) -> float:
    """The share of equal values among all two people's values of the same unit. counts: (units, 3)."""
    people = counts.sum(axis=1)
    same = (counts * (counts - 1)).sum()
    return float(same / (people * (people - 1)).sum())


def _interval(tables: list[np.ndarray]) -> tuple[float, float]:
    """The middle 95 % of alpha over resampled prompts, since the pairs of one prompt depend on each other."""
    rng = random.Random(0)
    alphas = []
    for _ in range(RESAMPLES):
        alpha = alpha_of(np.concatenate(rng.choices(tables, k=len(tables))))
        if alpha is not None:
            alphas.append(alpha)
    low, high = np.percentile(alphas, [2.5, 97.5])
    return float(low), float(high)
