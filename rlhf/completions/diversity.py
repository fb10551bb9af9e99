"""Diversity: how much completions repeat themselves and each other."""


def distinct_n(completions: list[list[int]], n: int) -> float:
    """Different n-grams / all n-grams of all completions together (arXiv 1510.03055). 1 when none has n tokens."""
    grams = []
    for ids in completions:
        grams += n_grams(ids, n)
    if not grams:
        return 1.0
    return len(set(grams)) / len(grams)


def repetition(completions: list[list[int]]) -> float:
    """Mean over completions of 1 - different / all n-grams: the share that occurred before in the same completion.

    "seq-rep-4" of arXiv 1908.04319. Too short for one: 0.
    """
    shares = []
    for ids in completions:
        # Under 8 tokens there is no room for two separate 4-grams.
        n = 4 if len(ids) >= 8 else 3
        grams = n_grams(ids, n)
        share = 0.0
        if grams:
            different = len(set(grams))
            share = 1 - different / len(grams)
        shares.append(share)
    return sum(shares) / len(shares)


def n_grams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    starts = range(len(ids) - n + 1)
    return [tuple(ids[start : start + n]) for start in starts]
