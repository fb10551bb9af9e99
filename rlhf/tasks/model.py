"""The model that a task fine-tunes."""

from rlhf.errors import UserError
from rlhf.models.load import fit_embeddings, fit_tokenizer, load_encoder
from rlhf.models.lora import add_lora
from rlhf.models.scratch import new_encoder
from rlhf.runs.run import Run
from rlhf.tasks.table import TASKS


def start_encoder(run: Run, settings, tokenizer, task: str, *, pairs: bool, **options):
    """The model that a recipe fine-tunes, pretrained or from scratch, with the head of `task`, a key of TASKS.

    The tokenizer is fitted to it. options: labels and problem_type of the head.
    """
    head = TASKS[task].head
    if settings.from_scratch and settings.use_peft:
        raise UserError(
            "use_peft freezes the model, and from_scratch makes it random: set one of the two to false"
        )
    if settings.from_scratch:
        model = new_encoder(tokenizer, head, **settings.sizes(), **options)
    else:
        options |= {"revision": settings.model_revision, "dtype": settings.dtype}
        model = load_encoder(settings.model_name_or_path, head, new_head=True, **options)
        run.parent("base", settings.model_name_or_path)
    fit_tokenizer(tokenizer, model, pairs=pairs)
    fit_embeddings(model, tokenizer)
    return model


def with_lora(model, settings, task: str):
    """The model with LoRA matrices where the settings ask for them; its head is trained in full."""
    if not settings.use_peft:
        return model
    peft_type = TASKS[task].peft_type
    return add_lora(model, task=peft_type, rank=settings.lora_r, alpha=settings.lora_alpha)
