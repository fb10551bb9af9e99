"""Fine-tuning an encoder: the settings and the trainer that classification, NER, question answering and pretraining share.

What it adds to transformers.Trainer:
- On a CPU the rows of an update are read in two parts by length, each padded to its own longest row.
- The order of the rows is a function of seed and epoch, so that a resumed run continues exactly.
- It uses plain attention where that is faster.
- It keeps the best checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rlhf.algorithms.losses import consistency_loss
from rlhf.data.padding import IGNORED
from rlhf.errors import UserError
from rlhf.models.kernels import use_fast_kernels
from rlhf.models.parts import trunk_of
from rlhf.runs.keys import WHOLE_OUTPUTS, Unused
from rlhf.runs.progress import use_run_progress
from rlhf.runs.ranges import at_least
from rlhf.runs.sharding import GatheringTrainer

# Updates among which group_by_length looks for rows of one length; 50 pad less, and learned worse (benchmarks/LOG.md).
POOL = 8
# Batches are split in two where a whole one has this many times the tokens of its halves, padding included.
MIN_SPLIT_GAIN = 1.1
# endings of the metrics that are better when lower
LOWER_IS_BETTER = ("loss", "mse", "mae", "perplexity", "calibration_error")


UNUSED = (
    Unused(
        ("train_sampling_strategy",),
        "rows are drawn at random in each epoch; use random or group_by_length",
        lambda run: run.train_sampling_strategy == "group_by_length",
    ),
    Unused(("length_column_name",), "lengths are those of the encoded rows; drop it"),
    Unused(
        ("average_tokens_across_devices",),
        "an update weighs the rows of each process alike; drop it",
        # A causal model is trained by the Trainer's own loss.
        lambda run: getattr(run, "objective", "") == "causal",
    ),
    WHOLE_OUTPUTS,
)

# ---- settings ----------------------------------------------------------------------------------------------------


@dataclass
class EncoderConfig(TrainingArguments):
    """TrainingArguments keep their meaning. The defaults are the BERT paper's (arXiv 1810.04805, appendix A.3)."""

    max_length: int = field(
        default=128,
        metadata={
            "help": "Tokens of a row; the recipe says what it does with longer ones. BERT on GLUE: 128."
        },
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "BERT: 2e-5, 3e-5 or 5e-5."})
    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Of the head and the pooler, which begin at random: ten times the encoder's helps. Default: the same."
        },
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "BERT: 2, 3 or 4."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "BERT: 16 or 32."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Rows of one length are batched together here too."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "random; or group_by_length: rows of one length in an update. Faster, but learns worse from few rows."
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Compute in bf16 (weights stay fp32). Default: as `precision` says."},
    )
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to evaluate: epoch, steps (eval_steps) or no."}
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps or no."}
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints to keep next to the best one."}
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the best checkpoint. Default: if each evaluation has a checkpoint."
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop after this many evaluations without a better metric_for_best_model; 0: never."
        },
    )

    RANGES: ClassVar[dict] = {
        "max_length": at_least(2),
        "head_learning_rate": at_least(0),
        "early_stopping_patience": at_least(0),
    }
    UNUSED: ClassVar[tuple] = UNUSED

    def __post_init__(self):
        self.logging_nan_inf_filter = False
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = self._each_evaluation_has_a_checkpoint()
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise UserError(
                "early_stopping_patience keeps the best checkpoint: set save_strategy as eval_strategy, and save_steps as "
                "eval_steps"
            )
        # TrainingArguments fill in the two, and EncoderTrainer needs to know what the user set.
        self.named_metric = self.metric_for_best_model
        self.named_direction = self.greater_is_better
        super().__post_init__()

    def _each_evaluation_has_a_checkpoint(self) -> bool:
        if self.eval_strategy == "no" or self.save_strategy != self.eval_strategy:
            return False
        if self.save_strategy != "steps":
            return True
        eval_steps = self.eval_steps or self.logging_steps  # as TrainingArguments reads it
        return self.save_steps == eval_steps


# ---- the order of the rows ---------------------------------------------------------------------------------------


