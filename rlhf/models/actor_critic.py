"""Policy and value function as one module, so that one forward, one optimiser and one wrapper (DDP, ZeRO) serve both.

The value function is a head on the policy's own trunk (one forward for both), or a value model: a sequence classification
model such as the reward model, with LoRA possibly an adapter of the policy's trunk. Both give V(s_t), the value of the
state before token t, read at the position of the token before it.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf.algorithms.log_probs import (
    masked_log_probs,
    token_log_probs,
    token_log_probs_and_entropy,
)
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import enable
from rlhf.models.logits import output_of
from rlhf.models.one_trunk import AdapterModel
from rlhf.models.parts import accepted_inputs, trunk_of
from rlhf.models.scores import reads_states, scores_of_states

CHUNK = 2048  # positions per block of the log-softmax: 2048 x 50257 fp32 logits are 0.4 GB
FORWARD_INPUTS = ("prompt_ids", "prompt_mask", "completion_ids", "mask")  # of `hidden_before`


class Evaluation(NamedTuple):
    """Outputs of the models on completions that exist.

    log_probs, entropy, values: (B, T), 0 outside the mask, None where they were not asked for or there is no value model
    text_log_probs: (N, L - 1), of plain text

    A tuple, since the wrappers that split weights look for tensors in tuples and dicts only.
    """

    log_probs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None
    text_log_probs: Tensor | None = None


class ValueHead(nn.Linear):
    """A value function on the policy's trunk. Its first values are all 0."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def position_ids(mask: Tensor) -> Tensor:
    """0, 1, 2, ... along the tokens that count, so that left padding moves nothing (GPT-2's positions are absolute)."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


class ActorCritic(nn.Module):
    """Policy and value function.

    policy: causal LM
    value_model: None, a `ValueHead` on the policy's trunk, or a one-label sequence classification model, which may be an
        adapter of the policy's trunk (`one_trunk.AdapterModel`)
    value_moves_trunk: true: a head's loss also moves the policy's trunk; false: it trains the head alone
    """

    def __init__(
        self, policy: nn.Module, value_model: nn.Module | None, *, value_moves_trunk: bool = True
    ):
        super().__init__()
        self.policy, self.value_moves_trunk = policy, value_moves_trunk
        self.value_model = self.value_head = None
        if isinstance(value_model, ValueHead):
            self.value_head = value_model
        else:
            self.value_model = value_model
        if self.value_model is not None and not reads_states(self.value_model):
            raise UserError(
                f"the value model {type(self.value_model).__name__} is an encoder and cannot score partial "
                "completions; use value_model: shared, or a reward model of the policy's own kind"
            )
        self.config = policy.config  # read by the Trainer
        output_of(policy)  # chosen now, while the weights are whole and before the first step
        blocks: set[str] = set()
        for model in (policy, self.value_model):
            blocks.update(getattr(model, "_no_split_modules", None) or ())
        self._no_split_modules = sorted(blocks)  # read by FSDP

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        mask: Tensor,
        temperature: float,
        only_values: bool = False,
        entropy: bool = False,
        text: tuple[Tensor, Tensor] | None = None,
    ) -> Evaluation:
        """Run both models on completions, and the policy on plain text.

        prompt_ids, prompt_mask (B, P): left-padded
        completion_ids, mask (B, T): right-padded
        text: ids and mask (N, L), right-padded
        only_values: without log-probs, and without gradients of the policy

        All in one call, since a wrapper (DDP) wants one forward pass for one backward pass.
        """
        batch = (prompt_ids, prompt_mask, completion_ids, mask)
        hidden = log_probs = token_entropy = text_log_probs = None
        if not only_values or self.value_head is not None:
            # A head alone needs the policy's states, but no gradient of them.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not only_values):
                hidden = hidden_before(trunk_of(self.policy), *batch)  # (B, T, H)
        if not only_values and entropy:
            log_probs, token_entropy = log_probs_of(
                self.policy, token_log_probs_and_entropy, hidden, completion_ids, mask, temperature
            )
        elif not only_values:
            log_probs = log_probs_of(
                self.policy, token_log_probs, hidden, completion_ids, mask, temperature
            )
        if text is not None:
            text_log_probs = self.text_log_probs(*text)
        values = self.values(hidden, batch)
        return Evaluation(log_probs, token_entropy, values, text_log_probs)

    def activation_checkpointing_enable(self, **options) -> None:
        """Switch it on in both models, when the Trainer finds `gradient_checkpointing` in its settings."""
        enable(self.policy, **options)
        # An adapter computes with the policy's layers.
        if self.value_model is not None and not isinstance(self.value_model, AdapterModel):
            enable(self.value_model, **options)

    def text_log_probs(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Log-probs (N, L - 1) of plain text, each token after the first, at temperature 1."""
        # The state before each token predicts it; nothing predicts the first.
        hidden = last_states(trunk_of(self.policy), ids, mask)[:, :-1]
        targets, counts = ids[:, 1:], mask[:, 1:]
        return log_probs_of(self.policy, token_log_probs, hidden, targets, counts, 1.0)

    def values(self, hidden: Tensor | None, batch: tuple[Tensor, ...]) -> Tensor | None:
        """V(s_t) (B, T), 0 outside the mask. hidden (B, T, H): the policy's, for a head on its trunk."""
        mask = batch[-1]
        if self.value_head is not None:
            states = hidden  # (B, T, H)
            if not self.value_moves_trunk:
                states = hidden.detach()
            states = states.to(self.value_head.weight.dtype)  # the trunk may be bf16
            values = self.value_head(states).squeeze(-1)
        elif self.value_model is not None:
            states = hidden_before(trunk_of(self.value_model), *batch)
            values = scores_of_states(self.value_model, states)
        else:
            return None
        return values.float().masked_fill(~mask, 0.0)

    def value_parameters(self) -> list[nn.Parameter]:
        """The value function's parameters that are trained."""
        value_function = self.value_head or self.value_model
        if value_function is None:
            return []
        if isinstance(value_function, AdapterModel):
            parameters = value_function.adapter_parameters()
        else:
            parameters = value_function.parameters()
        return [p for p in parameters if p.requires_grad]

    def policy_parameters(self) -> list[nn.Parameter]:
        """The policy's parameters that are trained. A value adapter's are inside the policy and not among them."""
        values = {id(p) for p in self.value_parameters()}
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        return [p for p in parameters if id(p) not in values]


