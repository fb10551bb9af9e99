"""One frozen trunk, four roles: policy, value model, reward model and reference as LoRA adapters of the same weights.

The base is the SFT model. The reference is that base with all adapters off. The policy is the base with the adapter that is
trained. The reward model is the base with the adapter that `recipes/reward.py` saved in `adapter/` of its run folder. The
value model starts as a copy of the reward model's adapter. Memory holds one model and four small sets of matrices.

A run folder itself always holds the merged, plain model. Its subfolder `adapter/` holds:
    adapter_model.safetensors, adapter_config.json    the LoRA matrices and the head, in PEFT's form
    trunk.json                                        the centre of the scores, and which base the adapter belongs to
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.models.parts import accepted_inputs, trunk_of
from rlhf.models.snapshots import model_folder

FOLDER, NOTE = "adapter", "trunk.json"


@contextmanager
def adapter(model: nn.Module, name: str | None):
    """Within it, the LoRA layers of `model` compute with the adapter `name`, or with none.

    PEFT's own switches also turn gradients on and off. This one sets its private fields instead, so that a trainable value
    adapter stays trainable while the policy's is active.
    """
    layers = lora_layers(model)
    with _in_states(layers, [([name], name is None)] * len(layers)):
        yield


def same_adapters(model: nn.Module) -> Callable:
    """A `context_fn` of torch.utils.checkpoint: the second pass computes with the adapters that were active in the first."""
    layers = lora_layers(model)

    def contexts():
        return nullcontext(), _in_states(layers, _states(layers))

    return contexts


def lora_layers(model: nn.Module) -> list[BaseTunerLayer]:
    layers = []
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            layers.append(module)
    return layers


def _states(layers: list[BaseTunerLayer]) -> list[tuple]:
    """(active adapters, whether all are off) of each layer."""
    return [(layer._active_adapter, layer._disable_adapters) for layer in layers]


@contextmanager
def _in_states(layers: list[BaseTunerLayer], states: list[tuple]):
    """Within it, the layers have these `_states`."""
    before = _states(layers)
    _set_states(layers, states)
    try:
        yield
    finally:
        _set_states(layers, before)


def _set_states(layers: list[BaseTunerLayer], states: list[tuple]) -> None:
    for layer, (active, disabled) in zip(layers, states, strict=True):
        layer._active_adapter = active
        layer._disable_adapters = disabled


def fingerprint(trunk: nn.Module, *, rounded: bool = False) -> str:
    """sha256 of the trunk's frozen weights, in the order of their names. Equal bases give equal digests, LoRA or not.

    rounded: of the weights rounded to bf16, which a base loaded in fp32 and the same base loaded in bf16 share.
    """
    frozen = {}
    for name, parameter in trunk.named_parameters():
        if ".lora_" not in name:
            # LoRA calls a matrix that it wraps `<name>.base_layer`.
            frozen[name.replace(".base_layer", "")] = parameter
    digest = hashlib.sha256()
    for name in sorted(frozen):
        weights = frozen[name].detach()
        if rounded:
            weights = weights.bfloat16()
        weights = weights.float().cpu()  # fp32, so that bf16 storage changes nothing
        digest.update(name.encode())
        digest.update(weights.numpy().tobytes())
    return digest.hexdigest()


def is_rounded(trunk: nn.Module) -> bool:
    """True if the frozen weights are stored in bf16 or fp16."""
    dtypes = {p.dtype for name, p in trunk.named_parameters() if ".lora_" not in name}
    return dtypes != {torch.float32}


def save_adapter(model: nn.Module, run_folder: str, *, centre: float) -> None:
    """Save the LoRA matrices and head of a reward model next to its merged weights; centre: added to every score."""
    folder = Path(run_folder) / FOLDER
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card; the run has one
    trunk = trunk_of(model)
    note = {
        "centre": centre,
        "base": fingerprint(trunk),
        "base_in_bf16": fingerprint(trunk, rounded=True),
        "rounded": is_rounded(trunk),
    }
    text = json.dumps(note, indent=1)
    (folder / NOTE).write_text(text, encoding="utf-8")


class AdapterModel(nn.Module):
    """A one-label sequence classification model on the policy's trunk, for use wherever such a model is used.

    Only the head is registered here. The LoRA matrices are in the policy's layers under `name`. `adapter_parameters` gives
    both.
    """

    base_model_prefix = "trunk"

    def __init__(self, policy: nn.Module, name: str, head: Tensor, centre: float):
        super().__init__()
        # Not registered as a child: its parameters are counted, moved and saved with the policy.
        self.__dict__["policy"] = policy
        self.name = name
        self.config = policy.config
        self.score = nn.Linear(head.shape[1], 1)  # the bias takes the centre of the scores
        with torch.no_grad():
            self.score.weight.copy_(head)
            self.score.bias.fill_(centre)

    def trunk(self, **inputs):
        """The policy's transformer, computing with this adapter."""
        trunk = trunk_of(self.policy)
        with adapter(self.policy, self.name):
            return trunk(**accepted_inputs(trunk, inputs))

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The LoRA matrices and the head."""
        matrices = self._matrices().values()
        return [*matrices, *self.score.parameters()]

    def adapter_state(self) -> dict[str, Tensor]:
        """Tensors by name: the LoRA matrices and the head."""
        parameters = self._matrices() | dict(self.score.named_parameters())
        return {name: p.detach().contiguous() for name, p in parameters.items()}

    def _matrices(self) -> dict[str, nn.Parameter]:
        ending = f".{self.name}.weight"
        matrices = {}
        for name, parameter in self.policy.named_parameters():
            if ".lora_" in name and name.endswith(ending):
                matrices[name] = parameter
        return matrices


def add_adapter_model(policy, run_folder: str, name: str, *, trainable: bool) -> AdapterModel:
    """Attach a reward run's adapter to the base model of a LoRA policy. It must have been trained on the very same base."""
    run_folder = model_folder(run_folder)
    folder = Path(run_folder) / FOLDER
    note = _checked_note(policy, run_folder)
    weights = load_file(folder / "adapter_model.safetensors")
    head_key = next(key for key in weights if key.endswith("score.weight"))
    head = weights.pop(head_key)  # (1, H)

    config = LoraConfig.from_pretrained(folder)
    config.modules_to_save = None  # the head is ours to hold
    config.task_type = "CAUSAL_LM"
    config.inference_mode = not trainable
    active = policy.active_adapter
    policy.add_adapter(name, config)
    unknown = set_peft_model_state_dict(policy, weights, adapter_name=name).unexpected_keys
    assert not unknown, unknown
    policy.set_adapter(active)  # adding one may have switched to it

    model = AdapterModel(policy, name, head, note["centre"])
    for parameter in model.adapter_parameters():
        parameter.requires_grad_(trainable)
    return model


def _checked_note(policy, run_folder: str) -> dict:
    """Read trunk.json of a reward run, and check that the adapter belongs to the policy's base."""
    folder = Path(run_folder) / FOLDER
    if not (folder / NOTE).is_file():
        raise UserError(
            f"{run_folder} holds no {FOLDER}/ with LoRA matrices: to share one trunk, train the reward model with "
            "use_peft: true from the policy's own SFT model, or drop share_trunk"
        )
    note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    if not _same_base(trunk_of(policy), note):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
        raise UserError(
            f"{run_folder} was trained on another base ({base}) than the policy's: a trunk can only be shared by models "
            "that start from the same SFT run, with the same load_in_4bit or load_in_8bit; set model_name_or_path to that "
            "run and the keys as they were, or drop share_trunk"
        )
    return note


def _same_base(trunk: nn.Module, note: dict) -> bool:
    """True if the policy's trunk is the base of the note, up to rounding where one of the two was loaded in bf16."""
    if fingerprint(trunk) == note["base"]:
        return True
    if not (is_rounded(trunk) or note.get("rounded")):
        return False
    return fingerprint(trunk, rounded=True) == note.get("base_in_bf16")
