"""Text to text: translation, summary, or any pairs -> an LSTM encoder-decoder, with or without attention, or a Transformer.

    accelerate launch recipes/seq2seq.py --dataset_name pairs.tsv --columns prompt=english,completion=korean \\
        --model_name_or_path t5-small --output_dir runs/translation

Time: two to four minutes for 3,000 short sentences on one core. Look at: chrf and its interval on held-out pairs,
plots/lengths.png (chrF by the length of the source) and plots/alignment_*.png (what each written token has read). It
learns from the reference (teacher forcing), and is evaluated on what it writes itself by beam search.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import LabelSmoother

from rlhf.data.splits import Splits, load_splits
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.load import load_seq2seq
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.models.seq2seq import LSTM, MODEL_TYPES, fit_pair_tokenizer, new_seq2seq
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.keys import WHOLE_OUTPUTS, Unused
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import sample_table, use_run_progress
from rlhf.runs.ranges import at_least
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.runs.sharding import GatheringTrainer
from rlhf.tasks.seq2seq.encode import check_text, encode_pairs, unknown_tokens
from rlhf.tasks.seq2seq.metrics import (
    check_metrics,
    corpus_scores,
    plot_alignment,
    plot_lengths,
    scores_by_length,
)
from rlhf.tasks.seq2seq.predictor import align, decoded
from rlhf.tasks.trainer import POOL, EpochStart, LengthSampler

ALIGNED = 4  # held-out pairs whose alignment is drawn
LONGEST_ALIGNED = 24  # tokens on either side, so that the picture can be read
LARGEST_LOSS = 50  # nats, so that a perplexity is finite


def is_lstm(run) -> bool:
    return run.from_scratch and run.model_type == LSTM


@dataclass
class Seq2SeqSettings(DataSettings, ModelSettings, ScratchSettings):
    """The pairs of texts, and the model that learns to write the second of the first."""

    model_name_or_path: str = field(
        default="t5-small",
        metadata={"help": "Run folder or Hub id of a T5, mT5, BART, Pegasus or Marian model."},
    )
    model_type: str = field(
        default="marian",
        metadata={
            "help": "Architecture of a model from scratch: lstm_seq2seq, or marian, the Transformer of its paper."
        },
    )
    attention: str | None = field(
        default=None,
        metadata={
            "help": "lstm_seq2seq: null, additive (Bahdanau et al. 2015) or multiplicative (Luong et al. 2015)."
        },
    )
    source_prefix: str = field(
        default="",
        metadata={
            "help": "Text before each source, as T5 was trained: 'translate English to German: '."
        },
    )
    max_source_length: int = field(
        default=128, metadata={"help": "Tokens of a source; longer pairs are dropped and counted."}
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Tokens of a target; longer pairs are dropped and counted."}
    )
    bleu_tokenize: str = field(
        default="13a",
        metadata={"help": "How BLEU cuts words: 13a, intl, zh, or char, for Korean and Japanese."},
    )

    RANGES: ClassVar[dict] = {"max_source_length": at_least(2), "max_target_length": at_least(2)}
    UNUSED: ClassVar[tuple] = (
        Unused(("attention",), "only a new lstm_seq2seq can have it or not; drop it", is_lstm),
        Unused(
            ("heads", "context", "attn_implementation", "gradient_checkpointing"),
            "an lstm_seq2seq has neither heads, positions nor blocks; drop it",
            lambda run: not is_lstm(run),
        ),
        Unused(
            ("load_in_4bit", "load_in_8bit"),
            "matrices are packed for language models only; drop it",
        ),
        Unused(("chat_template_kwargs",), "pairs of texts have no chat template; drop it"),
    )


@dataclass
class Seq2SeqConfig(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments keep their meaning."""

    learning_rate: float = field(
        default=3e-4, metadata={"help": "T5: 1e-4 to 1e-3; an LSTM from scratch: 1e-3 to 3e-3."}
    )
    generation_num_beams: int = field(
        default=4, metadata={"help": "Beams of the evaluation and of the saved model."}
    )
    generation_max_length: int | None = field(
        default=None,
        metadata={"help": "Longest text that is written, in tokens. Default: max_target_length."},
    )
    predict_with_generate: bool = field(
        default=False,
        metadata={
            "help": "Write texts at every evaluation, for eval_chrf and eval_bleu. The last one always does."
        },
    )

    RANGES: ClassVar[dict] = {
        "generation_num_beams": at_least(1),
        "generation_max_length": at_least(2),
    }
    UNUSED: ClassVar[tuple] = (
        Unused(
            ("generation_config",), "set generation_num_beams and generation_max_length; drop it"
        ),
        Unused(("sortish_sampler",), "set train_sampling_strategy: group_by_length; drop it"),
        Unused(("length_column_name",), "lengths are those of the encoded pairs; drop it"),
        WHOLE_OUTPUTS,
    )


