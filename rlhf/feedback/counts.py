"""Numbers about a feedback store: events of each kind, annotators, ties, and whether people favour the left answer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf.data.splits import prompt_number
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
    tally = CountTally()
    for event in events:
        tally.add(event)
    return tally.result()


class CountTally:
    """Counts events one by one, so that they need not be in memory together."""

    def __init__(self):
        self.kinds: Counter[str] = Counter()
        self.people: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.prompts: set[int] = set()

    def add(self, event: Event) -> None:
        self.kinds[event.kind] += 1
        self.people[event.annotator] += 1
        # The same prompt in other white space is the same prompt.
        self.prompts.add(prompt_number({"prompt": event.messages}, "ranking"))
        if isinstance(event, Rating):
            self.numbers[event.value] += 1
            return
        # A comparison has ranks too: 0 for the winner and 1 for the others.
        self.numbers.update(_pairs(event.ranks))
        if isinstance(event, Comparison):
            self.numbers["both_bad"] += event.verdict == "both bad"
            # Of three answers none is left or right.
            self.numbers["left"] += event.verdict == "left"
            self.numbers["decided"] += event.verdict in ("left", "right")

    def result(self) -> Counts:
        names = ("up", "down", "pairs", "tied", "both_bad", "left", "decided")
        numbers = {name: self.numbers[name] for name in names}
        return Counts(dict(self.kinds), dict(self.people), len(self.prompts), **numbers)


def _pairs(ranks: list[int]) -> dict[str, int]:
    pairs = len(ranks) * (len(ranks) - 1) // 2
    tied = 0
    # Answers of one rank tie with each other.
    for size in Counter(ranks).values():
        tied += size * (size - 1) // 2
    return {"pairs": pairs, "tied": tied}
