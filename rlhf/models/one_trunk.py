"""One frozen trunk, four roles: policy, value model, reward model and reference as LoRA adapters of the same weights.

The base is the SFT model. The reference is that base with all adapters off, the policy the base with the adapter that is
trained, the reward model the base with the adapter that `recipes/reward.py` left in `adapter/` of its run folder, and the
value model begins as a copy of the latter. In memory stand one model and four small sets of matrices.

A run folder itself always holds the merged, plain model; `adapter/` lies beside it:
    adapter_model.safetensors, adapter_config.json    the LoRA matrices and the head, in PEFT's form
    trunk.json                                        the centre of the scores, and which base the adapter belongs to
"""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.models.parts import trunk_of

FOLDER, NOTE = "adapter", "trunk.json"


@contextmanager
def adapter(model: nn.Module, name: str | None):
    """Within it the LoRA layers of `model` compute with the adapter `name`, or with none.

    PEFT's own switches also turn gradients on and off; here a trainable value adapter stays trainable while the policy's
    is active.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name], name is None
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before):
            layer._active_adapter, layer._disable_adapters = active, disabled


def fingerprint(trunk: nn.Module) -> str:
    """sha256 of the trunk's frozen weights, in the order of their names without LoRA's; equal for equal bases."""
    digest = hashlib.sha256()
    named = {
        name.replace(".base_layer", ""): p
        for name, p in trunk.named_parameters()
        if ".lora_" not in name
    }
    for name in sorted(named):
        digest.update(name.encode())
        digest.update(named[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: nn.Module, run_folder: str, *, centre: float) -> None:
    """Keep the LoRA matrices and head of a reward model beside its merged weights; centre: added to every score."""
    folder = Path(run_folder) / FOLDER
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card; the run has one
    note = {"centre": centre, "base": fingerprint(trunk_of(model))}
    (folder / NOTE).write_text(json.dumps(note, indent=1))


class AdapterModel(nn.Module):
    """A one-label sequence classification model on the policy's trunk, for use wherever such a model is used.

    Registered here: the head. The LoRA matrices lie in the policy's layers under `name`; `adapter_parameters` has both.
    """

    base_model_prefix = "trunk"

    def __init__(self, policy: nn.Module, name: str, head: Tensor, centre: float):
        super().__init__()
        self.__dict__["policy"] = (
            policy  # not a child: its parameters are counted, moved and saved with the policy
        )
        self.name, self.config = name, policy.config
        self.score = nn.Linear(head.shape[1], 1)
        with torch.no_grad():
            self.score.weight.copy_(head)
            self.score.bias.fill_(centre)

    def trunk(self, **inputs):
        with adapter(self.policy, self.name):
            return trunk_of(self.policy)(**inputs)

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [*self._matrices().values(), *self.score.parameters()]

    def adapter_state(self) -> dict[str, Tensor]:
        """Tensors by name: the LoRA matrices and the head."""
        return {
            n: p.detach().contiguous()
            for n, p in {**self._matrices(), **dict(self.score.named_parameters())}.items()
        }

    def _matrices(self) -> dict[str, nn.Parameter]:
        return {
            n: p
            for n, p in self.policy.named_parameters()
            if ".lora_" in n and n.endswith(f".{self.name}.weight")
        }


def add_adapter_model(policy, run_folder: str, name: str, *, trainable: bool) -> AdapterModel:
    """Hang the adapter of a reward run into a LoRA policy's trunk. It must have been trained on the very same base."""
    folder = Path(run_folder) / FOLDER
    if not (folder / NOTE).is_file():
        raise UserError(
            f"{run_folder} holds no {FOLDER}/ with LoRA matrices: to share one trunk, train the reward model with "
            "use_peft: true from the policy's own SFT model, or leave share_trunk out"
        )
    note = json.loads((folder / NOTE).read_text())
    if note["base"] != fingerprint(trunk_of(policy)):
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        raise UserError(
            f"{run_folder} was trained on another base ({base}) than the policy's: a trunk can only be shared by models "
            "that start from the same SFT run; set model_name_or_path to that run, or leave share_trunk out"
        )
    config = LoraConfig.from_pretrained(folder)
    config.modules_to_save, config.task_type, config.inference_mode = (
        None,
        "CAUSAL_LM",
        not trainable,
    )
    weights = load_file(folder / "adapter_model.safetensors")
    head = weights.pop(next(key for key in weights if key.endswith("score.weight")))
    active = policy.active_adapter
    policy.add_adapter(name, config)
    unknown = set_peft_model_state_dict(policy, weights, adapter_name=name).unexpected_keys
    assert not unknown, unknown
    policy.set_adapter(active)
    model = AdapterModel(policy, name, head, note["centre"])
    for parameter in model.adapter_parameters():
        parameter.requires_grad_(trainable)
    return model
