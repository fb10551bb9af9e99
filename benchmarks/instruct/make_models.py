"""Folders of small instruct models with random weights: their published sizes, templates and stop tokens, or tiny ones.

The tokenizer has one token per byte, so a text has more tokens than with the real one. Fillers give it the real size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# ChatML, with a system message where the conversation has none.
SMOLLM2 = """\
{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are SmolLM, a helpful assistant<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# What a tiny model of each architecture has instead of its published sizes.
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Instruct:
    """A published instruct model.

    model_type, sizes: of its config.json.
    template: the name of a file of trl, or the template itself.
    tokens: control tokens, the end of a turn first. stops: those that end an answer.
    pad: the pad token; None: the tokenizer has none.
    bos: the token that begins every text; None: none does.
    """

    model_type: str
    sizes: dict
    template: str
    tokens: tuple[str, ...]
    stops: tuple[str, ...]
    pad: str | None
    bos: str | None = None


MODELS = {
    "smollm2_360m": Instruct(
        "llama",
        {
            "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": True,
        },
        SMOLLM2,
        ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
        ("<|im_end|>",),
        "<|im_end|>",
    ),
    "qwen3_0.6b": Instruct(
        "qwen3",
        {
            "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": True,
        },
        "qwen3.jinja",
        ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>"),
        ("<|im_end|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "llama3.2_1b": Instruct(
        "llama",
        {
            "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True,
        },
        "llama3_2.jinja",
        (
            "<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>",
            "<|end_header_id|>",
        ),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        None,
        "<|begin_of_text|>",
    ),
}  # fmt: skip
NOT_SPECIAL = ("<think>", "</think>")  # added tokens that a decoded text keeps


def make_tokenizer(name: str, size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, with `size` tokens."""
    model = MODELS[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = size - len(alphabet) - len(model.tokens)
    words = [*alphabet, *(f"filler{i}" for i in range(fillers))]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([token for token in model.tokens if token not in NOT_SPECIAL])
    others = [token for token in model.tokens if token in NOT_SPECIAL]
    inner.add_tokens([AddedToken(token, special=False) for token in others])
    if model.bos is not None:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{model.bos} $A", special_tokens=[(model.bos, inner.token_to_id(model.bos))]
        )
    template = model.template
    if template.endswith(".jinja"):
        template = (TEMPLATES / template).read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=model.stops[0],
        pad_token=model.pad,
        bos_token=model.bos,
        chat_template=template,
    )


def make_model(name: str, folder: Path, *, tiny: bool = False, seed: int = 0) -> Path:
    """A folder with random weights in bf16, as they are published, and the tokenizer.

    tiny: the sizes of TINY and 300 tokens, in fp32.
    """
    model = MODELS[name]
    sizes = dict(model.sizes)
    if tiny:
        sizes |= TINY | {"vocab_size": 300}
    tokenizer = make_tokenizer(name, sizes["vocab_size"])
    stops = tokenizer.convert_tokens_to_ids(list(model.stops))
    config = AutoConfig.for_model(
        model.model_type,
        eos_token_id=stops,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    torch.manual_seed(seed)
    dtype = torch.float32 if tiny else torch.bfloat16
    made = AutoModelForCausalLM.from_config(config, dtype=dtype)
    made.generation_config.eos_token_id = stops
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
