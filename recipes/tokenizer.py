"""Train a tokenizer on one's own text: byte-level BPE (GPT-2's), WordPiece (BERT's) or Unigram (T5's and XLM-R's).

    accelerate launch recipes/tokenizer.py --config recipes/configs/tokenizer/demo.yaml
    accelerate launch recipes/tokenizer.py --dataset_name reviews.txt --tokenizer_type wordpiece --vocab_size 8000 \\
        --compare_tokenizers bert-base-uncased --output_dir runs/tokenizer

Time: seconds for 1 MB. Look at: tokens per word and the share of unknown tokens on held-out text, beside those of the
tokenizers of compare_tokenizers; a vocabulary that the text cannot fill is refused with the largest that it can.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from rlhf.data.chat import ROLE_TOKENS, add_chat_template, as_text
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_tokenizer
from rlhf.runs.progress import append_jsonl, sample_table
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings
from rlhf.tokenizers.metrics import cut_text, tokenization_report
from rlhf.tokenizers.train import KINDS, train_tokenizer

EXAMPLES = 3  # held-out texts that are shown cut into tokens
EXAMPLE_LENGTH = 48  # characters of each
HEADINGS = {
    "vocab_size": "vocabulary",
    "tokens_per_word": "tokens/word",
    "tokens_per_character": "tokens/character",
    "unknown_rate": "unknown",
    "single_token_words": "whole words",
}


@dataclass
class TokenizerSettings(DataSettings):
    """What is learned, from which text."""

    tokenizer_type: str = field(
        default="byte_bpe",
        metadata={"help": "byte_bpe (GPT-2), wordpiece (BERT) or unigram (T5, ALBERT, XLM-R)."},
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    model_max_length: int = field(
        default=1024, metadata={"help": "Context of the model it is for."}
    )
    chat: bool = field(
        default=True, metadata={"help": "byte_bpe: add the role tokens and the chat template."}
    )
    lowercase: bool = field(
        default=True,
        metadata={
            "help": "wordpiece, unigram: true as bert-base-uncased, false as bert-base-cased."
        },
    )
    character_coverage: float = field(
        default=1.0,
        metadata={
            "help": "wordpiece, unigram: 0.9995 leaves the rarest characters (Korean, Chinese) unknown."
        },
    )
    compare_tokenizers: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or Hub ids of tokenizers to measure on the same text."},
    )


def row_text(row: dict) -> str:
    """The text of a row; a demonstration's prompt and completion both count."""
    return row["text"] if "text" in row else f"{as_text(row['prompt'])}\n{row['completion']}"


def check(settings: TokenizerSettings) -> None:
    if settings.tokenizer_type not in KINDS:
        raise UserError(
            f"tokenizer_type={settings.tokenizer_type!r}: use one of {', '.join(KINDS)}"
        )
    if not 0.9 <= settings.character_coverage <= 1:
        raise UserError(
            f"character_coverage={settings.character_coverage}: use 0.9 to 1, as in 0.9995"
        )
    if settings.character_coverage < 1 and settings.tokenizer_type == "byte_bpe":
        raise UserError(
            "character_coverage is for wordpiece and unigram: byte_bpe knows every character; leave it out"
        )


def main(settings: TokenizerSettings, args: TrainingArguments) -> None:
    check(settings)
    with recording("tokenizer", settings, args) as run:
        splits = load_splits(settings, ("text", "prompt_completion"), seed=args.seed)
        run.data(splits)
        if not run.main:
            return
        given = {name: load_tokenizer(name) for name in settings.compare_tokenizers}
        chat = settings.chat and settings.tokenizer_type == "byte_bpe"
        tokenizer = train_tokenizer(
            [row_text(row) for row in splits.train],
            settings.tokenizer_type,
            vocab_size=settings.vocab_size,
            model_max_length=settings.model_max_length,
            lowercase=settings.lowercase,
            character_coverage=settings.character_coverage,
            reserved=len(ROLE_TOKENS) + 1 if chat else 0,
        )
        if chat:
            add_chat_template(tokenizer)
        tokenizer.save_pretrained(args.output_dir)

        texts = [row_text(row) for row in splits.eval or splits.train]
        run.say(
            f"On {len(texts)} texts {'held out' if splits.eval else 'of the training, for lack of others'}:"
        )
        reports = {args.output_dir: tokenization_report(tokenizer, texts)}
        reports |= {name: tokenization_report(other, texts) for name, other in given.items()}
        rows = [
            {"tokenizer": name} | {HEADINGS[key]: value for key, value in report.items()}
            for name, report in reports.items()
        ]
        run.say(sample_table(rows, columns=["tokenizer", *HEADINGS.values()], limit=len(rows)))
        for text in dict.fromkeys(text[:EXAMPLE_LENGTH] for text in texts[:EXAMPLES]):
            for name, one in {args.output_dir: tokenizer, **given}.items():
                example = {"tokenizer": name, "cut": cut_text(one, text)}
                append_jsonl(run.folder / "samples.jsonl", example)
                run.say(f"  {name}: {example['cut']}")
        run.metrics(reports.pop(args.output_dir))
        run.metrics({"train_rows": len(splits.train), "eval_rows": len(splits.eval)})
        if reports:
            run.metrics({"compared": reports})


if __name__ == "__main__":
    start(main, __doc__)
