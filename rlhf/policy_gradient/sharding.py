"""What policy-gradient training does where DeepSpeed's ZeRO or FSDP2 splits the weights over processes.

Whole weights for rollouts and for saving are those of `rlhf.runs.sharding`, whose functions are names of this module too.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from rlhf.errors import UserError
from rlhf.runs.sharding import (
    assign_whole_tensor,
    disable_sharded_loading,
    is_plain,
    twin_of,
    uses_deepspeed,
    whole_tensor,
    whole_weights,
)

__all__ = [
    "assign_whole_tensor",
    "autocast_only",
    "check_settings",
    "common_norm",
    "disable_sharded_loading",
    "forward_autocast",
    "has_sharded_weights",
    "is_plain",
    "twin_of",
    "uses_deepspeed",
    "whole_tensor",
    "whole_weights",
]


def has_sharded_weights(accelerator: Accelerator) -> bool:
    """True if each process will hold only a slice of each weight."""
    if uses_deepspeed(accelerator):
        return accelerator.state.deepspeed_plugin.zero_stage == 3  # lower stages split other things
    is_fsdp = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not is_fsdp:
        raise UserError(
            "FSDP was requested, but on CPUs accelerate runs plain DDP: use ddp_cpu.yaml or zero3_cpu.yaml"
        )
    return is_fsdp


def check_settings(
    accelerator: Accelerator, args, *, trust_region: bool, share_trunk: bool
) -> None:
    """Refuses settings that do not work with DeepSpeed or FSDP.

    Trust regions, weight averages and a shared trunk read or move the weights themselves, and cannot do so with slices.
    A warm-up of the value model fails under DeepSpeed only: it steps with gradients of 0 where others have none, which
    starts Adam's step count.
    """
    if is_plain(accelerator):
        return
    refusals = []  # (setting, what to do)
    if trust_region:
        refusals.append((f"algorithm: {args.algorithm}", "use algorithm: ppo"))
    if args.ema_decay is not None:
        refusals.append((f"ema_decay: {args.ema_decay}", "drop it"))
    if args.load_best_model_at_end:
        refusals.append(("load_best_model_at_end: true", "set it to false, take that checkpoint-N"))
    if share_trunk:
        refusals.append(("share_trunk: true", "drop it"))
    if uses_deepspeed(accelerator) and args.value_warmup_rollouts > 0:
        setting = f"value_warmup_rollouts: {args.value_warmup_rollouts}"
        refusals.append((setting, "set it to 0, use fsdp2.yaml"))
    if refusals:
        setting, remedy = refusals[0]
        raise UserError(
            f"{setting} does not work under {accelerator.distributed_type.value}: {remedy}, or start with ddp.yaml"
        )


def autocast_only(accelerator: Accelerator) -> None:
    """Turns off FSDP's own mixed precision, which would round what the model returns, log-probs, to bf16."""
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None


def forward_autocast(accelerator: Accelerator) -> AbstractContextManager:
    """The context for the forward pass of an update under FSDP. Other wrappers bring their own."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.autocast()
    return nullcontext()


def common_norm(accelerator: Accelerator) -> Tensor:
    """The norm of all gradients before DeepSpeed clipped them."""
    norm = torch.as_tensor(accelerator.deepspeed_engine_wrapped.get_global_grad_norm())
    norm = norm.detach().float()
    # DeepSpeed gives -1 for a norm that is not finite.
    return norm.masked_fill(norm < 0, float("inf"))
