"""Encoder-decoder models with random weights, and fitting a tokenizer to pairs of texts."""

from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from rlhf.baselines.table import register
from rlhf.data.chat import PAD_TOKEN
from rlhf.errors import UserError

LSTM = "lstm_seq2seq"
MODEL_TYPES = (LSTM, "marian")


def fit_pair_tokenizer(tokenizer) -> None:
    """Give a tokenizer what pairs need: an end of text after each text, padding of its own, on the right.

    WordPiece and Unigram tokenizers of this project end a text with [SEP]. UserError where nothing ends a text.
    """
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no eos_token, and a target would never end: set one in its "
            "tokenizer_config.json, or make a tokenizer with recipes/tokenizer.py"
        )
    # Labels are padded where texts are.
    tokenizer.padding_side = "right"
    tokenizer.init_kwargs["padding_side"] = "right"
    # Code that masks by token id would hide the end of a text, too.
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    # An encoder-decoder takes no token types.
    names = ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names
    if tokenizer("a")["input_ids"][-1] != tokenizer.eos_token_id:
        _end_texts(tokenizer)


def _end_texts(tokenizer) -> None:
    """Let the tokenizer itself write the end of a text, so that whoever loads it later reads the same tokens."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} writes no eos_token at the end of a text, as T5's and BART's "
            "do: take one of these, or a fast tokenizer (tokenizer.json)"
        )
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )


def new_seq2seq(
    tokenizer,
    model_type: str,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    context: int,
    dropout: float,
    attention: str | None,
) -> PreTrainedModel:
    """Make an encoder-decoder with random weights. layers: of the encoder, and of the decoder.

    heads, context: of a Transformer. attention: of an LSTM.
    """
    # The paper of the Transformer, and those before it, begin a target with a token that is in no text.
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.pad_token_id
    entries = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": start,
        "dropout": dropout,
    }
    # An LSTM has no heads and no positions.
    if model_type == LSTM:
        entries |= dict(hidden_size=hidden_size, num_hidden_layers=layers, attention=attention)
    else:
        entries |= transformer_entries(hidden_size, layers, heads, context)
        entries["forced_eos_token_id"] = tokenizer.eos_token_id
    register(model_type)
    return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **entries))


def transformer_entries(width: int, layers: int, heads: int, context: int) -> dict:
    """The sizes of Vaswani et al. 2017 under Marian's names.

    Marian's class is the one that computes what the paper does: LayerNorm(x + Sublayer(x)) after each part (section 3.1; T5
    normalises before it), sinusoidal positions (3.5; BART learns them, T5 has none), embeddings times sqrt(width) that are
    shared with the output (3.4), and ReLU (3.3). The inner layer is four times as wide.
    """
    if width % heads or width % 2:
        raise UserError(
            f"hidden_size={width} must be even and a multiple of heads={heads}: change one of the two"
        )
    return dict(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=context,
        activation_function="relu",
        scale_embedding=True,
        # Times sqrt(width), an embedding has entries of about 1, as the sines have.
        init_std=width**-0.5,
    )
