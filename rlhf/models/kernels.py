"""The same functions computed by faster kernels. Nothing that is saved changes: configs keep their names."""

from contextlib import contextmanager

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError

SHORT = 512  # tokens up to which plain attention beats SDPA's CPU kernel
CHOSEN = "attention_is_chosen"  # attribute of a model that was loaded with attn_implementation
# Attribute of a module in bf16 that holds its original parameters by name. It is put straight into __dict__, so that
# nn.Module does not register it: these parameters are never moved, counted or trained.
ORIGINALS = "original_parameters"


def use_fast_kernels(model: nn.Module, *, device: torch.device, longest: int) -> None:
    """Replace GPT-2's GELU of eight kernels by one, and on a CPU use plain attention for short rows.

    Measured on two cores, 64 rows of 80 tokens, 4 layers of 256: an epoch of PPO took 1.36 s with SDPA, 1.06 s with both
    changes. SDPA's backward pass is slow on CPUs at such lengths.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
    if getattr(model, CHOSEN, False):  # by the key attn_implementation
        return
    if device.type == "cpu" and longest <= SHORT and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")


def use_differentiable_attention(model: nn.Module) -> None:
    """Use plain attention, since fused attention has no second derivative. Refuses another that the user has chosen."""
    chosen = model.config._attn_implementation
    if getattr(model, CHOSEN, False) and chosen != "eager":
        raise UserError(
            f"attn_implementation={chosen} has no second derivative, which trpo needs: drop the key, or use eager"
        )
    model.set_attn_implementation("eager")


def store_frozen_matrices_in_bf16(model: nn.Module, *, keep_originals: bool = False) -> None:
    """Store the frozen matrices of a model in bf16, for use under bf16 autocast, which would cast them at every call.

    The results are the same bit for bit: embeddings and norms, which autocast computes in fp32, stay as they are, and so
    does an output layer that is tied to the embeddings.

    keep_originals: for a model that will be saved; `original_matrices` puts them back.
    """
    embeddings = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            embeddings.add(id(module.weight))
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        if module.weight.requires_grad or id(module.weight) in embeddings:
            continue
        if not module.weight.is_floating_point():  # packed in 4 or 8 bits
            continue
        originals = dict(module.named_parameters(recurse=False))
        for name, parameter in originals.items():
            in_bf16 = nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False)
            setattr(module, name, in_bf16)
        if keep_originals:
            module.__dict__[ORIGINALS] = originals


def set_aside(model: nn.Module) -> list[nn.Parameter]:
    """The original matrices that are kept next to those in bf16, for the memory that they take."""
    originals = []
    for module in model.modules():
        originals += module.__dict__.get(ORIGINALS, {}).values()
    return originals


@contextmanager
def original_matrices(model: nn.Module):
    """Within it, matrices stored in bf16 with `keep_originals` have their original precision again."""
    modules = [module for module in model.modules() if ORIGINALS in module.__dict__]
    in_bf16 = [dict(module.named_parameters(recurse=False)) for module in modules]
    # Taken out of the modules for the time, so that a copy of the model does not hold them twice.
    originals = [module.__dict__.pop(ORIGINALS) for module in modules]
    for module, halves, fulls in zip(modules, in_bf16, originals, strict=True):
        for name, parameter in fulls.items():
            # The model may have moved to another device since they were set aside.
            moved = parameter.to(halves[name].device)
            setattr(module, name, nn.Parameter(moved, requires_grad=False))
    try:
        yield
    finally:
        for module, halves, fulls in zip(modules, in_bf16, originals, strict=True):
            for name, parameter in halves.items():
                setattr(module, name, parameter)
            module.__dict__[ORIGINALS] = fulls
