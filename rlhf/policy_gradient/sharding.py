"""Everything that depends on how weights are split over devices by DeepSpeed's ZeRO and by FSDP2.

With DDP and with one process each process has all weights whole.

Rollouts and saving use a twin of the model, which holds whole weights only while they are needed. The wrapped model
itself cannot decode: its hooks gather and release weights layer by layer, in step over all processes, but processes
decode different numbers of tokens.
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
    """Makes `from_pretrained` load whole models, by unsetting the DeepSpeed config of transformers.

    Otherwise ZeRO-3 splits every model while it is loaded (policy, reference and reward model alike), from the moment a
    TrainingArguments exists, whatever `zero3_init_flag` is.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def is_plain(accelerator: Accelerator) -> bool:
    """True for one process and for DDP, where each process has its own copy of all weights."""
    return accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """True under DeepSpeed, which clips and steps inside `backward`.

    It clips all gradients by one norm, before any code of ours sees them.
    """
    return accelerator.distributed_type == DistributedType.DEEPSPEED


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


def twin_of(model: nn.Module) -> nn.Module:
    """A frozen copy of the modules, with empty weights."""
    # deepcopy takes these instead of copying the parameters, so the weights are never held twice.
    empty_parameters = {}
    for parameter in model.parameters():
        empty = torch.empty(0, dtype=parameter.dtype)
        empty_parameters[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    return copy.deepcopy(model, memo=empty_parameters).eval()


@contextmanager
def whole_weights(twin: nn.Module, model: nn.Module) -> Iterator[nn.Module]:
    """A context in which the twin has the current weights of `model`, whole on every process.

    All processes must enter it together, because each sends its slices to the others.
    """
    for parameter, sharded in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.data = whole_tensor(sharded)
    try:
        yield twin
    finally:
        for parameter in twin.parameters():
            parameter.data = parameter.data.new_empty(0)  # frees the memory


def whole_tensor(parameter: Tensor) -> Tensor:
    """A parameter, or a tensor computed from parameters, as a plain tensor."""
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    if isinstance(parameter, DTensor):  # FSDP2
        return parameter.full_tensor().detach()
    return parameter.detach()


@torch.no_grad()
def assign_whole_tensor(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Gives a parameter new values. Under FSDP each process keeps its slice of them."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        tensor = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    parameter.copy_(tensor)
