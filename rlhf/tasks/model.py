"""The model that a task fine-tunes."""

from rlhf.errors import UserError
from rlhf.runs.run import Run


def start_encoder(run: Run, settings, tokenizer, task: str, *, pairs: bool, **options):
    """The model that a recipe fine-tunes: pretrained or from scratch, with the head of `task` (a key of models.load.HEADS).

    The tokenizer is fitted to it; options: labels and problem_type of the head.
    """
    from rlhf.models.load import load_encoder
    from rlhf.models.parts import fit_embeddings, fit_tokenizer
    from rlhf.models.scratch import new_encoder

    if settings.from_scratch and settings.use_peft:
        raise UserError(
            "use_peft freezes the model, and from_scratch makes it random: set one of the two to false"
        )
    if settings.from_scratch:
        model = new_encoder(tokenizer, task, **settings.sizes(), **options)
    else:
        options |= {"revision": settings.model_revision, "dtype": settings.dtype}
        model = load_encoder(settings.model_name_or_path, task, new_head=True, **options)
        run.parent("base", settings.model_name_or_path)
    fit_tokenizer(tokenizer, model, pairs=pairs)
    fit_embeddings(model, tokenizer)
    return model
