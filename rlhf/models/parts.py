"""Parts and properties of a model, and fitting a model and a tokenizer to each other.

The two `fit_` functions are here since they change a loaded model or tokenizer: they load nothing and train no vocabulary.
"""

import inspect
from dataclasses import dataclass
from functools import cache

import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf.data.chat import end_of_turn_id
from rlhf.errors import UserError

# Parts of the names of attributes that models give to F.dropout or to their noise: attention_dropout, layerdrop,
# router_jitter_noise, ...
RANDOM = ("drop", "jitter")
# Names of the number of positions. MPT has the second, speech models the third.
POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
# Parts of the names of modules that text never trains: they read images and sounds, or choose the tokens to attend to,
# which has no gradient (DeepSeek V3.2).
NOT_TRAINED = ("vision", "image", "audio", "speech", "multi_modal", ".indexer.")
UNLIMITED = 1_000_000  # tokens: context length of a model without absolute positions


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a LoRA wrapper; other models are returned as they are."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer under a causal LM or classification head, LoRA or not."""
    base = base_of(model)
    trunk = getattr(base, base.base_model_prefix, None)
    if trunk is None:
        # Llama 4's text model has the prefix of the larger model that it is a part of.
        trunk = base.model
    return trunk


@torch.no_grad()
def hidden_size(model: nn.Module) -> int:
    """Size of the last hidden states. It is measured, since configs name it differently, and OPT-350m projects them."""
    device = next(model.parameters()).device
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    return trunk_of(model)(input_ids=ids, use_cache=False).last_hidden_state.shape[-1]


def accepted_inputs(module: nn.Module, inputs: dict) -> dict:
    """The inputs that the forward pass of a model takes. Models without absolute positions take no position_ids."""
    names = argument_names(type(module))
    if names is None:
        return inputs
    return {name: value for name, value in inputs.items() if name in names}


@cache
def argument_names(kind: type) -> frozenset[str] | None:
    """Names of the arguments of a class's forward pass. None if it takes any."""
    if not hasattr(kind, "forward"):  # a function that calls one
        return None
    arguments = inspect.signature(kind.forward).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return None
    return frozenset(arguments)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model. A recurrent one has no heads, and layers with heads of several widths show the widest."""

    layers: int
    hidden_size: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int


def shape_of(model: PreTrainedModel) -> Shape:
    """The sizes that the config of a model gives, or the config of its text where it also reads images."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    width = _head_width(config) or config.hidden_size // max(heads, 1)
    return Shape(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=heads,
        # Llama's grouped heads share keys and values.
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=width,
    )


def _head_width(config: PreTrainedConfig) -> int:
    """The width of a head, 0 where the config has none. Gemma 4's layers differ in it."""
    widths = []
    for layer in getattr(config, "per_layer_config", None) or ():
        widths.append(getattr(layer, "head_dim", None) or 0)
    if widths:
        return max(widths)
    return getattr(config, "head_dim", None) or 0


def context_length(model: PreTrainedModel) -> int:
    """Length in tokens of the longest sequence that the model has positions for."""
    positions = _positions(model.config.get_text_config())
    if positions == UNLIMITED:
        return UNLIMITED
    return positions - _reserved_positions(model)


def _reserved_positions(model: nn.Module) -> int:
    """Positions that no token has: those of RoBERTa kinds begin after the id of the pad token, so 514 hold 512."""
    for name, module in model.named_modules():
        padding_index = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_index is not None:
            return padding_index + 1
    return 0


def _positions(config: PreTrainedConfig) -> int:
    """The number of positions of a config, which architectures call by different names."""
    for name in POSITIONS:
        number = getattr(config, name, None)
        if isinstance(number, int) and number > 0:
            return number
    return UNLIMITED


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability to 0, for train mode too. The config on disk keeps its values."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            # Layers of such names are visited by themselves.
            if is_random(name, value):
                setattr(module, name, 0.0)
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and not isinstance(module, PreTrainedModel):
            module.config = WithoutDropout(config)  # Falcon reads it at every forward pass
    return model


def is_random(name: str, value) -> bool:
    """True for an attribute that is the probability of a dropout or the width of a noise."""
    return isinstance(value, float) and any(word in name for word in RANDOM)


