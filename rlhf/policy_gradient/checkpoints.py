"""Checkpoints of policy-gradient training. A resumed run equals the uninterrupted one, bit for bit on a CPU.

    checkpoint-N/                     the policy, as a plain folder
    checkpoint-N/value_model/         the value function
    checkpoint-N/ema/                 the policy with averaged weights
    checkpoint-N/policy_gradient.json, trainable.safetensors, average.safetensors    for resuming
    and the Trainer's own optimiser, schedule, random numbers and state

Checkpoints are made between rollouts, so that no rollout has to be kept: its random numbers are a function of its index.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.kernels import original_matrices
from rlhf.models.load import save
from rlhf.models.one_trunk import AdapterModel
from rlhf.policy_gradient.averaging import WeightAverage
from rlhf.policy_gradient.sharding import assign_whole_tensor
from rlhf.runs import durable

STATE, WEIGHTS, AVERAGE = "policy_gradient.json", "trainable.safetensors", "average.safetensors"


def save_models(folder: Path, model: ActorCritic, tokenizer, average: WeightAverage | None) -> None:
    """Save the policy, the value function, and the policy with averaged weights."""
    save_policy(folder, model.policy, tokenizer)
    durable.boundary(folder)
    save_value_function(folder / "value_model", model, tokenizer)
    durable.boundary(folder / "value_model")
    if average is not None:
        with average.applied():
            save_policy(folder / "ema", model.policy, tokenizer)
        durable.boundary(folder / "ema")


def save_policy(folder: Path, policy: nn.Module, tokenizer) -> None:
    with original_matrices(policy):  # those that are stored in bf16 while training
        save(policy, tokenizer, folder)


def save_value_function(folder: Path, model: ActorCritic, tokenizer) -> None:
    """A value model as a plain folder; of an adapter or a head only its own tensors."""
    if isinstance(model.value_model, AdapterModel):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.value_model.adapter_state(), folder / "value_adapter.safetensors")
    elif model.value_model is not None:
        save(model.value_model, tokenizer, folder)
    elif model.value_head is not None:
        folder.mkdir(parents=True, exist_ok=True)
        head = model.value_head.state_dict()
        tensors = {name: tensor.contiguous() for name, tensor in head.items()}
        save_file(tensors, folder / "value_head.safetensors")


def save_state(
    folder: Path,
    state: dict,
    model: ActorCritic,
    trained: Iterable[str],
    average: WeightAverage | None,
) -> None:
    """Save what resuming needs. model: with whole weights; trained: the names of its parameters that are trained."""
    (folder / STATE).write_text(json.dumps(state))
    durable.boundary(folder / STATE)
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name].detach().contiguous() for name in trained}
    save_file(weights, folder / WEIGHTS)
    durable.boundary(folder / WEIGHTS)
    if average is not None:
        tensors = {str(i): tensor for i, tensor in enumerate(average.tensors)}
        save_file(tensors, folder / AVERAGE)


def load_state(folder: Path) -> dict:
    if not (folder / STATE).is_file():
        raise UserError(f"{folder} is not a checkpoint of this trainer: {STATE} is missing")
    return json.loads((folder / STATE).read_text())


def check_steps(checkpoint: str, state: dict, steps_per_rollout: int) -> None:
    """Refuse a checkpoint whose rollouts had another number of optimiser steps: the run is counted in these."""
    step = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())["global_step"]
    if step != state["rollouts"] * steps_per_rollout:
        raise UserError(
            f"{checkpoint} has {step} optimiser steps after {state['rollouts']} rollouts, and this run has "
            f"{steps_per_rollout} steps for each: resume with the rollout_batch_size, epochs_per_rollout, batch size, "
            "accumulation and number of processes of its run"
        )


def load_weights(folder: Path, model: ActorCritic, average: WeightAverage | None) -> None:
    """Put the weights back into `model` and `average`."""
    load_state(folder)  # refuses a folder that is not a checkpoint
    parameters = trainable(model)
    saved = load_file(folder / WEIGHTS)
    if parameters.keys() != saved.keys():  # for example LoRA matrices instead of all weights
        differing = sorted(parameters.keys() ^ saved.keys())
        raise UserError(
            f"{folder} was trained with other parts than this run ({', '.join(differing[:3])}, ...): resume with the "
            "settings of its run (use_peft, lora_r, value_model, share_trunk)"
        )
    for name, tensor in saved.items():
        # Under FSDP each process keeps its slice.
        assign_whole_tensor(parameters[name], tensor)
    if average is not None:
        if not (folder / AVERAGE).is_file():
            raise UserError(f"{folder} holds no averaged weights: resume without ema_decay")
        tensors = load_file(folder / AVERAGE)
        # Their names are numbers, in the order of the policy's parameters.
        average.tensors = [tensors[str(i)] for i in range(len(tensors))]


def trainable(model: ActorCritic) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
