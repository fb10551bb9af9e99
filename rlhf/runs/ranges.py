"""Ranges of numeric settings. They are checked once, before anything is loaded.

A dataclass of settings declares them in its class attribute RANGES, key -> Range. They cannot be in the metadata of a
field, which transformers' parser hands to argparse.
"""

import dataclasses
import math
from dataclasses import dataclass

from rlhf.errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers from low to high. NaN is in none.

    without_low, without_high: the bound itself is not allowed.
    also: single numbers that have a meaning of their own, such as -1 for "no limit".
    """

    low: float
    high: float
    without_low: bool = False
    without_high: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        if value in self.also:
            return True
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """Text such as "at least 0 and below 1"."""
        parts = [f"{'more than' if self.without_low else 'at least'} {self.low}"]
        if self.high != math.inf:
            parts.append(f"{'below' if self.without_high else 'at most'} {self.high}")
        text = " and ".join(parts)
        for value in self.also:
            text += f", or {value}"
        return text


def at_least(low: float, *, also: tuple[float, ...] = ()) -> Range:
    """Every finite number from `low` on."""
    return Range(low, math.inf, without_high=True, also=also)


def more_than(low: float) -> Range:
    """Every finite number above `low`."""
    return Range(low, math.inf, without_low=True, without_high=True)


SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, without_high=True)
# of transformers.TrainingArguments
ARGUMENTS = {
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "gradient_accumulation_steps": at_least(1),
    "num_train_epochs": more_than(0),
    "max_steps": at_least(1, also=(-1,)),
    "learning_rate": at_least(0),
    "warmup_steps": at_least(0),
    "weight_decay": at_least(0),
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": at_least(0),
    "max_grad_norm": Range(0, math.inf),  # 0 and infinity: no clipping
    "label_smoothing_factor": BELOW_ONE,
    "neftune_noise_alpha": at_least(0),
    "logging_steps": more_than(0),
    "eval_steps": at_least(0),  # 0: as logging_steps
    "eval_delay": at_least(0),
    "save_steps": more_than(0),
    "save_total_limit": at_least(1),
    "dataloader_num_workers": at_least(0),
    "seed": Range(0, 2**32 - 1),  # numpy's
    "data_seed": Range(0, 2**32 - 1),
    "ddp_timeout": at_least(1),
}


def ranges_of(settings: type) -> dict[str, Range]:
    """Key -> range, of a class of settings. A class's own win over those that it inherits."""
    ranges: dict[str, Range] = {}
    for cls in reversed(settings.__mro__):
        if cls.__name__ == "TrainingArguments":
            ranges |= ARGUMENTS
        ranges |= cls.__dict__.get("RANGES", {})
    return ranges


def check_ranges(settings) -> None:
    """Refuse a number that is out of its range. Unset ones (None) are not checked."""
    ranges = ranges_of(type(settings))
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name, None)
        if not f.init or f.name not in ranges or value is None:
            continue
        allowed = ranges[f.name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{f.name}={value!r} must be a number: {allowed}")
        if value not in allowed:
            raise UserError(f"{f.name}={value} must be {allowed}")
