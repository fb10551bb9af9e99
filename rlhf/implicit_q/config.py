"""Settings of ILQL, and the keys that have no effect there. Sources: Snell et al. 2022 (arXiv 2206.11871)."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers import TrainingArguments

from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import check_activation_checkpointing
from rlhf.runs.keys import EVALUATION_LOOP, OWN_MODULE, Unused
from rlhf.runs.ranges import SHARE, Range, at_least

UNUSED = (
    Unused(("remove_unused_columns",), "the collator reads all columns of a row", fixed=False),
    Unused(
        ("label_smoothing_factor",),
        "the values would be of tokens that were not taken; raise cql_coef less instead",
    ),
    Unused(
        ("neftune_noise_alpha",),
        "noise in the embeddings would be noise in the values; drop it",
    ),
    Unused(
        ("train_sampling_strategy", "length_column_name"),
        "rows are drawn at random; drop it",
        lambda run: run.train_sampling_strategy == "sequential",
    ),
    Unused(
        ("average_tokens_across_devices",),
        "the loss is a mean over the tokens of a step; drop it",
        fixed=True,
    ),
    Unused(("use_cache",), "training never caches; drop it"),
    Unused(("include_num_input_tokens_seen",), "the tokens of answers are not counted; drop it"),
    OWN_MODULE,
    EVALUATION_LOOP,
)


@dataclass
class ILQLConfig(TrainingArguments):
    """TrainingArguments keep their meaning; a batch counts answers."""

    max_length: int = field(
        default=1024,
        metadata={
            "help": "Longest prompt + completion in tokens; longer ones are dropped and counted."
        },
    )
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Of policy and heads. ILQL: 1e-4, of Adam."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Answers per step."})
    expectile: float = field(
        default=0.7,
        metadata={
            "help": "Of Q that V learns: 0.5 is the mean, towards 1 the best that the answers show."
        },
    )
    gamma: float = field(
        default=0.99, metadata={"help": "Discount for each token that is still to come."}
    )
    cql_coef: float = field(
        default=0.1,
        metadata={"help": "Weight of the term that lowers Q of tokens that no answer takes."},
    )
    nll_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the policy's own loss on the answers. 0, with values_move_trunk: false, keeps it as it is."
        },
    )
    values_move_trunk: bool = field(
        default=True,
        metadata={"help": "Let the values train the policy's trunk too. False: the heads alone."},
    )
    target_update_rate: float = field(
        default=0.005,
        metadata={"help": "Share of Q that its slowly moving copy takes over after each step."},
    )
    advantage_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of Q - V in decoding, saved with the run: 0 gives the policy without values."
        },
    )

    RANGES: ClassVar[dict] = {
        "max_length": at_least(2),
        "expectile": Range(0.5, 1, without_high=True),
        "gamma": SHARE,
        "cql_coef": at_least(0),
        "nll_coef": at_least(0),
        "target_update_rate": Range(0, 1, without_low=True),
        "advantage_coef": at_least(0),
    }
    UNUSED: ClassVar[tuple] = UNUSED

    def __post_init__(self):
        self.remove_unused_columns = False  # the collator needs all of them
        self.logging_nan_inf_filter = False  # a NaN must be seen
        # The Trainer tells by them that a batch has something to be measured by.
        self.label_names = ["scores"]
        if self.load_best_model_at_end or self.save_strategy == "best":
            self.metric_for_best_model = self.metric_for_best_model or "loss"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        super().__post_init__()
        check_activation_checkpointing(self)
        # The policy's own output layer would go on reading states that mean something else.
        if self.nll_coef == 0 and self.values_move_trunk:
            raise UserError(
                "nll_coef=0 with values_move_trunk: true: the values would change the trunk, and nothing would keep the "
                "policy on it able to write: set nll_coef above 0, or values_move_trunk: false"
            )
