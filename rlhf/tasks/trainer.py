"""Fine-tuning an encoder: the settings and the trainer that classification, NER, question answering and pretraining share.

What it does beyond transformers.Trainer: on a CPU the rows of an update are read in two parts by length, each padded to its
own longest row; an order that is a function of seed and epoch, so that a resumed run goes on exactly; bf16 and plain
attention where they are faster; the best checkpoint is the one that is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rlhf.algorithms.losses import consistency_loss
from rlhf.errors import UserError
from rlhf.models.kernels import use_fast_kernels
from rlhf.models.parts import trunk_of
from rlhf.runs.progress import use_run_progress

POOL = 8  # updates among which group_by_length seeks rows of one length; 50 pad less, and learned worse (benchmarks/LOG.md)
MIN_SPLIT_GAIN = 1.1  # two parts, where one part has so many times their tokens with its padding
LOWER_IS_BETTER = (
    "loss",
    "mse",
    "mae",
    "perplexity",
    "calibration_error",
)  # ends of the metrics that are better when lower


@dataclass
class EncoderConfig(TrainingArguments):
    """TrainingArguments keep their meaning; the defaults are the BERT paper's (arXiv 1810.04805, appendix A.3)."""

    max_length: int = field(
        default=128,
        metadata={
            "help": "Tokens of a row; what happens to longer ones the recipe says. BERT on GLUE: 128."
        },
    )
    learning_rate: float = field(default=2e-5, metadata={"help": "BERT: 2e-5, 3e-5 or 5e-5."})
    head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Of the head and the pooler, which begin at random: ten times the encoder's helps. [the same]"
        },
    )
    num_train_epochs: float = field(default=3.0, metadata={"help": "BERT: 2, 3 or 4."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "BERT: 16 or 32."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Rows of one length are together here too."}
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "random; or group_by_length: rows of one length in an update, which is faster and learns worse from few."
        },
    )
    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Compute in bf16 (weights stay fp32). Default: where the processor has it."
        },
    )
    eval_strategy: str = field(
        default="epoch", metadata={"help": "When to judge: epoch, steps (eval_steps) or no."}
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps or no."}
    )
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints kept beside the best one."}
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the best checkpoint. Default: where each evaluation has a checkpoint."
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop when metric_for_best_model did not improve in so many evaluations; 0: never."
        },
    )

    def __post_init__(self):
        self.logging_nan_inf_filter = False
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_fast_bf16(use_cpu=self.use_cpu)
        if self.load_best_model_at_end is None:
            every = self.eval_steps or self.logging_steps  # as TrainingArguments reads it
            together = self.save_strategy != "steps" or self.save_steps % every == 0
            self.load_best_model_at_end = (
                self.save_strategy == self.eval_strategy != "no" and together
            )
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise UserError(
                "early_stopping_patience keeps the best checkpoint: set save_strategy as eval_strategy"
            )
        self.named_metric, self.named_direction = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()


def has_fast_bf16(*, use_cpu: bool) -> bool:
    """Whether the processor multiplies in bf16; without such instructions it would be slower than fp32."""
    if not use_cpu and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


