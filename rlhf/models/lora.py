"""LoRA matrices for every kind of model here."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import UserError
from rlhf.models.parts import learns_from_text
from rlhf.models.quantized import is_quantized, prepare_for_lora
from rlhf.models.snapshots import split_revision
from rlhf.task_table import TASKS

# Layers between the encoder and the head that a checkpoint may lack -> their linear layers.
POOLERS = {
    "pooler": ("pooler", "pooler.dense"),  # ALBERT's is itself linear
    "sequence_summary": ("sequence_summary.summary",),  # ELECTRA
}
# Parts of the names of nn.Linear's subclasses that compute something else (Phi-MoE's router returns a tuple).
NOT_LINEAR = ("Router", "Grouped")
# Layers whose matrices a model reads without calling them, so that LoRA would not reach the result.
NOT_CALLED = {
    "falcon_h1": ["out_proj", "conv1d"],
    "falcon_mamba": ["out_proj", "conv1d", "dt_proj"],
    "gemma3n": ["correction_coefs", "prediction_coefs"],
    "gemma3n_text": ["correction_coefs", "prediction_coefs"],
    "jamba": ["dt_proj"],
    "longcat_flash": ["router.classifier"],
    "mamba": ["out_proj", "conv1d", "dt_proj"],
    "mamba2": ["out_proj", "conv1d"],
    "nemotron_h": ["out_proj", "conv1d"],
}


def add_lora(model: PreTrainedModel, *, task: str, rank: int, alpha: int, dropout: float = 0.0):
    """Freeze a model and add trainable matrices of rank `rank` to all its linear layers (arXiv 2106.09685).

    task: CAUSAL_LM or a `peft_type` of TASKS. The heads of all but the first are trained in full and saved. So is
    a pooler that the checkpoint did not have (a model pretrained on masked words alone).
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    draw_new_tokens(model)
    model = prepare_for_lora(model)
    whole = []  # modules that are trained in full
    # PEFT itself trains these heads in full, and LoRA on a module that is trained in full would make it fail.
    without: list[str] = []
    for entry in TASKS.values():
        if entry.peft_type == task:
            without += entry.lora_excludes
    if task == "SEQ_CLS" and hasattr(model, "score"):
        whole.append("score")
    without += unfit_layers(model)
    new_modules: set[str] = set()
    for name in getattr(model, "new_weights", ()):
        new_modules.update(name.split("."))
    for pooler, layers in POOLERS.items():
        if pooler in new_modules:
            whole.append(pooler)
            without += layers
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=whole or None,
        exclude_modules=without or None,
        # Conv1D (GPT-2, GPT-1) stores its matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    reached: list[str] = []
    try:
        adapted = get_peft_model(model, config)
        reached = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    except NoMatchingPeftModuleError:
        pass  # as if it had reached none
    # A pooler alone would leave the encoder as it is.
    if all(".pooler." in name for name in reached):
        raise UserError(
            f"use_peft adds LoRA matrices to linear layers, and the layers of {model.config.model_type} models are of "
            "another sort: set use_peft to false"
        )
    if is_quantized(model):
        # By these marks trl knows packed models, whose LoRA matrices it rounds to bf16. AdamW needs them in full.
        adapted.is_loaded_in_4bit = adapted.is_loaded_in_8bit = False
    commit = getattr(model, "hub_commit", "")
    if commit:
        # The name may hold a revision behind an @, which no other program knows.
        saved = adapted.peft_config["default"]
        saved.base_model_name_or_path, saved.revision = (
            split_revision(model.name_or_path)[0],
            commit,
        )
    return adapted


@torch.no_grad()
def draw_new_tokens(model: PreTrainedModel) -> None:
    """Draw the embeddings of tokens that the tokenizer has gained with the mean and spread of all others.

    LoRA freezes them. As `resize_token_embeddings` draws them they are an eighth as long as GPT-2's others, so that the
    layers, which cannot learn otherwise, would hardly see the role tokens. The draw is the same in every run: models that
    are trained from one base can share it.
    """
    first = getattr(model, "first_new_token", None)
    if first is None:
        return
    generator = torch.Generator().manual_seed(0)
    drawn: set[int] = set()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        # A classifier has no output layer, and a tied one is the same matrix.
        if layer is None or id(layer.weight) in drawn:
            continue
        drawn.add(id(layer.weight))
        known, new = layer.weight[:first].float(), layer.weight[first:]
        noise = torch.randn(new.shape, generator=generator).to(new.device)
        new.copy_(known.mean(0) + known.std(0) * noise)


def unfit_layers(model: PreTrainedModel) -> list[str]:
    """Names of linear layers that LoRA matrices cannot be added to."""
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        kind = type(module).__name__
        if any(word in kind for word in NOT_LINEAR) or not learns_from_text(name):
            names.append(name)
    return names + NOT_CALLED.get(model.config.model_type, [])
