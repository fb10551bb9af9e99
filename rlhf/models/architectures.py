"""Architectures that transformers offers, and that cannot be used here, each with its reason.

The first part is about policies, the second about models with a head for a task or a score. Each entry was measured:
tests/models/test_architectures.py and test_encoder_architectures.py make a tiny model of every architecture, and hold that
it is either right in every respect or in one of these tables.
"""

from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from rlhf.baselines.table import BASELINES
from rlhf.errors import UserError

# ---- policies ----------------------------------------------------------------------------------

COLUMNS = "counts padding as positions, so that it reads a prompt in a batch differently than alone"
DECODER = f"is the decoder of an encoder-decoder model, and {COLUMNS}"
OFFSET = "counts positions from its padding token on, so that left-padded prompts get wrong ones"
FOLLOWING = "reads the tokens that it is to predict"
NO_MASK = "has no attention mask, so that padding changes its state"
DRAFT = "only drafts tokens for another model, whose states it reads"
OTHER_INPUT = "continues no plain text: it describes"

# model_type of the config -> the reason
REFUSED = {
    "bart": DECODER,
    "bigbird_pegasus": DECODER,
    "blenderbot": DECODER,
    "blenderbot-small": DECODER,
    "blt": "reads bytes in patches that a second model chooses, and has no tokens to sample",
    "camembert": OFFSET,
    "cpmant": "puts a learned prompt in front of every row, so that its positions are not those of the tokens",
    "data2vec-text": OFFSET,
    "deepseek_v4": "compresses its keys in windows of columns, which padding shifts",
    "doge": "chooses the keys to attend to from the whole row, tokens to come included",
    "gemma4_assistant": DRAFT,
    "gemma4_unified_assistant": DRAFT,
    "git": f"{OTHER_INPUT} images",
    "marian": DECODER,
    "mbart": DECODER,
    "musicgen": f"{OTHER_INPUT} music",
    "musicgen_melody": f"{OTHER_INPUT} music",
    "mvp": DECODER,
    "pegasus": DECODER,
    "phimoe": "draws its experts at random in training, so that the first ratio of a rollout is not 1",
    "plbart": DECODER,
    "prophetnet": DECODER,
    "recurrent_gemma": "keeps its states inside its layers, where a new batch reads those of the batch before",
    "reformer": "can only be trained on rows of one fixed length",
    "roberta": OFFSET,
    "roberta-prelayernorm": OFFSET,
    "rwkv": NO_MASK,
    "trocr": DECODER,
    "whisper": f"{OTHER_INPUT} speech",
    "xlm": FOLLOWING,
    "xlm-roberta": OFFSET,
    "xlm-roberta-xl": OFFSET,
    "xlnet": FOLLOWING,
    "xlstm": NO_MASK,
    "xmod": OFFSET,
}
# These read both ways unless `is_decoder` is set in their config.json.
ENCODERS = (
    "bert",
    "bert-generation",
    "big_bird",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roc_bert",
    "roformer",
)
# Endings of the class names of models that were trained for something else. Their trunk loads as a language model.
OTHER_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def check_policy(config, path: str) -> None:
    """Refuse an architecture that cannot be sampled and trained as a causal language model."""
    heads = config.architectures or ()
    if heads and all(name.endswith(OTHER_HEADS) for name in heads):
        raise UserError(
            f"{path} is a {heads[0]}, such as a reward model or a classifier, not a language model: give the run folder of "
            "recipes/sft.py, or a Hub id such as gpt2"
        )
    kind = config.model_type
    reason = REFUSED.get(kind)
    if kind in ENCODERS and not config.is_decoder:
        reason = f"is an encoder, which {FOLLOWING}"
    if reason is not None:
        raise UserError(
            f"{path}: a {kind} model cannot be a policy here: it {reason}; start from a decoder, such as gpt2, Llama, Qwen "
            "or Gemma"
        )


# ---- encoder-decoder models --------------------------------------------------------------------

SEQ2SEQ = ("bart", "lstm_seq2seq", "marian", "mt5", "pegasus", "t5", "umt5")
# Their tokenizers write the languages of a text, which the rows do not say.
OF_MANY_LANGUAGES = ("m2m_100", "mbart", "nllb-moe", "plbart")


def check_seq2seq(config: PretrainedConfig, path: str) -> None:
    """Refuse a model that does not read one text and write another one, and those that were not tried."""
    kind = config.model_type
    if not getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{path}: a {kind} model is not an encoder-decoder: start from a T5, BART or Marian model, or set from_scratch: "
            "true; recipes/sft.py teaches a decoder such as GPT-2 to answer"
        )
    if kind in OF_MANY_LANGUAGES:
        raise UserError(
            f"{path}: a {kind} model needs the two languages of each text, and the rows do not say them: start from a model "
            "of two languages (Marian), or from T5 or BART"
        )
    if kind not in SEQ2SEQ:
        raise UserError(
            f"{path}: {kind} models were not tried as encoder-decoders here: use one of {', '.join(SEQ2SEQ)}"
        )


# ---- heads -------------------------------------------------------------------------------------

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
    """UserError unless there is a sequence classification model of this kind, which gives the scores."""
    check_usable(path, config, "AutoModelForSequenceClassification")
    row = BASELINES.get(config.model_type)
    if row is not None and row.is_classifier():
        return
    if config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        return
    raise UserError(
        f"{path} cannot be a reward model: there is no sequence classification model for {config.model_type}; "
        + OTHER_REWARD_MODELS
    )
