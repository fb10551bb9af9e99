"""Parts and properties of a loaded model: trunk, dropout, context length."""

from torch import nn
from transformers import (
    PreTrainedModel,
)


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability to 0, for train mode too; the config on disk keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in (
            "dropout",
            "attention_dropout",
            "activation_dropout",
        ):  # models that call F.dropout (Llama, OPT)
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients, no dropout: for reference and reward models."""
    return disable_dropout(model).eval().requires_grad_(False)


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    return getattr(model.config, "max_position_embeddings", None) or 1_000_000


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer under a causal LM or classification head, LoRA or not."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return getattr(inner, inner.base_model_prefix)
