"""Policy and value function as one module, so that one forward, one optimiser and one wrapper (DDP, ZeRO) serve both.

Two forms: a value head on the policy's own trunk (`shared`: one forward for both), or a value model of its own, a
sequence classification model such as the reward model (with LoRA it may be an adapter of the policy's trunk). Both give
V(s_t), the value of the state before token t, read at the position of the token before it.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf.algorithms.log_probs import masked, token_log_probs, token_log_probs_and_entropy
from rlhf.errors import UserError
from rlhf.models.one_trunk import AdapterModel
from rlhf.models.parts import trunk_of

CHUNK = 2048  # positions per block of the log-softmax: 2048 x 50257 fp32 logits are 0.4 GB


class Evaluation(NamedTuple):
    """What the models say of completions that exist: each (B, T), 0 outside the mask, None where it was not asked for or
    there is no critic; text_log_probs (N, L - 1): of the given plain text.

    A tuple, since the wrappers that split weights look for tensors in tuples and dicts only."""

    log_probs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None
    text_log_probs: Tensor | None = None


def position_ids(mask: Tensor) -> Tensor:
    """0, 1, 2, ... along the tokens that count, so that left padding moves nothing (GPT-2's positions are absolute)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


class ActorCritic(nn.Module):
    """policy: causal LM; value_model: None (no critic), "shared" (a head on the policy's trunk), or a one-label sequence
    classification model, which may itself be an adapter of the policy's trunk (`one_trunk.AdapterModel`).

    value_moves_trunk: whether a shared head's loss reaches the
    policy's trunk, or trains the head alone.
    """

    def __init__(
        self,
        policy: nn.Module,
        value_model: nn.Module | str | None,
        *,
        value_moves_trunk: bool = True,
    ):
        super().__init__()
        self.policy, self.value_moves_trunk = policy, value_moves_trunk
        self.value_model = value_model if isinstance(value_model, nn.Module) else None
        self.value_head = None
        if value_model == "shared":
            self.value_head = nn.Linear(policy.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)  # every first value is 0
            nn.init.zeros_(self.value_head.bias)
        elif self.value_model is not None and not hasattr(self.value_model, "score"):
            raise UserError(
                f"the value model {type(self.value_model).__name__} is an encoder and cannot read half-written "
                "completions; use value_model: shared, or a reward model of the policy's own kind"
            )
        self.config = policy.config  # read by the Trainer
        blocks = [
            getattr(model, "_no_split_modules", None) or () for model in (policy, self.value_model)
        ]
        self._no_split_modules = sorted(
            {name for names in blocks for name in names}
        )  # read by FSDP

    def forward(
        self, prompt_ids, prompt_mask, completion_ids, mask, temperature: float, only_values: bool = False,
        entropy: bool = False, text_ids: Tensor | None = None, text_mask: Tensor | None = None,
    ) -> Evaluation:  # fmt: skip
        """Shapes (B, P) left-padded, (B, P) bool, (B, T) right-padded, (B, T) bool; text (N, L) right-padded.

        All in one call, since a wrapper (DDP) wants one forward pass for one backward pass.
        """
        batch = (prompt_ids, prompt_mask, completion_ids, mask)
        log_probs = found_entropy = values = text = None
        if not only_values or self.value_head is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not only_values):
                hidden = hidden_before(trunk_of(self.policy), *batch)  # (B, T, H)
        if not only_values:
            formula = token_log_probs_and_entropy if entropy else token_log_probs
            log_probs, *rest = self._log_probs(formula, hidden, completion_ids, mask, temperature)
            found_entropy = rest[0] if rest else None
        if text_ids is not None:
            trunk_output = trunk_of(self.policy)(
                input_ids=text_ids,
                attention_mask=text_mask.long(),
                position_ids=position_ids(text_mask),
                use_cache=False,
            )
            states = trunk_output.last_hidden_state[:, :-1]
            (text,) = self._log_probs(
                token_log_probs, states, text_ids[:, 1:], text_mask[:, 1:], 1.0
            )
        if self.value_head is not None:
            states = hidden if self.value_moves_trunk else hidden.detach()
            values = self.value_head(
                states.to(self.value_head.weight.dtype)
            )  # the trunk may be bf16
        elif self.value_model is not None:
            values = self.value_model.score(hidden_before(trunk_of(self.value_model), *batch))
        if values is not None:
            values = values.squeeze(-1).float().masked_fill(~mask, 0.0)
        return Evaluation(log_probs, found_entropy, values, text)

    def _log_probs(
        self, formula, hidden, token_ids, mask, temperature: float
    ) -> tuple[Tensor, ...]:
        head = self.policy.get_output_embeddings()
        return masked(
            formula, hidden, head, token_ids, mask, temperature=temperature, chunk_size=CHUNK
        )

    def value_parameters(self) -> list[nn.Parameter]:
        critic = self.value_head or self.value_model
        if critic is None:
            return []
        parameters = (
            critic.adapter_parameters() if isinstance(critic, AdapterModel) else critic.parameters()
        )
        return [p for p in parameters if p.requires_grad]

    def policy_parameters(self) -> list[nn.Parameter]:
        values = {
            id(p) for p in self.value_parameters()
        }  # a critic that is an adapter lives inside the policy
        return [p for p in self.policy.parameters() if p.requires_grad and id(p) not in values]


def hidden_before(trunk: nn.Module, prompt_ids, prompt_mask, completion_ids, mask) -> Tensor:
    """Last hidden state at the position before each completion token, (B, T, H): what predicts it."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    attention = torch.cat([prompt_mask, mask], dim=1)
    hidden = trunk(
        input_ids=ids,
        attention_mask=attention.long(),
        position_ids=position_ids(attention),
        use_cache=False,
    ).last_hidden_state
    start = prompt_ids.shape[1] - 1
    return hidden[:, start : start + completion_ids.shape[1]]


def reference_log_probs(model: nn.Module, batch: dict, *, temperature: float) -> Tensor:
    """Log-probs (B, T) of given completions under a frozen causal LM."""
    hidden, head = hidden_before(trunk_of(model), **batch), model.get_output_embeddings()
    ids, mask = batch["completion_ids"], batch["mask"]
    (log_probs,) = masked(
        token_log_probs, hidden, head, ids, mask, temperature=temperature, chunk_size=CHUNK
    )
    return log_probs


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
