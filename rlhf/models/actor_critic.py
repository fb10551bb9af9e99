"""Policy and value function as one module, so that one forward, one optimiser and one wrapper (DDP, ZeRO) serve both.

Two forms: a value head on the policy's own trunk (`shared`: one forward for both), or a value model of its own, a
sequence classification model such as the reward model. Both give V(s_t), the value of the state before token t, read at
the position of the token before it.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf.algorithms.log_probs import masked_token_log_probs
from rlhf.errors import UserError

CHUNK = 2048  # positions per block of the log-softmax: 2048 x 50257 fp32 logits are 0.4 GB


@dataclass
class Evaluation:
    """What the models say of completions that exist: each (B, T), 0 outside the mask; values None without a critic."""

    log_probs: Tensor
    entropy: Tensor
    values: Tensor | None


def position_ids(mask: Tensor) -> Tensor:
    """0, 1, 2, ... along the tokens that count, so that left padding moves nothing (GPT-2's positions are absolute)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer under a causal LM or classification head, LoRA or not."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return getattr(inner, inner.base_model_prefix)


class ActorCritic(nn.Module):
    """policy: causal LM; value_model: None (no critic), "shared", or a one-label sequence classification model."""

    def __init__(self, policy: nn.Module, value_model: nn.Module | str | None):
        super().__init__()
        self.policy = policy
        self.value_model = value_model if isinstance(value_model, nn.Module) else None
        self.value_head = None
        if value_model == "shared":
            self.value_head = nn.Linear(policy.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)  # every first value is 0
            nn.init.zeros_(self.value_head.bias)
        elif self.value_model is not None and not hasattr(value_model, "score"):
            raise UserError(
                f"a {type(value_model).__name__} cannot be a value model: it reads text in both directions; "
                "use value_model: shared, or a reward model of the policy's own kind"
            )
        self.config = policy.config  # read by the Trainer

    def forward(self, prompt_ids, prompt_mask, completion_ids, mask, temperature: float) -> Evaluation:
        """Shapes (B, P) left-padded, (B, P) bool, (B, T) right-padded, (B, T) bool."""
        hidden = hidden_before(trunk_of(self.policy), prompt_ids, prompt_mask, completion_ids, mask)  # (B, T, H)
        log_probs, entropy = masked_token_log_probs(
            hidden, self.policy.get_output_embeddings(), completion_ids, mask, temperature=temperature, chunk_size=CHUNK
        )
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)  # the trunk may be bf16
        elif self.value_model is not None:
            states = hidden_before(trunk_of(self.value_model), prompt_ids, prompt_mask, completion_ids, mask)
            values = self.value_model.score(states).squeeze(-1)
        if values is not None:
            values = values.float().masked_fill(~mask, 0.0)
        return Evaluation(log_probs, entropy, values)

    def value_parameters(self) -> list[nn.Parameter]:
        critic = self.value_head or self.value_model
        return [] if critic is None else [p for p in critic.parameters() if p.requires_grad]

    def policy_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.policy.parameters() if p.requires_grad]


def hidden_before(trunk: nn.Module, prompt_ids, prompt_mask, completion_ids, mask) -> Tensor:
    """Last hidden state at the position before each completion token, (B, T, H): what predicts it."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    attention = torch.cat([prompt_mask, mask], dim=1)
    hidden = trunk(
        input_ids=ids, attention_mask=attention.long(), position_ids=position_ids(attention), use_cache=False
    ).last_hidden_state
    start = prompt_ids.shape[1] - 1
    return hidden[:, start : start + completion_ids.shape[1]]


def reference_log_probs(model: nn.Module, batch: dict, *, temperature: float) -> Tensor:
    """Log-probs (B, T) of given completions under a frozen causal LM."""
    hidden = hidden_before(trunk_of(model), **batch)
    log_probs, _ = masked_token_log_probs(
        hidden,
        model.get_output_embeddings(),
        batch["completion_ids"],
        batch["mask"],
        temperature=temperature,
        chunk_size=CHUNK,
    )
    return log_probs


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