class LengthSampler(Sampler[int]):
    """Rows in an order that is a function of seed and epoch: updates at random, the rows of each by length.

    group: rows of one update, over all processes and accumulated batches, so that an update has the same rows however it is
    split.
    pool: updates among which rows of one length are brought together; 1 leaves each with the rows it has by chance.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        group: int,
        seed: int,
        pool: int = 1,
    ):
        self.lengths = list(lengths)
        self.group = group
        self.seed = seed
        self.pool = pool
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffled_rows = torch.randperm(len(self), generator=generator).tolist()
        by_length: list[int] = []
        for pool in _split(shuffled_rows, self.pool * self.group):
            by_length += sorted(pool, key=self.lengths.__getitem__, reverse=True)
        groups = _split(by_length, self.group)
        rest: list[int] = []
        if len(groups[-1]) < self.group:
            rest = groups.pop()  # it comes last: anywhere else it would shift the groups after it

        shuffled = torch.randperm(len(groups), generator=generator).tolist()
        if shuffled:
            # The longest group comes first, so that a batch that does not fit into memory fails at once.
            longest = max(shuffled, key=lambda index: self.lengths[groups[index][0]])
            shuffled.remove(longest)
            shuffled.insert(0, longest)
        order: list[int] = []
        for index in shuffled:
            order += groups[index]
        return iter(order + rest)


def _split(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def should_split_by_length(lengths: Sequence[int], batch_size: int) -> bool:
    """True if random batches have much less padding when each is split in two halves by length."""
    if batch_size % 2:
        return False
    whole_tokens = split_tokens = 0
    order = list(LengthSampler(lengths, group=batch_size, seed=0))
    for rows in _split(order, batch_size):
        batch = [lengths[row] for row in rows]  # the longest first
        whole_tokens += batch[0] * len(batch)
        for part in _split(batch, batch_size // 2):
            split_tokens += part[0] * len(part)
    return whole_tokens > MIN_SPLIT_GAIN * split_tokens


# ---- callbacks ---------------------------------------------------------------------------------------------------


class EpochStart(TrainerCallback):
    """Passes the epoch to the sampler and the dataset, also when a run resumes in the middle of one.

    accelerate does not reach the sampler of a loader that skips batches on several processes.
    """

    def __init__(self, *listeners):
        self.listeners = [listener for listener in listeners if hasattr(listener, "set_epoch")]

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int((state.epoch or 0) + 1e-6)  # 0.9999999 is epoch 1
        for listener in self.listeners:
            listener.set_epoch(epoch)


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, but a resumed run continues its count; the Trainer would begin at 0 again."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__, {"attributes": {}})
        attributes = stored["attributes"]
        for name, value in attributes.items():
            setattr(self, name, value)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True  # the run had stopped here


# ---- trainer -----------------------------------------------------------------------------------------------------


class EncoderTrainer(GatheringTrainer, Trainer):
    """transformers.Trainer for rows of token ids; see the file's docstring.

    train, evaluation: lists of rows with input_ids, or a data set with `lengths`. evaluation is read in its own order, which
    should be by length.
    metrics: the metrics that compute_metrics gives. The first picks the checkpoint, unless the user names another.
    loss: logits and labels -> losses, whose mean replaces the model's own loss.
    consistency_coef: weight of R-Drop's term, for logits (B, labels). Each row is then read under two dropout masks.
    smooths: True if label_smoothing_factor has a meaning here.
    options: of transformers.Trainer.
    """

    def __init__(
        self,
        *,
        model,
        args: EncoderConfig,
        train,
        evaluation=None,
        metrics: Sequence[str] = ("loss",),
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        consistency_coef: float = 0.0,
        smooths: bool = False,
        **options,
    ):
        if args.label_smoothing_factor and not smooths:
            raise UserError(
                "label_smoothing_factor is for one label of a row or token, without class_weights: set it to 0"
            )
        set_best_metric(args, metrics)
        self.loss = loss
        self.consistency_coef = consistency_coef
        # mean number of items of the batches of this update; None for an update of one batch
        self.mean_items: float | None = None
        _prepare_for_trainer(model)
        self.lengths = getattr(train, "lengths", None) or [len(row["input_ids"]) for row in train]
        self.pool = POOL if args.train_sampling_strategy == "group_by_length" else 1
        if args.device.type == "cpu":
            use_fast_kernels(unwrapped(model), device=args.device, longest=max(self.lengths))
            # In pools, rows of one length are together already.
            if self.pool == 1 and should_split_by_length(self.lengths, args.train_batch_size):
                args.per_device_train_batch_size //= 2
                args.gradient_accumulation_steps *= 2
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            **options,
        )
        use_run_progress(self, args.output_dir)
        self.order = self._get_train_sampler()
        self.add_callback(EpochStart(self.order, train))
        if args.early_stopping_patience:
            self.add_callback(EarlyStopping(args.early_stopping_patience))

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int]:
        # The Trainer asks again; EpochStart must know the sampler that it uses.
        if hasattr(self, "order"):
            return self.order
        args = self.args
        rows_per_batch = args.train_batch_size * args.world_size
        group = rows_per_batch * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthSampler(
            self.lengths,
            group=group,
            seed=seed,
            pool=self.pool,
        )

    def create_optimizer(self, *args, **kwargs):
        """The Trainer's optimizer, in which the head has its own learning rate."""
        optimizer = super().create_optimizer(*args, **kwargs)
        head_rate = self.args.head_learning_rate
        if head_rate is None:
            return optimizer
        head_ids = head_parameters(self.model)
        groups = []
        # Each group (with and without weight decay) becomes two.
        for group in optimizer.param_groups:
            encoder = [p for p in group["params"] if id(p) not in head_ids]
            head = [p for p in group["params"] if id(p) in head_ids]
            if encoder:
                groups.append({**group, "params": encoder})
            if head:
                groups.append(
                    {
                        **group,
                        "params": head,
                        "lr": head_rate,
                    }
                )
        optimizer.param_groups[:] = groups
        return optimizer

    def get_batch_samples(self, *args, **kwargs):
        """The batches of the next update; remembers how many items they have on average."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.mean_items = None
        # One batch needs no weight, and counting its labels would wait for the GPU.
        if len(batches) > 1:
            self.mean_items = sum(map(items, batches)) / len(batches)
        return batches, count

    def compute_loss(
        self,
        model,
        inputs,
        return_outputs=False,
        num_items_in_batch=None,
    ):
        # The Trainer takes the mean over the batches of an update. It has to be the mean over its rows or tokens.
        weight = 1.0
        if model.training and self.mean_items:
            weight = items(inputs) / self.mean_items
        twice = self.consistency_coef > 0 and model.training
        if twice:
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        if self.loss is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            columns = {name: value for name, value in inputs.items() if name != "labels"}
            outputs = model(**columns)
            losses = self.loss(outputs.logits.float(), inputs["labels"])
            loss = losses.mean()
        if twice:
            first, second = outputs.logits.float().chunk(2)  # (B, labels) each
            divergence = consistency_loss(first, second).mean()
            loss = loss + self.consistency_coef * divergence
        loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def _get_eval_sampler(self, eval_dataset) -> Sampler[int]:
        return SequentialSampler(eval_dataset)


def set_best_metric(args: EncoderConfig, metrics: Sequence[str]) -> None:
    """Set the metric that picks the checkpoint; UserError if the user named one that is not computed."""
    metric = (args.named_metric or metrics[0]).removeprefix("eval_")
    known = list(dict.fromkeys(("loss", *metrics)))
    if metric not in known:
        raise UserError(
            f"metric_for_best_model={args.named_metric!r}: use one of {', '.join(known)}"
        )
    args.metric_for_best_model = metric
    args.greater_is_better = args.named_direction
    if args.named_direction is None:
        args.greater_is_better = not metric.endswith(LOWER_IS_BETTER)


def _prepare_for_trainer(model) -> None:
    """Correct a wrong guess of the Trainer about the model."""
    # The Trainer takes the loss of a forward with **kwargs for a sum over processes and accumulated batches, and scales it
    # so. It is the mean of one batch: it came out, and was clipped, as many times too large.
    unwrapped(model).accepts_loss_kwargs = False


def items(inputs: dict) -> int:
    """The number of losses that a batch averages over: its labelled tokens, or its rows.

    Next-sentence pairs count as rows, because their loss is the sum of two means.
    """
    ids = inputs["input_ids"]
    labels = inputs.get("labels")
    if labels is None or "next_sentence_label" in inputs:
        return len(ids)
    # The labels of a multi-label row are floats, and could happen to have the shape of the ids.
    is_by_token = labels.shape == ids.shape and not labels.is_floating_point()
    if not is_by_token:
        return len(ids)
    return int((labels != IGNORED).sum())


def head_parameters(model) -> set[int]:
    """The ids of the parameters that are not the encoder's layers: the head, and the pooler before it."""
    trunk = trunk_of(model)
    layers = {id(p) for name, p in trunk.named_parameters() if not name.startswith("pooler.")}
    return {id(p) for p in model.parameters()} - layers


def unwrapped(model):
    """The model under LoRA's wrapper."""
    if hasattr(model, "peft_config"):
        return model.get_base_model()
    return model