class PairTrainer(GatheringTrainer, Seq2SeqTrainer):
    """transformers.Seq2SeqTrainer, whose rows come in an order that a resumed run can continue.

    Every loss is a mean over the target tokens of an update, however it is split. It is smoothed in the training only, so
    that eval_loss is comparable.
    """

    def __init__(self, *, lengths: list[int], args: Seq2SeqConfig, **options):
        self.lengths = lengths
        super().__init__(args=args, compute_loss_func=self.smoothed_loss, **options)
        self.label_smoother = None  # the Trainer's would smooth the evaluation, too
        self.order = self._get_train_sampler()
        self.add_callback(EpochStart(self.order))

    def smoothed_loss(self, outputs, labels, num_items_in_batch=None):
        """Nats per target token; in the training mixed with a uniform distribution (Szegedy et al. 2016)."""
        factor = self.args.label_smoothing_factor if self.model.training else 0.0
        smoother = LabelSmoother(epsilon=factor)
        return smoother(outputs, labels, num_items_in_batch=num_items_in_batch)

    def _get_train_sampler(self, train_dataset=None):
        # The Trainer asks again; EpochStart must know the sampler that it uses.
        if hasattr(self, "order"):
            return self.order
        args = self.args
        group = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        pool = POOL if args.train_sampling_strategy == "group_by_length" else 1
        return LengthSampler(self.lengths, group=group, seed=seed, pool=pool)

    def _get_eval_sampler(self, eval_dataset):
        # With group_by_length the Trainer would sort these rows, too, and texts would meet the references of other rows.
        return SequentialSampler(eval_dataset)

    def evaluation_loop(self, *args, **options):
        # Seq2SeqTrainer keeps the rows that fill the last batch of several processes, and they would be scored twice.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **options)


@dataclass
class PreparedSeq2Seq:
    """The trainer of a run, and what its evaluation needs.

    rows: the held-out rows, in the order in which the trainer reads them. dropped: pairs that were too long, of both sides.
    """

    trainer: PairTrainer
    tokenizer: PreTrainedTokenizerBase
    rows: list[dict]
    dropped: int


