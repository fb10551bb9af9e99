"""The value functions that a run keeps in `value_model/`, loaded to guide the decoding.

That of a policy-gradient run is a model of its own, or a head on the policy's trunk, which only fits the policy it was
trained with. The matrices of an adapter (share_trunk) fit the trunk before the policy's own adapter was merged into it, and
are refused. The heads of an ILQL run guide its own policy (`guide_ilql`), and a search has no use for them.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from rlhf.data.chat import same_encoding
from rlhf.errors import UserError
from rlhf.models.action_values import FILE, guide_by_advantage, load_heads
from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.models.load import load_reward_model, load_tokenizer
from rlhf.models.parts import context_length, freeze, hidden_size
from rlhf.models.snapshots import model_folder

FOLDER = "value_model"
HEAD, ADAPTER = "value_head.safetensors", "value_adapter.safetensors"


def load_actor_critic(
    policy: nn.Module, tokenizer, run: str, *, value_run: str | None = None
) -> ActorCritic:
    """The policy of `run` with the value function of `value_run`, or of the run itself. Frozen, on the policy's device.

    UserError where a run keeps no value function, or one that would compute something else with this policy.
    """
    path = value_run or run
    folder = Path(model_folder(path)) / FOLDER
    if not folder.is_dir():
        raise UserError(
            f"{path} holds no {FOLDER}/: give a PPO run, or name one whose values to use with --value_run"
        )
    if (folder / FILE).is_file():
        raise UserError(
            f"{folder} holds the values of ILQL, which guide {path} alone, with --decoding value and without --value_run"
        )
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{folder} is an adapter of the trunk that its run shared, which is no longer there once the policy is merged: "
            "train without share_trunk to decode with its values"
        )
    if (folder / HEAD).is_file():
        if Path(model_folder(run)).resolve() != Path(model_folder(path)).resolve():
            raise UserError(
                f"{folder} is a head on the trunk of {path} and gives no values of {run}: sample from {path} itself, or "
                "use a run with value_model: reward_model"
            )
        value = load_head(folder / HEAD, policy)
    else:
        if not same_encoding(tokenizer, load_tokenizer(str(folder))):
            raise UserError(
                f"{folder} has another tokenizer than {run}: use the values of a run that started from the same model"
            )
        value = load_reward_model(str(folder))
        if context_length(value) < context_length(policy):
            raise UserError(
                f"{folder} reads at most {context_length(value)} tokens and {run} {context_length(policy)}: use the values "
                "of a run that started from the same model"
            )
    value.to(next(policy.parameters()).device)
    return ActorCritic(policy, freeze(value))


def has_action_values(run: str) -> bool:
    """True for a run of ILQL, whose own values are those of its tokens."""
    return (Path(model_folder(run)) / FOLDER / FILE).is_file()


def has_state_values(run: str) -> bool:
    """True of a run that keeps a value function of PPO that `load_actor_critic` takes."""
    folder = Path(model_folder(run)) / FOLDER
    return folder.is_dir() and not any((folder / name).is_file() for name in (FILE, ADAPTER))


def guide_ilql(policy: nn.Module, run: str, coef: float | None = None) -> float | None:
    """Make the policy of an ILQL run the one that its values guide. Other runs stay as they are.

    coef: how much an advantage counts, instead of what the run says. Returns it, None for other runs.
    """
    if not has_action_values(run):
        return None
    folder = Path(model_folder(run)) / FOLDER
    heads, saved = load_heads(folder, policy, hidden_size(policy))
    # 0 is a weight too.
    if coef is None:
        coef = saved
    guide_by_advantage(policy, heads, coef)
    return coef


def load_head(path: Path, policy: nn.Module) -> ValueHead:
    head, tensors = ValueHead(hidden_size(policy)), load_file(path)
    if tensors["weight"].shape != head.weight.shape:
        raise UserError(
            f"{path} is for states of {tensors['weight'].shape[1]} numbers, and the policy has {hidden_size(policy)}: "
            "the folder was put together from two runs"
        )
    head.load_state_dict(tensors)
    return head
