"""Settings of policy-gradient training: TrainingArguments and at most 30 fields of our own, each default with its source."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import TrainingArguments

from rlhf.algorithms import ALGORITHMS, takes
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import check_activation_checkpointing
from rlhf.policy_gradient import keys
from rlhf.policy_gradient.schedule import (
    Requested,
    check_best_metric,
    check_multiple,
    nearest_multiples,
    place_on_rollouts,
)
from rlhf.policy_gradient.sharding import disable_sharded_loading
from rlhf.runs.ranges import SHARE, at_least, check_ranges, more_than

GROUPED = ", ".join(name for name, algorithm in ALGORITHMS.items() if algorithm.grouped)
CLIPS_HIGHER = [
    name for name, algorithm in ALGORITHMS.items() if algorithm.clip_range_high is not None
]


@dataclass
class PolicyGradientConfig(TrainingArguments):
    """TrainingArguments, which keep their meaning, and the fields of policy gradients.

    rollout: `rollout_batch_size` completions over all processes
    mini-batch: per_device_train_batch_size x gradient_accumulation_steps x processes of them, one optimiser step

    Defaults that differ from TrainingArguments: adam_epsilon 1e-5 and a constant learning rate (PPO codes since
    baselines; InstructGPT, appendix C.4), logging once per rollout.
    """

    algorithm: str = field(default="ppo", metadata={"help": f"One of {', '.join(ALGORITHMS)}."})
    total_episodes: int | None = field(
        default=None,
        metadata={
            "help": "Completions to sample in the whole run. Default: 2048, or what max_steps needs."
        },
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
        default=0,
        metadata={
            "help": "Rollouts between evaluations; 0: only at the end. eval_steps counts optimiser steps."
        },
    )
    save_every: int | None = field(
        default=None,
        metadata={
            "help": "Rollouts between checkpoints; 0: none. save_steps counts optimiser steps. Default: by time alone "
            "(checkpoint_minutes)."
        },
    )

    learning_rate: float = field(
        default=9e-6, metadata={"help": "InstructGPT's order; small models learn well with 1e-4."}
    )
    adam_epsilon: float = field(default=1e-5, metadata={"help": "PPO codes since baselines."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "InstructGPT: constant."}
    )
    # None: eval_every and save_every say it.
    eval_strategy: str | None = field(default=None, metadata={"help": "steps or no."})
    eval_steps: float | None = field(
        default=None, metadata={"help": "As eval_every, in optimiser steps."}
    )
    save_strategy: str | None = field(
        default=None, metadata={"help": "steps, no, or best: after an evaluation that is the best."}
    )
    save_steps: float | None = field(
        default=None, metadata={"help": "As save_every, in optimiser steps."}
    )

    DEFAULT_EPISODES: ClassVar[int] = 2048
    UNUSED: ClassVar[tuple] = keys.UNUSED
    RANGES: ClassVar[dict] = {
        "epochs_per_rollout": at_least(1),
        "num_generations": at_least(1),
        "max_prompt_length": at_least(1),
        "max_completion_length": at_least(1),
        "temperature": at_least(0),
        "kl_coef": at_least(0),
        "kl_target": more_than(0),
        "kl_horizon": at_least(1),
        "value_clip_range": more_than(0),
        "value_coef": at_least(0),
        "entropy_coef": at_least(0),
        "gamma": SHARE,
        "gae_lambda": SHARE,
        "missing_eos_penalty": at_least(0),
        "value_learning_rate": at_least(0),
        "value_warmup_rollouts": at_least(0),
        "max_kl": more_than(0),
        "ptx_coef": at_least(0),
        "ptx_per_episode": at_least(1),
        "max_kl_stop": more_than(0),
        "eval_every": at_least(0),
        "save_every": at_least(0),
    }

    def __post_init__(self):
        self._check()
        if self.epochs_per_rollout is None:
            self.epochs_per_rollout = ALGORITHMS[self.algorithm].epochs
        # At 0 the Trainer would not look at gradients at all.
        self.max_grad_norm = self.max_grad_norm or math.inf
        requested = Requested.take(self)
        if requested.picks_the_best:
            check_best_metric(self)
        # The Trainer would drop the columns of our batches, and average NaN away.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        # A resumed run makes its rollouts again from their index, instead of skipping batches.
        self.ignore_data_skip = True
        update = ALGORITHMS[self.algorithm].update
        if update.one_step_per_rollout or self.value_warmup_rollouts:
            # While only the value model learns, the policy is not used.
            if self.ddp_find_unused_parameters is False:
                raise UserError(
                    "ddp_find_unused_parameters=False: here some updates train the value model alone; drop it"
                )
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        disable_sharded_loading()
        self._fit_sizes()
        place_on_rollouts(self, requested)
        check_activation_checkpointing(self, double_backward=update.needs_double_backward)

    def _check(self) -> None:
        """Refuse values that no run can have."""
        check_ranges(self)
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"algorithm={self.algorithm!r}: use one of {', '.join(ALGORITHMS)}")
        algorithm = ALGORITHMS[self.algorithm]
        if self.temperature <= 0:
            raise UserError(
                f"temperature={self.temperature} must be > 0: a greedy policy has no gradient; 1.0 is usual"
            )
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise UserError(
                f"lr_scheduler_type={self.lr_scheduler_type}: the score of sampled completions is too noisy to set the "
                "learning rate by; use constant_with_warmup, linear or cosine"
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
        if algorithm.update.surrogate_only and (self.ptx_coef or self.entropy_coef):
            raise UserError(
                f"{self.algorithm} maximises the surrogate alone: set ptx_coef and entropy_coef to 0"
            )
        size = self.per_device_sampling_batch_size
        if size is not None and size < 1:
            raise UserError(f"per_device_sampling_batch_size={size} must be at least 1")
        if self.long_prompts not in ("drop", "cut"):
            raise UserError(f"long_prompts={self.long_prompts!r}: use drop or cut")
        many_epochs = self.epochs_per_rollout is not None and self.epochs_per_rollout > 1
        if many_epochs and not takes(algorithm.policy_loss, "ratio"):
            raise UserError(
                f"epochs_per_rollout={self.epochs_per_rollout}: the loss of {self.algorithm} has no probability ratio, and "
                "is only right for the policy that sampled: set 1, or use ppo (grpo for groups)"
            )
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

    def episodes_after(self, step: int) -> int:
        """Completions that have been sampled by the end of an optimiser step."""
        return math.ceil(step / self.steps_per_rollout) * self.rollout_batch_size

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

    def _fit_sizes(self) -> None:
        """Refuse a rollout that is not a whole number of updates and groups. TRPO's update is the whole rollout."""
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