class WithoutDropout:
    """A view of a model's config whose dropouts are 0. All else is read from the config and written to it."""

    def __init__(self, config: PreTrainedConfig):
        self.__dict__["config"] = config

    def __getattr__(self, name: str):
        if name == "config" or name.startswith("__"):  # of a copy that is being made
            raise AttributeError(name)
        value = getattr(self.config, name)
        if is_random(name, value):
            return 0.0
        return value

    def __setattr__(self, name: str, value) -> None:
        setattr(self.config, name, value)


def freeze(model: nn.Module) -> nn.Module:
    """Set evaluation mode, without gradients or dropout: for reference and reward models."""
    return disable_dropout(model).eval().requires_grad_(False)


def learns_from_text(name: str) -> bool:
    """True for the name of a parameter or module that a loss on text can train."""
    return not any(word in name for word in NOT_TRAINED)


def freeze_other_parts(model: nn.Module) -> None:
    """Freeze what a loss on text cannot train. The optimiser and the wrappers then know that it has no gradient."""
    for name, parameter in model.named_parameters():
        if not learns_from_text(name):
            parameter.requires_grad_(False)


def label_maps(labels: list[str]) -> dict[str, dict]:
    """Config entries that name the outputs of a head: output i is labels[i]."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def set_causal_loss(model: PreTrainedModel) -> PreTrainedModel:
    """Name the loss of a causal LM. transformers guesses it from the class name and warns for GPT2LMHeadModel."""
    model.loss_type = "ForCausalLM"
    return model


def fit_embeddings(model: PreTrainedModel, tokenizer) -> None:
    """Add embeddings for tokens that the tokenizer has gained, and tell the model its special tokens.

    Tied input and output embeddings are resized together.
    """
    count = len(model.get_input_embeddings().weight)
    if len(tokenizer) > count:
        model.first_new_token = count  # read by LoRA, which freezes the new embeddings
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    stops = stop_token_ids(model, tokenizer)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
            config.bos_token_id = tokenizer.bos_token_id
            # A list only where there are several: some classes compare the config's with token ids.
            config.eos_token_id = stops if len(stops) > 1 else tokenizer.eos_token_id


def stop_token_ids(model: PreTrainedModel, tokenizer) -> list[int]:
    """Every token that ends a completion: the tokenizer's EOS first, then the others in ascending order.

    The others are the token by which the chat template closes a turn, and those of the generation config. Instruct models
    name several: Llama 3 ends a turn with <|eot_id|> and a text with <|end_of_text|>. An id of the config that is an
    ordinary word of this tokenizer, or none of its tokens, was written for another one and is ignored. [] for a model that
    cannot end a text, as BERT.
    """
    generation_config = getattr(base_of(model), "generation_config", None)
    named = getattr(generation_config, "eos_token_id", None)
    if named is None:
        named = []
    elif isinstance(named, int):
        named = [named]
    if tokenizer.eos_token_id is None:
        return []
    first = [tokenizer.eos_token_id]
    control_tokens = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    others = control_tokens.intersection([*named, end_of_turn_id(tokenizer)]) - set(first)
    return first + sorted(others)


def fit_tokenizer(tokenizer, model: PreTrainedModel, *, pairs: bool) -> None:
    """Give a tokenizer the padding, pair separator and inputs that an encoder task needs.

    A GPT-2 class tokenizer has neither a pad nor a separator token: EOS pads, on the right, and with `pairs` it separates
    the two texts (GPT-1 put a delimiter there).
    """
    # Padding on the left is for generation; here it would shift the positions.
    tokenizer.padding_side = "right"
    tokenizer.init_kwargs["padding_side"] = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no pad_token: set one in its folder"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if pairs and tokenizer.sep_token is None:
        eos = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A",
            pair=["$A", eos, "$B"],
            special_tokens=[(eos, tokenizer.eos_token_id)],
        )
    # BERT was pretrained with token types, and a tokenizer made by hand gives none. GPT-2 takes them too, but as *words* 0
    # and 1. So the model decides, in this process and in the saved folder (init_kwargs).
    names = ["input_ids", "attention_mask"]
    if (getattr(model.config, "type_vocab_size", None) or 1) > 1:
        names.insert(1, "token_type_ids")
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names
