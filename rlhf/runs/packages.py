"""Packages that keys of TrainingArguments need: a missing one is reported before the run, and not as it begins to train."""

from torch import nn
from transformers import Trainer
from transformers.integrations import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.utils import is_liger_kernel_available

from rlhf.errors import UserError


def check_packages(args) -> None:
    """Refuse report_to, optim and use_liger_kernel where their package is not installed. args: TrainingArguments."""
    available = get_available_reporting_integrations()
    missing = [name for name in args.report_to if name not in available]
    try:
        for callback in get_reporting_integration_callbacks(missing):
            callback()  # the Trainer would make it too
    except (ImportError, RuntimeError, ValueError) as error:  # ValueError: no such name
        raise UserError(f"report_to: {error}; or set report_to: none") from error
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    except ImportError as error:
        name = getattr(args.optim, "value", args.optim)
        raise UserError(f"optim={name}: {error}") from error
    except ValueError:  # about the layers of a model, which this is not
        pass
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError(
            "use_liger_kernel: the package liger-kernel is not installed: install it, or drop the key"
        )
