"""RankingDPOTrainer: rankings of K answers -> a policy that prefers the better ones. On trl.DPOTrainer.

trl keeps the reference, LoRA, the fused output layer and the logs. Deviations from its loss:

1. A batch counts rankings. The K answers to a prompt go through the model once, and their pairs weigh 1 / the number of
   ordered pairs, so that each ranking counts once. Pairs are K = 2, whose loss is trl's (a test compares all losses).
2. The mean is over the rankings of the whole optimiser step, also where its batches or processes hold different numbers.
"""

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from rlhf.algorithms import call
from rlhf.algorithms.preference import PAIR_LOSSES, pair_weights, pairs_of_ranks
from rlhf.data.encodings import EncodedRows
from rlhf.direct_preference.config import PairConfig
from rlhf.direct_preference.log_probs import Answer, summed_log_probs
from rlhf.direct_preference.rows import collate_pairs, rankings_dataset
from rlhf.direct_preference.trainer import DirectTrainer
from rlhf.reward_model.metrics import ranking_report
from rlhf.reward_model.step_mean import StepMean


class RankingDPOTrainer(StepMean, DirectTrainer, DPOTrainer):
    """Rows as from `rows.encode_pairs_of_rankings`; arguments as of `DirectTrainer`."""

    def __init__(self, *, tokenizer, args: PairConfig, **options):
        super().__init__(
            tokenizer=tokenizer,
            args=args,
            collator=lambda rows: collate_pairs(rows, tokenizer.pad_token_id),
            **options,
        )

    def dataset_of(self, rows: EncodedRows) -> Dataset:
        return rankings_dataset(rows)

    def answers_of(self, row: dict) -> list[Answer]:
        pairs = zip(row["input_ids"], row["lengths"], strict=True)
        return [Answer(ids, length) for ids, length in pairs]

    def count_of(self, row: dict) -> int:
        return len(row["ranks"])

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with the log-probs of their answers under the reference, before the first step."""
        values = self.log_probs_of(dataset, self.reference_log_probs)
        if name == "eval":
            self.eval_references = values
        return dataset.add_column("ref_log_probs", values)

    def _compute_loss(self, model, inputs, return_outputs):
        """The mean over rankings of the mean loss of their pairs."""
        ranks, valid = inputs["ranks"], inputs["valid"]  # (B, K)
        log_probs = unflattened(summed_log_probs(model, inputs), valid)
        references = inputs.get("ref_log_probs")
        if references is None:
            # (B, K), as the log-probs of the policy
            references = unflattened(self.reference_log_probs(inputs), valid)
        prompts, chosen, rejected = pairs_of_ranks(ranks, valid)  # (P,)
        pairs = Pairs(prompts, chosen, rejected)
        weights = pair_weights(prompts)
        losses = self.pair_losses(pairs, log_probs - references, inputs["lengths"])
        count = self.count_for_mean(len(ranks), is_training=model.training)
        # Of one ranking the weights sum to 1.
        loss = (weights * losses).sum() / count
        with torch.no_grad():
            self.note(pairs, weights, log_probs.detach(), references, inputs)
        return loss

    def pair_losses(self, pairs: "Pairs", log_ratios: Tensor, lengths: Tensor) -> Tensor:
        """The losses of loss_type, weighted by loss_weights: (P,). log_ratios and lengths: (B, K)."""
        chosen, rejected = pairs.of(log_ratios)  # (P,)
        chosen_lengths, rejected_lengths = pairs.of(lengths)
        total = torch.zeros_like(chosen)
        for name, weight in zip(self.loss_types, self.loss_weights, strict=True):
            losses = call(
                PAIR_LOSSES[name],
                chosen=chosen,
                rejected=rejected,
                chosen_lengths=chosen_lengths,
                rejected_lengths=rejected_lengths,
                beta=self.beta,
                label_smoothing=self.label_smoothing,
                discopop_tau=self.args.discopop_tau,
            )
            total = total + weight * losses
        return total

    def note(
        self, pairs: "Pairs", weights: Tensor, log_probs: Tensor, references: Tensor, inputs: dict
    ) -> None:
        """Keep the numbers of a batch for the log, each a mean over rankings of the mean over their pairs."""
        chosen, rejected = pairs.of(log_probs)
        ref_chosen, ref_rejected = pairs.of(references)
        chosen_lengths, rejected_lengths = pairs.of(inputs["lengths"])
        better = self.beta * (chosen - ref_chosen)
        worse = self.beta * (rejected - ref_rejected)
        columns = {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/margins": better - worse,
            "rewards/accuracies": (better > worse).float() + 0.5 * (better == worse),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "logps/ref_chosen": ref_chosen,
            "logps/ref_rejected": ref_rejected,
            "lengths/chosen": chosen_lengths,
            "lengths/rejected": rejected_lengths,
        }
        # One message between the processes for all of them.
        sums = [(weights * column).sum() for column in columns.values()]
        counts = [torch.tensor(float(len(inputs["ranks"]))), inputs["mask"].sum()]
        numbers = torch.stack([number.float().to(weights.device) for number in (*sums, *counts)])
        if self.args.world_size > 1:
            numbers = self.accelerator.reduce(numbers, "sum")
        *means, rankings, tokens = numbers.tolist()
        mode = "train" if self.model.training else "eval"
        for name, total in zip(columns, means, strict=True):
            self._metrics[mode][name].append(total / rankings)
        self._total_train_tokens += int(tokens)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def measure(self, rewards: list[list[float]]) -> dict[str, float]:
        """The numbers of `ranking_report` on implicit rewards: accuracy with its interval, margin, ..."""
        report = ranking_report(rewards, self.eval_rows)
        return {name: value for name, value in report.items() if isinstance(value, int | float)}


class Pairs:
    """Pairs of answers: the prompt of each, and the index of its better and its worse answer, (P,) each."""

    def __init__(self, prompts: Tensor, chosen: Tensor, rejected: Tensor):
        self.prompts = prompts
        self.chosen = chosen
        self.rejected = rejected

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The values (B, K) of the better and of the worse answers, (P,) each."""
        return values[self.prompts, self.chosen], values[self.prompts, self.rejected]


def unflattened(values: Tensor, valid: Tensor) -> Tensor:
    """Values (N,) of all answers of a batch as (B, K), 0 where a prompt has fewer than K answers."""
    padded = torch.zeros(valid.shape, device=values.device, dtype=values.dtype)
    return padded.masked_scatter(valid, values)
