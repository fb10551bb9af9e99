"""Scores of a sequence classification model: computing, scaling and shifting them."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.parts import base_of, trunk_of


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns a hidden state into the score: the last linear layer of a classification model."""
    base = base_of(model)
    head = getattr(base, "score", None) or getattr(base, "classifier", None)
    if hasattr(head, "modules_to_save"):  # LoRA trains a copy of it
        head = head.modules_to_save["default"]
    # RoBERTa's head has a layer before it.
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1]


def sequence_scores(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> Tensor:
    """One score per right-padded row, read at its last real token. Shapes (B, L), (B, L) bool -> (B,), fp32.

    Decoders are read by length, never by searching for the pad token: where pad == EOS, the search would stop too early.
    """
    attention_mask = mask.long()
    if not hasattr(model, "score"):  # encoders pool the first token themselves
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits  # (B, 1)
        return logits.squeeze(-1).float()
    output = trunk_of(model)(input_ids=input_ids, attention_mask=attention_mask)
    hidden = output.last_hidden_state  # (B, L, H)
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.sum(1) - 1  # (B,)
    scores = model.score(hidden[rows, last])  # (B, 1)
    return scores.squeeze(-1).float()


def score_token_ids(model: PreTrainedModel, rows: list[list[int]], *, pad_token_id: int) -> Tensor:
    """One score per list of token ids, in one forward pass: (B,), fp32, on the model's device."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in rows])
    tensors = [torch.tensor(ids) for ids in rows]
    input_ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id)  # (B, L)
    mask = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)  # (B, L)
    return sequence_scores(model, input_ids.to(device), mask.to(device))


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
    norms = []
    for module in trunk_of(model).children():
        if isinstance(module, nn.LayerNorm) and module.bias is not None:
            norms.append(module)
    weight = head.weight[0]  # (H,)
    # With w = 0 every score is 0 whatever the bias is.
    if not norms or not weight.any():
        raise UserError(f"{type(model).__name__} has no bias to store the centre of its scores in")
    norms[-1].bias += amount * weight / weight.dot(weight)
