"""Bradley-Terry strengths of the models that were compared, with intervals, and the win rate of one over another.

P(model a beats b) = 1 / (1 + exp(strength b - strength a)), Bradley and Terry 1952. A tie is half a win for both, and so is
"both bad". The winner of three beats both others, whose order stays open. Strengths are fitted with choix (Maystre and
Grossglauser 2015, I-LSR).

Each pair of models that was compared gets one imagined tie: without it, a model that never lost has infinite strength.
Its weight is that of one comparison, so it matters only where there are few.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import choix
import numpy as np

from rlhf.feedback.events import Comparison, Event, ModelUsed
from rlhf.statistics import Z, wilson_interval

PRIOR = 0.5  # wins for each of two compared models


@dataclass(frozen=True)
class Strength:
    """A model's strength among those that it can be compared with.

    group: models of different groups met neither directly nor through others, so their strengths say nothing.
    strength: on the scale of log-odds; the mean of a group is 0. low, high: of a 95 % interval.
    comparisons: pairs that the model was in. win_rate: wins among them, a tie counts half.
    """

    model: str
    group: int
    strength: float
    low: float
    high: float
    comparisons: int
    win_rate: float


@dataclass(frozen=True)
class WinRate:
    """Wins of one model over another: wins, losses and ties, the share of wins with ties as half, its 95 % interval."""

    wins: int
    losses: int
    ties: int
    share: float
    low: float
    high: float


def model_names(models: Iterable[ModelUsed]) -> dict[tuple[str, str], str]:
    """(name, revision) -> a name to show; with the start of the revision where a name has several."""
    keys = list(dict.fromkeys((model.name, model.revision) for model in models))
    names = [name for name, _ in keys]
    shown = {}
    for name, revision in keys:
        label = name
        if names.count(name) > 1:
            label = f"{name} ({revision[:8] or 'unknown'})"
        shown[name, revision] = label
    return shown


def wins_of(events: Iterable[Event]) -> tuple[list[str], np.ndarray]:
    """(names, wins (N, N)): wins[i, j] is how often i beat j, with ties as half a win for both.

    Answers that a person wrote, and two answers of one model, are not counted.
    """
    tally = WinTally()
    for event in events:
        tally.add(event)
    return tally.result()


class WinTally:
    """Counts wins event by event, so that the events need not be in memory together."""

    def __init__(self):
        self.models: dict[tuple[str, str], ModelUsed] = {}
        self.wins: Counter[tuple] = Counter()

    def add(self, event: Event) -> None:
        if not isinstance(event, Comparison):
            return
        for answer in event.answers:
            if answer.model is not None:
                self.models.setdefault((answer.model.name, answer.model.revision), answer.model)
        for first, second, share in _duels(event):
            self.wins[first, second] += share
            self.wins[second, first] += 1 - share

    def result(self) -> tuple[list[str], np.ndarray]:
        names = model_names(self.models.values())
        index = {key: i for i, key in enumerate(names)}
        wins = np.zeros((len(names), len(names)))  # (N, N)
        for (first, second), total in self.wins.items():
            wins[index[first], index[second]] = total
        return list(names.values()), wins


def _duels(event: Comparison) -> list[tuple[tuple[str, str], tuple[str, str], float]]:
    """(first model, second model, the first one's share of the win) of each pair that the verdict orders or ties."""
    ranks = event.ranks
    has_winner = 0 in ranks and 1 in ranks
    duels = []
    for i, first in enumerate(event.answers):
        for j in range(i + 1, len(event.answers)):
            second = event.answers[j]
            # Written by the annotator.
            if first.model is None or second.model is None:
                continue
            keys = [(model.name, model.revision) for model in (first.model, second.model)]
            is_open = has_winner and ranks[i] == ranks[j]  # both lost to the third
            if keys[0] == keys[1] or is_open:
                continue
            # 1, 0.5 or 0 for ranks 0 and 1, equal, 1 and 0.
            duels.append((*keys, 0.5 + 0.5 * (ranks[j] - ranks[i])))
    return duels


def strengths(events: Iterable[Event]) -> list[Strength]:
    """The strengths of all compared models, group by group, the strongest first. [] without a comparison."""
    return strengths_of(*wins_of(events))


def strengths_of(names: list[str], wins: np.ndarray) -> list[Strength]:
    """The same, from wins (N, N) that were counted."""
    result = []
    for group, members in enumerate(groups(wins)):
        # A model alone was compared with itself only.
        if len(members) > 1:
            result += _group_strengths(names, wins, members, group)
    return result


def groups(wins: np.ndarray) -> list[list[int]]:
    """The models in groups that comparisons connect, the largest group first."""
    met = (wins + wins.T) > 0
    left = set(range(len(wins)))
    result = []
    while left:
        # Breadth first over the models that met.
        members, fresh = set(), {min(left)}
        while fresh:
            members |= fresh
            neighbours = {int(j) for i in fresh for j in np.flatnonzero(met[i])}
            fresh = neighbours - members
        result.append(sorted(members))
        left -= members
    return sorted(result, key=len, reverse=True)


def _group_strengths(
    names: list[str], wins: np.ndarray, members: list[int], group: int
) -> list[Strength]:
    wins = wins[np.ix_(members, members)]  # (n, n) of this group
    games = wins + wins.T
    fitted = fit(wins)
    errors = standard_errors(wins, fitted)
    rows = []
    for k, member in enumerate(members):
        count = games[k].sum()
        rows.append(
            Strength(
                names[member],
                group,
                float(fitted[k]),
                float(fitted[k] - Z * errors[k]),
                float(fitted[k] + Z * errors[k]),
                round(count),
                float(wins[k].sum() / count),
            )
        )
    return sorted(rows, key=lambda row: row.strength, reverse=True)


def with_prior(wins: np.ndarray) -> np.ndarray:
    """Wins (n, n) with the imagined tie of each pair that met."""
    return wins + PRIOR * ((wins + wins.T) > 0)


def fit(wins: np.ndarray) -> np.ndarray:
    """Strengths (n,) of connected models with mean 0."""
    fitted = choix.ilsr_pairwise_dense(with_prior(wins), max_iter=1000)
    # Only differences have a meaning.
    return fitted - fitted.mean()


def standard_errors(wins: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Standard errors (n,) of strengths with mean 0, from the Fisher information n_ij p (1 - p)."""
    games = with_prior(wins) + with_prior(wins).T
    chance = 1 / (1 + np.exp(fitted[None, :] - fitted[:, None]))  # P(i beats j)
    weights = games * chance * (1 - chance)
    # (n, n)
    information = np.diag(weights.sum(axis=1)) - weights
    # Singular, because only differences are known. Its pseudo-inverse is the covariance where the mean is fixed.
    covariance = np.linalg.pinv(information)
    return np.sqrt(np.diag(covariance).clip(min=0))


def win_rate(events: Iterable[Event], model: str, other: str) -> WinRate | None:
    """Wins of `model` over `other`, by their names in the app; None if they never met."""
    wins = losses = ties = 0
    for event in events:
        if not isinstance(event, Comparison):
            continue
        for (first, _), (second, _), share in _duels(event):
            # The pair may be in either order.
            if (first, second) == (other, model):
                share = 1 - share
            elif (first, second) != (model, other):
                continue
            wins += share == 1
            losses += share == 0
            ties += share == 0.5
    count = wins + losses + ties
    if not count:
        return None
    share = (wins + ties / 2) / count
    return WinRate(wins, losses, ties, share, *wilson_interval(share, count))
