"""Pretrain on plain text, from random weights or continued from a checkpoint: GPT-2 class or BERT class models.

    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/demo.yaml          (causal, as GPT)
    accelerate launch recipes/pretrain.py --config recipes/configs/pretrain/bert.yaml          (masked words, as BERT)

Time: about a minute for the demo on two cores. Look at: perplexity on held-out text, and bits_per_byte, which is comparable
over tokenizers (`tasks.pretraining.bits_per_byte`); for masked words also masked_accuracy
next to masked_baseline, and the table of words that the model fills in. Text is cut into blocks of `block_size` tokens that
stay within a document unless `cross_documents` is set. sft.py (causal) or classification.py, ner.py and
question_answering.py (masked) start from the run folder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase, Trainer, set_seed

from rlhf.baselines.table import BASELINES
from rlhf.data.chat import add_chat_template
from rlhf.data.fingerprints import encoding_key, module_fingerprint
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.load import load_encoder, load_policy, save
from rlhf.models.parts import context_length, fit_embeddings, fit_tokenizer
from rlhf.models.scratch import new_baseline, new_encoder, new_policy
from rlhf.runs.keys import Unused
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import append_jsonl, sample_table, use_run_progress
from rlhf.runs.replacement import replacement
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.runs.sharding import GatheringTrainer
from rlhf.task_table import PRETRAINING_HEADS
from rlhf.tasks.pretraining.bits_per_byte import (
    causal_metrics,
    causal_sums,
    mean_nats,
    predicted_bytes,
)
from rlhf.tasks.pretraining.carried_state import (
    CarriedState,
    Streams,
    check_is_recurrent,
    evaluation_streams,
)
from rlhf.tasks.pretraining.counting import count_rows
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
from rlhf.tasks.trainer import EarlyStopping, EncoderConfig, EncoderTrainer, set_best_metric
from rlhf.word_vectors.embeddings import EmbeddingSettings, check_vector_size, start_from_vectors

OBJECTIVES = ("causal", "masked", "masked_nsp")
LEAST_BLOCK_SIZE = 8  # tokens
LARGEST_LOSS = 50  # nats, so that a perplexity is finite


# Keys that steps of gradient descent read, and an n-gram does not.
OF_STEPS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "resume_from_checkpoint",
    "early_stopping_patience",
    "load_best_model_at_end",
)


def learns_masked_words(run) -> bool:
    return run.objective != "causal"


def is_counted(run) -> bool:
    """True for an n-gram model. run: settings with `model_type`."""
    row = BASELINES.get(run.model_type)
    return row is not None and row.learns == "counts"


def has_window(run) -> bool:
    return run.model_type in ("ngram", "mlp")


@dataclass
class PretrainSettings(DataSettings, ModelSettings, ScratchSettings, EmbeddingSettings):
    """The objective, and the text to learn from."""

    objective: str = field(
        default="causal",
        metadata={"help": "causal (GPT), masked (BERT's words), masked_nsp (and next sentences)."},
    )
    block_size: int = field(
        default=128, metadata={"help": "Tokens per row, special ones included."}
    )
    cross_documents: bool = field(
        default=False,
        metadata={"help": "One stream cut into full blocks, instead of blocks within documents."},
    )
    carry_state: bool = field(
        default=False,
        metadata={
            "help": "rnn, lstm and gru: start a block from the state after the block before (truncated "
            "backpropagation through time). Needs cross_documents."
        },
    )
    whole_words: bool = field(
        default=False, metadata={"help": "Mask whole words instead of single tokens."}
    )
    model_type: str = field(
        default="",
        metadata={
            "help": "Architecture of a model from scratch. Default: gpt2 for causal, else bert. Causal also: "
            "ngram, mlp, rnn, lstm, gru."
        },
    )
    order: int = field(
        default=5,
        metadata={"help": "ngram (1 to 5) and mlp: predict a token from the order - 1 before it."},
    )

    UNUSED: ClassVar[tuple] = (
        Unused(("order",), "only ngram and mlp have an order; drop it", has_window),
        Unused(
            ("heads", "context"),
            "models before the Transformer have neither attention heads nor positions; drop it",
            lambda run: run.model_type not in BASELINES,
        ),
        Unused(
            (
                "hidden_size",
                "layers",
                "dropout",
                "embeddings_from",
                "gradient_checkpointing",
                *OF_STEPS,
            ),
            "an n-gram model is counted in one pass over the text; drop it",
            lambda run: not is_counted(run),
        ),
        Unused(
            ("gradient_checkpointing",),
            "models before the Transformer have no blocks to compute again; drop it",
            lambda run: run.model_type not in BASELINES,
        ),
        Unused(
            ("train_sampling_strategy",),
            "causal rows come in random order, which a resumed run can continue; drop it",
            learns_masked_words,
            fixed="random",
        ),
        Unused(
            ("head_learning_rate",),
            "a causal model has one learning rate for all layers; drop it",
            learns_masked_words,
        ),
    )


@dataclass
class PretrainConfig(EncoderConfig):
    """EncoderConfig with the learning rate of BERT's pretraining (arXiv 1810.04805, A.2), for many rows."""

    max_length: int = field(init=False, default=0)  # block_size takes its place
    learning_rate: float = field(default=1e-4, metadata={"help": "BERT: 1e-4."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length: rows of one length together, for less padding; or random."
        },
    )


