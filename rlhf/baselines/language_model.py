"""Base classes of the language models before the Transformer: padding, the state between two tokens, loss and sampling.

A batch may be padded on either side. The tokens that count are moved to the left of their row before a model reads them,
and its outputs are moved back, so that a padded row gives the logits of the row alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from rlhf.errors import UserError

NOTHING = -1  # in a window, before the first token of a text


@dataclass
class TrunkOutput(ModelOutput):
    """last_hidden_state: (B, L, H). cache: the state after the last token of each row, or None."""

    last_hidden_state: Tensor | None = None
    cache: object | None = None


@dataclass
class LanguageModelOutput(ModelOutput):
    """loss: mean nats per token, or None. logits: (B, L, V). cache: as in TrunkOutput."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: object | None = None


class RowState:
    """The memory of a model for each row between two tokens.

    tensors: each with the rows of the batch in its dimension `dim`.
    """

    is_compileable = False  # read by transformers' generate
    is_croppable = False

    def __init__(self, tensors: tuple[Tensor, ...], dim: int):
        self.tensors, self.dim = tensors, dim

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.tensors = tuple(tensor.index_select(self.dim, rows) for tensor in self.tensors)

    def reorder_cache(self, rows: Tensor) -> None:
        """`batch_select_indices` under the name that transformers' beam search has for it."""
        self.batch_select_indices(rows)


def state_tensors(cache: object | None) -> tuple[Tensor, ...] | None:
    """The tensors of a state, or None at the start of a text. A cache of keys and values is a TypeError."""
    if cache is None:
        return None
    if not isinstance(cache, RowState):
        raise TypeError(f"a {type(cache).__name__} holds no state of this model")
    return cache.tensors


@dataclass
class LeftAligned:
    """Rows whose tokens that count come first.

    order (B, L): column that each aligned token comes from. lengths (B,): tokens that count. padded: False if all count.
    """

    order: Tensor
    lengths: Tensor
    padded: bool

    def align(self, columns: Tensor) -> Tensor:
        """(B, L) -> (B, L), the tokens that count first."""
        if not self.padded:
            return columns
        return columns.gather(1, self.order)

    def restore(self, states: Tensor) -> Tensor:
        """States (B, L, H) of aligned tokens -> at the columns that the tokens came from."""
        if not self.padded:
            return states
        index = self.order.unsqueeze(-1).expand_as(states)
        return torch.empty_like(states).scatter(1, index, states)


def left_aligned(input_ids: Tensor, attention_mask: Tensor | None) -> LeftAligned:
    """The alignment of the rows of input_ids (B, L). The mask (B, at least L) may also cover tokens that the state holds."""
    rows, width = input_ids.shape
    if attention_mask is None:
        mask = torch.ones_like(input_ids, dtype=torch.bool)
    else:
        mask = attention_mask[:, -width:].bool()
    # Stable, so that the tokens that count keep their order.
    order = torch.argsort((~mask).long(), dim=1, stable=True)  # (B, L)
    return LeftAligned(order, mask.sum(1), not bool(mask.all()))


def windows_of(ids: Tensor, past: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that each position sees, and the state after the last one.

    ids (B, L): left-aligned. past (B, W - 1): tokens before them, or NOTHING. lengths (B,): of ids.
    Returns (B, L, W), oldest first, the token itself last; and (B, W - 1).
    """
    size = past.shape[1] + 1
    row = torch.cat([past, ids], dim=1)  # (B, W - 1 + L)
    windows = row.unfold(1, size, 1)  # (B, L, W), a view
    # Padding comes last in a row, so the newest W - 1 tokens end where the row does.
    last = lengths.unsqueeze(1) + torch.arange(size - 1, device=ids.device)
    return windows, row.gather(1, last)


def past_tokens(cache: object | None, input_ids: Tensor, size: int) -> Tensor:
    """The last `size` tokens before input_ids (B, L), as the state holds them: (B, size), NOTHING before a text."""
    tensors = state_tensors(cache)
    if tensors is None:
        return input_ids.new_full((len(input_ids), size), NOTHING)
    (past,) = tensors
    return past


def read_padded(layers: nn.RNNBase, inputs: Tensor, lengths: Tensor, initial=None):
    """Run recurrent layers over left-aligned rows of different length.

    inputs (B, L, H), lengths (B,). Returns the states (B, L, H), 0 at padding, and those after the last token of each row.
    """
    # A row of padding alone has no length for torch. It reads one token, and nobody reads its state.
    counts = lengths.clamp(min=1).cpu()
    packed = pack_padded_sequence(inputs, counts, batch_first=True, enforce_sorted=False)
    states, last = layers(packed, initial)
    states, _ = pad_packed_sequence(states, batch_first=True, total_length=inputs.shape[1])
    return states, last


def dropout_between_layers(config) -> float:
    # torch warns of dropout in a single layer, where it has no effect.
    return config.dropout if config.num_hidden_layers > 1 else 0.0


class BaselinePreTrainedModel(PreTrainedModel):
    """Weights as in the papers' time: small and uniform where torch's own layers draw them, normal elsewhere."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ()
    _input_embed_layer = "embeddings"  # of the trunk; read by transformers' get_input_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            # Of the embeddings and the output layer.
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            module.reset_parameters()  # uniform within 1 / sqrt(H)


class StatefulModel(BaselinePreTrainedModel, GenerationMixin):
    """A model that transformers' generate samples from, with a `RowState` instead of keys and values."""

    _is_stateful = True  # a state cannot be cut back to fewer tokens, as assisted decoding would

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class BaselineForCausalLM(StatefulModel):
    """A language model, which reads one token per step."""

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, cache: object | None = None, attention_mask=None, **_
    ) -> dict:
        """The inputs of one step: all tokens at first, then the newest alone."""
        if cache is not None:
            input_ids = input_ids[:, -1:]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "cache": cache,
            "use_cache": True,
        }


class NeuralForCausalLM(BaselineForCausalLM):
    """A trunk, `model`, and an output layer with softmax: p(w_t | ...) = softmax(U h_t + b).

    A subclass names its trunk class in `trunk_class` and its config in `config_class`.
    """

    trunk_class: type

    def __init__(self, config):
        super().__init__(config)
        self.model = self.trunk_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: object | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> LanguageModelOutput:
        """Logits of the next tokens.

        input_ids, attention_mask, labels: (B, L). Labels are shifted here; -100 is not learned.
        cache: of the tokens before these. logits_to_keep: last positions that need logits; 0: all.
        """
        output = self.model(input_ids, attention_mask, cache=cache, use_cache=use_cache)
        # Before the output layer, which takes most of the time with a large vocabulary.
        hidden = output.last_hidden_state
        if logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        loss = loss_of(self, logits, labels, kwargs)
        return LanguageModelOutput(loss=loss, logits=logits, cache=output.cache)


def loss_of(model: PreTrainedModel, logits: Tensor, labels: Tensor | None, options: dict):
    """transformers' own loss of the next tokens, None without labels. options: num_items_in_batch of the Trainer."""
    if labels is None:
        return None
    count = options.get("num_items_in_batch")
    return model.loss_function(
        logits, labels, vocab_size=model.config.vocab_size, num_items_in_batch=count
    )


def check_at_least(config, **least: int) -> None:
    """UserError where a size of a config is too small."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value < smallest:
            raise UserError(f"{config.model_type}: {name}={value}: use at least {smallest}")
