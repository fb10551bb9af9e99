"""Models whose weights are split over processes, by DeepSpeed's ZeRO or by FSDP2, as a whole on every process.

With DDP and with one process each process has all weights whole.

What scores, samples or saves uses a twin of the model, which holds whole weights only while they are needed. The wrapped
model itself will not do: its hooks gather and release weights layer by layer, in step over all processes, but processes
read different numbers of batches and decode different numbers of tokens.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf.errors import UserError
from rlhf.runs.trainer import RunTrainer


def disable_sharded_loading() -> None:
    """Make `from_pretrained` load whole models, by unsetting the DeepSpeed config of transformers.

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
    fill(twin, model)
    try:
        yield twin
    finally:
        for parameter in twin.parameters():
            parameter.data = parameter.data.new_empty(0)  # frees the memory


def fill(twin: nn.Module, model: nn.Module) -> None:
    """Give the twin the current weights of `model`. All processes must call it together."""
    for parameter, sharded in zip(twin.parameters(), model.parameters(), strict=True):
        parameter.data = whole_tensor(sharded)


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


def layers_to_split(model: nn.Module) -> list[str]:
    """Names of the classes of a model's layers, each of which FSDP2 gathers by itself.

    BERT's embeddings are none, though transformers lists them: accelerate splits input embeddings by themselves, with the
    output that may share them. FSDP2 cannot split a weight twice.
    """
    users = _users(model)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is not None:
        users.update(id(p) for p in embeddings.parameters())
    candidates: set[str] = set()
    for module in model.modules():
        candidates.update(getattr(module, "_no_split_modules", None) or ())
    layers: dict[str, bool] = {}  # name of a class -> whether all its weights are its own
    for module in model.modules():
        name = type(module).__name__
        if name in candidates:
            own = all(users[id(p)] == 1 for p in module.parameters())
            layers[name] = layers.get(name, True) and own
    return sorted(name for name, own in layers.items() if own)


def check_can_split(model: nn.Module) -> None:
    """Refuse a model that FSDP2 cannot split: accelerate puts the output layer into a group of its own.

    BERT's output layer for masked words shares its bias with the head around it.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    bias = getattr(output, "bias", None)
    if bias is not None and _users(model)[id(bias)] > 1:
        raise UserError(
            f"FSDP2 cannot split {type(model).__name__}, whose output layer shares its bias: start with ddp.yaml, "
            "zero2.yaml or zero3.yaml"
        )


def _users(model: nn.Module) -> Counter[int]:
    """id of a parameter -> the number of modules that hold it."""
    return Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))


class GatheringTrainer(RunTrainer):
    """Mixin for a trainer whose model is whole on every process while it is saved, and from the end of the training on.

    What a recipe does with the trained model is then the same in all layouts: it saves, merges LoRA, scores and predicts.
    Each process needs the memory of the whole model for it.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.twin = None
        if not is_plain(self.accelerator):
            # Made before the model is wrapped: FSDP's modules cannot be copied.
            self.twin = twin_of(self.model).to(self.args.device)
            if self.accelerator.distributed_type == DistributedType.FSDP:
                check_can_split(self.model)
            self.model._no_split_modules = layers_to_split(self.model)  # read by accelerate

    @contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model without wrappers, with whole weights. All processes must enter together."""
        model = self.accelerator.unwrap_model(self.model)
        if self.twin is None or model is self.twin:
            yield model
            return
        with whole_weights(self.twin, model) as whole:
            yield whole

    def train(self, *args, **options):
        """Train, and continue with a whole model on every process."""
        result = super().train(*args, **options)
        if self.twin is not None:
            if uses_deepspeed(self.accelerator):
                disable_sharded_loading()  # or trl would gather the weights of the twin
            fill(self.twin, self.accelerator.unwrap_model(self.model))
            # With the autocast that accelerate had put around the wrapped model.
            self.twin.forward = self.accelerator.autocast()(self.twin.forward)
            self.model = self.model_wrapped = self.twin
        return result
