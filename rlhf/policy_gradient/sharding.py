"""All that knows how weights lie on several devices, with DeepSpeed's ZeRO and FSDP2; DDP and one process have them whole.

Rollouts and saving use a twin of the model that holds whole weights only meanwhile. Not the wrapped model itself: its hooks
gather and release weights layer by layer, in step over all processes, and processes decode different numbers of tokens.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.errors import UserError


def disable_sharded_loading() -> None:
    """Keep `from_pretrained` from splitting each model as it loads it, policy, reference and reward model alike, which under
    ZeRO-3 it does from the moment a TrainingArguments exists, whatever `zero3_init_flag` says."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def is_plain(accelerator: Accelerator) -> bool:
    """One process, or DDP: each process has all weights, as its own."""
    return accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """DeepSpeed clips and steps inside `backward`: all gradients by one norm, before any code of ours sees them."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def has_sharded_weights(accelerator: Accelerator) -> bool:
    """Whether each process will keep only a slice of each weight."""
    if uses_deepspeed(accelerator):
        return accelerator.state.deepspeed_plugin.zero_stage == 3
    fsdp = accelerator.distributed_type == DistributedType.FSDP
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not fsdp:
        raise UserError(
            "FSDP was asked for, but on CPUs accelerate runs plain DDP: use ddp_cpu.yaml or zero3_cpu.yaml"
        )
    return fsdp


def check_settings(
    accelerator: Accelerator, args, *, trust_region: bool, share_trunk: bool
) -> None:
    """Refuse what reads or moves the weights themselves and has no form for slices of them; and under DeepSpeed a warm-up of
    the value model, since DeepSpeed steps with gradients of 0 where others have none, which starts Adam's clock."""
    if is_plain(accelerator):
        return
    warms_up = uses_deepspeed(accelerator) and args.value_warmup_rollouts > 0
    refused = {
        f"algorithm: {args.algorithm}": (trust_region, "use algorithm: ppo"),
        f"ema_decay: {args.ema_decay}": (args.ema_decay is not None, "leave it out"),
        "share_trunk: true": (share_trunk, "leave it out"),
        f"value_warmup_rollouts: {args.value_warmup_rollouts}": (
            warms_up,
            "set it to 0, use fsdp2.yaml",
        ),
    }
    for setting, (found, remedy) in refused.items():
        if found:
            raise UserError(
                f"{setting} does not work under {accelerator.distributed_type.value}: {remedy}, or start with ddp.yaml"
            )


def autocast_only(accelerator: Accelerator) -> None:
    """No mixed precision of FSDP's own: it would round what the model returns, log-probs, to bf16."""
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None


def forward_autocast(accelerator: Accelerator) -> AbstractContextManager:
    """Around the forward pass of an update; other wrappers bring their own."""
    return (
        accelerator.autocast()
        if accelerator.distributed_type == DistributedType.FSDP
        else nullcontext()
    )


def common_norm(accelerator: Accelerator) -> Tensor:
    """The norm of all gradients before DeepSpeed clipped them; infinite also where it says -1."""
    norm = (
        torch.as_tensor(accelerator.deepspeed_engine_wrapped.get_global_grad_norm())
        .detach()
        .float()
    )
    return norm.masked_fill(norm < 0, float("inf"))


def twin_of(model: nn.Module) -> nn.Module:
    """A frozen copy of the modules, with empty weights."""
    empty = {
        id(p): nn.Parameter(torch.empty(0, dtype=p.dtype), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo=empty).eval()


@contextmanager
def whole_weights(twin: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """The twin with the present weights of `model`, whole on every process; all processes must enter together."""
    for mine, sharded in zip(twin.parameters(), model.parameters(), strict=True):
        mine.data = whole_tensor(sharded)
    try:
        yield twin
    finally:
        for mine in twin.parameters():
            mine.data = mine.data.new_empty(0)


def whole_tensor(parameter: Tensor) -> Tensor:
    """A parameter, or what was computed of parameters, as a plain tensor."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return (
        parameter.full_tensor().detach() if isinstance(parameter, DTensor) else parameter.detach()
    )


@torch.no_grad()
def assign_whole_tensor(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Give a parameter new values; under FSDP each process keeps its slice of them."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    parameter.copy_(tensor)
