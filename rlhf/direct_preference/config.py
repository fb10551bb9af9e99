"""Settings of DPO and KTO: trl's keys, with the defaults of the papers, and the keys that have no effect here."""

from dataclasses import dataclass, field
from typing import ClassVar

from trl import DPOConfig, KTOConfig

from rlhf.algorithms import takes
from rlhf.algorithms.preference import PAIR_LOSSES
from rlhf.errors import UserError
from rlhf.runs.keys import EVALUATION_LOOP, Unused
from rlhf.runs.ranges import Range, at_least, more_than

# Keys of both trainers.
UNUSED = (
    Unused(("remove_unused_columns",), "the rows are encoded before trl sees them", fixed=False),
    Unused(
        ("model_init_kwargs",),
        "use dtype, attn_implementation and model_revision",
    ),
    Unused(("dataset_num_proc",), "the rows are encoded before trl sees them; drop it"),
    Unused(
        ("disable_dropout",),
        "policy and reference must differ by what was learned alone; drop it",
        fixed=True,
    ),
    Unused(
        ("neftune_noise_alpha",),
        "noise in the embeddings would move every log-ratio away from 0; drop it",
    ),
    Unused(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "a checkpoint does not hold a reference that moves, and a resumed run would learn something else; drop it",
    ),
    Unused(
        ("router_aux_loss_coef",),
        "the loss of the routers is not added, as in ppo; drop it",
    ),
    Unused(("activation_offloading",), "use gradient_checkpointing; drop it"),
    Unused(("use_liger_kernel",), "trl computes log-probs without it; drop it"),
    Unused(("pad_to_multiple_of",), "rows are padded to the longest of a batch; drop it"),
    Unused(("label_smoothing_factor",), "the rows have no labels of tokens; drop it"),
    Unused(("average_tokens_across_devices",), "the loss is a mean over rows; drop it", fixed=True),
    Unused(("use_cache",), "training never caches; drop it"),
    Unused(("include_num_input_tokens_seen",), "num_tokens counts them; drop it"),
    EVALUATION_LOOP,
)


def smooths_labels(run) -> bool:
    return any(takes(PAIR_LOSSES[name], "label_smoothing") for name in known_losses(run))


def known_losses(run) -> list[str]:
    """The names of the losses of a run that have a formula here."""
    return [name for name in run.loss_type if name in PAIR_LOSSES]


PAIR_UNUSED = (
    Unused(
        ("label_smoothing",),
        "only loss_type: robust and exo_pair read it",
        smooths_labels,
    ),
    Unused(
        ("discopop_tau",),
        "only loss_type: discopop reads it",
        lambda run: "discopop" in run.loss_type,
    ),
    Unused(
        ("loss_weights",),
        "it weighs several losses: give loss_type as a list",
        lambda run: len(run.loss_type) > 1,
    ),
    Unused(("padding_free",), "trl has no batches without padding here yet; drop it"),
    Unused(("truncation_mode",), "completions longer than max_length are dropped and counted"),
    Unused(("pad_token",), "set pad_token in the tokenizer_config.json of the model"),
    Unused(
        ("ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting"),
        "the implicit reward is beta times the log-ratio; choose another loss_type",
    ),
    Unused(
        ("precompute_ref_batch_size",),
        "the reference reads per_device_eval_batch_size completions at a time; drop it",
    ),
    Unused(
        ("train_sampling_strategy", "length_column_name"),
        "a row is a ranking of several texts, which has no one length; drop it",
        lambda run: run.train_sampling_strategy == "sequential",
    ),
)
THUMB_UNUSED = (
    Unused(
        ("train_sampling_strategy", "length_column_name"),
        "the rows are shuffled once, by seed; drop it",
    ),
)


def set_best_metric(args, default: str) -> None:
    """Let the best checkpoint be the best by this metric of the evaluation, unless the user named another."""
    if args.load_best_model_at_end or args.save_strategy == "best":
        args.metric_for_best_model = args.metric_for_best_model or default
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")


