"""Architectures that transformers offers for a head, and that cannot be used here, with the reason.

Each entry was measured: `tests/models/test_encoder_architectures.py` runs every architecture that is not listed.
"""

from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from rlhf.errors import UserError

IMAGES = "it reads images besides text"
PAGES = "it reads where each word is on a page, and the rows do not say that"
PADDING = (
    "its outputs change with the padding of a batch, so that a text has no prediction of its own"
)
# model_type of the config -> the reason, whatever the head
UNUSABLE = {
    "bros": PAGES,
    "canine": "it reads characters, and has no vocabulary of tokens",
    "convbert": PADDING,
    "fnet": PADDING,
    "gemma3": IMAGES,
    "layoutlm": PAGES,
    "layoutlmv2": PAGES,
    "layoutlmv3": PAGES,
    "lilt": PAGES,
    "lxmert": IMAGES,
    "markuplm": "it reads web pages with their tags",
    "modernvbert": IMAGES,
    "mra": "its attention is 0 without a CUDA kernel of its own",
    "neomme": IMAGES,
    "nystromformer": PADDING,
    "perceiver": "it reads bytes, each of which has a position of its own",
    "qwen3_5": IMAGES,
    "qwen3_asr": "it reads speech",
    "reformer": "in training it reads only texts whose length is a multiple of its chunks",
    "roc_bert": "it reads the shape and the sound of each character, and the rows do not say these",
    "t5gemma2": IMAGES,
    "tapas": "it reads tables",
    "ultravbert": IMAGES,
    "yoso": PADDING,
}
# Heads that read one state of a text, where the others read each token's.
OF_WHOLE_TEXTS = ("AutoModelForSequenceClassification", "AutoModelForMultipleChoice")
# RoFormer's other heads read the first token.
LAST_OF_BATCH = (
    ("roformer", "AutoModelForMultipleChoice"),
    ("xlnet", "AutoModelForMultipleChoice"),
    ("xlnet", "AutoModelForSequenceClassification"),
)
OTHERS = "start from another architecture, such as BERT, RoBERTa, DeBERTa or ModernBERT"
# Where a decoder has no class with a score.
OTHER_REWARD_MODELS = (
    "start from another architecture, such as GPT-2, Llama, Qwen or DeBERTa. The reward model may differ from the policy: "
    "texts are tokenised again for it, and value_model: shared needs none of the policy's kind"
)


def unusable(config: PretrainedConfig, head: str) -> str:
    """Why a model cannot be used with a head, the name of an Auto class; "" if it can."""
    kind = config.model_type
    if kind in UNUSABLE:
        return UNUSABLE[kind]
    if kind == "xmod" and not getattr(config, "default_language", None):
        return "it needs the language of its texts: set default_language in its config.json, for example en_XX"
    if kind == "funnel" and head not in OF_WHOLE_TEXTS:
        return PADDING
    if (kind, head) in LAST_OF_BATCH:
        return (
            "its head reads the last token of a batch, which is padding in all rows but the longest"
        )
    if head == "AutoModelForMaskedLM" and getattr(config, "is_encoder_decoder", False):
        return "it learns to write a text again and not to fill in single words"
    return ""


def check_usable(path: str, config: PretrainedConfig, head: str) -> None:
    """UserError with the reason if a model cannot be used with a head."""
    reason = unusable(config, head)
    if reason:
        raise UserError(
            f"{path}: {config.model_type} models cannot be used here: {reason}; {OTHERS}"
        )


def check_has_scores(path: str, config: PretrainedConfig) -> None:
    """UserError unless transformers has a sequence classification model of this kind, which gives the scores."""
    check_usable(path, config, "AutoModelForSequenceClassification")
    if config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return
    raise UserError(
        f"{path} cannot be a reward model: transformers has no sequence classification model for {config.model_type}; "
        + OTHER_REWARD_MODELS
    )
