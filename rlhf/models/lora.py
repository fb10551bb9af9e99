"""LoRA matrices for every kind of model here."""

from transformers import PreTrainedModel

from rlhf.tasks.table import TASKS

# Layers between the encoder and the head that a checkpoint may lack -> their linear layers.
POOLERS = {
    "pooler": ("pooler", "pooler.dense"),  # ALBERT's is itself linear
    "sequence_summary": ("sequence_summary.summary",),  # ELECTRA
}


def add_lora(model: PreTrainedModel, *, task: str, rank: int, alpha: int, dropout: float = 0.0):
    """Freeze a model and add trainable matrices of rank `rank` to all its linear layers (arXiv 2106.09685).

    task: CAUSAL_LM or a `peft_type` of TASKS. The heads of all but the first are trained in full and saved. So is
    a pooler that the checkpoint did not have (a model pretrained on masked words alone).
    """
    from peft import LoraConfig, get_peft_model

    whole = []  # modules that are trained in full
    # PEFT itself trains these heads in full, and LoRA on a module that is trained in full would make it fail.
    without: list[str] = []
    for entry in TASKS.values():
        if entry.peft_type == task:
            without += entry.lora_excludes
    if task == "SEQ_CLS" and hasattr(model, "score"):
        whole.append("score")
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
        # GPT-2's Conv1D stores its matrices transposed.
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, config)