def log_probs_of(
    model: nn.Module, formula, hidden: Tensor, token_ids: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """`masked_log_probs` of a causal LM's own logits."""
    return masked_log_probs(
        formula,
        hidden,
        output_of(model),
        token_ids,
        mask,
        temperature=temperature,
        chunk_size=CHUNK,
    )


def hidden_before(
    trunk: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor
) -> Tensor:
    """Last hidden state at the position before each completion token, which predicts it. (B, T, H)."""
    ids = torch.cat([prompt_ids, completion_ids], dim=1)  # (B, P + T)
    attention = torch.cat([prompt_mask, mask], dim=1)
    hidden = last_states(trunk, ids, attention)
    start = (
        prompt_ids.shape[1] - 1
    )  # the last token of the prompt predicts the first completion token
    return hidden[:, start : start + completion_ids.shape[1]]


def last_states(trunk: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states (B, L, H) of ids and mask (B, L), padded on either side."""
    inputs = {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "position_ids": position_ids(mask),
        "use_cache": False,
    }
    return trunk(**accepted_inputs(trunk, inputs)).last_hidden_state


def reference_log_probs(model: nn.Module, batch: dict, *, temperature: float) -> Tensor:
    """Log-probs (B, T) of given completions under a frozen causal LM. batch: FORWARD_INPUTS."""
    hidden = hidden_before(trunk_of(model), **batch)
    ids, mask = batch["completion_ids"], batch["mask"]
    return log_probs_of(model, token_log_probs, hidden, ids, mask, temperature)


def frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)
