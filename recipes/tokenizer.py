"""Train a tokenizer on your own text: byte-level BPE (GPT-2's), WordPiece (BERT's), Unigram (T5's), words or characters.

    accelerate launch recipes/tokenizer.py --config recipes/configs/tokenizer/demo.yaml
    accelerate launch recipes/tokenizer.py --dataset_name reviews.txt --tokenizer_type wordpiece --vocab_size 8000 \\
        --compare_tokenizers bert-base-uncased --output_dir runs/tokenizer

Time: seconds for 1 MB. Look at: tokens per word and the share of unknown tokens on held-out text, next to those of the
tokenizers of compare_tokenizers. A vocabulary that the text cannot fill is refused, with the largest that it can fill.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from transformers import TrainingArguments

from rlhf.data.chat import ROLE_TOKENS, add_chat_template, as_text
from rlhf.data.splits import load_splits
from rlhf.data.templates import check_text_template
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.load import load_tokenizer
from rlhf.runs.keys import PUSH, Unused
from rlhf.runs.progress import append_jsonl, sample_table
from rlhf.runs.ranges import at_least
from rlhf.runs.replacement import replacement
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings
from rlhf.tokenizers.metrics import cut_text, tokenization_report
from rlhf.tokenizers.train import BYTE_LEVEL, KINDS, train_tokenizer

# of TrainingArguments
READ = ("output_dir", "seed", "use_cpu", "local_rank", *PUSH)
EXAMPLES = 3  # held-out texts whose tokens are shown
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
    """Settings of a new tokenizer, and the data on which it is trained."""

    tokenizer_type: str = field(
        default="byte_bpe",
        metadata={
            "help": "byte_bpe (GPT-2), wordpiece (BERT), unigram (T5, XLM-R), or words or characters, rare ones as bytes."
        },
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    model_max_length: int = field(
        default=1024, metadata={"help": "Context length of the model that will use it."}
    )
    chat: bool = field(
        default=True,
        metadata={"help": "Not wordpiece, unigram: add the role tokens and the chat template."},
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "A Jinja file whose text is the chat template; null: ours."},
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
            "help": "wordpiece, unigram: 0.9995 makes the rarest characters (Korean, Chinese) unknown."
        },
    )
    compare_tokenizers: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or Hub ids of tokenizers to measure on the same text."},
    )

    RANGES: ClassVar[dict] = {"vocab_size": at_least(1), "model_max_length": at_least(1)}
    UNUSED: ClassVar[tuple] = (
        Unused(
            ("chat",),
            "encoders do not chat, so wordpiece and unigram get no chat template; drop it",
            lambda run: run.tokenizer_type in BYTE_LEVEL,
            fixed=False,
        ),
        Unused(
            ("chat_template_path",),
            "only a tokenizer with chat: true, neither wordpiece nor unigram, gets a chat template; drop it",
            lambda run: run.tokenizer_type in BYTE_LEVEL and run.chat,
        ),
        Unused(
            ("lowercase",),
            "it keeps every character as it is; drop it, or use wordpiece or unigram",
            lambda run: run.tokenizer_type not in BYTE_LEVEL,
            fixed=False,
        ),
        Unused(
            tuple(f.name for f in fields(TrainingArguments) if f.name not in READ),
            "a tokenizer is counted in one pass on the CPU, without training steps; drop it",
        ),
    )


@dataclass
class PreparedTokenizer:
    """The rows of a run, and what its comparison needs.

    rows: the training rows. texts: those that the tokenizers are measured on.
    others: the tokenizers to compare with, by name.
    held_out: the number of texts that were not trained on.
    """

    rows: list[dict]
    texts: list[str]
    others: dict
    held_out: int


def main(settings: TokenizerSettings, args: TrainingArguments) -> None:
    check(settings)
    with recording("tokenizer", settings, args) as run:
        prepared = prepare(settings, args, run)
        if not run.main:
            return  # one process trains the tokenizer
        tokenizer = train(settings, [row_text(row) for row in prepared.rows])
        with replacement(run.folder) as folder:
            tokenizer.save_pretrained(folder)
        compare(run, {args.output_dir: tokenizer, **prepared.others}, prepared)


def prepare(settings: TokenizerSettings, args: TrainingArguments, run: Run) -> PreparedTokenizer:
    """Read the rows and the tokenizers to compare with, so that a wrong name is reported at once."""
    others = {}
    if run.main:
        others = {name: load_tokenizer(name) for name in settings.compare_tokenizers}
    splits = load_splits(settings, ("text", "prompt_completion"), seed=args.seed)
    run.data(splits)
    texts = [row_text(row) for row in splits.eval or splits.train]
    return PreparedTokenizer(splits.train, texts, others, len(splits.eval))


def compare(run: Run, tokenizers: dict, prepared: PreparedTokenizer) -> None:
    """Measure the tokenizers, of which the first is the new one, and show how each cuts a few texts."""
    texts = prepared.texts
    origin = (
        "held out" if prepared.held_out else "of the training rows, because no rows are held out"
    )
    run.say(f"On {len(texts)} texts {origin}:")
    reports = {}
    for name, candidate in tokenizers.items():
        reports[name] = tokenization_report(candidate, texts)
    run.say(table(reports))
    show_examples(run, tokenizers, texts)
    # The new tokenizer's numbers are the metrics of the run. Those of the others stay together under one key.
    run.metrics(reports.pop(next(iter(tokenizers))))
    run.metrics({"train_rows": len(prepared.rows), "eval_rows": prepared.held_out})
    if reports:
        run.metrics({"compared": reports})


def check(settings: TokenizerSettings) -> None:
    """UserError for settings that do not go together."""
    if settings.tokenizer_type not in KINDS:
        raise UserError(
            f"tokenizer_type={settings.tokenizer_type!r}: use one of {', '.join(KINDS)}"
        )
    if settings.chat_template_path is not None:
        read_template(settings.chat_template_path)
    if not 0.9 <= settings.character_coverage <= 1:
        raise UserError(
            f"character_coverage={settings.character_coverage}: use 0.9 to 1, as in 0.9995"
        )
    if settings.character_coverage < 1 and settings.tokenizer_type in BYTE_LEVEL:
        raise UserError(
            "character_coverage is for wordpiece and unigram: the others know every character; drop it"
        )


def read_template(path: str) -> str:
    """The text of a file with a chat template."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"chat_template_path={path}: no such text file; give a file with a Jinja template"
        ) from error


