"""Scores of a sequence classification model: reading, scaling and shifting them."""

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)

from rlhf.errors import UserError
from rlhf.models.parts import trunk_of


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns a hidden state into the score: the last linear layer of a classification model."""
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    head = (
        head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
    )  # LoRA trains a copy of it
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1]


def sequence_scores(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> Tensor:
    """One score per right-padded row, read at its last real token. Shapes (B, L), (B, L) bool -> (B,), fp32.

    Decoders are read by length, never by searching the pad token, so that pad == EOS hides nothing.
    """
    if not hasattr(model, "score"):  # encoders pool the first token themselves
        return model(input_ids=input_ids, attention_mask=mask.long()).logits.squeeze(-1).float()
    hidden = trunk_of(model)(
        input_ids=input_ids, attention_mask=mask.long()
    ).last_hidden_state  # (B, L, H)
    last = mask.sum(1) - 1
    return (
        model.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        .squeeze(-1)
        .float()
    )


@torch.no_grad()
def scale_scores(model: PreTrainedModel, factor: float) -> None:
    """Multiply every score the model gives by `factor`, inside its weights."""
    head = score_head(model)
    head.weight *= factor
    if head.bias is not None:
        head.bias *= factor


@torch.no_grad()
def shift_scores(model: PreTrainedModel, amount: float) -> None:
    """Add `amount` to every score the model gives, inside its weights, so that any loader gets the same scores.

    A head with a bias takes it. GPT-2's head has none: score = w . (LN(x) + b) there, so the shift goes into the bias b
    of the final layer norm along w: b += amount * w / |w|^2. A model with neither is an error.
    """
    head = score_head(model)
    if head.bias is not None:
        head.bias += amount
        return
    trunk = trunk_of(model)
    norms = [
        m
        for name, m in trunk.named_children()
        if isinstance(m, nn.LayerNorm) and m.bias is not None
    ]
    weight = head.weight[0]
    if not norms or not weight.any():
        raise UserError(f"{type(model).__name__} has no bias to store the centre of its scores in")
    norms[-1].bias += amount * weight / weight.dot(weight)
