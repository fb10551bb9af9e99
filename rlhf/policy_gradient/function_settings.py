"""Keys that limit the calls of reward functions. docs/rewards.md describes them."""

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf.completions.functions import CallLimits
from rlhf.runs.keys import Unused
from rlhf.runs.ranges import at_least, more_than


@dataclass
class FunctionSettings:
    """Limits of the calls of reward functions."""

    reward_timeout: float | None = field(
        default=None,
        metadata={"help": "Seconds that a call of a reward function may take. Default: no limit."},
    )
    reward_retries: int = field(
        default=0,
        metadata={
            "help": "Times that a reward function is called again for the same rows after it raised or took too long, after "
            "1, 2, 4, ... seconds."
        },
    )

    RANGES: ClassVar[dict] = {"reward_timeout": more_than(0), "reward_retries": at_least(0)}
    UNUSED: ClassVar[tuple] = (
        Unused(
            ("reward_timeout", "reward_retries"),
            "set reward_functions too",
            lambda run: bool(run.reward_functions),
        ),
    )

    def call_limits(self) -> CallLimits:
        return CallLimits(timeout=self.reward_timeout, retries=self.reward_retries)
