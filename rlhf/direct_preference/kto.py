"""ThumbKTOTrainer: answers with a thumb up or down -> a policy. On trl.KTOTrainer, whose loss it is.

Deviation: the completion of another prompt, by which the KL is estimated, belongs to its row (`rows.add_other_completions`).
trl takes that of the neighbour in a batch, which may answer the same prompt, so that its KL depends on the batch size.
"""

from datasets import Dataset
from trl import KTOTrainer

from rlhf.data.encodings import EncodedRows
from rlhf.direct_preference.log_probs import Answer
from rlhf.direct_preference.metrics import thumb_report
from rlhf.direct_preference.rows import thumbs_dataset
from rlhf.direct_preference.trainer import DirectTrainer


class ThumbKTOTrainer(DirectTrainer, KTOTrainer):
    """Rows as from `rows.encode_thumbs`; arguments as of `DirectTrainer`."""

    def dataset_of(self, rows: EncodedRows) -> Dataset:
        return thumbs_dataset(rows)

    def answers_of(self, row: dict) -> list[Answer]:
        return [Answer(row["prompt_ids"] + row["completion_ids"], len(row["completion_ids"]))]

    def _compute_loss(self, model, inputs, return_outputs):
        """trl's loss. Also logs the log-probs under the reference, which the alarm compares."""
        result = super()._compute_loss(model, inputs, return_outputs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        for side in ("chosen", "rejected"):
            rewards = metrics.get(f"rewards/{side}", [])
            # A batch may hold answers of one kind only.
            if len(rewards) > len(metrics.get(f"logps/ref_{side}", [])):
                reference = metrics[f"logps/{side}"][-1] - rewards[-1] / self.beta
                metrics[f"logps/ref_{side}"].append(reference)
        return result

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with the log-probs of their two completions under the reference, before the first step.

        trl hands them over in a file, which each process looks for under a name of its own.
        """
        if name == "eval":  # rows that `evaluate` reads elsewhere
            self.references_of_eval_rows()
            return dataset
        columns = {"ref_logps": dataset}
        if self.calculate_KL:
            others = dataset.remove_columns("completion_ids")
            columns["ref_KL_logps"] = others.rename_column("KL_completion_ids", "completion_ids")
        for column, rows in columns.items():
            values = self.log_probs_of(rows, self.reference_log_probs)
            dataset = dataset.add_column(column, [value for (value,) in values])
        return dataset

    def measure(self, rewards: list[list[float]]) -> dict[str, float]:
        return thumb_report([reward for (reward,) in rewards], self.eval_rows)
