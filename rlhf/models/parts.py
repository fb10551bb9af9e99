"""Parts and properties of a model, and fitting a model and a tokenizer to each other.

The two `fit_` functions are here since they change a loaded model or tokenizer: they load nothing and train no vocabulary.
"""

from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedModel

from rlhf.errors import UserError

# Attributes of models that call F.dropout with a number of their own (Llama, OPT).
DROPOUT_ATTRIBUTES = ("dropout", "attention_dropout", "activation_dropout")
UNLIMITED = 1_000_000  # tokens: context length of a model without absolute positions


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a LoRA wrapper; other models are returned as they are."""
    if hasattr(model, "peft_config"):
        return model.get_base_model()
    return model


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer under a causal LM or classification head, LoRA or not."""
    base = base_of(model)
    return getattr(base, base.base_model_prefix)


def context_length(model: PreTrainedModel) -> int:
    """Length in tokens of the longest sequence that the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not positions or positions < 0:  # XLNet says -1
        return UNLIMITED
    return positions - _reserved_positions(model)


def _reserved_positions(model: nn.Module) -> int:
    """Positions that no token has: those of RoBERTa kinds begin after the id of the pad token, so 514 hold 512."""
    for name, module in model.named_modules():
        padding_index = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_index is not None:
            return padding_index + 1
    return 0


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability to 0, for train mode too. The config on disk keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUT_ATTRIBUTES:
            # A float is a probability; a module of this name is visited by itself.
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Set evaluation mode, without gradients or dropout: for reference and reward models."""
    return disable_dropout(model).eval().requires_grad_(False)


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
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id


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
