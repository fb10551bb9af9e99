"""The part that the trainers on trl share: logs that go on after a resume, and logits where there is a loss."""

from trl.trainer import utils as trl_utils

from rlhf.runs.sharding import GatheringTrainer


class TrlTrainer(GatheringTrainer):
    """Mixin for one of trl's trainers, named first: `class DemonstrationTrainer(TrlTrainer, SFTTrainer)`."""

    def compute_loss(self, model, *args, **kwargs):
        """The loss of trl, whose logs count the rows of all processes.

        trl takes some for repeated rows in the last batch of an epoch, and drops them: other ones after a resume.
        """
        if not model.training:  # an evaluation does repeat rows
            return super().compute_loss(model, *args, **kwargs)
        accelerator = self.accelerator
        accelerator.gather_for_metrics = accelerator.gather
        try:
            return super().compute_loss(model, *args, **kwargs)
        finally:
            del accelerator.gather_for_metrics  # the method of the class is back

    def log_state(self) -> dict:
        """The sums of the logs: also what trl averages, and the tokens that were learned so far."""
        averaged = {name: list(values) for name, values in self._metrics["train"].items()}
        return super().log_state() | {"averaged": averaged, "tokens": self._total_train_tokens}

    def restore_log_state(self, state: dict) -> None:
        """Go on from the sums of a checkpoint."""
        super().restore_log_state(state)
        self._metrics["train"].update(state["averaged"])
        self._total_train_tokens = state["tokens"]


def score_learned_tokens_only() -> None:
    """Let trl compute logits where there is a loss, as it does on GPUs; on others it would at every token of the prompt.

    The losses are the same. With the demo's small model most of the time goes into logits.
    """
    if hasattr(trl_utils, "_use_triton"):
        trl_utils._use_triton = lambda device: True
