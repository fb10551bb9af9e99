"""The same functions computed by faster kernels. Nothing that is saved changes: configs keep their names."""

from contextlib import contextmanager

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

SHORT = 512  # tokens up to which plain attention beats SDPA's CPU kernel


def use_fast_kernels(model: nn.Module, *, device: torch.device, longest: int) -> None:
    """GPT-2's GELU in one kernel in place of eight, everywhere; on a CPU plain attention for short rows.

    Measured on two cores, 64 rows of 80 tokens, 4 layers of 256: an epoch of PPO took 1.36 s with SDPA, 1.06 s with both
    changes: SDPA's backward pass is slow on CPUs at such lengths.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())
    if device.type == "cpu" and longest <= SHORT and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")


def halve_frozen_matrices(model: nn.Module, *, keep: bool = False) -> None:
    """Store the frozen matrices of a model in bf16, for use under bf16 autocast, which would cast them at every call.

    The results are the same bit for bit: embeddings and norms, which autocast computes in fp32, stay as they are, and so
    does an output layer that is tied to the embeddings. keep: for a model that will be saved; `full_matrices` has them.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embeddings:
            if not module.weight.requires_grad:
                full = dict(module.named_parameters(recurse=False))
                for name, parameter in full.items():
                    setattr(
                        module,
                        name,
                        nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False),
                    )
                if keep:
                    module.__dict__["full"] = (
                        full  # not registered: never moved, counted or trained
                    )


@contextmanager
def full_matrices(model: nn.Module):
    """Within it the matrices that were halved with `keep` stand in their full precision again."""
    halved = [module for module in model.modules() if "full" in module.__dict__]
    for module in halved:
        half, full = dict(module.named_parameters(recurse=False)), module.__dict__["full"]
        module.__dict__["full"] = half
        for name, parameter in full.items():
            setattr(
                module, name, nn.Parameter(parameter.to(half[name].device), requires_grad=False)
            )
    try:
        yield
    finally:
        for module in halved:
            full = dict(module.named_parameters(recurse=False))
            half, module.__dict__["full"] = module.__dict__["full"], full
            for name, parameter in half.items():
                setattr(module, name, parameter)
