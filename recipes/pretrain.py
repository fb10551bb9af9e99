"""Pretrain on plain text, from random weights or continued from a checkpoint: GPT-2 class or BERT class models.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/demo.yaml          (causal, as GPT)
    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/bert.yaml          (masked words, as BERT)

Time: about a minute for the demo on two cores. Look at: perplexity on held-out text; for masked words also masked_accuracy
beside masked_baseline, and the table of words the model fills in. Text is cut into blocks of `block_size` tokens that stay
within a document unless `cross_documents` is set. The run folder is what sft.py (causal) or classification.py, ner.py and
question_answering.py (masked) start from.
"""

import math
from dataclasses import dataclass, field

from transformers import Trainer, set_seed

from rlhf.data.chat import add_chat_template
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import (
    fit_embeddings,
    fit_tokenizer,
    load_encoder,
    load_policy,
    load_tokenizer,
    save,
)
from rlhf.models.parts import context_length
from rlhf.models.scratch import new_encoder, new_policy
from rlhf.runs.progress import append_jsonl, sample_table, use_run_progress
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.pretraining.encode import (
    MaskedRows,
    Masking,
    PadRows,
    PairRows,
    baselines,
    causal_blocks,
    masked_blocks,
)
from rlhf.tasks.pretraining.masked_lm import MaskedPlacesOnly, filled_in, masked_metrics, row_sums
from rlhf.tasks.table import PRETRAINING_HEADS
from rlhf.tasks.trainer import EarlyStopping, EncoderConfig, EncoderTrainer

OBJECTIVES = ("causal", "masked", "masked_nsp")


