"""Fine-tune BERT and GPT-2 class models and align them with human feedback.

`import rlhf` is cheap: a public name is imported from its module when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> its module. Most of them import torch, which takes seconds.
_HOME = {
    "ALGORITHMS": "rlhf.algorithms",
    "Algorithm": "rlhf.algorithms",
    "Engine": "rlhf.serving.engine.engine",
    "PolicyGradientConfig": "rlhf.policy_gradient.config",
    "PolicyGradientTrainer": "rlhf.policy_gradient.trainer",
    "RewardConfig": "rlhf.reward_model.trainer",
    "RewardTrainer": "rlhf.reward_model.trainer",
    "Rollout": "rlhf.completions.rollout",
    "RunRecord": "rlhf.runs.record",
    "UserError": "rlhf.errors",
    "load_rows": "rlhf.data.load",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'rlhf' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
