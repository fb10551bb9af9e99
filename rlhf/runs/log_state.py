"""The sums that a Trainer logs, kept in each checkpoint: a resumed run logs what the uninterrupted one does.

transformers begins again at zero on a resume. So the first `loss` after it would miss the steps between the last log and the
checkpoint, and `train_loss` at the end would be the mean of the last part.
"""

import json
from pathlib import Path

import torch
from transformers import TrainerCallback


class LogState:
    """Mixin for a transformers.Trainer. Each process has sums, and a file, of its own."""

    def log_state(self) -> dict:
        """The sums as JSON. A trainer that adds up more extends it."""
        return {
            "loss_since_log": self._tr_loss.item(),
            "last_log": self._globalstep_last_logged,
            "loss_before": self._total_loss_scalar,
        }

    def restore_log_state(self, state: dict) -> None:
        """Go on from the sums of a checkpoint."""
        self._tr_loss = torch.full_like(self._tr_loss, state["loss_since_log"])
        self._globalstep_last_logged = state["last_log"]
        self._total_loss_scalar = state["loss_before"]

    def _init_training_state(
        self, max_steps, updates, epochs, checkpoint, trial
    ) -> tuple[int, int]:
        """Begin the Trainer's state, and read the sums of a checkpoint once the Trainer has set its own to zero."""
        if checkpoint is not None:
            path = Path(checkpoint) / self._log_state_name()
            if path.is_file():  # not in checkpoints of older versions
                state = json.loads(path.read_text(encoding="utf-8"))
                self.add_callback(RestoreLogState(self, state))
        return super()._init_training_state(max_steps, updates, epochs, checkpoint, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what every process has of its own: its random numbers, and its sums."""
        super()._save_rng_state(output_dir)
        text = json.dumps(self.log_state())
        path = Path(output_dir) / self._log_state_name()
        path.write_text(f"{text}\n", encoding="utf-8")

    def _log_state_name(self) -> str:
        if self.args.world_size == 1:
            return "log_state.json"
        return f"log_state_{self.args.process_index}.json"

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log the mean loss of all steps at the end, not of those since a resume."""
        if "train_loss" in logs and self.state.global_step:
            logs["train_loss"] = self._total_loss_scalar / self.state.global_step
        super().log(logs, *args, **kwargs)


class RestoreLogState(TrainerCallback):
    """Restores the sums as the training begins."""

    def __init__(self, trainer: LogState, state: dict):
        self.trainer = trainer
        self.state = state

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restore_log_state(self.state)