@dataclass
class PreparedPretraining:
    """The trainer of a run, and what its evaluation needs.

    rows: the evaluation rows, or None.
    """

    trainer: Trainer
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence | None


def main(settings: PretrainSettings, args: PretrainConfig) -> None:
    with recording("pretrain", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        if is_counted(settings):
            count(run, trainer, prepared.tokenizer)
        else:
            run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_pretraining(run, settings, prepared)


# ---- before training ---------------------------------------------------------------------------------------------


def prepare(settings: PretrainSettings, args: PretrainConfig, run: Run) -> PreparedPretraining:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    check_settings(settings, args)
    set_best_metric(args, metric_names(settings.objective))
    tokenizer = settings.load_tokenizer()
    # before any text is read
    check_tokenizer(settings, tokenizer)
    check_vector_size(settings)
    splits = load_splits(settings, ("text",), seed=args.seed)
    run.data(splits)
    if not splits.eval:
        do_not_evaluate(args)
    model = load_model(settings, tokenizer, run)
    row_tokens = args.per_device_train_batch_size * settings.block_size
    if not is_counted(settings):
        set_precision(run, settings, model, tokens=row_tokens, default="auto")
    train, dropped = make_rows(settings, tokenizer, splits.train, args.seed)
    check_length(train, "training", settings)
    if settings.carry_state:
        train = Streams(train, args.per_device_train_batch_size)
        dropped += train.dropped
    evaluation = None
    if splits.eval:
        evaluation, eval_dropped = make_rows(settings, tokenizer, splits.eval, args.seed)
        check_length(evaluation, "evaluation", settings)
        dropped += eval_dropped
        if settings.carry_state:
            evaluation = evaluation_streams(evaluation, args.per_device_eval_batch_size)
            args.per_device_eval_batch_size = evaluation.batch_size
            dropped += evaluation.dropped
    tokens = sum(train.lengths)
    run.say(
        f"{len(train)} rows of at most {settings.block_size} tokens, {tokens} in all, {dropped} dropped; "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )
    run.metrics({"parameters": model.num_parameters(), "train_tokens": tokens})
    trainer = make_trainer(settings, model, args, tokenizer, train, evaluation)
    return PreparedPretraining(trainer, tokenizer, evaluation)


def check_settings(settings: PretrainSettings, args: PretrainConfig) -> None:
    """UserError where the settings contradict each other."""
    if settings.objective not in OBJECTIVES:
        raise UserError(f"objective={settings.objective!r}: use one of {', '.join(OBJECTIVES)}")
    if settings.block_size < LEAST_BLOCK_SIZE:
        raise UserError(
            f"block_size={settings.block_size}: give a row at least {LEAST_BLOCK_SIZE} tokens"
        )
    row = BASELINES.get(settings.model_type)
    if row is not None and (settings.objective != "causal" or not row.is_causal()):
        raise UserError(
            f"model_type={settings.model_type}: it is not for objective={settings.objective}: use one of "
            f"{', '.join(name for name, row in BASELINES.items() if row.is_causal())} with causal"
        )
    if settings.model_type == "mlp" and settings.order < 2:
        raise UserError(f"order={settings.order}: an MLP needs at least 2, to read one token")
    if settings.use_peft:
        raise UserError("use_peft: pretraining trains all weights: set it to false")
    if settings.whole_words and settings.objective == "causal":
        raise UserError(
            "whole_words: needs a masked objective: set it to false, or objective to masked"
        )
    check_carries_state(settings, args)
    if settings.cross_documents and settings.objective == "masked_nsp":
        raise UserError(
            "cross_documents: next-sentence pairs are drawn within documents: set it to false"
        )


def check_carries_state(settings: PretrainSettings, args: PretrainConfig) -> None:
    """UserError where the state of a model cannot be carried from block to block."""
    if not settings.carry_state:
        return
    if settings.from_scratch:
        check_is_recurrent(settings.model_type or "Transformer")
    if not settings.cross_documents:
        raise UserError(
            "carry_state: a block must continue the block before: set cross_documents to true"
        )
    if args.world_size > 1:
        raise UserError(
            f"carry_state: {args.world_size} processes would read other streams than one: start one process"
        )


def check_tokenizer(settings: PretrainSettings, tokenizer) -> None:
    """UserError where the objective cannot be learned with the tokenizer."""
    if settings.whole_words and not tokenizer.is_fast:
        raise UserError("whole_words: needs a fast tokenizer, which knows where words begin")
    if settings.objective != "causal":
        check_special_tokens(
            settings,
            tokenizer,
            needed=("pad", "cls", "sep", "mask"),
            other="recipes/tokenizer.py makes one with tokenizer_type: wordpiece",
        )
    else:
        check_special_tokens(settings, tokenizer, needed=("eos",), other="GPT-2's has one")


def check_special_tokens(
    settings: PretrainSettings,
    tokenizer,
    *,
    needed: Sequence[str],
    other: str,
) -> None:
    """UserError where the tokenizer lacks a special token. other: a tokenizer that has them, for the message."""
    names = [f"{name}_token" for name in needed]
    missing = [name for name in names if getattr(tokenizer, name) is None]
    if missing:
        raise UserError(
            f"objective={settings.objective} needs a tokenizer with {', '.join(needed)} tokens, and "
            f"{tokenizer.name_or_path!r} has no {', '.join(missing)}; {other}"
        )


def load_model(settings: PretrainSettings, tokenizer, run: Run):
    """A model from scratch or from a checkpoint, with the tokenizer fitted to it."""
    if settings.from_scratch:
        model = new_model(settings, tokenizer)
        start_from_vectors(run, settings, model, tokenizer)
        run.parent("tokenizer", settings.tokenizer_name_or_path or settings.model_name_or_path)
    else:
        model = load_checkpoint(settings, tokenizer, run)
        run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
        # The tokenizer may have more tokens than the checkpoint.
        fit_embeddings(model, tokenizer)
        if settings.carry_state:
            check_is_recurrent(model.config.model_type)
    if settings.objective != "causal":
        fit_tokenizer(tokenizer, model, pairs=False)
    if settings.block_size > context_length(model):
        raise UserError(
            f"block_size={settings.block_size} is over the model's context of {context_length(model)} tokens"
        )
    return model


def new_model(settings: PretrainSettings, tokenizer):
    """A model with random weights."""
    sizes = settings.sizes()
    if settings.objective == "causal":
        if settings.model_type in BASELINES:
            return new_baseline(
                tokenizer,
                settings.model_type,
                hidden_size=settings.hidden_size,
                layers=settings.layers,
                order=settings.order,
                dropout=settings.dropout,
            )
        sizes["model_type"] = settings.model_type or "gpt2"
        return new_policy(tokenizer, **sizes)
    sizes["model_type"] = settings.model_type or "bert"
    return new_encoder(tokenizer, PRETRAINING_HEADS[settings.objective], **sizes)


def load_checkpoint(settings: PretrainSettings, tokenizer, run: Run):
    """The model of a run folder or of the Hub; weights that it lacks are random."""
    path = settings.model_name_or_path
    if settings.objective == "causal":
        model = load_policy(path, **settings.load_options())
        add_chat_template(tokenizer)
        return model
    head = PRETRAINING_HEADS[settings.objective]
    model = load_encoder(path, head, new_head=True, **settings.encoder_options())
    if model.new_weights:
        run.say(f"not in {path}, so random at first: {', '.join(model.new_weights)}")
    return model


def make_rows(settings: PretrainSettings, tokenizer, rows: Sequence[dict], seed: int):
    """(rows to train or evaluate on, tokens that were dropped) of the objective."""
    texts = (row["text"] for row in rows)  # read only where the cache does not have them encoded
    size = settings.block_size
    cross = settings.cross_documents
    code = module_fingerprint(MaskedRows.__module__)
    key = encoding_key(f"pretrain-{settings.objective}", rows, tokenizer, code, size, cross)
    if settings.objective == "causal":
        return causal_blocks(tokenizer, texts, size, cross_documents=cross, key=key)
    masking = Masking(tokenizer, whole_words=settings.whole_words)
    if settings.objective == "masked_nsp":
        # Pairs keep every sentence, so that nothing is dropped.
        return PairRows(tokenizer, texts, size, masking, seed=seed, key=key), 0
    blocks, dropped = masked_blocks(tokenizer, texts, size, cross_documents=cross, key=key)
    return MaskedRows(blocks, masking, seed=seed), dropped


def check_length(rows, side: str, settings: PretrainSettings) -> None:
    """UserError where a text gives no row."""
    if not len(rows):
        raise UserError(
            f"the {side} text is shorter than one block of {settings.block_size} tokens: lower block_size"
        )


def do_not_evaluate(args: PretrainConfig) -> None:
    """Change the settings to those of a run without evaluation rows."""
    if args.early_stopping_patience:
        raise UserError("early_stopping_patience: there are no evaluation rows: set eval_fraction")
    args.eval_strategy = "no"
    args.load_best_model_at_end = False


# ---- training and after ------------------------------------------------------------------------------------------


def count(run: Run, trainer: Trainer, tokenizer) -> None:
    """Count the n-grams of the training rows, each process those of its share, and save the model."""
    model = trainer.model
    model.set_counts(*count_rows(trainer.train_dataset, model.config.order))
    # The same in every process.
    run.metrics({"grams": sum(model.config.table_sizes)})
    model.to(trainer.args.device)
    if run.main:
        with replacement(run.folder) as folder:
            save(model, tokenizer, folder)


class CausalTrainer(GatheringTrainer, Trainer):
    """transformers.Trainer for next words, whose evaluation takes the loss from the sums of each row."""

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """(loss, sums (B, 2), labels) of a batch. The model computes no loss, so that there is one cross entropy only."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with self.compute_loss_context_manager():
            logits = model(**inputs).logits  # (B, L, V)
        sums = causal_sums(logits, labels)
        return mean_nats(sums), sums, labels


class CarryingTrainer(CausalTrainer):
    """CausalTrainer whose model starts a batch from the state after the one before. Datasets: `Streams`."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        evaluation = self.eval_dataset.batches if self.eval_dataset is not None else 0
        self.carried = CarriedState(
            self.model, train=self.train_dataset.batches, evaluation=evaluation
        )

    def log_state(self) -> dict:
        """The numbers that a checkpoint keeps besides the weights, and the carried state."""
        return super().log_state() | {"carried": self.carried.to_json()}

    def restore_log_state(self, state: dict) -> None:
        super().restore_log_state(state)
        if "carried" in state:  # not where resume_changed has set carry_state
            self.carried.restore(state["carried"], self.args.device)


def metric_names(objective: str) -> tuple[str, ...]:
    """The numbers that an evaluation of the objective gives, first the one that picks the best checkpoint."""
    return ("loss",) if objective == "causal" else ("masked_loss",)


def make_trainer(
    settings: PretrainSettings,
    model,
    args: PretrainConfig,
    tokenizer,
    train,
    evaluation,
):
    """EncoderTrainer for masked words, transformers' own for causal models."""
    if settings.objective != "causal":
        MaskedPlacesOnly(model)
        return EncoderTrainer(
            model=model,
            args=args,
            train=train,
            evaluation=evaluation,
            metrics=metric_names(settings.objective),
            data_collator=PadRows(tokenizer.pad_token_id),
            compute_metrics=masked_metrics,
            preprocess_logits_for_metrics=row_sums,
        )
    # transformers' own order by length cannot be resumed in the middle
    args.train_sampling_strategy = "random"
    trainer_class = CausalTrainer
    if settings.carry_state:
        args.train_sampling_strategy = "sequential"
        trainer_class = CarryingTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=PadRows(tokenizer.eos_token_id),  # GPT-2 has no padding token
        compute_metrics=causal_metrics,
    )
    use_run_progress(trainer, args.output_dir)
    if args.early_stopping_patience:
        trainer.add_callback(EarlyStopping(args.early_stopping_patience))
    return trainer


