"""A causal LM that completes prompts token by token, with whatever it remembers between two tokens.

Attention models remember keys and values, recurrent ones a state, and a few old ones nothing. Architectures call it by
different names, and not every cache can drop the rows of a batch that have finished.
"""

import functools
import inspect

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
)

from rlhf.models.actor_critic import position_ids
from rlhf.models.parts import accepted_inputs, base_of

# Names of the cache, as an argument and in the output of a forward pass.
NAMES = ("cache", "past_key_values", "cache_params", "state")
LIBRARY = "transformers.cache_utils"  # whose layers can drop rows
# Rotary embeddings whose frequencies depend on the length of the batch.
LENGTHENING = ("longrope", "dynamic")


class Decoder:
    """Gives the logits of the next token of each row of a batch, again and again.

    attention (B, L): of all tokens so far. A model without a cache runs on all of them each time.
    """

    def __init__(self, policy: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor):
        self.policy, self.cache = policy, None
        self.tokens, self.attention = prompt_ids, prompt_mask
        self.positions = position_ids(prompt_mask)  # of the tokens that the cache does not hold
        self.argument = cache_argument(type(base_of(policy)))

    def next_logits(self) -> Tensor:
        """Logits (B, V) after the newest token of each row."""
        attention = self.attention
        if is_recurrent(
            self.cache
        ):  # the mask is of the tokens that it reads now: Mamba multiplies them
            attention = attention[:, -self.tokens.shape[1] :]
        inputs = {
            "input_ids": self.tokens,
            "attention_mask": attention.long(),
            "position_ids": self.positions,
            "logits_to_keep": 1,
            "use_cache": True,
        }
        if self.argument is not None:
            inputs[self.argument] = self.cache
        output = self.policy(**accepted_inputs(base_of(self.policy), inputs))
        self.cache = None
        for name in NAMES:
            if getattr(output, name, None) is not None:
                self.cache = getattr(output, name)
        return output.logits[:, -1]

    def append(self, chosen: Tensor) -> None:
        """Add a token (B,) to each row."""
        new_column = torch.ones_like(self.attention[:, :1])
        self.attention = torch.cat([self.attention, new_column], dim=1)
        new_tokens, new_positions = chosen.unsqueeze(1), self.positions[:, -1:] + 1  # (B, 1)
        if self.cache is None:
            new_tokens = torch.cat([self.tokens, new_tokens], dim=1)
            new_positions = torch.cat([self.positions, new_positions], dim=1)
        self.tokens, self.positions = new_tokens, new_positions

    def keep_rows(self, kept: Tensor) -> bool:
        """Drop all rows but these. False, and nothing happens, where the cache cannot do that."""
        if self.cache is not None and not select_rows(self.cache, kept):
            return False
        self.tokens, self.attention = self.tokens[kept], self.attention[kept]
        self.positions = self.positions[kept]
        return True


@functools.cache
def cache_argument(kind: type) -> str | None:
    """The argument by which the forward pass of a model takes its cache. None if it has none."""
    # Looked up once per architecture: a signature takes longer than a small layer.
    arguments = inspect.signature(kind.forward).parameters
    return next((name for name in NAMES if name in arguments), None)


def is_recurrent(cache) -> bool:
    """True for a cache of states alone, without keys and values of past tokens."""
    layers = getattr(cache, "layers", ())
    states = [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers]
    keys = [isinstance(layer, DynamicLayer) for layer in layers]
    return any(states) and not any(keys)


def select_rows(cache, kept: Tensor) -> bool:
    """Keep these rows of a cache, in place. False for a cache that holds states of a kind that is not known here."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    layers = getattr(cache, "layers", None)
    if layers is None:
        if not hasattr(cache, "batch_select_indices"):
            return False
        cache.batch_select_indices(kept)
        return True
    if any(type(part).__module__ != LIBRARY for part in (cache, *layers)):
        return False  # with states of its own, such as MiniMax's
    for layer in layers:
        # A recurrent layer inherits from an attention layer, whose method forgets the recurrent states.
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(kept)
        else:
            layer.batch_select_indices(kept)
    return True


def keeps_all_keys(model: nn.Module) -> bool:
    """True if a model remembers the keys and values of every token, whatever is read after it.

    False for sliding windows, the states of recurrent layers, and positions that turn with the length of the batch: a short
    text would sense what else is read.
    """
    layers = DynamicCache(config=model.config).layers
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return False
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # transformers holds them flat, or by the type of layer.
    kinds = [parameters, *parameters.values()]
    return not any(
        isinstance(kind, dict) and kind.get("rope_type") in LENGTHENING for kind in kinds
    )
