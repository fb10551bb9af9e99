"""RewardTrainer: rankings of K answers -> a model that gives each answer a score.

The loss is InstructGPT's (equation 1) with ties dropped. A prompt's K completions go through the model in one batch, one
forward pass each. Every prompt has the same weight, whatever its K; pairs are K = 2. Deviation: the number of prompts per
batch is fixed, not the number of pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rlhf.algorithms.losses import kwise_ranking_loss
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import check_activation_checkpointing, enable
from rlhf.models.load import save
from rlhf.models.scores import sequence_scores
from rlhf.reward_model.metrics import metric_names, ranking_report
from rlhf.reward_model.rankings import collate_rankings
from rlhf.reward_model.step_mean import StepMean
from rlhf.runs import durable
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.keys import EVALUATION_LOOP, OWN_MODULE, Unused
from rlhf.runs.progress import publish_evaluation
from rlhf.runs.ranges import at_least
from rlhf.runs.sharding import GatheringTrainer, assign_whole_tensor

UNUSED = (
    Unused(("remove_unused_columns",), "the collator reads all columns of a ranking", fixed=False),
    Unused(
        ("label_smoothing_factor",), "rankings have no labels; give doubtful answers the same rank"
    ),
    Unused(
        ("train_sampling_strategy", "length_column_name"),
        "a row is a ranking of several texts, which has no one length; drop it",
        lambda run: run.train_sampling_strategy == "sequential",
    ),
    Unused(
        ("average_tokens_across_devices",), "the loss is a mean over prompts; drop it", fixed=True
    ),
    Unused(("use_cache",), "scoring never caches; drop it"),
    Unused(("include_num_input_tokens_seen",), "the tokens of rankings are not counted; drop it"),
    OWN_MODULE,
    EVALUATION_LOOP,
)
TRAINABLE = (
    "trainable.safetensors"  # file of a checkpoint: the trainable weights, before LoRA is merged
)


@dataclass
class RewardConfig(TrainingArguments):
    """TrainingArguments keep their meaning; a batch counts prompts, each with all its completions."""

    max_length: int = field(
        default=1024,
        metadata={
            "help": "Longest prompt + completion in tokens; longer ones are dropped and counted."
        },
    )
    learning_rate: float = field(
        default=9e-6, metadata={"help": "InstructGPT: 9e-6, cosine to 10 %."}
    )
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "InstructGPT: 1; a second epoch overfits quickly."}
    )
    per_device_train_batch_size: int = field(
        default=64, metadata={"help": "Prompts per step. InstructGPT: 64."}
    )

    RANGES: ClassVar[dict] = {"max_length": at_least(2)}
    UNUSED: ClassVar[tuple] = UNUSED

    def __post_init__(self):
        self.remove_unused_columns = False  # the collator needs all of them
        self.logging_nan_inf_filter = False  # a NaN must be seen
        self.label_names = ["ranks"]
        if self.load_best_model_at_end or self.save_strategy == "best":
            self.metric_for_best_model = self.metric_for_best_model or "accuracy"
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        super().__post_init__()
        check_activation_checkpointing(self)


def check_load_best(accelerator, args) -> None:
    """Refuse load_best_model_at_end where a process holds slices of the weights, which are not put back."""
    kind = accelerator.distributed_type
    if args.load_best_model_at_end and kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        raise UserError(
            f"load_best_model_at_end: true does not work under {kind.value}: start with ddp.yaml, or set it to false and "
            "take the best checkpoint-N"
        )


class ScoreModel(torch.nn.Module):
    """A sequence classification model whose forward gives scores, so that DDP sees one ordinary module."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = model.config  # read by the Trainer

    def activation_checkpointing_enable(self, **options) -> None:
        """Switch it on in the model, when the Trainer finds `gradient_checkpointing` in its settings."""
        enable(self.model, **options)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The layer that neftune_noise_alpha adds noise to."""
        return self.model.get_input_embeddings()

    def forward(
        self, input_ids: Tensor, mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        return sequence_scores(self.model, input_ids, mask, token_type_ids)


class RewardTrainer(StepMean, GatheringTrainer, Trainer):
    """model: one-label sequence classification model, LoRA or not; train and eval rows as from `encode_rankings`."""

    def __init__(
        self,
        *,
        model,
        tokenizer,
        args: RewardConfig,
        train_rows: Sequence[dict],
        eval_rows: Sequence[dict] | None,
        callbacks=None,
    ):
        self.tokenizer = tokenizer
        self.pad_token_id = tokenizer.pad_token_id
        if self.pad_token_id is None:
            self.pad_token_id = tokenizer.eos_token_id
        super().__init__(
            model=ScoreModel(model),
            args=args,
            data_collator=lambda rows: collate_rankings(rows, self.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            callbacks=callbacks,
        )
        self.trained = [name for name, p in model.named_parameters() if p.requires_grad]
        check_load_best(self.accelerator, args)
        if eval_rows:  # before the first step, and not at the first evaluation
            names = [f"eval_{name}" for name in metric_names(eval_rows)]
            check_is_measured(args.metric_for_best_model, names)
        # The loss is a mean over the batch: let the Trainer divide it by the accumulation steps.
        self.loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean ranking loss of the prompts that have an ordered pair.

        In training the mean is over the whole optimiser step: the Trainer averages over its batches and processes.
        """
        ranks, valid = inputs["ranks"], inputs["valid"]  # (B, K)
        # (N,), the completions of all prompts
        flat = model(inputs["input_ids"], inputs["mask"], inputs.get("token_type_ids"))
        scores = torch.zeros(ranks.shape, device=ranks.device).masked_scatter(valid, flat)
        losses, pairs = kwise_ranking_loss(scores, ranks, valid)
        ordered = self.count_for_mean(int((pairs > 0).sum()), is_training=model.training)
        # a step of ties alone gives a loss of 0
        loss = losses.sum() / (ordered or 1.0)
        if return_outputs:
            return loss, {"scores": scores}
        return loss

    @torch.no_grad()
    def scores(self, rows: Sequence[dict]) -> list[list[float]]:
        """Scores of every completion of every row, in the order of the rows; split over processes."""
        from accelerate.utils import gather_object

        rank, world = self.args.process_index, self.args.world_size
        with self.whole_model() as model:
            scores = self._scores_of(model.eval().model, rows, range(rank, len(rows), world))
        if world == 1:
            return scores
        by_process = gather_object([scores])
        # Row i was scored by process i % world as its row i // world.
        return [by_process[i % world][i // world] for i in range(len(rows))]

    def _scores_of(self, model, rows: Sequence[dict], mine: range) -> list[list[float]]:
        """Scores of the rows of this process. mine: their indices."""
        size = self.args.per_device_eval_batch_size
        scores = []
        for start in range(0, len(mine), size):
            batch = [rows[i] for i in mine[start : start + size]]
            inputs = collate_rankings(batch, self.pad_token_id)
            for name in ("ranks", "valid"):
                inputs.pop(name)
            # accelerate puts autocast into the forward of ScoreModel, which is not called here.
            with self.accelerator.autocast():
                flat = sequence_scores(model, **self._prepare_inputs(inputs)).tolist()
            for row in batch:
                count = len(row["ranks"])
                scores.append(flat[:count])
                flat = flat[count:]
        return scores

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return the numbers of `ranking_report`."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        report = ranking_report(self.scores(rows), rows)
        metrics = {}
        for name, value in report.items():
            if isinstance(value, int | float):
                metrics[name] = value
        return publish_evaluation(self, metrics, metric_key_prefix)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a plain sequence classification folder, head included, LoRA merged.

        Checkpoints (`_internal_call`) hold the trainable weights too, since merged ones cannot be resumed from.
        """
        folder = output_dir or self.args.output_dir
        with self.whole_model() as whole:
            if not self.args.should_save:
                return
            save(whole.model, self.tokenizer, folder)
            if _internal_call:
                durable.boundary(folder)
                weights = dict(whole.model.named_parameters())
                trainable = {name: weights[name].detach().contiguous() for name in self.trained}
                save_file(trainable, f"{folder}/{TRAINABLE}")

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, at the end of a run with load_best_model_at_end."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        path = Path(resume_from_checkpoint) / TRAINABLE
        if not path.is_file():
            raise UserError(
                f"{resume_from_checkpoint} is not a checkpoint of this trainer: {TRAINABLE} is missing"
            )
        saved = load_file(path)
        parameters = dict(self.model.model.named_parameters())
        if not saved.keys() <= parameters.keys():
            raise UserError(
                f"{resume_from_checkpoint} was trained with other parts than this run: resume with the model, use_peft "
                "and lora_r of its run"
            )
        for name, tensor in saved.items():
            # Under FSDP each process keeps its slice.
            assign_whole_tensor(parameters[name], tensor)
