"""What a checkpoint of policy-gradient training holds, and how it is read back: bit for bit, on a CPU.

    checkpoint-N/                     the policy, as a plain folder
    checkpoint-N/value_model/         the value function
    checkpoint-N/ema/                 the policy with averaged weights
    checkpoint-N/policy_gradient.json, trainable.safetensors, average.safetensors    for resuming
    and the Trainer's own optimiser, schedule, random numbers and state

Checkpoints stand between rollouts, so that no rollout has to be kept: random numbers are a function of its index.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.kernels import original_matrices
from rlhf.models.load import save
from rlhf.models.one_trunk import AdapterModel
from rlhf.policy_gradient.averaging import WeightAverage
from rlhf.policy_gradient.sharding import assign_whole_tensor

STATE, WEIGHTS, AVERAGE = "policy_gradient.json", "trainable.safetensors", "average.safetensors"


def save_models(folder: Path, model: ActorCritic, tokenizer, *, value_model: bool = True) -> None:
    with original_matrices(model.policy):
        save(model.policy, tokenizer, folder)
    if not value_model:
        return
    critic = folder / "value_model"
    if isinstance(model.value_model, AdapterModel):
        critic.mkdir(parents=True, exist_ok=True)
        save_file(model.value_model.adapter_state(), critic / "value_adapter.safetensors")
    elif model.value_model is not None:
        save(model.value_model, tokenizer, critic)
    elif model.value_head is not None:
        critic.mkdir(parents=True, exist_ok=True)
        head = {name: tensor.contiguous() for name, tensor in model.value_head.state_dict().items()}
        save_file(head, critic / "value_head.safetensors")


def save_state(
    folder: Path, state: dict, weights: dict[str, Tensor], average: WeightAverage | None
) -> None:
    """weights: whole, of what is trained, by name."""
    (folder / STATE).write_text(json.dumps(state))
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS
    )
    if average is not None:
        save_file(
            {str(place): tensor for place, tensor in enumerate(average.tensors)}, folder / AVERAGE
        )


def load_state(folder: Path) -> dict:
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} is not a checkpoint of this trainer: {STATE} is missing")
    return json.loads((folder / STATE).read_text())


def load_weights(folder: Path, model: ActorCritic, average: WeightAverage | None) -> None:
    """Put the weights back into `model` and `average`."""
    load_state(folder)  # refuses a folder that is no checkpoint
    parameters, saved = trainable(model), load_file(folder / WEIGHTS)
    if parameters.keys() != saved.keys():
        differing = sorted(parameters.keys() ^ saved.keys())
        raise UserError(
            f"{folder} was trained with other parts than this run ({', '.join(differing[:3])}, ...): resume with the "
            "settings of its run (use_peft, lora_r, value_model, share_trunk)"
        )
    for name, tensor in saved.items():
        assign_whole_tensor(parameters[name], tensor)
    if average is not None:
        if not (folder / AVERAGE).is_file():
            raise UserError(f"{folder} holds no averaged weights: resume without ema_decay")
        found = load_file(folder / AVERAGE)
        average.tensors = [found[str(place)] for place in range(len(found))]


def trainable(model: ActorCritic) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
