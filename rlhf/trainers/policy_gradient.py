"""PolicyGradientTrainer: transformers.Trainer whose data loader is the rollout loop.

Progress, accumulation, schedules, callbacks, DDP, FSDP and DeepSpeed come from the library; what stands here is how a
rollout is made over all processes, the loss of a micro-batch, what is logged, evaluated and saved.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer

from rlhf.algorithms import ALGORITHMS, call
from rlhf.algorithms.kl import adapt_kl_coef, k3
from rlhf.algorithms.losses import clipped_value_loss, value_loss
from rlhf.algorithms.masked import masked_sum
from rlhf.data.chat import as_text, decode, encode_prompt
from rlhf.decoding import uniform_numbers
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, frozen_copy, reference_log_probs
from rlhf.models.load import context_length, disable_dropout, freeze, save
from rlhf.rollout import Rollout, collect, estimate, statistics
from rlhf.scoring import WeightedSum
from rlhf.trainers.config import PolicyGradientConfig
from rlhf.trainers.loader import RolloutLoader, choose_rows
from rlhf.trainers.progress import append_jsonl

STATE = "policy_gradient.json"
WEIGHTS = "trainable.safetensors"


class PolicyGradientTrainer(Trainer):
    """policy: causal LM (LoRA or not); rewards: WeightedSum; rows: [{"prompt", ...}]; ref_model: None (a frozen copy of
    the policy, or the policy without its adapter), or a causal LM; value_model: None, "shared", or a reward model."""

    def __init__(
        self,
        *,
        policy: nn.Module,
        tokenizer,
        rewards: WeightedSum,
        args: PolicyGradientConfig,
        rows: list[dict],
        eval_rows: list[dict] | None = None,
        value_model: nn.Module | str | None = None,
        ref_model: nn.Module | None = None,
        callbacks: list | None = None,
    ):
        self.algorithm = ALGORITHMS[args.algorithm]
        self.tokenizer, self.rewards, self.kl_coef = tokenizer, rewards, args.kl_coef
        limit = context_length(policy) - args.max_completion_length
        if limit < 1:
            raise UserError(
                f"max_completion_length={args.max_completion_length} leaves no room for a prompt in the model's context "
                f"of {context_length(policy)} tokens: use a smaller one"
            )
        self.prompt_limit = min(args.max_prompt_length, limit)
        self.rows, self.prompt_ids = self._encode(rows, args, "training")
        self.eval_rows, self.eval_prompt_ids = self._encode(eval_rows, args, "evaluation") if eval_rows else ([], [])

        model = ActorCritic(policy, value_model if self.algorithm.value_model else None)
        self.lora = hasattr(policy, "peft_config")
        if ref_model is None and not self.lora:
            ref_model = frozen_copy(policy)
        self.ref_model = freeze(ref_model) if ref_model is not None else None
        disable_dropout(model)
        super().__init__(
            model=model, args=args, optimizers=(self._optimizer(model, args), None), callbacks=callbacks,
            data_collator=lambda batch: batch, eval_dataset=self.eval_rows or None,
        )  # fmt: skip
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the token total of the whole mini-batch
        if self.ref_model is not None:
            self.ref_model.to(self.args.device)
        for scorer in rewards.scorers.values():
            if isinstance(getattr(scorer, "model", None), nn.Module):
                scorer.model.to(self.args.device)
        self._sums: dict[str, Tensor] = {}
        self._updates = 0
        self._rollout_statistics: dict[str, float] = {}

    # ---- prompts -------------------------------------------------------------------------------------------------

    def _encode(self, rows: list[dict], args, name: str) -> tuple[list[dict], list[list[int]]]:
        """Rows with their prompt ids; prompts over the limit are dropped or cut, and counted."""
        kept, ids, long = [], [], 0
        for row in rows:
            prompt = encode_prompt(self.tokenizer, row["prompt"])
            if len(prompt) > self.prompt_limit:
                long += 1
                if args.long_prompts == "drop":
                    continue
                prompt = prompt[-self.prompt_limit :]
            kept.append(row)
            ids.append(prompt)
        if long and args.process_index == 0:
            done = "left out" if args.long_prompts == "drop" else "cut to their end"
            print(f"{long} of {len(rows)} {name} prompts are longer than {self.prompt_limit} tokens and were {done}")
        if not kept:
            raise UserError(
                f"every {name} prompt is longer than {self.prompt_limit} tokens (max_prompt_length "
                f"{args.max_prompt_length}, context minus completion): raise max_prompt_length or set long_prompts: cut"
            )
        return kept, ids

    # ---- rollouts ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(
            self.make_rollout,
            epochs=self.args.epochs_per_rollout,
            mini_batch_size=self.args.mini_batch_size,
            micro_batch_size=self.args.per_device_train_batch_size,
            process_index=self.args.process_index,
            processes=self.args.world_size,
            seed=self.args.seed,
            first_rollout=self._first_rollout,
        )

    _first_rollout = 0

    def make_rollout(self, index: int) -> Rollout:
        """Rollout `index` of the run, complete on every process; the KL controller moves after it."""
        args, started = self.args, time.time()
        size = args.rollout_batch_size
        count = size // args.num_generations
        prompts = choose_rows(len(self.rows), count, start=index * count, seed=args.seed)
        prompts = [place for place in prompts for _ in range(args.num_generations)]
        rollout = self._collect(
            [self.rows[place] for place in prompts],
            [self.prompt_ids[place] for place in prompts],
            uniform_numbers(size, args.max_completion_length, seed=args.seed, stream=index),
        )
        rollout = estimate(
            rollout, self.algorithm, kl_coef=self.kl_coef, gamma=args.gamma, gae_lambda=args.gae_lambda,
            num_generations=args.num_generations,
        )  # fmt: skip
        if not torch.isfinite(rollout.scores).all():
            raise UserError(f"rollout {index}: a score is not a finite number; check the reward model")
        found = statistics(rollout)
        found |= {"kl_coef": self.kl_coef, "episodes": (index + 1) * size, "rollout_seconds": time.time() - started}
        found["unique_completions"] = (
            len({tuple(r[m].tolist()) for r, m in zip(rollout.completion_ids, rollout.mask)}) / size
        )
        self._rollout_statistics = found
        if args.kl_target is not None:
            self.kl_coef = adapt_kl_coef(
                self.kl_coef, kl=found["kl"], target=args.kl_target, horizon=args.kl_horizon, episodes=size
            )
        return rollout

    def _collect(self, rows: list[dict], prompt_ids: list[list[int]], uniforms: Tensor | None) -> Rollout:
        """Each process completes its share of the rows; every process gets the whole rollout, in the order of the rows.

        The number of rows may be anything: shares are filled up with repeated rows, which are cut off again.
        """
        processes, index = self.args.world_size, self.args.process_index
        share = -(-len(rows) // processes)
        places = [min(place, len(rows) - 1) for place in range(index * share, (index + 1) * share)]
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with self.accelerator.autocast():
            rollout = collect(
                model,
                self._reference,
                self.rewards,
                self.tokenizer,
                [rows[place] for place in places],
                [prompt_ids[place] for place in places],
                uniforms=None if uniforms is None else uniforms[places],
                temperature=self.args.temperature,
                max_completion_length=self.args.max_completion_length,
                batch_size=self.args.per_device_eval_batch_size,
                eos_penalty=self.args.missing_eos_penalty,
            )
        return rollout if processes == 1 else self._gathered(rollout, len(rows))

    def _gathered(self, rollout: Rollout, count: int) -> Rollout:
        def whole(name: str, tensor: Tensor) -> Tensor:
            if tensor.dim() == 2:
                padded = self.accelerator.pad_across_processes(tensor, dim=1, pad_first=name.startswith("prompt"))
                tensor = padded.to(tensor.dtype)  # a padded mask comes back as int64, an unpadded one as bool
            return gather(tensor)[:count]

        tensors = {name: whole(name, tensor) for name, tensor in rollout.tensors().items()}
        return replace(rollout, **tensors, parts={name: gather(part)[:count] for name, part in rollout.parts.items()})

    def _reference(self, batch: dict) -> Tensor:
        policy = self.accelerator.unwrap_model(self.model).policy
        with policy.disable_adapter() if self.ref_model is None else nullcontext():
            return reference_log_probs(self.ref_model or policy, batch, temperature=self.args.temperature)

    # ---- loss ----------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args, mask, total = self.args, inputs["mask"], inputs["num_tokens"]
        seen = model(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask, temperature=args.temperature
        )
        policy_losses = call(
            self.algorithm.policy_loss,
            log_probs=seen.log_probs,
            old_log_probs=inputs["log_probs"],
            advantages=inputs["advantages"],
            clip_range=args.clip_range,
        )
        found = {"policy_loss": masked_sum(policy_losses, mask), "entropy": masked_sum(seen.entropy, mask)}
        loss = found["policy_loss"] - args.entropy_coef * found["entropy"]
        if seen.values is not None:
            if args.value_clip_range is None:
                value_losses = value_loss(seen.values, inputs["returns"])
            else:
                value_losses = clipped_value_loss(
                    seen.values, inputs["values"], inputs["returns"], value_clip_range=args.value_clip_range
                )
            found["value_loss"] = masked_sum(value_losses, mask)
            loss = loss + args.value_coef * found["value_loss"]
        with torch.no_grad():
            log_ratio = inputs["log_probs"] - seen.log_probs
            ratio = (-log_ratio).exp()
            found["approx_kl"] = masked_sum(k3(log_ratio), mask)
            found["ratio"] = masked_sum(ratio, mask)
            found["clip_fraction"] = masked_sum(((ratio - 1).abs() > args.clip_range).float(), mask)
            self._count({name: value.detach() / total for name, value in found.items()})
            if inputs["first_update"]:
                deviation = ((ratio - 1).abs() * mask).max()
                self._sums["first_ratio_error"] = torch.maximum(
                    self._sums.get("first_ratio_error", torch.zeros_like(deviation)), deviation
                )
        return loss / total * args.world_size  # DDP takes the mean over processes; ours is a sum

    def _count(self, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    # ---- optimiser -----------------------------------------------------------------------------------------------

    def _optimizer(self, model: ActorCritic, args: PolicyGradientConfig) -> torch.optim.Optimizer:
        value_rate = args.learning_rate if args.value_learning_rate is None else args.value_learning_rate
        groups = [
            {"params": model.policy_parameters(), "lr": args.learning_rate},
            {"params": model.value_parameters(), "lr": value_rate},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )

    def _clip_grad_norm(self, model):
        """Policy and value parameters are clipped, and logged, apart: a wild critic must not still the policy."""
        inner = self.accelerator.unwrap_model(model)
        parts = {"policy": inner.policy_parameters(), "value": inner.value_parameters()}
        norms = {
            name: self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)
            for name, parameters in parts.items()
            if parameters
        }
        self._updates += 1
        self._count({f"grad_norm_{name}": torch.as_tensor(norm).detach().float() for name, norm in norms.items()})
        return norms["policy"]

    # ---- logging, evaluation, samples ----------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums:
            logs |= self._rollout_statistics | self._averages()
            logs.pop("grad_norm", None)
        self.state.epoch = self.state.global_step / self.args.max_steps  # the Trainer counts from where it resumed
        super().log(logs, start_time)

    def _averages(self) -> dict[str, float]:
        """Means over the updates since the last log; sums of micro-batches are added over processes first."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].float() for name in names])
        per_process = gather(sums.unsqueeze(0)) if self.args.world_size > 1 else sums.unsqueeze(0)
        found = {}
        for place, name in enumerate(names):
            column, updates = per_process[:, place], max(self._updates, 1)
            if name.startswith("grad_norm"):
                found[name] = float(column[0]) / updates
            elif name == "first_ratio_error":
                found[name] = float(column.max())
            else:
                found[name] = float(column.sum()) / updates
        self._sums, self._updates = {}, 0
        return found

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample one completion per evaluation prompt, with the same random numbers every time, and score them."""
        rows = self.eval_rows
        if not rows:
            raise UserError("there are no evaluation prompts: give eval_dataset_name or eval_fraction")
        uniforms = uniform_numbers(len(rows), self.args.max_completion_length, seed=self.args.seed, stream=2**40)
        rollout = self._collect(rows, self.eval_prompt_ids, uniforms)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in statistics(rollout).items()}
        self.log(metrics)
        if self.is_world_process_zero():
            for sample in self.samples(rollout, rows):
                append_jsonl(Path(self.args.output_dir) / "samples.jsonl", {"step": self.state.global_step, **sample})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics

    def samples(self, rollout: Rollout, rows: list[dict]) -> list[dict]:
        """One readable dict per completion: prompt, completion, score, KL, and each reward by itself."""
        kl = masked_sum(rollout.log_probs - rollout.ref_log_probs, rollout.mask, 1)
        return [
            {
                "prompt": as_text(row["prompt"]),
                "completion": decode(self.tokenizer, rollout.completion_ids[i][rollout.mask[i]].tolist()),
                "score": float(rollout.scores[i]),
                "kl": float(kl[i]),
                **{name: float(part[i]) for name, part in rollout.parts.items()},
            }
            for i, row in enumerate(rows)
        ]

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy as a plain folder, its value function in `value_model/`; in checkpoints the raw weights beside them."""
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        model = self.accelerator.unwrap_model(self.model)
        save(model.policy, self.tokenizer, folder)
        if model.value_model is not None:
            save(model.value_model, self.tokenizer, folder / "value_model")
        elif model.value_head is not None:
            (folder / "value_model").mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in model.value_head.state_dict().items()},
                folder / "value_model" / "value_head.safetensors",
            )
        if _internal_call:
            state = {"kl_coef": self.kl_coef, "rollouts": self.state.global_step // self.args.steps_per_rollout}
            (folder / STATE).write_text(json.dumps(state))
            trainable = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
            save_file(trainable, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (folder / STATE).is_file():
            raise UserError(f"{folder} is not a checkpoint of this trainer: {STATE} is missing")
        state = json.loads((folder / STATE).read_text())
        self.kl_coef, self._first_rollout = state["kl_coef"], state["rollouts"]
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(folder / WEIGHTS).items():
                parameters[name].copy_(tensor)