def main(settings: Seq2SeqSettings, args: Seq2SeqConfig) -> None:
    with recording("seq2seq", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_seq2seq(run, settings, prepared)


def prepare(settings: Seq2SeqSettings, args: Seq2SeqConfig, run: Run) -> PreparedSeq2Seq:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    args.logging_nan_inf_filter = False  # a NaN must be seen
    check_settings(settings, args)
    tokenizer = settings.load_tokenizer()
    fit_pair_tokenizer(tokenizer)
    # A conversation would need a chat template, and an empty text teaches nothing.
    checks = {"prompt": check_text, "completion": check_text}
    splits = load_splits(settings, ("prompt_completion",), seed=args.seed, checks=checks)
    run.data(splits)
    check_can_evaluate(splits)
    model = load_or_make(settings, tokenizer, run)
    # (source, target), in tokens
    longest = (
        min(settings.max_source_length, context_length(model)),
        min(settings.max_target_length, context_length(model)),
    )
    tokens = args.per_device_train_batch_size * max(longest)
    # Autocast has no LSTM of its own on a CPU, where bf16 would be slower whatever its products are.
    default = "fp32" if model.config.model_type == LSTM else "auto"
    set_precision(run, settings, model, tokens=tokens, default=default)
    set_generation(settings, args, model, longest)

    encode = partial(
        encode_pairs,
        tokenizer,
        prefix=settings.source_prefix,
        start=model.config.decoder_start_token_id,
        longest=longest,
    )
    train, train_rows = encode(splits.train)
    held_out, rows = encode(splits.eval)
    check_lengths(train, held_out, longest)
    # Pairs are dropped whole: half a source has another translation.
    dropped = len(splits.train) - len(train_rows) + len(splits.eval) - len(rows)
    unknown = unknown_tokens(tokenizer, train)
    run.say(
        f"{len(train)} pairs, {len(held_out)} held out; {dropped} of more than {longest[0]} or {longest[1]} tokens dropped; "
        f"{model.num_parameters() / 1e6:.1f} M parameters"
    )
    if unknown:
        run.say(
            f"warning: {unknown} target tokens are unknown to the tokenizer, and cannot be written: train one on this text "
            "with recipes/tokenizer.py, or take a model of these languages"
        )
    run.metrics({"parameters": model.num_parameters(), "unknown_target_tokens": unknown})
    trainer = make_trainer(settings, args, tokenizer, model=model, train=train, held_out=held_out)
    return PreparedSeq2Seq(trainer, tokenizer, rows, dropped)


# ---- before training ---------------------------------------------------------------------------------------------


def check_settings(settings: Seq2SeqSettings, args: Seq2SeqConfig) -> None:
    """UserError where the settings contradict each other, or the evaluation could not be made."""
    check_metrics(settings.bleu_tokenize)
    if settings.from_scratch and settings.model_type not in MODEL_TYPES:
        raise UserError(f"model_type={settings.model_type!r}: use one of {', '.join(MODEL_TYPES)}")
    if settings.from_scratch and settings.use_peft:
        raise UserError(
            "use_peft freezes the model, and from_scratch makes it random: set one of the two to false"
        )
    measured = ["eval_loss"]
    if args.predict_with_generate:
        measured += ["eval_chrf", "eval_bleu"]
    check_is_measured(args.metric_for_best_model, measured)


def check_can_evaluate(splits: Splits) -> None:
    if not splits.eval:
        raise UserError(
            "the model is evaluated on pairs that it was not trained on: set eval_fraction or eval_dataset_name"
        )


def check_lengths(train, held_out, longest: tuple[int, int]) -> None:
    """UserError where no pair is short enough."""
    for side, rows in (("training", train), ("held-out", held_out)):
        if not len(rows):
            raise UserError(
                f"no {side} pair fits max_source_length={longest[0]} and max_target_length={longest[1]} tokens: raise "
                "them, up to the model's context"
            )


def load_or_make(settings: Seq2SeqSettings, tokenizer, run: Run):
    """The model to train, loaded or with random weights, with room for the tokenizer's tokens."""
    if settings.from_scratch:
        sizes = settings.sizes()
        model = new_seq2seq(
            tokenizer, sizes.pop("model_type"), attention=settings.attention, **sizes
        )
        run.parent("tokenizer", settings.tokenizer_name_or_path or settings.model_name_or_path)
        return model
    model = load_seq2seq(settings.model_name_or_path, **settings.load_options())
    if settings.use_peft and model.config.model_type == LSTM:
        raise UserError(
            "use_peft: LoRA matrices go next to linear layers, and an LSTM has hardly any: set it to false"
        )
    run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
    fit_embeddings(model, tokenizer)
    return model


def set_generation(settings, args: Seq2SeqConfig, model, longest: tuple[int, int]) -> None:
    """Let the model write as it will be evaluated, also once it is saved. Other settings of a checkpoint stay."""
    config = model.generation_config
    # A target begins with a token that is none of its own.
    config.max_length = args.generation_max_length or longest[1] + 1
    config.max_new_tokens = None
    config.num_beams = args.generation_num_beams
    # BART's summarisers have one.
    if (config.min_length or 0) > config.max_length:
        raise UserError(
            f"the model's generation config wants texts of at least {config.min_length} tokens, and max_target_length or "
            f"generation_max_length ends them after {config.max_length}: raise it, or change min_length in its "
            "generation_config.json"
        )
    # Seq2SeqTrainer passes them to every evaluation.
    args.generation_max_length = config.max_length
    model.config.trained_prefix = settings.source_prefix
    model.config.trained_source_length = longest[0]


def make_trainer(settings, args, tokenizer, *, model, train, held_out) -> PairTrainer:
    lengths = []
    for row in train:
        lengths.append(len(row["input_ids"]) + len(row["labels"]))
    metrics = None  # the loss alone
    if args.predict_with_generate:
        metrics = partial(written_metrics, tokenizer, settings.bleu_tokenize)
    trainer = PairTrainer(
        model=settings.with_lora(model, task="SEQ_2_SEQ_LM"),
        args=args,
        lengths=lengths,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    use_run_progress(trainer, args.output_dir)
    return trainer


# ---- evaluation --------------------------------------------------------------------------------------------------


def written_metrics(tokenizer, bleu_tokenize: str, output) -> dict[str, float]:
    """chrf and bleu of the texts that were written during an evaluation of the training."""
    written = texts_of(tokenizer, output.predictions)
    references = texts_of(tokenizer, output.label_ids)
    scores = corpus_scores(written, references, bleu_tokenize, resamples=1)
    return {"chrf": scores["chrf"], "bleu": scores["bleu"]}


def texts_of(tokenizer, ids: np.ndarray) -> list[str]:
    """Rows of token ids as texts; what pads them is negative."""
    return decoded(tokenizer, np.where(ids < 0, tokenizer.pad_token_id, ids))


def evaluate_seq2seq(run: Run, settings: Seq2SeqSettings, prepared: PreparedSeq2Seq) -> None:
    """Let the model write a text for each held-out source, and measure how near it comes to the reference."""
    trainer, rows = prepared.trainer, prepared.rows
    run.metrics({"train_rows": len(trainer.train_dataset), "rows_too_long": prepared.dropped})
    # Here, because an evaluation during the training need not write.
    trainer.args.predict_with_generate, trainer.compute_metrics = True, None
    output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    loss = output.metrics["eval_loss"]
    run.metrics({"eval_loss": loss, "perplexity": math.exp(min(loss, LARGEST_LOSS))})
    if not run.main:
        return
    written = texts_of(prepared.tokenizer, output.predictions)
    # The references are the texts themselves: tokens may not spell every character.
    references = [row["completion"] for row in rows]
    scores = corpus_scores(written, references, settings.bleu_tokenize)
    run.metrics({name: value for name, value in scores.items() if isinstance(value, float)})
    run.metrics({"eval_rows": len(rows)})
    lengths = [len(ids) for ids in trainer.eval_dataset["input_ids"]]
    groups = scores_by_length(written, references, lengths)
    alignments = alignments_of(trainer, prepared.tokenizer, written)
    run.write("seq2seq.json", scores | {"lengths": groups, "alignments": alignments})
    draw(run, groups, alignments)
    samples = []
    for row, text in zip(rows, written, strict=True):
        samples.append(
            {"prompt": row["prompt"], "completion": text, "reference": row["completion"]}
        )
    run.samples(samples)
    run.say(sample_table(samples, columns=["prompt", "completion", "reference"], limit=8))
    run.say(sample_table(groups, columns=["source_tokens", "rows", "chrf", "chrf_low", "chrf_high"], limit=8))  # fmt: skip


def alignments_of(trainer: PairTrainer, tokenizer, written: list[str]) -> list[dict]:
    """The alignment of a few held-out sources and what was written for them; [] for a model without attention."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    if model.config.model_type != LSTM:
        # The faster kinds of attention do not keep their weights.
        model.set_attn_implementation("eager")
    alignments = []
    for row, text in zip(trainer.eval_dataset, written, strict=True):
        target = tokenizer(text_target=text)["input_ids"]
        # Short enough for a picture, and long enough to show an order.
        if max(len(row["input_ids"]), len(target)) > LONGEST_ALIGNED or len(target) < 4:
            continue
        item = align(model, tokenizer, row["input_ids"], target)
        if item is None:
            break
        alignments.append(item)
        if len(alignments) == ALIGNED:
            break
    return alignments


def draw(run: Run, groups: list[dict], alignments: list[dict]) -> None:
    """The pictures of the run folder."""
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    plot_lengths(groups, folder / "lengths.png")
    for i, item in enumerate(alignments, start=1):
        plot_alignment(item, folder / f"alignment_{i}.png")


if __name__ == "__main__":
    start(main, __doc__)