def row_text(row: dict) -> str:
    """The text of a row. For a demonstration this is its prompt and its completion."""
    if "text" in row:
        return row["text"]
    return f"{as_text(row['prompt'])}\n{row['completion']}"


def train(settings: TokenizerSettings, texts: list[str]):
    """The new tokenizer, with a chat template if the settings ask for one."""
    # Encoders do not chat.
    chat = settings.chat and settings.tokenizer_type in BYTE_LEVEL
    reserved = 0
    if chat:
        reserved = len(ROLE_TOKENS) + 1  # and the pad token
    tokenizer = train_tokenizer(
        texts,
        settings.tokenizer_type,
        vocab_size=settings.vocab_size,
        model_max_length=settings.model_max_length,
        lowercase=settings.lowercase,
        character_coverage=settings.character_coverage,
        reserved=reserved,
    )
    if chat:
        add_chat_template(tokenizer)
        if settings.chat_template_path is not None:
            tokenizer.chat_template = read_template(settings.chat_template_path)
            check_text_template(tokenizer)
    return tokenizer


def table(reports: dict[str, dict]) -> str:
    """A row of numbers per tokenizer."""
    rows = []
    for name, report in reports.items():
        row = {"tokenizer": name}
        for key, value in report.items():
            row[HEADINGS[key]] = value
        rows.append(row)
    return sample_table(rows, columns=["tokenizer", *HEADINGS.values()], limit=len(rows))


def show_examples(run: Run, tokenizers: dict, texts: list[str]) -> None:
    """Prints the start of the first texts as each tokenizer cuts it, and appends it to samples.jsonl."""
    examples = [text[:EXAMPLE_LENGTH] for text in texts[:EXAMPLES]]
    for example in dict.fromkeys(examples):  # without repeats
        for name, tokenizer in tokenizers.items():
            cut = cut_text(tokenizer, example)
            append_jsonl(run.folder / "samples.jsonl", {"tokenizer": name, "cut": cut})
            run.say(f"  {name}: {cut}")


if __name__ == "__main__":
    start(main, __doc__)