def evaluate_pretraining(
    run: Run, settings: PretrainSettings, prepared: PreparedPretraining
) -> None:
    """Measure the trained model on the evaluation rows, if there are any, and show words that it fills in."""
    trainer, rows = prepared.trainer, prepared.rows
    if rows is None:
        return
    is_causal = settings.objective == "causal"
    measured = trainer.evaluate()
    run.metrics(eval_metrics(measured, rows, is_causal=is_causal))
    if is_causal:
        add_bits_per_byte(run, measured, prepared)
    if run.main and not is_causal:
        model = trainer.accelerator.unwrap_model(trainer.model)
        samples = filled_in(model, prepared.tokenizer, rows, count=8)
        show(run, samples, trainer.state.global_step)


def add_bits_per_byte(run: Run, measured: dict, prepared: PreparedPretraining) -> None:
    """The run's bits per byte, unless the tokenizer cannot spell the text."""
    count, unknown = predicted_bytes(prepared.tokenizer, prepared.rows)
    if unknown:
        run.say(
            f"no bits_per_byte: {unknown} of the held-out tokens are unknown, and a model that need not spell them would "
            "look better than it is; use a tokenizer of bytes (byte_bpe) to compare"
        )
        run.metrics({"eval_unknown_tokens": unknown})
        return
    run.metrics({"bits_per_byte": measured["eval_nats"] / math.log(2) / count})


def eval_metrics(measured: dict, rows, *, is_causal: bool) -> dict:
    """The run's metrics on the evaluation rows. measured: those of Trainer.evaluate."""
    loss = measured["eval_loss"]
    metrics = {
        "eval_loss": loss,
        "perplexity": math.exp(min(loss, LARGEST_LOSS)),
        "eval_rows": len(rows),
    }
    if is_causal:
        return metrics
    # eval_loss is the mean over batches, and of pairs has the next-sentence loss in it: perplexity is that of masked_loss.
    for name in ("masked_loss", "perplexity", "masked_accuracy", "nsp_accuracy"):
        if f"eval_{name}" in measured:
            metrics[name] = measured[f"eval_{name}"]
    return metrics | baselines(rows)


def show(run: Run, samples: list[dict], step: int) -> None:
    """Save and print the words that the model fills in."""
    for sample in samples:
        append_jsonl(run.folder / "samples.jsonl", {"step": step, **sample})
    run.say("What the model reads into one mask, [?], of held-out text:")
    run.say(sample_table(samples, columns=["text", "word", "filled"], limit=8))


if __name__ == "__main__":
    start(main, __doc__)
