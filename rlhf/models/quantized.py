"""Models whose frozen matrices are stored in 4 or 8 bits by bitsandbytes, under LoRA matrices in full precision (QLoRA).

The numbers are those of arXiv 2305.14314 (4 bits: NF4, one scale for 64 weights) and arXiv 2208.07339 (8 bits). Deviation:
scales are not quantized a second time, which saves 0.4 bits per weight and costs time.

What is trained is what is saved: the matrices go back to full precision, and LoRA is added to them. To merge into the
quantized matrices, as PEFT does, would round the sum to 4 bits again, and lose most of what was learned.
"""

import copy
import os
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.parts import base_of

BITS = ("4bit", "8bit")
INSTALL = "pip install 'rlhf[quant]', which brings bitsandbytes"
# Set by `accelerate launch` for layouts that split weights or optimizer over processes.
SPLITTING = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
TRANSPOSED = ("gpt2", "openai-gpt")  # architectures whose matrices are (inputs, outputs)
LINEAR_4_BIT = "Linear4bit"  # bitsandbytes' class


def check_quantization(bits: str, *, use_peft: bool) -> None:
    """UserError where a model cannot be loaded in so few bits and trained, before anything is read. bits: one of BITS."""
    key = f"load_in_{bits}: true"
    if not use_peft:
        raise UserError(
            f"{key} freezes the weights, so LoRA must learn: set use_peft: true too, or drop the key"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{key} needs bitsandbytes, which is not installed: {INSTALL}")
    # Under DDP each process has its own packed copy.
    for variable, name in SPLITTING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(
                f"{key} does not work under {name}, which would split the packed weights: start with "
                "ddp.yaml, or drop the key"
            )


def quantization_config(bits: str, dtype: torch.dtype):
    """The `quantization_config` of from_pretrained. dtype: in which matrices are unpacked and multiplied."""
    from transformers import BitsAndBytesConfig

    if bits == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return BitsAndBytesConfig(load_in_8bit=True)


def check_can_be_quantized(config, path: str, bits: str) -> None:
    """Refuse models whose matrices cannot be packed.

    config: of the model; None where it has none. Transposed matrices would be saved the wrong way round. A checkpoint that
    is packed already would keep its own bits, whatever the key says.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(already_packed(path))
    if config is not None and config.model_type in TRANSPOSED:
        raise UserError(
            f"{path}: load_in_{bits} is not for {config.model_type} models, which store their matrices transposed, and are "
            "small: drop the key"
        )


def already_packed(path: str) -> str:
    """The message about a checkpoint that its authors have packed."""
    return (
        f"{path} holds matrices that are packed already, by its quantization_config: give the model in full precision that "
        "it was made from, with load_in_4bit: true to pack that one"
    )


def check_packed_here(model: nn.Module) -> None:
    """Refuse to train a checkpoint that came packed: `check_quantization` and `keep_layout` did not see it."""
    if is_quantized(model):
        raise UserError(already_packed(model.name_or_path))


def is_quantized(model: nn.Module) -> bool:
    """True for a model whose matrices are packed by bitsandbytes, LoRA or not."""
    return getattr(base_of(model), "hf_quantizer", None) is not None


def prepare_for_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a quantized model; what is not packed, as norms and embeddings, becomes fp32. Other models stay as they are."""
    if not is_quantized(model):
        return model
    from peft import prepare_model_for_kbit_training

    # Activation checkpointing is the Trainer's to switch on.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def keep_layout(model: nn.Module) -> None:
    """Keep bitsandbytes from packing matrices again for the bf16 instructions of a CPU, at the first answer of a model.

    Such a matrix computes in bf16 whatever its compute dtype is, is unpacked wrongly, and passes no gradient back: training
    after a rollout would reach the last layers alone.
    """
    for module in model.modules():
        if type(module).__name__ == LINEAR_4_BIT:
            module.support_avx512bf16_for_cpu = False


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let packed 4-bit matrices be unpacked and multiplied in `dtype`; autocast does not reach into them."""
    for module in model.modules():
        if type(module).__name__ == LINEAR_4_BIT and hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


def merged(model: nn.Module) -> PreTrainedModel:
    """A copy of a LoRA model as a plain one: the matrices in full precision, and the active LoRA matrices added to them."""
    model = copy.deepcopy(model)
    if not is_quantized(model):
        return model.merge_and_unload()
    from peft.tuners.lora import LoraLayer

    # In full precision it may not fit into the memory of the GPU that has trained it.
    model = model.to("cpu")
    # Before they are taken out. One change at a time is computed below: all of them are as large as the model.
    layers = {}
    for name, layer in base_of(model).named_modules():
        if isinstance(layer, LoraLayer):
            layers[name] = layer
    # Heads that were trained in full are kept by `unload`.
    plain = model.unload().dequantize(dtype=torch.float32)
    with torch.no_grad():
        for name, layer in layers.items():
            weight = plain.get_submodule(name).weight  # (outputs, inputs)
            for adapter in layer.active_adapters:
                weight += layer.get_delta_weight(adapter).float()
    return plain


def packing_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the scales of a packed matrix, which are no parameters; 0 for others."""
    state = getattr(tensor, "quant_state", None)  # 4 bits
    scales = [getattr(state, "absmax", None), getattr(tensor, "SCB", None)]
    return sum(scale.nbytes for scale in scales if isinstance(scale, torch.Tensor))
