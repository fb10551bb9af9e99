"""Supervised fine-tuning: demonstrations -> a model that answers. On trl.SFTTrainer.

    accelerate launch recipes/sft.py --config recipes/configs/sft/demo.yaml
    accelerate launch recipes/sft.py --dataset_name my.jsonl --model_name_or_path gpt2 --output_dir runs/sft

Time: under two minutes for the demo on two cores. Look at: eval_loss, and that EOS is learned (report: eos_rate). The loss
is taken on completions only (for messages: on the assistant's). rlhf/data/chat.py encodes the rows, so that SFT, reward
model, PPO and chat read the same tokens. `pretraining_dataset` mixes plain text in, as InstructGPT did (10 %).
"""

import random
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from rlhf.data.chat import add_chat_template, as_messages, encode_example
from rlhf.data.load import load_rows
from rlhf.data.padding import IGNORED
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_policy, save
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.models.scratch import new_policy
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings

KINDS = ("prompt_completion", "messages", "text")


@dataclass
class SFTSettings(DataSettings, ModelSettings, ScratchSettings):
    """The model that learns, and the rows it learns from."""

    pretraining_dataset: str | None = field(
        default=None, metadata={"help": "Plain text to mix in, file or Hub id."}
    )
    pretraining_share: float = field(
        default=0.1, metadata={"help": "Its share of all training rows. InstructGPT: 0.1."}
    )


def main(settings: SFTSettings, args: SFTConfig) -> None:
    args.logging_nan_inf_filter = False  # a NaN must be seen
    # With accelerate's seedable sampler, groups by length lose rows on two processes from the second epoch on.
    args.accelerator_config.use_seedable_sampler = args.train_sampling_strategy != "group_by_length"
    with recording("sft", settings, args) as run:
        set_seed(args.seed)
        tokenizer = settings.load_tokenizer()
        add_chat_template(tokenizer)
        model = load_or_make_policy(settings, tokenizer, run)
        args.max_length = min(args.max_length or 10**9, context_length(model))

        splits = load_splits(settings, KINDS, seed=args.seed)
        run.data(splits)
        model.config.trained_turns = max(map(turns, splits.train))  # the chat reads it
        train, too_long = encode(tokenizer, splits.train, args.max_length)
        if settings.pretraining_dataset:
            text = load_rows(settings.pretraining_dataset, kinds=("text",)).rows
            text, _ = encode(tokenizer, text, args.max_length)
            train = mix(train, text, settings.pretraining_share, args.seed)
        evaluation = []
        if splits.eval:
            evaluation, _ = encode(tokenizer, splits.eval, args.max_length)
        dropped = f", {too_long} longer than {args.max_length} tokens dropped" if too_long else ""
        run.say(f"{len(train)} rows{dropped}")

        trainer = SFTTrainer(
            model=settings.with_lora(model, task="CAUSAL_LM"),
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(evaluation) if evaluation else None,
        )
        use_run_progress(trainer, args.output_dir)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        run.metrics({"train_rows": len(train), "rows_too_long": too_long})
        if evaluation:
            metrics = trainer.evaluate()
            accuracy = metrics["eval_mean_token_accuracy"]
            run.metrics({"eval_loss": metrics["eval_loss"], "token_accuracy": accuracy})
        if run.main:
            save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, args.output_dir)


def load_or_make_policy(settings: SFTSettings, tokenizer, run):
    """The model to train, loaded or with random weights, with room for the tokenizer's tokens."""
    if settings.from_scratch:
        model = new_policy(tokenizer, **settings.sizes())
        run.parent("tokenizer", settings.tokenizer_name_or_path or settings.model_name_or_path)
    else:
        model = load_policy(
            settings.model_name_or_path, revision=settings.model_revision, dtype=settings.dtype
        )
        run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
    fit_embeddings(model, tokenizer)
    return model


def encode(tokenizer, rows: list[dict], max_length: int) -> tuple[list[dict], int]:
    """Encode rows as token ids with labels (IGNORED where nothing is learned). Returns them, and how many were too long."""
    encoded = []
    for row in rows:
        ids, mask = encode_example(tokenizer, row)  # mask: the tokens to learn
        if len(ids) > max_length:
            continue
        labels = list(ids)
        for i, counts in enumerate(mask):
            if not counts:
                labels[i] = IGNORED
        encoded.append({"input_ids": ids, "labels": labels})
    if not encoded:
        raise UserError(
            f"no row fits max_length={max_length} tokens: raise it, up to the model's context"
        )
    return encoded, len(rows) - len(encoded)


def turns(row: dict) -> int:
    """User messages of a row. Their maximum is the longest conversation that the model learns to follow."""
    messages = row.get("messages") or as_messages(row.get("prompt", ""))
    return sum(message["role"] == "user" for message in messages)


def mix(demonstrations: list[dict], text: list[dict], share: float, seed: int) -> list[dict]:
    """Add text rows to the demonstrations until they are `share` of all rows, and shuffle. Short text is repeated."""
    if not 0 <= share < 1:
        raise UserError(f"pretraining_share={share} must be at least 0 and below 1")
    # text / (text + demonstrations) = share
    count = round(len(demonstrations) * share / (1 - share))
    added = [text[i % len(text)] for i in range(count)]
    rows = demonstrations + added
    random.Random(seed).shuffle(rows)
    return rows


if __name__ == "__main__":
    start(main, __doc__)
