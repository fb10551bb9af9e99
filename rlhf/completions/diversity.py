"""How much completions repeat themselves and each other."""


def distinct_n(completions: list[list[int]], n: int) -> float:
    """Different n-grams / all n-grams of all completions together (arXiv 1510.03055). 1 when none has n tokens."""
    grams = [gram for ids in completions for gram in n_grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(completions: list[list[int]]) -> float:
    """Mean over completions of 1 - different / all n-grams: the share that stood before in the same completion.

    "seq-rep-4" of arXiv 1908.04319. Under 8 tokens two 4-grams cannot stand side by side: there n = 3. Too short: 0.
    """
    shares = []
    for ids in completions:
        grams = n_grams(ids, 4 if len(ids) >= 8 else 3)
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)


def n_grams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[place : place + n]) for place in range(len(ids) - n + 1)]
