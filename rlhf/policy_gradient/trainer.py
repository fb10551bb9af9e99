"""PolicyGradientTrainer: transformers.Trainer whose data loader is the rollout loop.

transformers calls the methods below in this order:

    __init__                     the models get their device and precision
      create_optimizer           one group of parameters each for policy and value model
    _inner_training_loop         the run, from a checkpoint or from the start
      _load_from_checkpoint      the weights of the checkpoint
      get_train_dataloader       the rollout loop: a batch of it may first make the next rollout
      per micro-batch            training_step -> _prepare_inputs -> compute_loss -> backward
      per update                 _clip_grad_norm, then the callbacks (TRPO's step is one), then the optimiser
      per rollout                log, and when their turn comes evaluate and save_model

Progress, accumulation, schedules, callbacks, DDP, FSDP and DeepSpeed are the library's.
"""

import time
from pathlib import Path

import torch
from accelerate.utils import gather, send_to_device
from torch import Tensor, nn
from transformers import Trainer

from rlhf.algorithms import ALGORITHMS, TRUST_REGION
from rlhf.completions.rollout import samples, statistics
from rlhf.models.parts import context_length
from rlhf.policy_gradient import checkpoints, sharding
from rlhf.policy_gradient.alarms import AlarmCallback
from rlhf.policy_gradient.averaging import WeightAverage
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.roles import Roles, make_actor_critic, make_optimizer, move_to_devices
from rlhf.policy_gradient.rollouts import RolloutLoader, RolloutMaker, check_texts
from rlhf.policy_gradient.schedule import check_can_evaluate
from rlhf.policy_gradient.trust_region import TrustRegion
from rlhf.policy_gradient.update import LossSettings, micro_batch_loss
from rlhf.policy_gradient.update_metrics import UpdateMetrics
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.progress import append_jsonl
from rlhf.runs.trainer import RunTrainer


