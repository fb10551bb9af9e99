"""TRPO's update as a callback: the policy's gradient becomes one trust-region step, the optimiser moves the value model.

Runs just before the optimiser, when the gradient of the whole rollout is complete. Everything is taken in the weights'
own precision, also under autocast: a KL of 0.01 is beyond bf16. The Fisher matrix is estimated on a tenth of the
micro-batches (TRPO, appendix C: a subsample serves as well); gradient, surrogate and KL on all of them.
"""

import torch
from torch import Tensor
from transformers import TrainerCallback

from rlhf.algorithms.trust_region import (
    categorical_kl,
    conjugate_gradient,
    differentiable_gradient,
    fisher_vector_product,
    flatten,
    line_search,
    step_length,
    unflatten,
)
from rlhf.models.actor_critic import CHUNK, hidden_before
from rlhf.models.parts import trunk_of

ITERATIONS = 10  # of conjugate gradient: TRPO paper
TOLERANCE = 1e-10  # relative squared residual: baselines
DAMPING = 0.1  # fewer samples than parameters leave F singular: baselines
SHRINK, ATTEMPTS, ACCEPT_RATIO = (
    0.8,
    10,
    0.1,
)  # of the line search: 0.8 and 10 as in Spinning Up, 0.1 as in modular_rl
FISHER_SHARE = 0.1
FORWARD = ("prompt_ids", "prompt_mask", "completion_ids", "mask")


class TrustRegion(TrainerCallback):
    """trainer: its `compute_loss` leaves every micro-batch of the step in `batches`."""

    def __init__(self, trainer):
        self.trainer, self.batches = trainer, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        batches, self.batches = self.batches, []
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        parameters = model.policy_parameters()
        if not batches or all(
            p.grad is None for p in parameters
        ):  # a pass for the value model, or a step left out
            return
        with torch.autocast(args.device.type, enabled=False):
            found = self.step(
                model.policy, parameters, batches, args, total=batches[0]["num_tokens"]
            )
        self.trainer.count(found)
        for parameter in parameters:
            parameter.grad = None  # so that the optimiser leaves it where the step has put it

    def step(
        self, policy, parameters, batches: list[dict], args, *, total: Tensor
    ) -> dict[str, Tensor]:
        """Move the parameters by the accepted step; what to log of it."""

        def over_processes(value: Tensor) -> Tensor:
            return self.trainer.accelerator.reduce(value, reduction="sum")

        def logits(hidden: Tensor) -> Tensor:
            return policy.get_output_embeddings()(hidden).float() / args.temperature

        def states(batch: dict) -> Tensor:
            hidden = hidden_before(trunk_of(policy), **{name: batch[name] for name in FORWARD})
            return hidden[batch["mask"]]  # (N, H)

        gradient = -flatten([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

        chosen = batches[: max(1, round(FISHER_SHARE * len(batches)))]
        tokens = over_processes(sum(batch["mask"].sum() for batch in chosen).float())
        graphs = []
        for batch in chosen:
            now = logits(states(batch))
            graphs.append(
                differentiable_gradient(
                    categorical_kl(now.detach(), now).sum() / tokens, parameters
                )
            )

        def product(vector: Tensor) -> Tensor:
            return (
                over_processes(sum(fisher_vector_product(g, parameters, vector) for g in graphs))
                + DAMPING * vector
            )

        direction = conjugate_gradient(
            product, gradient, iterations=ITERATIONS, tolerance=TOLERANCE
        )
        step = step_length(direction, product(direction), max_kl=args.max_kl) * direction

        with torch.no_grad():
            old_parameters = [p.detach().clone() for p in parameters]
            old_states = [states(batch) for batch in batches]
            head = policy.get_output_embeddings()
            old_weight = head.weight.detach().clone()

            def measure(fraction: float) -> tuple[float, float]:
                for p, old, move in zip(parameters, old_parameters, unflatten(step, parameters)):
                    p.copy_(old + fraction * move)
                sums = torch.zeros(2, device=step.device, dtype=torch.float64)
                for batch, old in zip(batches, old_states):
                    advantages, ids = (
                        batch["advantages"][batch["mask"]],
                        batch["completion_ids"][batch["mask"]],
                    )
                    pieces = (x.split(CHUNK) for x in (old, states(batch), advantages, ids))
                    for old_hidden, new_hidden, advantage, token in zip(*pieces):
                        before = (
                            torch.nn.functional.linear(old_hidden, old_weight, head.bias).float()
                            / args.temperature
                        )
                        after = logits(new_hidden)
                        ratio = (log_prob(after, token) - log_prob(before, token)).exp()
                        sums += torch.stack(
                            [(advantage * (ratio - 1)).sum(), categorical_kl(before, after).sum()]
                        )
                improvement, kl = (over_processes(sums) / total.to(sums.device)).tolist()
                return improvement, kl

            fraction, improvement, kl = line_search(
                measure, expected=(gradient @ step).item(), max_kl=args.max_kl, shrink=SHRINK, attempts=ATTEMPTS,
                accept_ratio=ACCEPT_RATIO,
            )  # fmt: skip
            if fraction == 0:
                for p, old in zip(parameters, old_parameters):
                    p.copy_(old)
        found = {"step_fraction": fraction, "step_kl": kl, "step_gain": improvement}
        return {name: torch.tensor(value, device=step.device) for name, value in found.items()}


def log_prob(logits: Tensor, token_ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
