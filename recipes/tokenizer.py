"""Train a tokenizer on one's own text: byte-level BPE (GPT-2's) or WordPiece (BERT's).

    accelerate launch recipes/tokenizer.py --config recipes/configs/tokenizer/demo.yaml

Time: 2 seconds for 1 MB. Look at: words per token on held-out text, and that no word is unknown.
"""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast, TrainingArguments

from rlhf.data.chat import add_chat_template, as_text
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.recipe import DataSettings, recording, run

ALGORITHMS = ("byte_bpe", "wordpiece")


@dataclass
class TokenizerSettings(DataSettings):
    """What is learned, from which text."""

    tokenizer_type: str = field(default="byte_bpe", metadata={"help": "byte_bpe (GPT-2) or wordpiece (BERT)."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    model_max_length: int = field(default=1024, metadata={"help": "Context of the model it is for."})
    chat: bool = field(default=True, metadata={"help": "byte_bpe: add the role tokens and the chat template."})


def texts(rows: list[dict]) -> list[str]:
    """Plain text of each row; a demonstration's prompt and completion both count."""
    return [row["text"] if "text" in row else f"{as_text(row['prompt'])}\n{row['completion']}" for row in rows]


def train(corpus: list[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if settings.tokenizer_type == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()  # every byte is a token: nothing is ever unknown
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab_size - 4 * settings.chat,  # room for three role tokens and padding
            special_tokens=["<|endoftext|>"],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=settings.vocab_size, special_tokens=names, show_progress=False)
        special = {f"{name[1:-1].lower()}_token": name for name in names}
    tokenizer.train_from_iterator(corpus, trainer)
    if settings.tokenizer_type == "wordpiece":
        ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=settings.model_max_length, **special)


def measure(tokenizer, corpus: list[str]) -> dict[str, float]:
    """Tokens per word and per character, and the share of unknown tokens."""
    encoded = tokenizer(corpus, add_special_tokens=False)["input_ids"]
    tokens = sum(map(len, encoded))
    unknown = tokenizer.unk_token_id if tokenizer.unk_token != tokenizer.eos_token else None
    return {
        "tokens_per_word": tokens / max(1, sum(len(text.split()) for text in corpus)),
        "tokens_per_character": tokens / max(1, sum(map(len, corpus))),
        "unknown_rate": sum(ids.count(unknown) for ids in encoded) / max(1, tokens),
    }


def main(settings: TokenizerSettings, args: TrainingArguments) -> None:
    if settings.tokenizer_type not in ALGORITHMS:
        raise UserError(f"tokenizer_type={settings.tokenizer_type!r}: use one of {', '.join(ALGORITHMS)}")
    if settings.vocab_size < 300:
        raise UserError(f"vocab_size={settings.vocab_size}: 256 bytes and the special tokens need at least 300")
    with recording("tokenizer", settings, args) as record:
        splits = load_splits(settings, ("text", "prompt_completion"), seed=args.seed)
        record.data(splits)
        if not record.main:
            return
        tokenizer = train(texts(splits.train), settings)
        if len(tokenizer) < settings.vocab_size - 4 * settings.chat:
            record.say(f"the text fills only {len(tokenizer)} of {settings.vocab_size} tokens")
        if settings.chat and settings.tokenizer_type == "byte_bpe":
            add_chat_template(tokenizer)
        tokenizer.save_pretrained(args.output_dir)
        record.metrics({"vocab_size": len(tokenizer)})
        record.metrics(measure(tokenizer, texts(splits.eval or splits.train)))


if __name__ == "__main__":
    run(main, __doc__)
