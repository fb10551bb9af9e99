"""Scores of a sequence classification model: computing, scaling and shifting them.

A score is what the head gives minus `score_centre` of the model's config, which is 0 unless `shift_scores` had to use it:
the heads of Llama, Qwen, Gemma, Mistral and others have no bias, and neither have their norms, so that no weight can hold
the centre. Everything here that computes a score subtracts it. Plain transformers gives the head's output.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf.models.parts import base_of, trunk_of

HEADS = ("score", "classifier", "classification_head", "sequence_summary")
# Encoders by their config, whose heads read the last token as those of decoders do.
LAST_TOKEN = ("ctrl", "modernbert-decoder")
PROBE_TOKENS = 4  # of the row that shows whether a bias moves the scores
SHIFT_TOLERANCE = 1e-3  # share of a shift that rounding may lose


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns a hidden state into the score: the last linear layer of a classification model."""
    base = base_of(model)
    head = next(getattr(base, name) for name in HEADS if hasattr(base, name))
    if hasattr(head, "modules_to_save"):  # LoRA trains a copy of it
        head = head.modules_to_save["default"]
    # RoBERTa's head has a layer before it.
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1]


def reads_states(model: nn.Module) -> bool:
    """True for decoders, whose head `score` reads any hidden state and so gives values of partial texts too."""
    return hasattr(model, "score") and not getattr(model.config, "is_encoder_decoder", False)


def reads_pairs(model: nn.Module) -> bool:
    """True for encoders such as BERT: they read prompt and completion as the pair that their tokenizer makes of them."""
    config = model.config
    decoder = hasattr(model, "score") or getattr(config, "is_encoder_decoder", False)
    return not decoder and config.model_type not in LAST_TOKEN


def score_centre(model: nn.Module) -> float:
    """The number that is subtracted from the output of the model's head."""
    return float(getattr(model.config, "score_centre", None) or 0.0)


def forget_centre(model: nn.Module) -> None:
    """Drop the centre of a head that is about to be replaced."""
    if score_centre(model):
        model.config.score_centre = None


def scores_of_states(model: nn.Module, hidden: Tensor) -> Tensor:
    """The score at each hidden state of a decoder: (..., H) -> (...,), fp32."""
    weight = score_head(model).weight
    outputs = model.score(hidden.to(weight.dtype))  # the trunk may be bf16
    return outputs.squeeze(-1).float() - score_centre(model)


def sequence_scores(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None
) -> Tensor:
    """One score per right-padded row. Shapes (B, L), (B, L) bool -> (B,), fp32. token_type_ids (B, L): of encoders.

    Decoders are read at their last real token, by length and never by searching for the pad token: where pad == EOS, the
    search would stop too early.
    """
    inputs = {"input_ids": input_ids, "attention_mask": mask.long()}
    if not reads_states(model):  # encoders pool the first token themselves
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits = model(**inputs).logits  # (B, 1)
        return logits.squeeze(-1).float() - score_centre(model)
    hidden = trunk_of(model)(**inputs).last_hidden_state  # (B, L, H)
    rows = torch.arange(len(hidden), device=hidden.device)
    last = mask.sum(1) - 1  # (B,)
    return scores_of_states(model, hidden[rows, last])


def score_token_ids(
    model: PreTrainedModel,
    rows: list[list[int]],
    token_types: list[list[int]] | None = None,
    *,
    pad_token_id: int,
) -> Tensor:
    """One score per list of token ids, in one forward pass: (B,), fp32, on the model's device.

    token_types: of each token, where the model reads them.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in rows])
    input_ids = _padded(rows, pad_token_id)  # (B, L)
    mask = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)  # (B, L)
    types = None
    if token_types is not None:
        types = _padded(token_types, 0).to(device)
    return sequence_scores(model, input_ids.to(device), mask.to(device), types)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


@torch.no_grad()
def scale_scores(model: PreTrainedModel, factor: float) -> None:
    """Multiply every score the model gives by `factor`, inside its weights."""
    head = score_head(model)
    head.weight *= factor
    if head.bias is not None:
        head.bias *= factor
    if score_centre(model):
        model.config.score_centre *= factor


@torch.no_grad()
def shift_scores(model: PreTrainedModel, amount: float) -> str:
    """Add `amount` to every score the model gives, and return where it is stored. LoRA must have been merged.

    A head with a bias takes it. GPT-2's head has none: score = w . (LN(x) + b) there, so the shift goes into the bias b
    of the final layer norm along w: b += amount * w / |w|^2. Any loader gives the same scores then. A model with neither
    keeps it in its config: `score_centre` -= amount.
    """
    head = score_head(model)
    if head.bias is not None:
        head.bias += amount
        return "the bias of the head"
    weight = head.weight[0].float()  # (H,)
    # With w = 0 every score is 0 whatever the bias is.
    if weight.any():
        step = amount * weight / weight.dot(weight)
        if _shift_by_norm(model, amount, step):
            return "the bias of the last layer norm"
    model.config.score_centre = score_centre(model) - amount
    return "score_centre in config.json"


def _shift_by_norm(model: PreTrainedModel, amount: float, step: Tensor) -> bool:
    """Add `step` to the bias of the trunk's last layer norm. False, and no change, if that does not shift the scores."""
    if not reads_states(model):
        return False
    trunk = trunk_of(model)
    norms = []
    for parent in (trunk, getattr(trunk, "decoder", None)):  # OPT's norm is in its decoder
        for module in parent.children() if parent is not None else ():
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                norms.append(module)
    if not norms:
        return False
    # Only a probe shows that nothing comes between norm and head, and that bf16 weights do not round the shift away.
    probe = [list(range(PROBE_TOKENS))]
    training = model.training
    model.eval()  # dropout would move the scores too
    bias = norms[-1].bias
    kept = bias.clone()
    before = score_token_ids(model, probe, pad_token_id=0)
    bias += step.to(bias.dtype)
    after = score_token_ids(model, probe, pad_token_id=0)
    model.train(training)
    error = (after - before - amount).abs().item()
    if error <= SHIFT_TOLERANCE * max(1.0, abs(amount)):
        return True
    bias.copy_(kept)
    return False
