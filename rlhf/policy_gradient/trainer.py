"""PolicyGradientTrainer: transformers.Trainer whose data loader is the rollout loop.

Progress, accumulation, schedules, callbacks, DDP, FSDP and DeepSpeed come from the library; what stands here is how a
rollout is made over all processes, the loss of a micro-batch, what is logged, evaluated and saved.
"""

import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather, send_to_device
from torch import Tensor, nn
from transformers import Trainer

from rlhf.algorithms import ALGORITHMS, call
from rlhf.algorithms.kl import adapt_kl_coef, k3
from rlhf.algorithms.losses import clipped_value_loss, value_loss
from rlhf.algorithms.masking import masked_sum
from rlhf.completions.diversity import distinct_n, repetition
from rlhf.completions.rollout import Rollout, collect, estimate, statistics
from rlhf.completions.sample import uniform_numbers
from rlhf.completions.score import WeightedSum
from rlhf.data.chat import as_text, decode_text, encode_prompt
from rlhf.errors import UserError
from rlhf.models.actor_critic import CHUNK, ActorCritic, frozen_copy, reference_log_probs
from rlhf.models.kernels import store_frozen_matrices_in_bf16, use_fast_kernels
from rlhf.models.memory import Memory, estimate_memory
from rlhf.models.one_trunk import AdapterModel, adapter
from rlhf.models.parts import context_length, disable_dropout, freeze
from rlhf.policy_gradient import checkpoints, sharding
from rlhf.policy_gradient.alarms import AlarmCallback, NonFiniteSteps
from rlhf.policy_gradient.averaging import WeightAverage
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.loader import RolloutLoader, choose_rows
from rlhf.policy_gradient.trust_region import TrustRegion
from rlhf.runs.progress import append_jsonl

SKIPPED_AT_MOST = 10  # steps in a row whose gradient was not finite


