"""Architectures that cannot be a policy here, each with its reason.

transformers' AutoModelForCausalLM knows about 200 of them. tests/models/test_architectures.py makes a tiny model of each
one and holds that it is either right in every respect (log-probs, completions, training) or in this table.
"""

from rlhf.errors import UserError

COLUMNS = "counts padding as positions, so that it reads a prompt in a batch differently than alone"
DECODER = f"is the decoder of an encoder-decoder model, and {COLUMNS}"
OFFSET = "counts positions from its padding token on, so that left-padded prompts get wrong ones"
FOLLOWING = "reads the tokens that it is to predict"
NO_MASK = "has no attention mask, so that padding changes its state"
DRAFT = "only drafts tokens for another model, whose states it reads"
OTHER_INPUT = "continues no plain text: it describes"

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