class PolicyGradientTrainer(RunTrainer, Trainer):
    """Trains the policy of `roles` on rewards.

    roles: the models
    rows, eval_rows: data rows with a "prompt" and any other columns, which reward functions get
    texts: plain text as token ids, for ptx_coef
    """

    def __init__(
        self,
        *,
        roles: Roles,
        tokenizer,
        args: PolicyGradientConfig,
        rows: list[dict],
        eval_rows: list[dict] | None = None,
        texts: list[list[int]] | None = None,
        callbacks: list | None = None,
    ):
        self.roles, self.tokenizer = roles, tokenizer
        self.algorithm = ALGORITHMS[args.algorithm]
        self.loss_settings = LossSettings.from_config(args)
        check_can_evaluate(args, eval_rows)
        context = context_length(roles.policy)
        longest = args.prompt_limit(context) + args.max_completion_length
        self.texts = check_texts(texts, args, context=context)
        model = make_actor_critic(roles, self.algorithm, device=args.device, longest=longest)
        self.average = None
        if args.ema_decay is not None:
            self.average = WeightAverage(model.policy_parameters(), args.ema_decay)
        self.update_metrics = UpdateMetrics()
        self.first_rollout = 0  # another one when resuming
        self.steps_between_checkpoints = args.steps_per_rollout
        super().__init__(
            model=model,
            args=args,
            callbacks=callbacks,
            data_collator=lambda batch: batch,
            eval_dataset=eval_rows or None,
        )
        # Made here and not passed in: DeepSpeed would use a default one instead, FSDP refuses it.
        self.create_optimizer()
        # compute_loss divides by the token total of the whole mini-batch itself.
        self.loss_is_scaled_for_ga = True
        sharding.check_settings(
            self.accelerator,
            args,
            trust_region=self.algorithm.update.needs_double_backward,
            share_trunk=roles.share_a_trunk(),
        )
        sharding.autocast_only(self.accelerator)
        self.rollouts = RolloutMaker(
            roles,
            lambda: self.accelerator.unwrap_model(self.model),
            tokenizer,
            args,
            self.accelerator,
            rows=rows,
            eval_rows=eval_rows,
        )
        move_to_devices(model, roles, self.algorithm, args=args, accelerator=self.accelerator)
        self.trust_region = None
        if self.algorithm.update is TRUST_REGION:
            self.trust_region = TrustRegion(self)
        self.add_callback(AlarmCallback(max_kl_stop=args.max_kl_stop))
        for callback in (self.average, self.trust_region):
            if callback is not None:
                self.add_callback(callback)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.args)
        return self.optimizer

    def _inner_training_loop(self, *args, resume_from_checkpoint: str | None = None, **kwargs):
        """Restore our state before the loader is made. The weights follow, when the Trainer or DeepSpeed reads them."""
        if resume_from_checkpoint is not None:
            state = checkpoints.load_state(Path(resume_from_checkpoint))
            checkpoints.check_steps(resume_from_checkpoint, state, self.args.steps_per_rollout)
            self.rollouts.kl_coef = state["kl_coef"]
            self.first_rollout = state["rollouts"]
        return super()._inner_training_loop(
            *args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), self.model, self.average)

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, at the end of a run with load_best_model_at_end."""
        checkpoints.load_weights(Path(self.state.best_model_checkpoint), self.model, self.average)

    def get_train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(
            self.rollouts.make,
            self.args,
            first_rollout=self.first_rollout,
            texts=self.texts,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Move to the device, no more: under DeepSpeed the Trainer's own rounds floats, old log-probs too, to bf16."""
        return send_to_device(inputs, self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The forward pass of a micro-batch and `update.micro_batch_loss`."""
        args = self.args
        updates_policy = args.updates_policy(inputs["rollout"], inputs["epoch"])
        text = None
        if updates_policy and "text_ids" in inputs:
            text = (inputs["text_ids"], inputs["text_mask"])
        with sharding.forward_autocast(self.accelerator):
            outputs = model(
                inputs["prompt_ids"],
                inputs["prompt_mask"],
                inputs["completion_ids"],
                inputs["mask"],
                temperature=args.temperature,
                only_values=not updates_policy,
                entropy=args.entropy_coef > 0,
                text=text,
            )
        loss, metrics = micro_batch_loss(outputs, inputs, self.algorithm, self.loss_settings)
        self.update_metrics.add(metrics)
        if updates_policy and self.trust_region is not None:
            self.trust_region.batches.append(inputs)
        return loss * args.world_size  # DDP takes the mean over processes; ours is a sum

    def _clip_grad_norm(self, model) -> Tensor:
        """Policy and value parameters are clipped apart: large value gradients must not shrink the policy update.

        A step that is not finite is skipped (`runs.nonfinite`). DeepSpeed has clipped both by their common norm by now.
        """
        if sharding.uses_deepspeed(self.accelerator):
            norms = {"grad_norm": sharding.common_norm(self.accelerator)}
        else:
            norms = self._clip_apart(self.accelerator.unwrap_model(model))
        if self.keep_step(list(norms.values())):
            self.update_metrics.keep_update()
            self.update_metrics.add_common(norms)
        else:
            self.update_metrics.drop_update()
        return next(iter(norms.values()))

    def _clip_apart(self, model) -> dict[str, Tensor]:
        limit = self.args.max_grad_norm
        policy_limit = limit
        if not self.algorithm.update.clips_gradient:
            policy_limit = float("inf")
        parts = {
            "policy": (model.policy_parameters(), policy_limit),
            "value": (model.value_parameters(), limit),
        }
        norms = {}
        for name, (parameters, max_norm) in parts.items():
            if parameters:
                norm = self.accelerator.clip_grad_norm_(parameters, max_norm)
                norms[f"grad_norm_{name}"] = sharding.whole_tensor(norm).float()
        return norms

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to the log of a rollout its statistics and the means over its updates."""
        if "loss" in logs and self.rollouts.statistics:
            logs.pop("grad_norm", None)
            logs |= self.rollouts.statistics
            logs |= self.update_metrics.take(gather, self.args.device)
            logs["nonfinite_steps"] = self.nonfinite.take()
        # The Trainer counts epochs from where it resumed.
        self.state.epoch = self.state.global_step / self.args.max_steps
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample and score one completion per evaluation prompt."""
        started = time.time()
        rollout = self.rollouts.make_for_evaluation()
        metrics = {f"{metric_key_prefix}_{k}": value for k, value in statistics(rollout).items()}
        self.log(metrics | {f"{metric_key_prefix}_seconds": time.time() - started})
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "samples.jsonl"
            for sample in samples(rollout, self.rollouts.eval_prompts.rows, self.tokenizer):
                append_jsonl(path, {"step": self.state.global_step, **sample})
        check_is_measured(self.args.metric_for_best_model, metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.model.train()
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy as a plain folder, its value function in `value_model/`, the averaged weights in `ema/`, and
        in checkpoints what resuming needs."""
        folder = Path(output_dir or self.args.output_dir)
        state = {
            "kl_coef": self.rollouts.kl_coef,
            "rollouts": self.state.global_step // self.args.steps_per_rollout,
        }
        trained = checkpoints.trainable(self.accelerator.unwrap_model(self.model))
        with self.rollouts.whole_model() as model:
            if self.args.should_save:
                checkpoints.save_models(folder, model, self.tokenizer, self.average)
            if self.args.should_save and _internal_call:  # a checkpoint
                checkpoints.save_state(folder, state, model, trained.keys(), self.average)
