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
from rlhf.data.chat import as_text, encode_completion, encode_prompt
from rlhf.errors import UserError
from rlhf.models.load import save, sequence_scores


@dataclass
class RewardConfig(TrainingArguments):
    """TrainingArguments keep their meaning; a batch counts prompts, each with all its completions."""

    max_length: int = field(
        default=1024, metadata={"help": "Longest prompt + completion in tokens; longer ones are left out and counted."}
    )
    learning_rate: float = field(default=9e-6, metadata={"help": "InstructGPT: 9e-6, cosine to 10 %."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "InstructGPT: 1; a second epoch overfits quickly."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Prompts per step. InstructGPT: 64."})

    def __post_init__(self):
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.label_names = ["ranks"]
        super().__post_init__()


def encode_rankings(tokenizer, rows: list[dict], *, max_length: int) -> tuple[list[dict], int]:
    """Rows {"prompt", "completions", "ranks"} -> {"input_ids": [K lists], "ranks": [K]}; and how many completions were
    too long. A row that has fewer than two completions left is dropped; none left at all is an error."""
    encoded, long = [], 0
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        candidates = [prompt + encode_completion(tokenizer, text) for text in row["completions"]]
        kept = [place for place, ids in enumerate(candidates) if len(ids) <= max_length]
        long += len(candidates) - len(kept)
        if len(kept) >= 2:
            encoded.append(
                {
                    "input_ids": [candidates[place] for place in kept],
                    "ranks": [row["ranks"][place] for place in kept],
                    "lengths": [len(candidates[place]) - len(prompt) for place in kept],
                    "places": kept,
                    "row": row,
                }
            )
    if not encoded:
        raise UserError(f"no ranking fits max_length={max_length} tokens: raise it (prompt + completion counts)")
    return encoded, long


def collate_rankings(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids (N, L) right-padded with all completions of the batch, mask (N, L) bool; ranks and valid (B, K)."""
    flat = [ids for row in rows for ids in row["input_ids"]]
    width, widest = max(map(len, flat)), max(len(row["ranks"]) for row in rows)
    input_ids = torch.full((len(flat), width), pad_token_id)
    mask = torch.zeros((len(flat), width), dtype=torch.bool)
    for place, ids in enumerate(flat):
        input_ids[place, : len(ids)] = torch.tensor(ids)
        mask[place, : len(ids)] = True
    ranks, valid = (
        torch.zeros((len(rows), widest), dtype=torch.long),
        torch.zeros((len(rows), widest), dtype=torch.bool),
    )
    for place, row in enumerate(rows):
        ranks[place, : len(row["ranks"])] = torch.tensor(row["ranks"])
        valid[place, : len(row["ranks"])] = True
    return {"input_ids": input_ids, "mask": mask, "ranks": ranks, "valid": valid}


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
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
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
                flat = model(batch["input_ids"].to(self.args.device), batch["mask"].to(self.args.device)).tolist()
            for row in part:
                found.append(flat[: len(row["ranks"])])
                flat = flat[len(row["ranks"]) :]
        if self.args.world_size == 1:
            return found
        everyone = gather_object([found])
        return [everyone[place % self.args.world_size][place // self.args.world_size] for place in range(len(rows))]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        rows = eval_dataset if eval_dataset is not None else self.eval_dataset
        report = ranking_report(self.scores(rows), rows)
        metrics = {f"{metric_key_prefix}_{name}": v for name, v in report.items() if isinstance(v, int | float)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
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
                {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, f"{folder}/trainable.pt"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        parameters = dict(self.model.model.named_parameters())
        with torch.no_grad():
            for name, tensor in torch.load(f"{resume_from_checkpoint}/trainable.pt", weights_only=True).items():
                parameters[name].copy_(tensor)


def ranking_report(scores: list[list[float]], rows: list[dict]) -> dict:
    """How well scores order the completions: over all strictly ordered pairs of the rows.

    accuracy with its 95 % interval over prompts (bootstrap), loss, accuracy by rank gap, margins, calibration (predicted
    against observed share of right pairs, ten bins), correlation of score with length, and the worst examples.
    """
    pairs = []  # (row, better, worse, margin, rank gap)
    for place, (values, row) in enumerate(zip(scores, rows, strict=True)):
        for i, first in enumerate(row["ranks"]):
            for j, second in enumerate(row["ranks"]):
                if first < second:
                    pairs.append((place, i, j, values[i] - values[j], second - first))
    if not pairs:
        raise UserError("no strictly ordered pair in the evaluation rankings: they are all ties")
    margins = torch.tensor([pair[3] for pair in pairs])
    right = (margins > 0).double() + 0.5 * (margins == 0)
    row_of = torch.tensor([pair[0] for pair in pairs])
    gaps = torch.tensor([pair[4] for pair in pairs])
    hits = torch.zeros(len(rows), dtype=torch.double).index_add_(0, row_of, right)
    counts = torch.zeros(len(rows), dtype=torch.double).index_add_(0, row_of, torch.ones_like(right))
    draws = torch.randint(len(rows), (1000, len(rows)), generator=torch.Generator().manual_seed(0))
    resampled = hits[draws].sum(1) / counts[draws].sum(1).clamp(min=1)
    predicted = torch.sigmoid(margins.abs())
    bins = ((predicted - 0.5) * 20).long().clamp(max=9)
    flat = torch.tensor([value for values in scores for value in values])
    lengths = torch.tensor([float(n) for row in rows for n in row["lengths"]])
    worst = sorted(pairs, key=lambda pair: pair[3])[:5]
    return {
        "accuracy": right.mean().item(),
        "accuracy_low": resampled.quantile(0.025).item(),
        "accuracy_high": resampled.quantile(0.975).item(),
        "pairs": len(pairs),
        "prompts": int((counts > 0).sum()),
        "loss": torch.nn.functional.softplus(-margins).mean().item(),
        "margin": margins.mean().item(),
        "score_length_correlation": correlation(flat, lengths),
        "score_mean": flat.mean().item(),
        "score_std": flat.std().item(),
        "accuracy_by_gap": {
            int(gap): {"accuracy": right[gaps == gap].mean().item(), "pairs": int((gaps == gap).sum())}
            for gap in gaps.unique().tolist()
        },
        "calibration": [
            {"predicted": predicted[bins == b].mean().item(), "observed": right[bins == b].mean().item(), "pairs": n}
            for b in range(10)
            if (n := int((bins == b).sum()))
        ],
        "margins": margins.tolist(),
        "worst": [
            {
                "prompt": as_text(rows[place]["row"]["prompt"]),
                "ranked higher": rows[place]["row"]["completions"][rows[place]["places"][i]],
                "scored higher": rows[place]["row"]["completions"][rows[place]["places"][j]],
                "margin": margin,
            }
            for place, i, j, margin, _ in worst
            if margin < 0
        ],
    }


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's; 0 when either is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = first.norm() * second.norm()
    return (first.dot(second) / scale).item() if scale > 0 else 0.0


def plot_ranking_report(report: dict, folder) -> None:
    """plots/ranking.png: margins of ordered pairs, calibration, and accuracy by rank gap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.hist(report["margins"], bins=40)
    left.axvline(0, color="black", linewidth=1)
    left.set(title="margin of ordered pairs", xlabel="score(better) - score(worse)")
    middle.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    middle.plot(*zip(*[(b["predicted"], b["observed"]) for b in report["calibration"]], strict=True), marker="o")
    middle.set(title="calibration", xlabel="predicted share of right pairs", ylabel="observed")
    gaps = report["accuracy_by_gap"]
    right.bar([str(gap) for gap in gaps], [entry["accuracy"] for entry in gaps.values()])
    right.axhline(0.5, color="grey", linewidth=1)
    right.set(title="accuracy by rank gap", xlabel="rank gap", ylim=(0, 1))
    figure.savefig(folder, dpi=110)
    plt.close(figure)
