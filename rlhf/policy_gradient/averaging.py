"""The exponential moving average of the policy's weights that InstructGPT keeps (appendix C.4)."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class WeightAverage(TrainerCallback):
    """average <- decay * average + (1 - decay) * weights, after each rollout; it begins at the first weights.

    The paper names the decay, 0.992, not its period; its unit of training is the iteration, one rollout.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.tensors: list[Tensor] = []

    def on_train_begin(self, args, state, control, **kwargs):
        begun = self.tensors or self.parameters  # those of a checkpoint, when resuming
        self.tensors = [
            t.detach().to(p.device, copy=True) for t, p in zip(begun, self.parameters, strict=True)
        ]

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.steps_per_rollout == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.tensors, self.parameters, 1 - self.decay)

    @contextmanager
    def applied(self):
        """Within it the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.tensors, self.parameters):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