class PolicyGradientTrainer(Trainer):
    """policy: causal LM (LoRA or not); rewards: WeightedSum; rows: [{"prompt", ...}]; ref_model: None (a frozen copy of
    the policy, or the policy without its adapter), or a causal LM; value_model: None, "shared", or a reward model;
    texts: plain text as token ids, for ptx_coef."""

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
        texts: list[list[int]] | None = None,
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
        self.eval_rows, self.eval_prompt_ids = (
            self._encode(eval_rows, args, "evaluation") if eval_rows else ([], [])
        )

        if args.ptx_coef and not texts:
            raise UserError(
                f"ptx_coef={args.ptx_coef} needs plain text: set ptx_dataset_name, or ptx_coef to 0"
            )
        self.texts = self._checked(texts or [], context_length(policy))

        model = ActorCritic(
            policy,
            value_model if self.algorithm.value_model else None,
            value_moves_trunk=not self.algorithm.trust_region,
        )
        if ref_model is None and not hasattr(policy, "peft_config"):
            ref_model = frozen_copy(policy)
        self.ref_model = freeze(ref_model) if ref_model is not None else None
        disable_dropout(model)
        scoring = [
            s.model
            for s in rewards.scorers.values()
            if isinstance(getattr(s, "model", None), nn.Module)
        ]
        for each in (model.policy, model.value_model, self.ref_model, *scoring):
            if each is not None:
                use_fast_kernels(
                    each, device=args.device, longest=self.prompt_limit + args.max_completion_length
                )
        if self.algorithm.trust_region:
            policy.set_attn_implementation("eager")  # fused attention has no second derivative
        self.average = (
            WeightAverage(model.policy_parameters(), args.ema_decay)
            if args.ema_decay is not None
            else None
        )
        self.nonfinite = NonFiniteSteps(SKIPPED_AT_MOST, args.output_dir)
        super().__init__(
            model=model, args=args, callbacks=callbacks,
            data_collator=lambda batch: batch, eval_dataset=self.eval_rows or None,
        )  # fmt: skip
        self.create_optimizer()  # not passed in: DeepSpeed would put a default one in its place, FSDP refuses it
        self.loss_is_scaled_for_ga = (
            True  # compute_loss divides by the token total of the whole mini-batch
        )
        one_trunk = any(isinstance(each, AdapterModel) for each in (model.value_model, *scoring))
        sharding.check_settings(
            self.accelerator, args, trust_region=self.algorithm.trust_region, share_trunk=one_trunk
        )
        sharding.autocast_only(self.accelerator)
        self._twin = (
            sharding.twin_of(model).to(self.args.device)
            if sharding.has_sharded_weights(self.accelerator)
            else None
        )
        model.to(
            self.args.device
        )  # DeepSpeed and FSDP would do it, but a rollout may come before them
        for each in (self.ref_model, *scoring):
            if each is not None:
                each.to(self.args.device)
                if self.args.bf16 and not sharding.uses_deepspeed(
                    self.accelerator
                ):  # it has no autocast
                    store_frozen_matrices_in_bf16(each)
        # Not for TRPO, whose step is computed in full precision, nor under wrappers, which want one dtype.
        if (
            self.args.bf16
            and not self.algorithm.trust_region
            and sharding.is_plain(self.accelerator)
        ):
            store_frozen_matrices_in_bf16(model.policy, keep_originals=True)  # those beside LoRA
        self.add_callback(AlarmCallback(max_kl_stop=args.max_kl_stop))
        if self.average is not None:
            self.add_callback(self.average)
        self.trust_region = TrustRegion(self) if self.algorithm.trust_region else None
        if self.trust_region is not None:
            self.add_callback(self.trust_region)
        self._sums: dict[str, Tensor] = {}  # of the updates since the last log
        self._counts: Counter[str] = Counter()  # updates that each of these sums has seen
        self._step_sums: dict[str, Tensor] = {}  # of the update under way
        self._rollout_statistics: dict[str, float] = {}

    def memory(self) -> Memory:
        """What this run will take, estimated before it starts."""
        model = self.accelerator.unwrap_model(self.model)
        scorers = {
            name: getattr(scorer, "model", None) for name, scorer in self.rewards.scorers.items()
        }
        return estimate_memory(
            {
                "policy": model.policy,
                "value model": model.value_head or model.value_model,
                "reference": self.ref_model,
            }
            | {name: each for name, each in scorers.items() if isinstance(each, nn.Module)},
            trainable=[p for p in model.parameters() if p.requires_grad],
            ema=self.average is not None,
            micro_batch=self.args.per_device_train_batch_size,
            rollout_batch=self.args.rollout_batch_size // self.args.world_size,
            prompt_length=min(self.prompt_limit, max(map(len, self.prompt_ids))),
            completion_length=self.args.max_completion_length,
            chunk=CHUNK,
            computes_in_16_bit=self.args.bf16 or self.args.fp16,
        )

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
            print(
                f"{long} of {len(rows)} {name} prompts are longer than {self.prompt_limit} tokens and were {done}"
            )
        if not kept:
            raise UserError(
                f"every {name} prompt is longer than {self.prompt_limit} tokens (max_prompt_length "
                f"{args.max_prompt_length}, context minus completion): raise max_prompt_length or set long_prompts: cut"
            )
        return kept, ids

    @staticmethod
    def _checked(texts: list[list[int]], limit: int) -> list[list[int]]:
        for place, text in enumerate(texts):
            if not 2 <= len(text) <= limit:
                raise UserError(
                    f"plain text {place} has {len(text)} tokens: between 2 (one to read, one to predict) and the "
                    f"context's {limit} are needed; cut long texts"
                )
        return texts

    # ---- rollouts ------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(
            self.make_rollout,
            texts=self._texts if self.args.ptx_coef else None,
            pad_token_id=self.tokenizer.pad_token_id,
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
            raise UserError(
                f"rollout {index}: a score is not a finite number; check the reward model"
            )
        found = statistics(rollout)
        found |= {
            "kl_coef": self.kl_coef,
            "episodes": (index + 1) * size,
            "rollout_seconds": time.time() - started,
        }
        completions = [
            ids[mask].tolist()
            for ids, mask in zip(rollout.completion_ids.cpu(), rollout.mask.cpu())
        ]
        found["unique_completions"] = len(set(map(tuple, completions))) / size
        found["distinct_2"], found["repetition"] = (
            distinct_n(completions, 2),
            repetition(completions),
        )
        self._rollout_statistics = found
        if args.kl_target is not None:
            self.kl_coef = adapt_kl_coef(
                self.kl_coef,
                kl=found["kl"],
                target=args.kl_target,
                horizon=args.kl_horizon,
                episodes=size,
            )
        return rollout

    def _texts(self, place: int) -> list[list[int]]:
        """The plain texts beside the completion at `place` of the whole run's stream."""
        each = self.args.ptx_per_episode
        return [
            self.texts[row]
            for row in choose_rows(
                len(self.texts), each, start=place * each, seed=self.args.seed + 1
            )
        ]

    def _collect(
        self, rows: list[dict], prompt_ids: list[list[int]], uniforms: Tensor | None
    ) -> Rollout:
        """Each process completes its share of the rows; every process gets the whole rollout, in the order of the rows.

        The number of rows may be anything: shares are filled up with repeated rows, which are cut off again.
        """
        processes, index = self.args.world_size, self.args.process_index
        share = -(-len(rows) // processes)
        places = [min(place, len(rows) - 1) for place in range(index * share, (index + 1) * share)]
        with self._whole_model() as model, self.accelerator.autocast():
            model.eval()
            rollout = collect(
                model,
                partial(self._reference, model.policy),
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
                padded = self.accelerator.pad_across_processes(
                    tensor, dim=1, pad_first=name.startswith("prompt")
                )
                tensor = padded.to(
                    tensor.dtype
                )  # a padded mask comes back as int64, an unpadded one as bool
            return gather(tensor)[:count]

        tensors = {name: whole(name, tensor) for name, tensor in rollout.tensors().items()}
        return replace(
            rollout,
            **tensors,
            parts={name: gather(part)[:count] for name, part in rollout.parts.items()},
        )

    @contextmanager
    def _whole_model(self):
        """The ActorCritic with whole weights on this process; all processes must enter together."""
        model = self.accelerator.unwrap_model(self.model)
        with (
            sharding.whole_weights(self._twin, model)
            if self._twin is not None
            else nullcontext(model) as model
        ):
            if self.ref_model is not None and sharding.uses_deepspeed(self.accelerator):
                self.ref_model.to(
                    next(model.parameters()).dtype
                )  # its bf16 is of the weights themselves
            yield model

    def _reference(self, policy: nn.Module, batch: dict) -> Tensor:
        with adapter(policy, None) if self.ref_model is None else nullcontext():
            return reference_log_probs(
                self.ref_model or policy, batch, temperature=self.args.temperature
            )

    # ---- loss ----------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict) -> dict:
        """To the device, and no more: under DeepSpeed the Trainer's own rounds floats, old log-probs too, to bf16."""
        return send_to_device(inputs, self.args.device)

    def training_step(self, *args, **kwargs) -> Tensor:
        """The Trainer carries every loss over into its running mean, where one NaN would stay for good; `_clip_grad_norm`
        has counted it."""
        loss = super().training_step(*args, **kwargs)
        return torch.where(loss.isfinite(), loss, torch.zeros_like(loss))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args, mask, total = self.args, inputs["mask"], inputs["num_tokens"]
        updates_policy = args.updates_policy(inputs["rollout"], inputs["epoch"])
        with sharding.forward_autocast(self.accelerator):
            seen = model(
                inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask, temperature=args.temperature,
                only_values=not updates_policy, entropy=args.entropy_coef > 0,
                **{name: inputs[name] for name in ("text_ids", "text_mask") if name in inputs and updates_policy},
            )  # fmt: skip
        found, loss = {}, 0.0
        if updates_policy:
            policy_losses = call(
                self.algorithm.policy_loss,
                log_probs=seen.log_probs,
                old_log_probs=inputs["log_probs"],
                advantages=inputs["advantages"],
                clip_range=args.clip_range,
            )
            loss = masked_sum(policy_losses, mask)
            found = {"policy_loss": loss}
            if seen.entropy is not None:
                found["entropy_bonus"] = args.entropy_coef * masked_sum(seen.entropy, mask)
                loss = loss - found["entropy_bonus"]
            self._compare(seen.log_probs.detach(), inputs, found)
            if self.trust_region is not None:
                self.trust_region.batches.append(inputs)
        if seen.values is not None:
            if args.value_clip_range is None:
                value_losses = value_loss(seen.values, inputs["returns"])
            else:
                value_losses = clipped_value_loss(
                    seen.values,
                    inputs["values"],
                    inputs["returns"],
                    value_clip_range=args.value_clip_range,
                )
            found["value_loss"] = masked_sum(value_losses, mask)
            loss = loss + args.value_coef * found["value_loss"]
        found, loss = {name: value.detach() / total for name, value in found.items()}, loss / total
        if seen.text_log_probs is not None:
            found["ptx_loss"] = -seen.text_log_probs.sum() / inputs["num_text_tokens"]
            loss = loss + args.ptx_coef * found["ptx_loss"]
        add_to(self._step_sums, found)
        return loss * args.world_size  # DDP takes the mean over processes; ours is a sum

    def _compare(self, log_probs: Tensor, inputs: dict, found: dict[str, Tensor]) -> None:
        """How far the policy has moved from the one that sampled, into `found`; at the first update it must not have."""
        mask, log_ratio = inputs["mask"], inputs["log_probs"] - log_probs
        ratio = (-log_ratio).exp()
        found["approx_kl"] = masked_sum(k3(log_ratio), mask)
        found["ratio"] = masked_sum(ratio, mask)
        found["clip_fraction"] = masked_sum(
            ((ratio - 1).abs() > self.args.clip_range).float(), mask
        )
        if inputs["epoch"] == inputs["update"] == 0:
            deviation = ((ratio - 1).abs() * mask).max()
            known = self._sums.get("first_ratio_error", torch.zeros_like(deviation))
            self._sums["first_ratio_error"] = torch.maximum(known, deviation)

    def count(self, found: dict[str, Tensor]) -> None:
        """Add the numbers of an update, equal on all processes, to the means of the next log."""
        found = {f"update_{name}": value for name, value in found.items()}
        add_to(self._sums, found)
        self._counts.update(found.keys())

    # ---- optimiser -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self._optimizer(self.model if model is None else model, self.args)
        return self.optimizer

    def _optimizer(self, model: ActorCritic, args: PolicyGradientConfig) -> torch.optim.Optimizer:
        value_rate = (
            args.learning_rate if args.value_learning_rate is None else args.value_learning_rate
        )
        groups = [
            {"params": model.policy_parameters(), "lr": args.learning_rate},
            {"params": model.value_parameters(), "lr": value_rate},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
            fused=True,  # a third of the time: one pass over the weights in place of ten
        )

    def _clip_grad_norm(self, model):
        """Policy and value parameters are clipped, and logged, apart: a wild critic must not still the policy.

        A step whose gradient is not finite is not taken: without gradients the optimiser leaves every weight alone.
        DeepSpeed has by now clipped both by their common norm and stepped, or left the step out; here it is counted.
        """
        deepspeed = sharding.uses_deepspeed(self.accelerator)
        norms = (
            {"grad_norm": sharding.common_norm(self.accelerator)}
            if deepspeed
            else self._clip_apart(model)
        )
        finite = all(bool(norm.isfinite()) for norm in norms.values())
        self.nonfinite.count(not finite)
        if finite:
            add_to(self._sums, self._step_sums)
            self._counts.update(self._step_sums.keys())
            self.count(norms)
        else:
            self.optimizer.zero_grad(set_to_none=True)
        self._step_sums = {}
        return next(iter(norms.values()))

    def _clip_apart(self, model) -> dict[str, Tensor]:
        inner = self.accelerator.unwrap_model(model)
        parts = {"policy": inner.policy_parameters(), "value": inner.value_parameters()}
        limits = {
            "policy": float("inf") if self.algorithm.trust_region else self.args.max_grad_norm
        }
        return {
            f"grad_norm_{name}": sharding.whole_tensor(
                self.accelerator.clip_grad_norm_(
                    parameters, limits.get(name, self.args.max_grad_norm)
                )
            ).float()
            for name, parameters in parts.items()
            if parameters
        }

    # ---- logging, evaluation, samples ----------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._rollout_statistics:
            logs.pop("grad_norm", None)
            logs |= (
                self._rollout_statistics
                | self._averages()
                | {"nonfinite_steps": self.nonfinite.take()}
            )
        self.state.epoch = (
            self.state.global_step / self.args.max_steps
        )  # the Trainer counts from where it resumed
        super().log(logs, start_time)

    def _averages(self) -> dict[str, float]:
        """Means over the updates since the last log; sums of micro-batches are added over processes first."""
        names = sorted(self._sums)
        if not names:  # every update was left out
            return {}
        sums = torch.stack(
            [self._sums[name].to(self.args.device).float() for name in names]
        )  # norms may be on the CPU
        per_process = gather(sums.unsqueeze(0)) if self.args.world_size > 1 else sums.unsqueeze(0)
        found = {}
        for place, name in enumerate(names):
            column, updates = per_process[:, place], max(self._counts[name], 1)
            if name.startswith("update_"):
                found[name.removeprefix("update_")] = float(column[0]) / updates
            elif name == "first_ratio_error":
                found[name] = float(column.max())
            else:
                found[name] = float(column.sum()) / updates
        self._sums, self._counts = {}, Counter()
        return found

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one completion per evaluation prompt, with the same random numbers every time, and score them."""
        rows, started = self.eval_rows, time.time()
        if not rows:
            raise UserError(
                "there are no evaluation prompts: give eval_dataset_name or eval_fraction"
            )
        uniforms = uniform_numbers(
            len(rows), self.args.max_completion_length, seed=self.args.seed, stream=2**40
        )
        rollout = self._collect(rows, self.eval_prompt_ids, uniforms)
        metrics = {
            f"{metric_key_prefix}_{name}": value for name, value in statistics(rollout).items()
        }
        self.log(metrics | {f"{metric_key_prefix}_seconds": time.time() - started})
        if self.is_world_process_zero():
            for sample in self.samples(rollout, rows):
                append_jsonl(
                    Path(self.args.output_dir) / "samples.jsonl",
                    {"step": self.state.global_step, **sample},
                )
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.model.train()
        return metrics

    def samples(self, rollout: Rollout, rows: list[dict]) -> list[dict]:
        """One readable dict per completion: prompt, completion, score, KL, and each reward by itself."""
        kl = masked_sum(rollout.log_probs - rollout.ref_log_probs, rollout.mask, 1)
        return [
            {
                "prompt": as_text(row["prompt"]),
                "completion": decode_text(
                    self.tokenizer, rollout.completion_ids[i][rollout.mask[i]].tolist()
                ),
                "score": float(rollout.scores[i]),
                "kl": float(kl[i]),
                **{name: float(part[i]) for name, part in rollout.parts.items()},
            }
            for i, row in enumerate(rows)
        ]

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy as a plain folder, its value function in `value_model/`, the averaged weights in `ema/`; in
        checkpoints what resuming needs beside them."""
        folder = Path(output_dir or self.args.output_dir)
        with self._whole_model() as model:
            if self.args.should_save:
                self._save_whole(model, folder, checkpoint=_internal_call)

    def _save_whole(self, model: ActorCritic, folder: Path, *, checkpoint: bool) -> None:
        checkpoints.save_models(folder, model, self.tokenizer)
        if self.average is not None:
            with self.average.applied():
                checkpoints.save_models(folder / "ema", model, self.tokenizer, value_model=False)
        if checkpoint:
            state = {
                "kl_coef": self.kl_coef,
                "rollouts": self.state.global_step // self.args.steps_per_rollout,
                "nonfinite_in_a_row": self.nonfinite.in_a_row,
            }
            trained = checkpoints.trainable(self.accelerator.unwrap_model(self.model))
            weights = {name: p for name, p in model.named_parameters() if name in trained}
            checkpoints.save_state(folder, state, weights, self.average)

    def _inner_training_loop(self, *args, resume_from_checkpoint: str | None = None, **kwargs):
        """The state before the loader is made, the weights when the Trainer asks, or DeepSpeed by itself, reads them."""
        if resume_from_checkpoint is not None:
            state = checkpoints.load_state(Path(resume_from_checkpoint))
            self.kl_coef, self._first_rollout = state["kl_coef"], state["rollouts"]
            self.nonfinite.in_a_row = state["nonfinite_in_a_row"]
        return super()._inner_training_loop(
            *args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), self.model, self.average)


def add_to(sums: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name, value in found.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
