"""The four roles of a run: policy, reference, value model, and the reward models that score.

First loading them as the settings say, then what the trainer does with them: dropout off, kernels, device, precision.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from rlhf.algorithms import Algorithm
from rlhf.completions.score import RewardModelScorer, WeightedSum, load_scorers
from rlhf.data.chat import same_encoding
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, ValueHead, frozen_copy
from rlhf.models.kernels import (
    store_frozen_matrices_in_bf16,
    use_differentiable_attention,
    use_fast_kernels,
)
from rlhf.models.load import load_reward_model, load_tokenizer
from rlhf.models.one_trunk import AdapterModel, add_adapter_model
from rlhf.models.parts import disable_dropout, freeze, hidden_size
from rlhf.policy_gradient import sharding
from rlhf.policy_gradient.function_settings import FunctionSettings
from rlhf.policy_gradient.optimizers import optimizer_class


@dataclass
class RoleSettings(FunctionSettings):
    """The rewards, and the model that estimates the value."""

    reward_model_path: list[str] = field(
        default_factory=list, metadata={"help": "Reward models, one or several."}
    )
    reward_functions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python rewards as module:function, for example rlhf.recipes.rewards:slot_coverage."
        },
    )
    reward_weights: list[float] = field(
        default_factory=list, metadata={"help": "One each, models first. Default: 1."}
    )
    value_model: str = field(
        default="reward_model",
        metadata={
            "help": "reward_model: a copy of the first one (InstructGPT); shared: a head on the policy; or a path."
        },
    )
    share_trunk: bool = field(
        default=False,
        metadata={
            "help": "With use_peft: policy, value, reward and reference are adapters of one frozen model. The reward model "
            "must have been trained with use_peft from the policy's own SFT run."
        },
    )
    watch_reward_model_path: str | None = field(
        default=None,
        metadata={
            "help": "A held-out reward model, logged as score_watched, never trained on: does the gain carry over?"
        },
    )


# ---- loading -----------------------------------------------------------------------------------


def load_rewards(settings, policy: nn.Module, tokenizer) -> WeightedSum:
    """The scorers of a run and their weights. settings: RoleSettings and ModelSettings."""
    if settings.share_trunk:
        check_trunk(settings, tokenizer)
        reward = add_adapter_model(policy, settings.reward_model_path[0], "reward", trainable=False)
        scorers = {"reward_model": RewardModelScorer(reward, tokenizer)}
        scorers |= load_scorers([], settings.reward_functions, limits=settings.call_limits())
    else:
        scorers = load_scorers(
            settings.reward_model_path,
            settings.reward_functions,
            dtype=settings.dtype,
            limits=settings.call_limits(),
        )
    weights = list(settings.reward_weights) or [1.0] * len(scorers)
    if settings.watch_reward_model_path:
        scorers["watched"] = RewardModelScorer.load(
            settings.watch_reward_model_path, dtype=settings.dtype
        )
        weights.append(0.0)  # logged, but no part of the reward
    return WeightedSum(scorers, weights)


def check_trunk(settings, tokenizer) -> None:
    """Refuse share_trunk where policy and reward model cannot have one trunk."""
    if not settings.use_peft or len(settings.reward_model_path) != 1:
        raise UserError("share_trunk: true needs use_peft: true and exactly one reward_model_path")
    path = settings.reward_model_path[0]
    if not same_encoding(tokenizer, load_tokenizer(path)):
        raise UserError(
            f"share_trunk: {path} has another vocabulary or template than the policy, so they cannot share a trunk; "
            "drop share_trunk, and the text is tokenised again for the reward model"
        )


def load_value_model(settings, policy: nn.Module, tokenizer) -> nn.Module:
    """A head on the policy's trunk, or a model. settings: RoleSettings and ModelSettings."""
    if settings.value_model == "shared":
        return ValueHead(hidden_size(policy))
    path = settings.value_model
    if path == "reward_model":
        if not settings.reward_model_path:
            raise UserError(
                "value_model: reward_model needs a reward_model_path; with functions alone use value_model: shared"
            )
        path = settings.reward_model_path[0]
    if settings.share_trunk:
        return add_adapter_model(policy, path, "value", trainable=True)
    if not same_encoding(tokenizer, load_tokenizer(path)):
        raise UserError(
            f"value model {path} has another tokenizer than the policy: use value_model: shared"
        )
    options = {"dtype": settings.dtype, "attn_implementation": settings.attn_implementation}
    return load_reward_model(path, **options)