class LengthSampler(Sampler[int]):
    """Rows in an order that is a function of seed and epoch: updates at random, the rows of each by length.

    group: rows of one update, over all processes and accumulated batches: however they are cut, an update has the same.
    pool: updates among which rows of one length are brought together; 1 leaves to each the rows that it has by chance.
    """

    def __init__(self, lengths: Sequence[int], *, group: int, seed: int, pool: int = 1):
        self.lengths, self.group, self.seed, self.pool, self.epoch = (
            list(lengths),
            group,
            seed,
            pool,
            0,
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        size = self.pool * self.group
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        order = [
            row
            for pool in pools
            for row in sorted(pool, key=self.lengths.__getitem__, reverse=True)
        ]
        groups = [order[start : start + self.group] for start in range(0, len(order), self.group)]
        rest = (
            [groups.pop()] if len(groups[-1]) < self.group else []
        )  # anywhere else it would shift the next group
        shuffled = torch.randperm(len(groups), generator=generator).tolist()
        longest = max(shuffled, key=lambda place: self.lengths[groups[place][0]], default=None)
        if (
            longest is not None
        ):  # first, so that a batch that does not fit into memory is met at once
            shuffled.remove(longest)
            shuffled.insert(0, longest)
        return (row for group in [*(groups[place] for place in shuffled), *rest] for row in group)


def should_split_by_length(lengths: Sequence[int], batch_size: int) -> bool:
    """Whether batches of rows drawn by chance have much less padding in two halves by length than whole."""
    if batch_size % 2:
        return False
    whole = parted = 0
    rows = list(LengthSampler(lengths, group=batch_size, seed=0))
    for start in range(0, len(rows), batch_size):
        batch, half = (
            [lengths[row] for row in rows[start : start + batch_size]],
            batch_size // 2,
        )  # the longest first
        whole += batch[0] * len(batch)
        parted += sum(part[0] * len(part) for part in (batch[:half], batch[half:]) if part)
    return whole > MIN_SPLIT_GAIN * parted


class EpochStart(TrainerCallback):
    """Tells the order (and a data set that draws anew each epoch) which epoch begins, after a resume in its middle too.

    accelerate's own way does not reach the sampler of a loader that skips batches on several processes.
    """

    def __init__(self, *followers):
        self.followers = [follower for follower in followers if hasattr(follower, "set_epoch")]

    def on_epoch_begin(self, args, state, control, **kwargs):
        for follower in self.followers:
            follower.set_epoch(int((state.epoch or 0) + 1e-6))


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, but a resumed run goes on counting where it was: the Trainer would begin at 0 again."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        stored = state.stateful_callbacks.get(type(self).__name__, {"attributes": {}})
        for name, value in stored["attributes"].items():
            setattr(self, name, value)


class EncoderTrainer(Trainer):
    """transformers.Trainer for rows of token ids; see the file's docstring.

    train, evaluation: lists of rows with input_ids (or a data set with `lengths`); evaluation is read in its own order,
    which should be by length. best_metric: the metric that picks the checkpoint, unless the user names another; metrics:
    what else compute_metrics gives. loss: logits and labels -> losses whose mean is the batch's, in place of the model's.
    consistency_coef: weight of R-Drop's term, for logits (B, labels): each row is then read under two dropout masks.
    smooths: whether label_smoothing_factor has a meaning here.
    """

    def __init__(
        self, *, model, args: EncoderConfig, train, evaluation=None, best_metric: str = "loss",
        metrics: Sequence[str] = (), loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        consistency_coef: float = 0.0, smooths: bool = False, **options,
    ):  # fmt: skip
        if args.label_smoothing_factor and not smooths:
            raise UserError(
                "label_smoothing_factor is for one label of a row or token, without class_weights: set it to 0"
            )
        metric = (args.named_metric or best_metric).removeprefix("eval_")
        known = list(dict.fromkeys(("loss", best_metric, *metrics)))
        if metric not in known:
            raise UserError(
                f"metric_for_best_model={args.named_metric!r}: use one of {', '.join(known)}"
            )
        args.metric_for_best_model = metric
        args.greater_is_better = (
            not metric.endswith(LOWER_IS_BETTER)
            if args.named_direction is None
            else args.named_direction
        )
        self.loss, self.consistency_coef = loss, consistency_coef
        self.mean_items: float | None = (
            None  # of the batches of this update, where there are several
        )
        # Trainer takes the loss of a forward with **kwargs for a sum over processes and accumulated batches, and scales
        # it so. It is the mean of one batch: it came out, and was clipped, as many times too large.
        unwrapped(model).accepts_loss_kwargs = False
        # Weights that share their tensor with others are saved once; without this, Trainer takes the best checkpoint's for
        # incomplete and says so.
        unwrapped(model)._keys_to_ignore_on_save = list(
            getattr(model, "_tied_weights_keys", None) or {}
        )
        self.lengths = getattr(train, "lengths", None) or [len(row["input_ids"]) for row in train]
        if args.device.type == "cpu":
            use_fast_kernels(unwrapped(model), device=args.device, longest=max(self.lengths))
        self.pool = POOL if args.train_sampling_strategy == "group_by_length" else 1
        if (
            self.pool == 1
            and args.device.type == "cpu"
            and should_split_by_length(self.lengths, args.train_batch_size)
        ):
            args.per_device_train_batch_size //= 2
            args.gradient_accumulation_steps *= 2
        super().__init__(
            model=model, args=args, train_dataset=train, eval_dataset=evaluation, **options
        )
        use_run_progress(self, args.output_dir)
        self.order = self._get_train_sampler()
        self.add_callback(EpochStart(self.order, train))
        if args.early_stopping_patience:
            self.add_callback(EarlyStopping(args.early_stopping_patience))

    def _get_train_sampler(self, train_dataset=None) -> Sampler[int]:
        if hasattr(self, "order"):
            return self.order
        group = (
            self.args.train_batch_size
            * self.args.world_size
            * self.args.gradient_accumulation_steps
        )
        return LengthSampler(
            self.lengths, group=group, seed=self.args.data_seed or self.args.seed, pool=self.pool
        )

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.head_learning_rate is not None:
            heads = head_parameters(self.model)
            groups = [
                group
                | {"params": chosen}
                | ({"lr": self.args.head_learning_rate} if of_head else {})
                for group in optimizer.param_groups
                for of_head in (False, True)
                if (chosen := [p for p in group["params"] if (id(p) in heads) == of_head])
            ]
            optimizer.param_groups[:] = groups
        return optimizer

    def get_batch_samples(self, *args, **kwargs):
        batches, count = super().get_batch_samples(*args, **kwargs)
        self.mean_items = sum(map(items, batches)) / len(batches) if len(batches) > 1 else None
        return batches, count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Trainer takes the mean over the batches of an update, and that must be the mean over its rows or tokens.
        weight = items(inputs) / self.mean_items if model.training and self.mean_items else 1.0
        twice = self.consistency_coef > 0 and model.training
        if twice:
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        if self.loss is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            loss = self.loss(outputs.logits.float(), inputs["labels"]).mean()
        if twice:
            loss = (
                loss
                + self.consistency_coef * consistency_loss(*outputs.logits.float().chunk(2)).mean()
            )
        loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def _get_eval_sampler(self, eval_dataset) -> Sampler[int]:
        return SequentialSampler(eval_dataset)


def items(inputs: dict) -> int:
    """Over how many losses a batch has its mean: the labelled tokens, or the rows (as of pairs, which have two means)."""
    ids, labels = inputs["input_ids"], inputs.get("labels")
    by_token = labels is not None and labels.shape == ids.shape and not labels.is_floating_point()
    return (
        int((labels != -100).sum())
        if by_token and "next_sentence_label" not in inputs
        else len(ids)
    )


def head_parameters(model) -> set[int]:
    """The ids of the parameters that are not the encoder's layers: the head, and the pooler before it."""
    trunk = trunk_of(model)
    layers = {id(p) for name, p in trunk.named_parameters() if not name.startswith("pooler.")}
    return {id(p) for p in model.parameters()} - layers


def unwrapped(model):
    """The model under LoRA's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
