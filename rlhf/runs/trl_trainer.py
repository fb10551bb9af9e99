"""The part that the trainers on trl share: logs that go on after a resume, and logits where there is a loss."""

import torch
from torch.nn.functional import linear, log_softmax, nll_loss
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


class QuickHead:
    """trl's log-probabilities of the learned tokens, from logits that are kept for the gradient where they are few.

    trl computes them twice, part by part, to save memory. Half of an update of the demo's model went into that.
    """

    MOST = 2**24  # logits: 64 MB
    tiled = None  # trl's own way

    @classmethod
    def apply(cls, hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
        """(log-probabilities, entropies, None, None, whether a target is the most likely token), each (N,).

        hidden: (N, H); weight: (V, H); bias: (V,) or None; targets: (N,). outputs: names of what else is wanted, as of trl.
        """
        is_plain = (temperature, softcap, scale) == (1.0, None, 1.0)
        is_known = {"log_probs", "entropy", "is_top1"}.issuperset(outputs)
        is_exact = hidden.dtype == weight.dtype == torch.float32
        is_exact = is_exact and not torch.is_autocast_enabled(hidden.device.type)
        is_exact = is_exact and not hasattr(weight, "ds_id")  # ZeRO-3, for which trl gathers it
        if not (is_plain and is_known and is_exact) or len(hidden) * len(weight) > cls.MOST:
            return cls.tiled(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs
            )
        all_log_probs = log_softmax(linear(hidden, weight, bias), dim=1)
        log_probs = -nll_loss(all_log_probs, targets, reduction="none")
        entropy = is_top1 = None
        with torch.no_grad():  # what is only logged
            if "entropy" in outputs:
                entropy = -torch.linalg.vecdot(all_log_probs.exp(), all_log_probs)
            if "is_top1" in outputs:
                if all_log_probs.requires_grad:  # the log of training: much faster, and right but for ties
                    is_top1 = log_probs >= all_log_probs.amax(1)
                else:
                    is_top1 = all_log_probs.argmax(1) == targets
        return log_probs, entropy, None, None, is_top1


def score_learned_tokens_only() -> None:
    """Let trl compute logits where there is a loss, as it does on GPUs; on others it would at every token of the prompt.

    The losses are the same. With the demo's small model most of the time goes into logits.
    """
    if hasattr(trl_utils, "_use_triton"):
        trl_utils._use_triton = lambda device: True
    function = getattr(trl_utils, "_ChunkedLogProbFunction", QuickHead)
    if function is not QuickHead:
        QuickHead.tiled = staticmethod(function.apply)
        trl_utils._ChunkedLogProbFunction = QuickHead
