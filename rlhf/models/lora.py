"""LoRA matrices for every kind of model here."""

from transformers import PreTrainedModel

from rlhf.tasks.table import TASKS


def add_lora(model: PreTrainedModel, *, task: str, rank: int, alpha: int, dropout: float = 0.0):
    """Freeze a model and add trainable matrices of rank `rank` to all its linear layers (arXiv 2106.09685).

    task: CAUSAL_LM or a `peft_type` of TASKS. The heads of all but the first are trained in full and saved. So is
    a pooler that the checkpoint did not have (a model pretrained on masked words alone).
    """
    from peft import LoraConfig, get_peft_model

    whole = []  # modules that are trained in full
    if task == "SEQ_CLS" and hasattr(model, "score"):
        whole.append("score")
    if any(".pooler." in name for name in getattr(model, "new_weights", ())):
        whole.append("pooler")
    # PEFT itself trains these heads in full, and LoRA on a module that is trained in full would make it fail.
    excludes = {entry.peft_type: list(entry.lora_excludes) for entry in TASKS.values()}
    without = excludes.get(task, [])
    if "pooler" in whole:
        without.append("pooler.dense")
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
