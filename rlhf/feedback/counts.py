"""Numbers about a feedback store: events of each kind, annotators, ties, and whether people favour the left answer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf.data.splits import prompt_key
from rlhf.feedback.events import Comparison, Event, Rating
from rlhf.statistics import wilson_interval


@dataclass(frozen=True)
class Counts:
    """Numbers of events.

    kinds: "rating", "comparison", "ranking" -> count. annotators: hash -> count.
    up, down: ratings. both_bad: comparisons.
    pairs, tied: pairs of ranked or compared answers, and those that tie.
    left, decided: comparisons of two answers with a winner, and those that the left one won.
    """

    kinds: dict[str, int]
    annotators: dict[str, int]
    prompts: int
    up: int
    down: int
    pairs: int
    tied: int
    both_bad: int
    left: int
    decided: int

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    @property
    def tie_rate(self) -> float | None:
        if not self.pairs:
            return None
        return self.tied / self.pairs

    @property
    def left_rate(self) -> tuple[float, float, float] | None:
        """(share of wins of the left answer, low, high of its 95 % interval). 0.5 without a bias of position."""
        if not self.decided:
            return None
        share = self.left / self.decided
        return (share, *wilson_interval(share, self.decided))


def count(events: Iterable[Event]) -> Counts:
    """Count all events in one pass."""
    kinds: Counter[str] = Counter()
    people: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    prompts = set()
    for event in events:
        kinds[event.kind] += 1
        people[event.annotator] += 1
        # The same prompt in other white space is the same prompt.
        prompts.add(prompt_key({"prompt": event.messages}, "ranking"))
        if isinstance(event, Rating):
            numbers[event.value] += 1
            continue
        # A comparison has ranks too: 0 for the winner and 1 for the others.
        numbers.update(_pairs(event.ranks))
        if isinstance(event, Comparison):
            numbers["both_bad"] += event.verdict == "both bad"
            # Of three answers none is left or right.
            numbers["left"] += event.verdict == "left"
            numbers["decided"] += event.verdict in ("left", "right")
    names = ("up", "down", "pairs", "tied", "both_bad", "left", "decided")
    return Counts(
        dict(kinds), dict(people), len(prompts), **{name: numbers[name] for name in names}
    )


def _pairs(ranks: list[int]) -> dict[str, int]:
    pairs = len(ranks) * (len(ranks) - 1) // 2
    tied = 0
    # Answers of one rank tie with each other.
    for size in Counter(ranks).values():
        tied += size * (size - 1) // 2
    return {"pairs": pairs, "tied": tied}
