"""Logits of a causal LM at given hidden states, as the model itself makes them.

Most models end in trunk -> output layer. Some change the logits after that (Gemma 2 caps them, Cohere and Granite scale
them), or the states before it (BERT). Tokens are sampled from the model's own logits, so log-probs, entropy and KL must
come from the same numbers. A model whose output layer alone gives other logits is run by its own forward pass, with the
trunk replaced by a function that returns the given states. So the logits of a few positions cost no pass of the trunk.

Which way is right is measured once per model, on a few tokens, and remembered in the model.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from rlhf.errors import UserError
from rlhf.models.parts import base_of, trunk_of

OUTPUT_LAYER, OWN_FORWARD = "output layer", "own forward pass"
DECISION = "logits_come_from"  # attribute of the model, which holds one of the two; copies of the model keep it
PROBE_TOKENS = 8
LARGE_LOGIT = (
    1000.0  # states are enlarged up to it: a cap that is far from the logits at hand is noticed too
)
SMALLEST = 1e-3  # of the largest logit: a layer of zeros has none
TOLERANCE = 1e-3  # relative: both ways run the same products, so that they agree also in bf16


@dataclass
class GivenStates(ModelOutput):
    """The output of a trunk that has not run. Everything but the states is None."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def output_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function from hidden states (N, H) to the model's own logits (N, V)."""
    base = base_of(model)
    if DECISION not in base.__dict__:
        base.__dict__[DECISION] = choose_way(model)
    if base.__dict__[DECISION] == OUTPUT_LAYER:
        return model.get_output_embeddings()
    return lambda states: own_logits(base, states)


def describe_logits(model: nn.Module) -> str | None:
    """A sentence about a model that changes the logits of its output layer. None for others."""
    output_of(model)
    base = base_of(model)
    if base.__dict__[DECISION] == OUTPUT_LAYER:
        return None
    return (
        f"{type(base).__name__} changes the logits of its output layer: log-probs, entropy and KL come from its own "
        "forward pass"
    )


def own_logits(base: nn.Module, states: Tensor) -> Tensor:
    """Logits (N, V) of states (N, H) by the forward pass of the model, without its trunk."""
    output = GivenStates(last_hidden_state=states.unsqueeze(0))
    ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)  # they are not read
    with replaced_trunk(base, lambda *args, **kwargs: output):
        return base(input_ids=ids, use_cache=False).logits.squeeze(0)


@contextmanager
def replaced_trunk(base: nn.Module, forward: Callable):
    """Within it, the trunk of a model computes `forward`."""
    modules = [trunk_of(base)]
    inner = getattr(modules[0], "decoder", None)
    if isinstance(inner, nn.Module):  # OPT calls it itself
        modules.append(inner)
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.__dict__["forward"]
            if own is not None:  # a wrapper had put its own there
                module.__dict__["forward"] = own


def output_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that turn states into logits: those outside the trunk, and an output layer tied to its embeddings."""
    base = base_of(model)
    in_trunk = {id(parameter) for parameter in trunk_of(base).parameters()}
    parameters = {}
    for parameter in base.parameters():
        if id(parameter) not in in_trunk:
            parameters[id(parameter)] = parameter
    output_layer = base.get_output_embeddings()
    if output_layer is not None:
        for parameter in output_layer.parameters():
            parameters[id(parameter)] = parameter
    return list(parameters.values())


@contextmanager
def values_of(parameters: list[nn.Parameter], values: list[Tensor]):
    """Within it, the parameters have these values. Nothing is copied."""
    before = [parameter.data for parameter in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data = value


@torch.no_grad()
def choose_way(model: nn.Module) -> str:
    """Compare both ways with the model's logits on a few tokens. A model that neither gives is an error."""
    base = base_of(model)
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, PROBE_TOKENS + 1, device=device) % vocabulary
    was_training = model.training
    model.eval()  # dropout would make every pass another one
    try:
        expected = base(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]  # (N, V)
        states = trunk_of(model)(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
        if not agree(own_logits(base, states), expected):
            raise UserError(
                f"the logits of {type(base).__name__} cannot be computed from its hidden states: "
                "use a model of another architecture, such as Llama, Qwen or GPT-2"
            )
        output_layer = model.get_output_embeddings()
        if not gives(output_layer, states, expected):
            return OWN_FORWARD
        large = states * LARGE_LOGIT / max(largest(expected), SMALLEST)
        if not gives(output_layer, large, own_logits(base, large)):
            return OWN_FORWARD
        return OUTPUT_LAYER
    finally:
        model.train(was_training)


def gives(output_layer: nn.Module | None, states: Tensor, expected: Tensor) -> bool:
    """True if an output layer alone gives the expected logits. One that comes after other layers may not even fit."""
    if not isinstance(output_layer, nn.Linear) or output_layer.in_features != states.shape[-1]:
        return False
    return agree(output_layer(states), expected)


def agree(logits: Tensor, expected: Tensor) -> bool:
    if logits.shape != expected.shape:
        return False
    tolerance = TOLERANCE * largest(expected)
    # NaN equals NaN: broken weights are reported where a number is wanted.
    return torch.allclose(logits.float(), expected.float(), rtol=0, atol=tolerance, equal_nan=True)


def largest(logits: Tensor) -> float:
    """The largest finite logit in magnitude. Some models give -inf to tokens that they never say."""
    return float(logits.float().nan_to_num(0.0, 0.0, 0.0).abs().max())