@dataclass
class PretrainSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which text."""

    objective: str = field(
        default="causal",
        metadata={"help": "causal (GPT), masked (BERT's words), masked_nsp (and next sentences)."},
    )
    block_size: int = field(
        default=128, metadata={"help": "Tokens per row, special ones included."}
    )
    cross_documents: bool = field(
        default=False,
        metadata={"help": "One stream cut into full blocks, in place of blocks within documents."},
    )
    whole_words: bool = field(
        default=False, metadata={"help": "Mask whole words in place of single tokens."}
    )
    model_type: str = field(
        default="",
        metadata={
            "help": "Architecture of a model from scratch. Default: gpt2 or bert, as the objective."
        },
    )


@dataclass
class PretrainConfig(EncoderConfig):
    """EncoderConfig, with the learning rate of BERT's pretraining (arXiv 1810.04805, A.2); its rows are many."""

    max_length: int = field(init=False, default=0)  # block_size it is
    learning_rate: float = field(default=1e-4, metadata={"help": "BERT: 1e-4."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={"help": "Rows of one length together, for less padding; or random."},
    )


def check(settings: PretrainSettings, tokenizer) -> None:
    """UserError where the settings contradict each other or the tokenizer."""
    masked = settings.objective != "causal"
    if settings.objective not in OBJECTIVES:
        raise UserError(f"objective={settings.objective!r}: use one of {', '.join(OBJECTIVES)}")
    if settings.block_size < 8:
        raise UserError(f"block_size={settings.block_size}: give a row at least 8 tokens")
    if settings.use_peft:
        raise UserError("use_peft: pretraining trains all weights: set it to false")
    if settings.whole_words and not (masked and tokenizer.is_fast):
        raise UserError(
            "whole_words: needs a masked objective and a fast tokenizer, which knows where words begin"
        )
    if settings.cross_documents and settings.objective == "masked_nsp":
        raise UserError(
            "cross_documents: next-sentence pairs are drawn within documents: set it to false"
        )
    needed = ("pad", "cls", "sep", "mask") if masked else ("eos",)
    missing = [f"{name}_token" for name in needed if getattr(tokenizer, f"{name}_token") is None]
    if missing:
        other = (
            "recipes/tokenizer.py makes one with tokenizer_type: wordpiece"
            if masked
            else "GPT-2's has one"
        )
        raise UserError(
            f"objective={settings.objective} needs a tokenizer with {', '.join(needed)} tokens, and "
            f"{tokenizer.name_or_path!r} has no {', '.join(missing)}; {other}"
        )


def load_model(settings: PretrainSettings, tokenizer, run):
    """A model from scratch or from a checkpoint, with the tokenizer fitted to it."""
    causal = settings.objective == "causal"
    sizes = settings.sizes() | {"model_type": settings.model_type or ("gpt2" if causal else "bert")}
    options = {"revision": settings.model_revision, "dtype": settings.dtype}
    if settings.from_scratch:
        model = (
            new_policy(tokenizer, **sizes)
            if causal
            else new_encoder(tokenizer, PRETRAINING_HEADS[settings.objective], **sizes)
        )
        run.parent("tokenizer", settings.tokenizer_name_or_path)
    elif causal:
        model = load_policy(settings.model_name_or_path, **options)
        add_chat_template(tokenizer)
    else:
        model = load_encoder(
            settings.model_name_or_path,
            PRETRAINING_HEADS[settings.objective],
            new_head=True,
            **options,
        )
        if model.new_weights:
            run.say(
                f"not in {settings.model_name_or_path}, so random at first: {', '.join(model.new_weights)}"
            )
    if not settings.from_scratch:
        run.parent("base", settings.model_name_or_path)
        fit_embeddings(model, tokenizer)
    if not causal:
        fit_tokenizer(tokenizer, model, pairs=False)
    if settings.block_size > context_length(model):
        raise UserError(
            f"block_size={settings.block_size} is over the model's context of {context_length(model)} tokens"
        )
    return model


def make_rows(settings: PretrainSettings, tokenizer, texts: list[str], seed: int):
    """(rows, tokens that were left out) of the objective."""
    size, cross = settings.block_size, settings.cross_documents
    if settings.objective == "causal":
        return causal_blocks(tokenizer, texts, size, cross_documents=cross)
    masking = Masking(tokenizer, whole_words=settings.whole_words)
    if settings.objective == "masked_nsp":
        return PairRows(tokenizer, texts, size, masking, seed=seed), 0
    blocks, left = masked_blocks(tokenizer, texts, size, cross_documents=cross)
    return MaskedRows(blocks, masking, seed=seed), left


def make_trainer(
    settings: PretrainSettings, model, args: PretrainConfig, tokenizer, train, evaluation
):
    if settings.objective != "causal":
        MaskedPlacesOnly(model)
        return EncoderTrainer(
            model=model,
            args=args,
            train=train,
            evaluation=evaluation,
            metrics=("masked_loss",),
            data_collator=PadRows(tokenizer.pad_token_id),
            compute_metrics=masked_metrics,
            preprocess_logits_for_metrics=row_sums,
        )
    args.train_sampling_strategy = (
        "random"  # transformers' own order by length cannot be resumed in the middle
    )
    pad = PadRows(tokenizer.eos_token_id)
    trainer = Trainer(
        model=model, args=args, train_dataset=train, eval_dataset=evaluation, data_collator=pad
    )
    use_run_progress(trainer, args.output_dir)
    if args.early_stopping_patience:
        trainer.add_callback(EarlyStopping(args.early_stopping_patience))
    return trainer


def main(settings: PretrainSettings, args: PretrainConfig) -> None:
    with recording("pretrain", settings, args) as run:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        check(settings, tokenizer)
        splits = load_splits(settings, ("text",), seed=args.seed)
        run.data(splits)
        model = load_model(settings, tokenizer, run)
        train, left = make_rows(
            settings, tokenizer, [row["text"] for row in splits.train], args.seed
        )
        evaluation = None
        if splits.eval:
            evaluation, left_eval = make_rows(
                settings, tokenizer, [row["text"] for row in splits.eval], args.seed
            )
            left += left_eval
        if not len(train) or (evaluation is not None and not len(evaluation)):
            side = "evaluation" if len(train) else "training"
            raise UserError(
                f"the {side} text is shorter than one block of {settings.block_size} tokens: lower block_size"
            )
        if evaluation is None:
            if args.early_stopping_patience:
                raise UserError(
                    "early_stopping_patience: there are no evaluation rows: set eval_fraction"
                )
            args.eval_strategy, args.load_best_model_at_end = "no", False
        tokens = sum(getattr(train, "lengths", None) or (len(row["input_ids"]) for row in train))
        run.say(
            f"{len(train)} rows of at most {settings.block_size} tokens, {tokens} in all, {left} left out; "
            f"{model.num_parameters() / 1e6:.1f} M parameters"
        )

        trainer = make_trainer(settings, model, args, tokenizer, train, evaluation)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        run.metrics({"parameters": model.num_parameters(), "train_tokens": tokens})
        model = trainer.accelerator.unwrap_model(trainer.model)
        if evaluation is not None:
            measured = {
                name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()
            }
            loss = measured["loss"]
            run.metrics(
                {
                    "eval_loss": loss,
                    "perplexity": math.exp(min(loss, 50)),
                    "eval_rows": len(evaluation),
                }
            )
            if settings.objective != "causal":
                names = ("masked_loss", "perplexity", "masked_accuracy", "nsp_accuracy")
                run.metrics(
                    {name: measured[name] for name in names if name in measured}
                    | baselines(evaluation)
                )
        if not run.main:
            return
        save(model, tokenizer, args.output_dir)
        if evaluation is not None and settings.objective != "causal":
            samples = filled_in(model, tokenizer, evaluation, count=8)
            for sample in samples:
                append_jsonl(
                    run.folder / "samples.jsonl", {"step": trainer.state.global_step, **sample}
                )
            run.say("What the model reads into one mask, [?], of held-out text:")
            run.say(sample_table(samples, columns=["text", "word", "filled"], limit=8))


if __name__ == "__main__":
    start(main, __doc__)