# ---- the models of a run -----------------------------------------------------------------------


@dataclass
class Roles:
    """The models of a run.

    policy: causal LM, LoRA or not
    rewards: the scorers with their weights
    value_model: a `ValueHead` on the policy's trunk, a one-label reward model, or None
    ref_model: causal LM. None: a frozen copy of the policy, or with LoRA the policy without its adapter.
    """

    policy: nn.Module
    rewards: WeightedSum
    value_model: nn.Module | None = None
    ref_model: nn.Module | None = None

    def __post_init__(self):
        if self.ref_model is None and not hasattr(self.policy, "peft_config"):
            self.ref_model = frozen_copy(self.policy)
        if self.ref_model is not None:
            freeze(self.ref_model)

    def reward_models(self) -> dict[str, nn.Module]:
        """The scorers that are models, by name."""
        models = {}
        for name, scorer in self.rewards.scorers.items():
            model = getattr(scorer, "model", None)  # a function has none
            if isinstance(model, nn.Module):
                models[name] = model
        return models

    def frozen(self) -> list[nn.Module]:
        """The models that only rollouts need: reference and reward models."""
        models = list(self.reward_models().values())
        if self.ref_model is not None:
            models.insert(0, self.ref_model)
        return models

    def share_a_trunk(self) -> bool:
        models = [self.value_model, *self.reward_models().values()]
        return any(isinstance(model, AdapterModel) for model in models)


def make_actor_critic(roles: Roles, algorithm: Algorithm, *, device, longest: int) -> ActorCritic:
    """Policy and value model as the module that is trained. longest: tokens of prompt + completion."""
    if not algorithm.needs_values:
        roles.value_model = None
    model = ActorCritic(
        roles.policy, roles.value_model, value_moves_trunk=not algorithm.update.surrogate_only
    )
    disable_dropout(model)  # or the first ratio of a rollout would not be 1
    models = [model.policy, *roles.frozen()]
    if model.value_model is not None:
        models.append(model.value_model)
    for module in models:
        use_fast_kernels(module, device=device, longest=longest)
    if algorithm.update.needs_double_backward:
        use_differentiable_attention(roles.policy)
    return model


def move_to_devices(
    model: ActorCritic, roles: Roles, algorithm: Algorithm, *, args, accelerator
) -> None:
    """Move the models to the device. Under bf16, store matrices that are never trained in bf16."""
    model.to(args.device)  # DeepSpeed and FSDP would do it, but a rollout may come before them
    for frozen_model in roles.frozen():
        frozen_model.to(args.device)
        if args.bf16 and not sharding.uses_deepspeed(accelerator):  # it has no autocast
            store_frozen_matrices_in_bf16(frozen_model)
    # Wrappers want one dtype, and a second derivative full precision.
    plain = sharding.is_plain(accelerator) and not algorithm.update.needs_double_backward
    if args.bf16 and plain:
        store_frozen_matrices_in_bf16(
            model.policy, keep_originals=True
        )  # those that LoRA leaves frozen


def make_optimizer(model: ActorCritic, args) -> torch.optim.Optimizer:
    """One group of parameters for the policy and one for the value function, which may have its own rate."""
    value_rate = args.value_learning_rate
    if value_rate is None:
        value_rate = args.learning_rate
    common = {"weight_decay": args.weight_decay}
    groups = [
        {"params": model.policy_parameters(), "lr": args.learning_rate, **common},
        {"params": model.value_parameters(), "lr": value_rate, **common},
    ]
    # By default fused AdamW, a third of the time: one pass over the weights instead of ten.
    make, options = optimizer_class(args, model)
    # Without a value function there is one group.
    return make([group for group in groups if group["params"]], **options)
