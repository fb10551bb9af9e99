"""The exponential moving average of the policy's weights that InstructGPT keeps (appendix C.4)."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class WeightAverage(TrainerCallback):
    """average <- decay * average + (1 - decay) * weights, after each rollout. It starts at the initial weights.

    The paper gives the decay, 0.992, but not its period. Its unit of training is the iteration, which is one rollout.
    """

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.tensors: list[Tensor] = []  # the averages, in the order of `parameters`

    def on_train_begin(self, args, state, control, **kwargs):
        start = self.tensors or self.parameters  # when resuming, the tensors are the checkpoint's
        copies = []
        for tensor, parameter in zip(start, self.parameters, strict=True):
            copies.append(tensor.detach().to(parameter.device, copy=True))
        self.tensors = copies

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.steps_per_rollout == 0:
            with torch.no_grad():
                torch._foreach_lerp_(self.tensors, self.parameters, 1 - self.decay)

    @contextmanager
    def applied(self):
        """A context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.tensors, self.parameters):
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
