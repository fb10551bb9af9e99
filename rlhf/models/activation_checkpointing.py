"""Activation checkpointing: a layer's activations are computed again in the backward pass instead of being kept.

The Trainer calls `activation_checkpointing_enable` on the model that it trains. Ours are modules around one or two models of
transformers, and hand the call on by `enable`. `gradient_checkpointing` is the older name of the key.
"""

from torch import nn

from rlhf.errors import UserError
from rlhf.models.one_trunk import same_adapters
from rlhf.models.parts import base_of


def enable(
    model: nn.Module,
    activation_checkpointing_kwargs: dict | None = None,
    every_n_layers: int = 1,
    offload: bool = False,
) -> None:
    """Switch it on in a model of transformers, with LoRA or without. The arguments are transformers' own.

    With several adapters on one trunk, a layer is computed again with the adapter that it was computed with.
    """
    options = {"use_reentrant": False} | (activation_checkpointing_kwargs or {})
    if len(getattr(model, "peft_config", {})) > 1:
        options["context_fn"] = same_adapters(model)
    try:
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs=options, every_n_layers=every_n_layers, offload=offload
        )
    except ValueError as error:  # an architecture without it
        raise UserError(f"gradient_checkpointing: {error}: set it to false") from error


def drop_default(args, model: nn.Module, say) -> None:
    """Switch it off in a model that cannot do it: trl has it on by default.

    say: prints a sentence. A key that asks for it is refused earlier (`runs.settings.ModelSettings`).
    """
    base = base_of(model)
    if not args.activation_checkpointing or base.supports_gradient_checkpointing:
        return
    args.activation_checkpointing = args.gradient_checkpointing = False
    say(
        f"no gradient_checkpointing: {base.config.model_type} models have no layers to compute again"
    )


def check_activation_checkpointing(args, *, double_backward: bool = False) -> None:
    """Refuse settings under which it cannot work, or would compute something else."""
    if not args.activation_checkpointing:
        return
    if double_backward:
        raise UserError(
            f"gradient_checkpointing=True: {args.algorithm} needs a second derivative, for which all activations are kept; "
            "set it to false, lower per_device_train_batch_size, or use algorithm: ppo"
        )
    if (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
        raise UserError(
            "gradient_checkpointing_kwargs: use_reentrant: true loses the gradients of frozen inputs and of adapters: "
            "drop it"
        )
