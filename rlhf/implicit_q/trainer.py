"""ILQLTrainer: scored answers -> a policy with values of its tokens (Snell et al. 2022, arXiv 2206.11871). No sampling.

Read it in the order of a step: `compute_loss` runs the model and adds up the four terms of `algorithms.ilql`, and
`MoveTargets` lets the copies of Q follow after the optimiser's step. `evaluate` measures the terms on held-out answers,
and how well Q tells good answers from bad ones, and answers held-out prompts with the guided policy.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from rlhf.algorithms.ilql import answer_losses, bellman_targets
from rlhf.algorithms.masking import masked_sum
from rlhf.completions.sample import uniform_numbers
from rlhf.direct_preference.trainer import Sampling, decode_prompts, in_order, sample_metrics
from rlhf.errors import UserError
from rlhf.implicit_q.config import ILQLConfig
from rlhf.implicit_q.rows import collate_scored
from rlhf.models.action_values import ActionValueHeads, ImplicitQ, guided, save_heads
from rlhf.models.actor_critic import FORWARD_INPUTS, reference_log_probs
from rlhf.models.load import save
from rlhf.models.parts import disable_dropout
from rlhf.models.value_functions import FOLDER
from rlhf.reward_model.step_mean import StepMean
from rlhf.runs import durable
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.progress import publish_evaluation, sample_table
from rlhf.runs.sharding import is_plain
from rlhf.runs.trainer import RunTrainer
from rlhf.statistics import correlation, ranks

STATE = "ilql.safetensors"  # file of a checkpoint: the trained weights, before LoRA is merged, and the copies of Q
TERMS = ("q", "v", "cql", "nll")
# What an evaluation gives, besides the metrics of samples.
MEASURED = ("loss", *(f"{term}_loss" for term in TERMS), "q_correlation", "answers")


class MoveTargets(TrainerCallback):
    """Moves the copies of Q after each step of the optimiser."""

    def __init__(self, heads: ActionValueHeads, rate: float):
        self.heads, self.rate = heads, rate

    def on_step_end(self, args, state, control, **kwargs):
        self.heads.update_targets(self.rate)


class ILQLTrainer(StepMean, RunTrainer, Trainer):
    """policy: a causal LM, LoRA or not. Rows: as from `rows.encode_scored`."""

    samples: list[dict] = []  # of the last evaluation

    def __init__(
        self,
        *,
        policy: nn.Module,
        heads: ActionValueHeads,
        tokenizer,
        args: ILQLConfig,
        train_rows: Sequence[dict],
        eval_rows: Sequence[dict],
        sampling: Sampling,
    ):
        disable_dropout(policy)
        if args.nll_coef == 0:
            policy.requires_grad_(False)  # with values_move_trunk: false nothing teaches it
        self.tokenizer, self.sampling, self.eval_rows = tokenizer, sampling, eval_rows
        self.terms: dict[str, float] = {}  # of the step under way, summed over its tokens
        super().__init__(
            model=ImplicitQ(policy, heads, values_move_trunk=args.values_move_trunk),
            args=args,
            data_collator=lambda rows: collate_scored(rows, tokenizer.pad_token_id),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
        )
        if not is_plain(self.accelerator):
            raise UserError(
                "ILQL does not run under DeepSpeed or FSDP yet, where a process holds slices of the weights: start with "
                "ddp.yaml, and with use_peft: true if the memory is short"
            )
        names = [*MEASURED, *sample_names(sampling)]
        check_is_measured(args.metric_for_best_model, [f"eval_{name}" for name in names])
        # The loss is a mean over the batch: let the Trainer divide it by the accumulation steps.
        self.loss_is_scaled_for_ga = False
        self.add_callback(MoveTargets(heads, args.target_update_rate))

    # ---- a step --------------------------------------------------------------------------------------------------

    @staticmethod
    def count_of_batch(batch: dict[str, Tensor]) -> int:
        """The tokens of the answers of a batch: each weighs the same in a step."""
        return int(batch["mask"].sum())

    def get_batch_samples(self, *args, **kwargs):
        """The batches of the next step, whose terms are counted from 0."""
        self.terms = {}
        return super().get_batch_samples(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the four terms, each a mean over the tokens of the whole optimiser step."""
        sums = self.summed_terms(model, inputs)
        # An answer of 60 tokens has six times the weight of one of 10, in any batch.
        tokens = int(inputs["mask"].sum())
        count = self.count_for_mean(tokens, is_training=model.training)
        for name, value in sums.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(value.detach())
        self.terms["tokens"] = self.terms.get("tokens", 0.0) + tokens
        loss = self.weighted(sums) / max(count, 1.0)
        return (loss, {}) if return_outputs else loss

    def summed_terms(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four terms of a batch, each summed over its tokens."""
        losses, mask = self.token_losses(model, inputs), inputs["mask"]
        return {name: masked_sum(loss, mask) for name, loss in losses.items()}

    def token_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The four terms of each token (B, T), and "target": the smaller Q of the token, without a gradient."""
        outputs = model(**{name: inputs[name] for name in FORWARD_INPUTS})
        # V of this very forward pass: it has no slowly moving copy, Q has (section 4.2).
        bellman = bellman_targets(
            outputs.values.detach(), inputs["mask"], inputs["scores"], gamma=self.args.gamma
        )
        losses = answer_losses(**outputs._asdict(), bellman=bellman, expectile=self.args.expectile)
        return losses | {"target": outputs.target}

    def weighted(self, terms: dict):
        """q + v + cql_coef cql + nll_coef nll, of tensors or numbers."""
        total = terms["q"] + terms["v"] + self.args.cql_coef * terms["cql"]
        return total + self.args.nll_coef * terms["nll"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log the four terms of the last step, next to its loss."""
        if "loss" in logs and self.terms:
            # Not since the last log: a run that resumes in between would log another mean.
            names = [*TERMS, "target", "tokens"]
            sums = torch.tensor([self.terms[name] for name in names], device=self.args.device)
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, "sum")
            *values, tokens = sums.tolist()
            means = [value / max(tokens, 1.0) for value in values]
            for name, mean in zip([*(f"{term}_loss" for term in TERMS), "q_mean"], means):
                logs[name] = mean
        super().log(logs, *args, **kwargs)

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return the terms on held-out answers, the rank correlation of Q and score, and facts of samples.

        q_correlation: Spearman's, of the score of each held-out answer and the mean of Q over its tokens.
        """
        model = self.accelerator.unwrap_model(self.model).eval()
        self.samples = self.sample(model)
        metrics = self.measure(model) | sample_metrics(self.samples)
        return publish_evaluation(self, metrics, metric_key_prefix, self.samples)

    @torch.no_grad()
    def measure(self, model: ImplicitQ) -> dict[str, float]:
        """The numbers of MEASURED, of the held-out answers, split over processes."""
        rank, world = self.args.process_index, self.args.world_size
        mine, results = range(rank, len(self.eval_rows), world), []
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(mine), size):
            rows = [self.eval_rows[i] for i in mine[start : start + size]]
            inputs = self._prepare_inputs(collate_scored(rows, self.tokenizer.pad_token_id))
            mask = inputs["mask"]
            # As in training: the forward pass of the wrapper has autocast around it.
            with self.accelerator.autocast():
                losses = self.token_losses(model, inputs)
            columns = [masked_sum(losses[name], mask, 1) for name in (*TERMS, "target")]
            results += torch.stack([*columns, mask.sum(1)], dim=1).tolist()
        sums = torch.tensor(in_order(results, len(self.eval_rows), world), dtype=torch.double)
        tokens = sums[:, -1]
        # Of all tokens of all answers, as in training.
        means = dict(
            zip(TERMS, (sums[:, : len(TERMS)].sum(0) / tokens.sum()).tolist(), strict=True)
        )
        scores = torch.tensor([row["score"] for row in self.eval_rows], dtype=torch.double)
        of_answers = sums[:, len(TERMS)] / tokens  # mean Q
        return {
            "loss": self.weighted(means),
            **{f"{name}_loss": mean for name, mean in means.items()},
            "q_correlation": correlation(ranks(of_answers), ranks(scores)),
            "answers": len(self.eval_rows),
        }

    @torch.no_grad()
    def sample(self, model: ImplicitQ) -> list[dict]:
        """Answers of the guided policy to the prompts of `sampling`, split over processes.

        Each has prompt, completion, completion_length in tokens, ended, and kl: log guided policy - log policy of the
        answer, an unbiased estimate of the KL in nats.
        """
        rank, world = self.args.process_index, self.args.world_size
        prompts, length = self.sampling.prompts, self.sampling.max_completion_length
        # The same numbers at each evaluation, so that two of them differ by the model alone.
        uniforms = uniform_numbers(len(prompts), length, seed=self.args.seed, stream=0)
        mine, samples = prompts[rank::world], []
        if mine:
            with self.accelerator.autocast():
                samples = self._sample(model, mine, uniforms[rank::world])
        return in_order(samples, len(prompts), world)

    def _sample(self, model: ImplicitQ, prompts: list[dict], uniforms: Tensor) -> list[dict]:
        with guided(model.policy, model.heads, self.args.advantage_coef):
            batch, samples = decode_prompts(
                model.policy, self.tokenizer, prompts, uniforms, self.args
            )
            log_probs = reference_log_probs(model.policy, batch, temperature=1.0)
        # Outside of the context it is the policy without values.
        log_ratios = log_probs - reference_log_probs(model.policy, batch, temperature=1.0)
        sums = masked_sum(log_ratios, batch["mask"], 1)
        return [sample | {"kl": kl} for sample, kl in zip(samples, sums.tolist(), strict=True)]

    def table_of_samples(self) -> str:
        """The first answers of the last evaluation, for the terminal."""
        columns = ["prompt", "completion", "completion_length", "kl"]
        return sample_table(self.samples, columns=columns, limit=8)

    # ---- files ---------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy as a plain folder, LoRA merged, with the heads in value_model/.

        Checkpoints (`_internal_call`) hold what resuming needs too.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        # The heads fit the merged trunk too: it gives the same states.
        save(model.policy, self.tokenizer, folder)
        durable.boundary(folder)
        save_heads(folder / FOLDER, model.heads, self.args.advantage_coef)
        durable.boundary(folder / FOLDER)
        if _internal_call:
            save_file(self.state_to_resume(), folder / STATE)

    def state_to_resume(self) -> dict[str, Tensor]:
        """The trained weights and the copies of Q, by name."""
        model = self.accelerator.unwrap_model(self.model)
        tensors = {}
        for name, parameter in model.named_parameters():
            # The copies of Q are not trained, and not a function of the trained weights either.
            if parameter.requires_grad or name.startswith("heads."):
                tensors[name] = parameter.detach().contiguous()
        return tensors

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, at the end of a run with load_best_model_at_end."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        path = Path(resume_from_checkpoint) / STATE
        if not path.is_file():
            raise UserError(
                f"{resume_from_checkpoint} is not a checkpoint of this trainer: {STATE} is missing"
            )
        saved, current = load_file(path), self.state_to_resume()
        if saved.keys() != current.keys():
            raise UserError(
                f"{resume_from_checkpoint} was trained with other parts than this run: resume with the model, use_peft, "
                "lora_r and nll_coef of its run"
            )
        for name, tensor in saved.items():
            current[name].copy_(tensor)


def sample_names(sampling: Sampling) -> list[str]:
    """The metrics of the guided policy's own answers that an evaluation gives."""
    return ["completion_length", "eos_rate", "kl"] if sampling.prompts else []
