"""Settings of policy-gradient training: TrainingArguments and at most 30 fields of our own, each default with its source."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from rlhf.algorithms import ALGORITHMS
from rlhf.errors import UserError
from rlhf.policy_gradient.sharding import disable_sharded_loading

GROUPED = ", ".join(name for name, algorithm in ALGORITHMS.items() if algorithm.grouped)
CLIPS_HIGHER = [
    name for name, algorithm in ALGORITHMS.items() if algorithm.clip_range_high is not None
]


def nearest_multiples(value: int, divisor: int) -> str:
    """The positive multiples of `divisor` on both sides of `value`, for an error message."""
    below = value // divisor * divisor
    if below == 0:
        return f"{divisor}"
    return f"{below} or {below + divisor}"


@dataclass
class PolicyGradientConfig(TrainingArguments):
    """TrainingArguments, which keep their meaning, and the fields of policy gradients.

    rollout: `rollout_batch_size` completions over all processes
    mini-batch: per_device_train_batch_size x gradient_accumulation_steps x processes of them, one optimiser step

    Defaults that differ from TrainingArguments: adam_epsilon 1e-5 and a constant learning rate (PPO codes since
    baselines; InstructGPT, appendix C.4), logging once per rollout.
    """

    algorithm: str = field(default="ppo", metadata={"help": f"One of {', '.join(ALGORITHMS)}."})
    total_episodes: int = field(
        default=2048, metadata={"help": "Completions to sample in the whole run."}
    )
    rollout_batch_size: int = field(
        default=64,
        metadata={"help": "Completions per rollout, over all processes. InstructGPT: 512."},
    )
    epochs_per_rollout: int | None = field(
        default=None,
        metadata={
            "help": "Passes over each rollout. Default: the algorithm's own (PPO 4, N implementation details; "
            "InstructGPT used 1; the others 1)."
        },
    )
    num_generations: int = field(
        default=1, metadata={"help": f"Completions per prompt: 1, or >= 2 for {GROUPED}."}
    )
    max_prompt_length: int = field(default=512, metadata={"help": "Longest prompt in tokens."})
    long_prompts: str = field(
        default="drop",
        metadata={"help": "drop: drop longer prompts; cut: keep their end. Both are counted."},
    )
    max_completion_length: int = field(
        default=64, metadata={"help": "Longest completion in tokens."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Of sampling and of all log-probs. InstructGPT: 1."}
    )
    per_device_sampling_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions sampled at a time; they do not depend on it. Default: as many as fit into the memory."
        },
    )
    kl_coef: float = field(
        default=0.02, metadata={"help": "Weight of the per-token KL penalty. InstructGPT: 0.02."}
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "KL per completion to steer to (Ziegler 2019: 6). Unset: kl_coef stays fixed."
        },
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Episodes over which kl_coef adapts. Ziegler 2019."}
    )
    clip_range: float | None = field(
        default=None,
        metadata={
            "help": "Of the policy ratio. Default: the algorithm's own (PPO paper and InstructGPT 0.2; GSPO paper 3e-4)."
        },
    )
    clip_range_high: float | None = field(
        default=None,
        metadata={
            "help": "Upper clip range of dapo and gspo. Default: the algorithm's own (DAPO paper 0.28; GSPO paper 4e-4)."
        },
    )
    value_clip_range: float | None = field(
        default=None,
        metadata={
            "help": "How far a value may move per rollout (baselines: 0.2). Unset: anywhere, since 0.2 suits only scores of "
            "size 1: with scores of +-5 the demo's value model hardly moved and PPO learned nothing."
        },
    )
    value_coef: float = field(
        default=0.1, metadata={"help": "Weight of the value loss. Ziegler 2019: 0.1."}
    )
    entropy_coef: float = field(
        default=0.0, metadata={"help": "Weight of an entropy bonus. RLHF papers: none."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount. InstructGPT: 1."})
    gae_lambda: float = field(default=0.95, metadata={"help": "Of GAE. Ziegler 2019: 0.95."})
    missing_eos_penalty: float = field(
        default=0.0,
        metadata={
            "help": "Subtracted from the score of a completion that was cut off. TL;DR code: 1."
        },
    )
    value_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Of the value model or head. Default: learning_rate. InstructGPT: 9e-6."},
    )
    value_warmup_rollouts: int = field(
        default=0,
        metadata={"help": "First rollouts in which only the value model learns: for a new head."},
    )
    max_kl: float = field(
        default=0.01,
        metadata={"help": "trpo: KL(old || new) per token of one step, at most. TRPO paper: 0.01."},
    )
    ptx_coef: float = field(
        default=0.0,
        metadata={
            "help": "PPO-ptx: weight of the language-model loss on plain text. InstructGPT: 27.8."
        },
    )
    ptx_per_episode: int = field(
        default=1, metadata={"help": "Plain texts per completion. InstructGPT: 8."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Average the policy's weights after each rollout, saved in ema/. InstructGPT: 0.992."
        },
    )
    max_kl_stop: float | None = field(
        default=None,
        metadata={
            "help": "End the run when a rollout's KL per completion is above this. Unset: never."
        },
    )
    eval_every: int = field(
        default=0, metadata={"help": "Rollouts between evaluations; 0: only at the end."}
    )
    save_every: int = field(default=0, metadata={"help": "Rollouts between checkpoints; 0: none."})

    learning_rate: float = field(
        default=9e-6, metadata={"help": "InstructGPT's order; small models learn well with 1e-4."}
    )
    adam_epsilon: float = field(default=1e-5, metadata={"help": "PPO codes since baselines."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "InstructGPT: constant."}
    )

    def __post_init__(self):
        self._check()
        if self.epochs_per_rollout is None:
            self.epochs_per_rollout = ALGORITHMS[self.algorithm].epochs
        # At 0 the Trainer would not look at gradients at all.
        self.max_grad_norm = self.max_grad_norm or math.inf
        # `_place_on_rollouts` sets them.
        self.eval_strategy = self.save_strategy = "no"
        # The Trainer would drop the columns of our batches, and average NaN away.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        # A resumed run makes its rollouts again from their index, instead of skipping batches.
        self.ignore_data_skip = True
        one_step = ALGORITHMS[self.algorithm].update.one_step_per_rollout
        if one_step or self.value_warmup_rollouts:
            # While only the value model learns, the policy is not used.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        disable_sharded_loading()
        self._place_on_rollouts()

    def _check(self) -> None:
        """Refuse values that no run can have."""
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"algorithm={self.algorithm!r}: use one of {', '.join(ALGORITHMS)}")
        algorithm = ALGORITHMS[self.algorithm]
        if self.temperature <= 0:
            raise UserError(
                f"temperature={self.temperature} must be > 0: a greedy policy has no gradient; 1.0 is usual"
            )
        if algorithm.grouped and self.num_generations < 2:
            raise UserError(
                f"num_generations={self.num_generations}: {self.algorithm} compares answers to one prompt, use >= 2"
            )
        if not algorithm.grouped and self.num_generations != 1:
            raise UserError(
                f"num_generations={self.num_generations}: only {GROUPED} use groups, set 1"
            )
        if self.value_warmup_rollouts and not algorithm.needs_values:
            raise UserError(
                f"value_warmup_rollouts={self.value_warmup_rollouts}: {self.algorithm} has no value model, set 0"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(
                f"ema_decay={self.ema_decay} must be between 0 and 1; InstructGPT: 0.992"
            )
        if self.ptx_coef < 0 or self.ptx_per_episode < 1:
            raise UserError(
                f"ptx_coef={self.ptx_coef}, ptx_per_episode={self.ptx_per_episode}: use ptx_coef >= 0 (0: no plain text) "
                "and ptx_per_episode >= 1"
            )
        if algorithm.update.surrogate_only and (self.ptx_coef or self.entropy_coef):
            raise UserError(
                f"{self.algorithm} maximises the surrogate alone: set ptx_coef and entropy_coef to 0"
            )
        size = self.per_device_sampling_batch_size
        if size is not None and size < 1:
            raise UserError(f"per_device_sampling_batch_size={size} must be at least 1")
        if self.long_prompts not in ("drop", "cut"):
            raise UserError(f"long_prompts={self.long_prompts!r}: use drop or cut")
        self._set_clip_ranges()

    def _set_clip_ranges(self) -> None:
        """Fill in the algorithm's own ranges. Refuse ranges that would stop all learning, and one that it does not use."""
        algorithm = ALGORITHMS[self.algorithm]
        if self.clip_range_high is not None and algorithm.clip_range_high is None:
            raise UserError(
                f"clip_range_high={self.clip_range_high}: {self.algorithm} does not use it, only "
                f"{', '.join(CLIPS_HIGHER)} do; leave it unset"
            )
        for name in ("clip_range", "clip_range_high"):
            value = getattr(self, name)
            if value is None:
                setattr(self, name, getattr(algorithm, name))
            elif not value >= 0:  # NaN too
                raise UserError(
                    f"{name}={value} must be >= 0: every ratio starts at 1 and must start unclipped"
                )

    @property
    def mini_batch_size(self) -> int:
        """Completions per optimiser step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made with each rollout."""
        return self.epochs_per_rollout * self.rollout_batch_size // self.mini_batch_size

    def updates_policy(self, rollout: int, epoch: int) -> bool:
        """True when the policy learns in this pass over the rollout, false when only the value model does."""
        if rollout < self.value_warmup_rollouts:
            return False
        return epoch == 0 or not ALGORITHMS[self.algorithm].update.one_step_per_rollout

    def prompt_limit(self, context: int) -> int:
        """The longest prompt that leaves room for a completion in a context of so many tokens."""
        room = context - self.max_completion_length
        if room < 1:
            raise UserError(
                f"max_completion_length={self.max_completion_length} leaves no room for a prompt in the model's context "
                f"of {context} tokens: use a smaller one"
            )
        return min(self.max_prompt_length, room)

    def _place_on_rollouts(self) -> None:
        """Let steps, logs, evaluations and checkpoints end where a rollout ends, or refuse the sizes."""
        one_step = ALGORITHMS[self.algorithm].update.one_step_per_rollout
        if one_step and self.mini_batch_size != self.rollout_batch_size:
            per_step = self.per_device_train_batch_size * self.world_size
            if self.rollout_batch_size % per_step:
                raise UserError(
                    f"rollout_batch_size={self.rollout_batch_size} must be a multiple of {per_step} "
                    f"(per_device_train_batch_size x processes): use {nearest_multiples(self.rollout_batch_size, per_step)}"
                )
            # One step sees the whole rollout.
            self.gradient_accumulation_steps = self.rollout_batch_size // per_step
        groups = self.num_generations * self.world_size
        check_multiple(
            "rollout_batch_size",
            self.rollout_batch_size,
            math.lcm(self.mini_batch_size, groups),
            f"per_device_train_batch_size {self.per_device_train_batch_size} x accumulation "
            f"{self.gradient_accumulation_steps} x processes {self.world_size}, and num_generations "
            f"{self.num_generations} x processes",
        )
        check_multiple(
            "total_episodes", self.total_episodes, self.rollout_batch_size, "rollout_batch_size"
        )
        self.max_steps = self.total_episodes // self.rollout_batch_size * self.steps_per_rollout
        self.logging_steps = self.steps_per_rollout
        if self.save_every:
            self.save_strategy = "steps"
            self.save_steps = self.save_every * self.steps_per_rollout
        if self.eval_every:
            self.eval_strategy = "steps"
            self.eval_steps = self.eval_every * self.steps_per_rollout


def check_multiple(name: str, value: int, divisor: int, meaning: str) -> None:
    """Refuse a size that does not divide, with the nearest that do. meaning: of the divisor."""
    if value < 1 or value % divisor:
        nearest = nearest_multiples(value, divisor)
        raise UserError(
            f"{name}={value} must be a multiple of {divisor} ({meaning}): use {nearest}"
        )
