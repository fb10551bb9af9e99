"""Metrics of implicit rewards: do they tell good answers from bad ones?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.data.splits import prompt_key
from rlhf.statistics import middle_95

RESAMPLES = 1000  # of the bootstrap


def thumb_report(rewards: Sequence[float], rows: Sequence[dict]) -> dict[str, float]:
    """Numbers of rated answers, encoded as by `rows.encode_thumbs`, of which some are good and some bad.

    auc: the share of (good, bad) pairs of answers of which the good one has the larger reward, ties half, with its 95 %
    interval over prompts (bootstrap). Also the mean rewards, their difference, and the numbers of answers.
    """
    values = torch.tensor(rewards, dtype=torch.double)
    good = torch.tensor([row["label"] for row in rows])
    prompts = prompt_numbers(rows)
    ones = torch.ones(1, len(values), dtype=torch.double)
    low, high = bootstrap_interval(values, good, prompts)
    good_mean, bad_mean = values[good].mean().item(), values[~good].mean().item()
    return {
        "auc": area_under_curve(values, good, ones).item(),
        "auc_low": low,
        "auc_high": high,
        "answers": len(rows),
        "good_answers": int(good.sum()),
        "prompts": int(prompts.max()) + 1,
        "reward_good": good_mean,
        "reward_bad": bad_mean,
        "margin": good_mean - bad_mean,
    }


def prompt_numbers(rows: Sequence[dict]) -> Tensor:
    """A number from 0 for the prompt of each row, the same for the same prompt: (N,)."""
    numbers: dict[str, int] = {}
    of_rows = []
    for row in rows:
        key = prompt_key(row["row"], "unpaired_preference")
        of_rows.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(of_rows)


def area_under_curve(values: Tensor, good: Tensor, weights: Tensor) -> Tensor:
    """The weighted share of (good, bad) pairs in which the good value is larger, ties half. NaN without a pair.

    values (N,); good (N,) bool; weights (R, N), of R resamples. Returns (R,).
    """
    _, order = torch.unique(values, return_inverse=True)  # equal values share a number
    # Of each value: the weight of the bad answers that have it, and of those below it.
    bad_weights = torch.where(good, 0.0, weights)
    sums = torch.zeros(len(weights), int(order.max()) + 1, dtype=weights.dtype)
    at = sums.index_add(1, order, bad_weights)  # (R, distinct values)
    below = at.cumsum(1) - at
    won = (below + 0.5 * at)[:, order]  # (R, N)
    good_weights = torch.where(good, weights, 0.0)
    return (good_weights * won).sum(1) / (good_weights.sum(1) * bad_weights.sum(1))


def bootstrap_interval(values: Tensor, good: Tensor, prompts: Tensor) -> tuple[float, float]:
    """95 % interval of the area under the curve. Whole prompts are drawn again: answers to one are not independent."""
    generator = torch.Generator().manual_seed(0)
    count = int(prompts.max()) + 1
    draws = torch.randint(count, (RESAMPLES, count), generator=generator)
    # How often each prompt is drawn weighs its answers.
    times = torch.zeros(RESAMPLES, count, dtype=torch.double)
    times = times.scatter_add(1, draws, torch.ones_like(draws, dtype=torch.double))
    areas = area_under_curve(values, good, times[:, prompts])
    areas = areas[~areas.isnan()]  # a draw may hold one kind alone
    return middle_95(areas)
