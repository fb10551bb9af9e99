"""The values of ILQL as heads on a policy's trunk: Q1(s, a), Q2(s, a), slowly moving copies of both, and V(s).

Each head has one hidden layer, twice as wide as the trunk, as in Snell et al. 2022 (arXiv 2206.11871). The last layers begin
at 0, so that the first values are 0 and guide nothing.

A run keeps the heads in `value_model/`. They fit the trunk that they were trained on and no other.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.algorithms.ilql import chosen_and_log_probs, guided_logits, move_towards
from rlhf.algorithms.log_probs import masked_log_probs, token_log_probs
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import enable
from rlhf.models.actor_critic import CHUNK, hidden_before, log_probs_of
from rlhf.models.logits import describe_logits, output_of
from rlhf.models.parts import trunk_of

FILE = "action_values.safetensors"  # in value_model/
COEF = "advantage_coef"  # in the metadata of the file: how much an advantage counts in decoding


def head(hidden_size: int, outputs: int) -> nn.Sequential:
    """(..., H) -> (..., outputs), at first 0."""
    last = nn.Linear(2 * hidden_size, outputs)
    # A fresh Q of random numbers would guide at random.
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden_size, 2 * hidden_size), nn.ReLU(), last)


class ActionValueHeads(nn.Module):
    """The five heads. quality, target_quality: two functions each, (..., H) -> (..., V). value: (..., H) -> (..., 1)."""

    def __init__(self, hidden_size: int, vocabulary: int):
        super().__init__()
        self.quality = nn.ModuleList([head(hidden_size, vocabulary) for _ in range(2)])
        # They follow `quality` and are never trained.
        self.target_quality = copy.deepcopy(self.quality).requires_grad_(False)
        self.value = head(hidden_size, 1)

    @property
    def hidden_size(self) -> int:
        return self.value[0].in_features

    @property
    def vocabulary(self) -> int:
        return self.quality[0][-1].out_features

    def smaller_quality(self, states: Tensor) -> Tensor:
        """min(Q1, Q2) (..., V) of the slowly moving copies. states (..., H)."""
        states = self._cast(states)
        first, second = self.target_quality
        return torch.minimum(first(states), second(states)).float()

    def values(self, states: Tensor) -> Tensor:
        """V (...) of states (..., H), fp32."""
        return self.value(self._cast(states)).squeeze(-1).float()

    def of_tokens(self, heads: nn.ModuleList, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """`chosen_and_log_probs` of the two functions, (2, 2, B, T): [function, (Q, log-prob)]. states (B, T, H)."""
        results = []
        for function in heads:
            results.append(
                masked_log_probs(
                    chosen_and_log_probs,
                    self._cast(states),
                    function,
                    ids,
                    mask,
                    temperature=1.0,
                    chunk_size=CHUNK,
                )
            )
        return torch.stack(results)

    def update_targets(self, rate: float) -> None:
        """Move the slowly moving copies towards Q1 and Q2."""
        move_towards(self.target_quality.parameters(), self.quality.parameters(), rate=rate)

    def _cast(self, states: Tensor) -> Tensor:
        return states.to(self.value[0].weight.dtype)  # the trunk may be bf16


class AnswerValues(NamedTuple):
    """Outputs on completions that exist, all (B, T) and 0 outside the mask.

    quality (2, B, T): Q1, Q2 of the tokens taken. quality_log_probs (2, B, T): log softmax of each. target (B, T): the
    smaller of the slowly moving two. values: V before each token. log_probs: of the policy.

    A tuple, since DDP looks for tensors in tuples and dicts only.
    """

    quality: Tensor
    quality_log_probs: Tensor
    target: Tensor
    values: Tensor
    log_probs: Tensor


class ImplicitQ(nn.Module):
    """A policy and its heads as one module, with one forward pass of the trunk for all.

    values_move_trunk: false: the losses of the heads train the heads alone.
    """

    def __init__(self, policy: nn.Module, heads: ActionValueHeads, *, values_move_trunk: bool):
        super().__init__()
        self.policy, self.heads = policy, heads
        self.values_move_trunk = values_move_trunk
        self.config = policy.config  # read by the Trainer
        output_of(policy)  # chosen now, before the first step

    def activation_checkpointing_enable(self, **options) -> None:
        """Switch it on in the policy, when the Trainer finds `gradient_checkpointing` in its settings."""
        enable(self.policy, **options)

    def forward(
        self, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor
    ) -> AnswerValues:
        """prompt_ids, prompt_mask (B, P): left-padded. completion_ids, mask (B, T): right-padded."""
        batch = (prompt_ids, prompt_mask, completion_ids, mask)
        hidden = hidden_before(trunk_of(self.policy), *batch)  # (B, T, H)
        log_probs = log_probs_of(self.policy, token_log_probs, hidden, completion_ids, mask, 1.0)
        states = hidden if self.values_move_trunk else hidden.detach()  # (B, T, H)
        heads = self.heads
        quality = heads.of_tokens(heads.quality, states, completion_ids, mask)
        # A regression target must not chase its own prediction.
        with torch.no_grad():
            slow = heads.of_tokens(heads.target_quality, states, completion_ids, mask)
        values = heads.values(states).masked_fill(~mask, 0.0)
        return AnswerValues(quality[:, 0], quality[:, 1], slow[:, 0].amin(0), values, log_probs)


# ---- decoding ----------------------------------------------------------------------------------------------------


def check_can_guide(policy: nn.Module) -> None:
    """UserError for a model that changes the logits after its output layer, where the advantage is added."""
    if describe_logits(policy) is not None:
        raise UserError(
            f"{type(policy).__name__} changes the logits after its output layer, and would change the advantage too: use a "
            "model of another architecture, such as Llama, Qwen or GPT-2"
        )


def guide_by_advantage(policy: nn.Module, heads: ActionValueHeads, coef: float):
    """Make a policy pi the policy pi(a|s) exp(coef (Q(s, a) - V(s))) / Z, wherever its logits are read.

    Returns a handle whose remove() undoes it. The advantage is added to what the output layer gives, so that decoding with a
    cache, log-probs and KL are all of the same distribution. With coef = 0 nothing is done to the logits.
    """

    def add_advantage(module, inputs, logits):
        states = inputs[0]  # (B, L, H) of a forward pass, or (N, H) of chosen positions
        quality, values = heads.smaller_quality(states), heads.values(states)
        return guided_logits(logits, quality.to(logits), values.to(logits), coef=coef)

    return policy.get_output_embeddings().register_forward_hook(add_advantage)


@contextmanager
def guided(policy: nn.Module, heads: ActionValueHeads, coef: float) -> Iterator[None]:
    """A context in which the policy is the guided one."""
    handle = guide_by_advantage(policy, heads, coef)
    try:
        yield
    finally:
        handle.remove()


# ---- files -------------------------------------------------------------------------------------------------------


def save_heads(folder: Path, heads: ActionValueHeads, coef: float) -> None:
    """Write value_model/ of a run. coef: how much an advantage counts when the run decodes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in heads.state_dict().items()}
    save_file(tensors, folder / FILE, metadata={COEF: repr(float(coef))})


def load_heads(folder: Path, policy: nn.Module, hidden_size: int) -> tuple[ActionValueHeads, float]:
    """The frozen heads of value_model/ on the policy's device, and their coefficient. UserError where they do not fit it."""
    path = folder / FILE
    tensors = load_file(path)
    # The sizes are in the tensors, so that the file needs no config.
    width = tensors["value.0.weight"].shape[1]
    vocabulary = len(tensors["quality.0.2.bias"])
    outputs = policy.get_output_embeddings().out_features
    if (width, vocabulary) != (hidden_size, outputs):
        raise UserError(
            f"{path} is for states of {width} numbers and {vocabulary} tokens, and the policy has {hidden_size} and "
            f"{outputs}: the folder was put together from two runs"
        )
    heads = ActionValueHeads(width, vocabulary)
    heads.load_state_dict(tensors)
    with safe_open(path, "pt") as file:
        coef = float(file.metadata()[COEF])
    device = next(policy.parameters()).device
    return heads.to(device).eval().requires_grad_(False), coef
