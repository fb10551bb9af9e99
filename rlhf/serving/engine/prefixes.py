"""Keys and values of recent conversations, so that the next turn of one reads only what is new.

They are kept per model and copied when they are used, so that two branches of a conversation do not disturb each other.
"""

from dataclasses import dataclass

from torch import Tensor

KEPT = 16  # conversations
KEPT_BYTES = 5e8  # of all of them
SHORTEST = 24  # tokens: a shorter prefix is read again as fast


@dataclass(frozen=True)
class Prefix:
    """ids that a model read, and its keys and values of them: per layer, each (1, heads, L, width)."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor]]

    @property
    def bytes(self) -> int:
        total = 0
        for keys, values in self.layers:
            total += keys.nbytes + values.nbytes
        return total


class Prefixes:
    """The latest conversations of one model."""

    def __init__(self):
        self.kept: list[Prefix] = []  # the latest last

    def add(self, prefix: Prefix) -> None:
        """Keep one. What it continues is dropped, and the oldest ones where they are too many."""
        if len(prefix.ids) < SHORTEST:
            return
        self.kept = [old for old in self.kept if prefix.ids[: len(old.ids)] != old.ids]
        self.kept.append(prefix)
        while len(self.kept) > KEPT or sum(one.bytes for one in self.kept) > KEPT_BYTES:
            self.kept.pop(0)

    def find(self, ids: list[int]) -> tuple[Prefix | None, int]:
        """The kept conversation that shares most with a prompt, and how many tokens. The last token is always read."""
        best, most = None, SHORTEST - 1
        for prefix in self.kept:
            count = shared(prefix.ids, ids[:-1])
            if count > most:
                best, most = prefix, count
        return (best, most) if best is not None else (None, 0)


def shared(first: list[int], second: list[int]) -> int:
    """Number of tokens at the start that two lists have in common."""
    longest = min(len(first), len(second))
    if first[:longest] == second[:longest]:
        return longest
    for i in range(longest):
        if first[i] != second[i]:
            return i
    return longest
