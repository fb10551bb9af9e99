"""RewardTrainer: rankings of K answers -> a model that gives each answer a score.

The loss is InstructGPT's (equation 1) with ties dropped. A prompt's K completions go through the model in one batch, one
forward each, and every prompt weighs the same whatever its K; pairs are K = 2. Deviation: the number of prompts per batch
is fixed, not the number of pairs.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rlhf.algorithms.losses import kwise_ranking_loss
from rlhf.models.load import save
from rlhf.models.scores import sequence_scores
from rlhf.reward_model.metrics import ranking_report
from rlhf.reward_model.rankings import collate_rankings


@dataclass
class RewardConfig(TrainingArguments):
    """TrainingArguments keep their meaning; a batch counts prompts, each with all its completions."""

    max_length: int = field(
        default=1024,
        metadata={
            "help": "Longest prompt + completion in tokens; longer ones are left out and counted."
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

    def __post_init__(self):
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.label_names = ["ranks"]
        super().__post_init__()


class ScoreModel(torch.nn.Module):
    """A sequence classification model whose forward gives scores, so that DDP sees one ordinary module."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        return sequence_scores(self.model, input_ids, mask)


class RewardTrainer(Trainer):
    """model: one-label sequence classification model, LoRA or not; train and eval rows as from `encode_rankings`."""

    def __init__(
        self,
        *,
        model,
        tokenizer,
        args: RewardConfig,
        train_rows: list[dict],
        eval_rows: list[dict] | None,
        callbacks=None,
    ):
        self.tokenizer = tokenizer
        pad = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        super().__init__(
            model=ScoreModel(model),
            args=args,
            data_collator=lambda rows: collate_rankings(rows, pad),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        scores = torch.zeros(inputs["ranks"].shape, device=inputs["ranks"].device)
        scores = scores.masked_scatter(inputs["valid"], model(inputs["input_ids"], inputs["mask"]))
        losses, pairs = kwise_ranking_loss(scores, inputs["ranks"], inputs["valid"])
        loss = losses.sum() / (pairs > 0).sum().clamp(min=1)
        return (loss, {"scores": scores}) if return_outputs else loss

    @torch.no_grad()
    def scores(self, rows: list[dict]) -> list[list[float]]:
        """Scores of every completion of every row, in the order of the rows; split over processes."""
        from accelerate.utils import gather_object

        model = self.accelerator.unwrap_model(self.model).eval()
        size, found = self.args.per_device_eval_batch_size, []
        mine = rows[self.args.process_index :: self.args.world_size]
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            batch = self.data_collator(part)
            with self.accelerator.autocast():
                flat = model(
                    batch["input_ids"].to(self.args.device), batch["mask"].to(self.args.device)
                ).tolist()
            for row in part:
                found.append(flat[: len(row["ranks"])])
                flat = flat[len(row["ranks"]) :]
        if self.args.world_size == 1:
            return found
        everyone = gather_object([found])
        return [
            everyone[place % self.args.world_size][place // self.args.world_size]
            for place in range(len(rows))
        ]

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        report = ranking_report(self.scores(rows), rows)
        metrics = {
            f"{metric_key_prefix}_{name}": v
            for name, v in report.items()
            if isinstance(v, int | float)
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.model.train()
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A plain sequence classification folder, head included, LoRA merged; checkpoints hold the raw weights too."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        model = self.accelerator.unwrap_model(self.model).model
        save(model, self.tokenizer, folder)
        if _internal_call:
            torch.save(
                {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
                f"{folder}/trainable.pt",
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        parameters = dict(self.model.model.named_parameters())
        with torch.no_grad():
            for name, tensor in torch.load(
                f"{resume_from_checkpoint}/trainable.pt", weights_only=True
            ).items():
                parameters[name].copy_(tensor)