@dataclass
class DirectConfig:
    """The settings that DPO and KTO share: a mixin for a config of trl, named first."""

    max_length: int | None = field(
        default=1024,
        metadata={
            "help": "Longest prompt + completion in tokens; longer ones are dropped and counted."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={
            "help": "Run the reference once, before the training, and keep no copy of it in memory."
        },
    )

    BEST_METRIC: ClassVar[str]  # of an evaluation, by which the best checkpoint is chosen
    RANGES: ClassVar[dict] = {"beta": more_than(0), "max_length": at_least(2)}

    def __post_init__(self):
        self.remove_unused_columns = False  # the collator needs all of them
        self.logging_nan_inf_filter = False  # a NaN must be seen
        set_best_metric(self, self.BEST_METRIC)
        super().__post_init__()


@dataclass
class PairConfig(DirectConfig, DPOConfig):
    """TrainingArguments and trl's DPOConfig keep their meaning; a batch counts rankings, each with all its completions."""

    learning_rate: float = field(
        default=1e-6, metadata={"help": "DPO: 1e-6, of RMSprop. With LoRA more, as 1e-5."}
    )
    beta: float = field(
        default=0.1,
        metadata={"help": "How much a nat of log-ratio is worth: more keeps nearer. DPO: 0.1."},
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": f"One or several of {', '.join(PAIR_LOSSES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "One for each of several losses. Default: 1."}
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "robust: the share of swapped labels, as 0.1. exo_pair: as 1e-3."},
    )

    BEST_METRIC = "accuracy"
    RANGES: ClassVar[dict] = DirectConfig.RANGES | {
        "label_smoothing": Range(0, 0.5, without_high=True),
        "discopop_tau": more_than(0),
    }
    UNUSED: ClassVar[tuple] = UNUSED + PAIR_UNUSED

    def __post_init__(self):
        super().__post_init__()
        check_losses(self)


def check_losses(args: PairConfig) -> None:
    """UserError for losses that are unknown, or that lack their setting."""
    for name in args.loss_type:
        if name not in PAIR_LOSSES:
            raise UserError(
                f"loss_type={name}: use one of {', '.join(PAIR_LOSSES)}; aot and aot_unpaired sort the pairs of a batch, so "
                "that a ranking could not count once, and sft is rlhf sft with good_answers: true"
            )
        if takes(PAIR_LOSSES[name], "label_smoothing") and args.label_smoothing == 0:
            usual = {"robust": "0.1", "exo_pair": "1e-3"}[name]
            raise UserError(
                f"loss_type={name} needs label_smoothing above 0 (its paper: {usual}); without it, use loss_type: sigmoid"
            )
    if min(args.loss_weights or [1.0]) <= 0:
        raise UserError(f"loss_weights={args.loss_weights}: a weight must be more than 0")
    if len(set(args.loss_type)) < len(args.loss_type):
        raise UserError(f"loss_type={','.join(args.loss_type)}: a loss is named twice")


@dataclass
class ThumbConfig(DirectConfig, KTOConfig):
    """TrainingArguments and trl's KTOConfig keep their meaning; a batch counts answers."""

    learning_rate: float = field(
        default=1e-6, metadata={"help": "KTO: 5e-7 to 5e-6, of AdamW. With LoRA more, as 1e-5."}
    )
    beta: float = field(
        default=0.1,
        metadata={"help": "How much a nat of log-ratio is worth: more keeps nearer. KTO: 0.1."},
    )
    loss_type: str = field(
        default="kto",
        metadata={
            "help": "kto, or apo_zero_unpaired, which needs no KL.",
            "choices": ["kto", "apo_zero_unpaired"],
        },
    )
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of good answers."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of bad answers."})

    BEST_METRIC = "auc"
    RANGES: ClassVar[dict] = DirectConfig.RANGES | {
        "desirable_weight": more_than(0),
        "undesirable_weight": more_than(0),
    }
    UNUSED: ClassVar[tuple] = UNUSED + THUMB_UNUSED

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in ("kto", "apo_zero_unpaired"):
            raise UserError(f"loss_type={self.loss_type}: use kto or apo_zero_unpaired")
        if self.loss_type == "kto" and self.per_device_train_batch_size < 2:
            raise UserError(
                "per_device_train_batch_size=1: KTO estimates the KL on the rows of a batch, and one row says next to "
                "nothing: use 2 or more, or loss_type: apo_zero_unpaired"
            )
