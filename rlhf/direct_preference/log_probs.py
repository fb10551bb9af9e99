"""Log-probs of whole completions under a causal LM, as DPO and KTO compare them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf.data.padding import IGNORED, right_pad
from rlhf.direct_preference.rows import last_tokens
from rlhf.errors import UserError
from rlhf.models.actor_critic import reference_log_probs
from rlhf.models.parts import base_of

TOLERANCE = 1e-2  # relative to the log-prob of a completion: the two ways round differently in bf16


class Answer(NamedTuple):
    """Token ids of prompt and completion, and how many of them are the completion's, its end-of-turn token included."""

    ids: list[int]
    length: int


def answer_batch(answers: Sequence[Answer], pad_token_id: int, device) -> dict[str, Tensor]:
    """input_ids, mask and completion_mask (N, L) of answers, right-padded."""
    ids, mask = right_pad([answer.ids for answer in answers], pad_token_id)
    lengths = torch.tensor([answer.length for answer in answers])
    batch = {"input_ids": ids, "mask": mask, "completion_mask": last_tokens(mask, lengths)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def summed_log_probs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probs of completions, summed over their tokens: (N,), fp32.

    model: with trl's fused output layer (`trl.trainer.utils.add_fused_lm_head`), which makes no logits of whole batches.
    batch: as of `answer_batch`, with any other entries.
    """
    labels = batch["input_ids"].masked_fill(~batch["completion_mask"], IGNORED)
    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["mask"].long(),
        labels=labels,
        fused_lm_head=True,
        use_cache=False,
    )
    return outputs.log_probs.float().sum(1)


@torch.no_grad()
def check_fused_layer(model: nn.Module, answer: Answer, pad_token_id: int) -> None:
    """UserError where trl's fused output layer gives other log-probs than the model's own logits.

    It knows some of the ways in which models change their logits (caps, scales), and not all.
    """
    device = next(model.parameters()).device
    fused = float(summed_log_probs(model, answer_batch([answer], pad_token_id, device)))
    ids = torch.tensor([answer.ids], device=device)
    start = len(answer.ids) - answer.length
    parts = {"prompt_ids": ids[:, :start], "completion_ids": ids[:, start:]}
    parts["prompt_mask"] = torch.ones_like(parts["prompt_ids"], dtype=torch.bool)
    parts["mask"] = torch.ones_like(parts["completion_ids"], dtype=torch.bool)
    own = float(reference_log_probs(model, parts, temperature=1.0).sum())
    # Weights that are not finite are refused where training starts.
    if abs(fused - own) > TOLERANCE * max(1.0, abs(own)):
        raise UserError(
            f"trl computes {fused:.4g} as the log-prob of an answer under {type(base_of(model)).__name__}, whose own logits "
            f"give {own:.4g}: DPO and KTO would learn from other numbers than the model's. Use rlhf ppo, or a model of "
            "another architecture"
        )
