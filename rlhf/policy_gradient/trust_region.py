"""TRPO's update as a callback: the policy's gradient becomes one trust-region step, the optimiser moves the value model.

Runs just before the optimiser, when the gradient of the whole rollout is complete. Everything is computed in the weights'
own precision, also under autocast: a KL of 0.01 is beyond bf16. The Fisher matrix is estimated on a tenth of the
micro-batches (TRPO, appendix C: a subsample serves as well); gradient, surrogate and KL on all of them.
"""

import torch
from torch import Tensor
from transformers import TrainerCallback

from rlhf.algorithms.log_probs import token_log_probs
from rlhf.algorithms.masking import where_doubles_exist
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
from rlhf.models.actor_critic import CHUNK, FORWARD_INPUTS, hidden_before
from rlhf.models.logits import output_of, output_parameters, values_of
from rlhf.models.parts import trunk_of

ITERATIONS = 10  # of conjugate gradient: TRPO paper
TOLERANCE = 1e-10  # relative squared residual: baselines
DAMPING = 0.1  # fewer samples than parameters leave F singular: baselines
SHRINK, ATTEMPTS = 0.8, 10  # of the line search: Spinning Up
ACCEPT_RATIO = 0.1  # of the line search: modular_rl
FISHER_SHARE = 0.1  # of the micro-batches


class TrustRegion(TrainerCallback):
    """trainer: its `compute_loss` appends every micro-batch of the step to `batches`."""

    def __init__(self, trainer):
        self.trainer, self.batches = trainer, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        batches, self.batches = self.batches, []
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        parameters = model.policy_parameters()
        skipped = all(p.grad is None for p in parameters)
        if not batches or skipped:  # a pass for the value model alone, or a gradient not finite
            return
        with torch.autocast(args.device.type, enabled=False):
            metrics = self.step(
                model.policy, parameters, batches, args, total=batches[0]["num_tokens"]
            )
        self.trainer.update_metrics.add_common(metrics)
        for parameter in parameters:
            parameter.grad = None  # so that the optimiser leaves it where the step has put it

    def step(
        self, policy, parameters, batches: list[dict], args, *, total: Tensor
    ) -> dict[str, Tensor]:
        """Move the parameters by the accepted step. total: tokens of all batches. Returns what to log of it."""
        gradients = []
        for p in parameters:
            gradients.append(torch.zeros_like(p) if p.grad is None else p.grad)
        gradient = -flatten(gradients)  # of the surrogate, which is to grow, (parameters,)
        product = self.fisher_product(policy, parameters, batches, args.temperature)
        direction = conjugate_gradient(
            product, gradient, iterations=ITERATIONS, tolerance=TOLERANCE
        )
        step = step_length(direction, product(direction), max_kl=args.max_kl) * direction
        with torch.no_grad():
            old_parameters = [p.detach().clone() for p in parameters]
            measure_policy = self.surrogate_and_kl(policy, batches, args.temperature, total)

            def measure(fraction: float) -> tuple[float, float]:
                moves = unflatten(step, parameters)
                for p, old, move in zip(parameters, old_parameters, moves):
                    p.copy_(old + fraction * move)
                return measure_policy()

            fraction, improvement, kl = line_search(
                measure,
                expected=(gradient @ step).item(),
                max_kl=args.max_kl,
                shrink=SHRINK,
                attempts=ATTEMPTS,
                accept_ratio=ACCEPT_RATIO,
            )
            if fraction == 0:  # no fraction was accepted
                for p, old in zip(parameters, old_parameters):
                    p.copy_(old)
        metrics = {"step_fraction": fraction, "step_kl": kl, "step_gain": improvement}
        return {name: torch.tensor(number, device=step.device) for name, number in metrics.items()}

    def fisher_product(self, policy, parameters, batches: list[dict], temperature: float):
        """A function v -> F v + damping v. The graphs of its gradients are made once."""
        chosen = batches[: max(1, round(FISHER_SHARE * len(batches)))]
        tokens = sum(batch["mask"].sum() for batch in chosen).float()
        tokens = self.over_processes(tokens)
        graphs = []
        for batch in chosen:
            logits = logits_of(policy, states_of(policy, batch), temperature)
            kl = categorical_kl(logits.detach(), logits).sum() / tokens
            graphs.append(differentiable_gradient(kl, parameters))

        def product(vector: Tensor) -> Tensor:
            products = sum(fisher_vector_product(g, parameters, vector) for g in graphs)
            return self.over_processes(products) + DAMPING * vector

        return product

    def surrogate_and_kl(self, policy, batches: list[dict], temperature: float, total: Tensor):
        """A function () -> (gain of the surrogate, KL(old || new)), means over tokens; old is the policy of this moment."""
        old_states = [states_of(policy, batch) for batch in batches]
        output = output_parameters(policy)
        old_output = [p.detach().clone() for p in output]

        def measure() -> tuple[float, float]:
            sums = torch.zeros(2, dtype=torch.float64, device=where_doubles_exist(total).device)
            for batch, old in zip(batches, old_states):
                advantages = batch["advantages"][batch["mask"]]  # (N,)
                ids = batch["completion_ids"][batch["mask"]]
                tensors = (old, states_of(policy, batch), advantages, ids)
                for chunk in zip(*(tensor.split(CHUNK) for tensor in tensors)):
                    old_chunk, new_chunk, advantage, token = chunk
                    with values_of(output, old_output):
                        before = logits_of(policy, old_chunk, temperature)
                    after = logits_of(policy, new_chunk, temperature)  # (chunk, V)
                    # The temperature is in the logits.
                    old_log_probs = token_log_probs(before, token, temperature=1)
                    log_probs = token_log_probs(after, token, temperature=1)
                    ratio = (log_probs - old_log_probs).exp()
                    gain = (advantage * (ratio - 1)).sum()
                    kl = categorical_kl(before, after).sum()
                    sums += torch.stack([gain, kl]).to(sums.device)
            improvement, kl = (self.over_processes(sums) / total.to(sums.device)).tolist()
            return improvement, kl

        return measure

    def over_processes(self, value: Tensor) -> Tensor:
        return self.trainer.accelerator.reduce(value, reduction="sum")


def states_of(policy, batch: dict) -> Tensor:
    """The hidden states that predict the tokens that count, (N, H)."""
    inputs = {name: batch[name] for name in FORWARD_INPUTS}
    hidden = hidden_before(trunk_of(policy), **inputs)  # (B, T, H)
    return hidden[batch["mask"]]


def logits_of(policy, states: Tensor, temperature: float) -> Tensor:
    return output_of(policy)(states).float() / temperature
