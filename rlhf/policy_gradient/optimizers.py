"""The optimizer class that the key `optim` names."""

from transformers import Trainer

from rlhf.errors import UserError

# Their update is not that of one gradient, or they make their own groups of parameters.
WITHOUT_GROUPS = ("galore", "apollo", "lomo", "adalomo", "schedule_free")


def optimizer_class(args, model) -> tuple[type, dict]:
    """(class, its options) as the Trainer would make it. UserError where that does not go with groups of parameters."""
    name = str(getattr(args.optim, "value", args.optim))
    if name.startswith(WITHOUT_GROUPS):
        raise UserError(
            f"optim={name} cannot have a group of parameters each for policy and value model: use adamw_torch_fused, "
            "adafactor, sgd or an 8-bit AdamW"
        )
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError) as error:  # a package that is not installed
        raise UserError(f"optim={name}: {error}") from error
