"""Pretrain a GPT-2 class model on plain text, from random weights or continued from a checkpoint.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/demo.yaml

Time: about a minute for the demo on two cores. Look at: perplexity on held-out text. Documents are joined by EOS and cut
into blocks of `block_size` tokens.
"""

import math
from dataclasses import dataclass, field

import torch
from transformers import Trainer, TrainingArguments, set_seed

from rlhf.data.chat import add_chat_template, encode_example
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import fit_embeddings, load_policy, load_tokenizer, new_policy, save
from rlhf.recipe import DataSettings, ModelSettings, ScratchSettings, recording, run
from rlhf.trainers.progress import use_run_progress


@dataclass
class PretrainSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which text."""

    block_size: int = field(default=128, metadata={"help": "Tokens per training row."})


def blocks(tokenizer, rows: list[dict], size: int) -> list[dict]:
    """All texts, each closed by EOS, in one row of tokens cut every `size`; the rest at the end is dropped."""
    stream = [token for row in rows for token in encode_example(tokenizer, row)[0]]
    cut = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    return [{"input_ids": torch.tensor(block), "labels": torch.tensor(block)} for block in cut]


def main(settings: PretrainSettings, args: TrainingArguments) -> None:
    args.logging_nan_inf_filter = False
    with recording("pretrain", settings, args) as record:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        splits = load_splits(settings, ("text",), seed=args.seed)
        record.data(splits)
        if settings.from_scratch:
            model = new_policy(tokenizer, **settings.sizes())
            record.parent("tokenizer", settings.tokenizer_name_or_path)
        else:
            model = load_policy(settings.model_name_or_path, revision=settings.model_revision, dtype=settings.dtype)
            record.parent("base", settings.model_name_or_path)
            add_chat_template(tokenizer)
            fit_embeddings(model, tokenizer)
        train = blocks(tokenizer, splits.train, settings.block_size)
        evaluation = blocks(tokenizer, splits.eval, settings.block_size) if splits.eval else None
        if not train:
            raise UserError(f"the text is shorter than one block of {settings.block_size} tokens: lower block_size")
        record.say(
            f"{len(train)} blocks of {settings.block_size} tokens, {model.num_parameters() / 1e6:.1f} M parameters"
        )

        trainer = Trainer(model=model, args=args, train_dataset=train, eval_dataset=evaluation or None)
        use_run_progress(trainer, args.output_dir)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        record.metrics({"parameters": model.num_parameters(), "train_tokens": len(train) * settings.block_size})
        if evaluation:
            loss = trainer.evaluate()["eval_loss"]
            record.metrics({"eval_loss": loss, "perplexity": math.exp(min(loss, 50))})
        if record.main:
            save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, args.output_dir)


if __name__ == "__main__":
    run(main, __doc__)
