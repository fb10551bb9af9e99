"""The opening that the recipes of all tasks share: the rows, the tokenizer, and the model with its head."""

from rlhf.data.splits import Splits, load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_encoder
from rlhf.models.parts import context_length
from rlhf.models.scratch import new_encoder
from rlhf.runs.precision import set_precision
from rlhf.runs.run import Run
from rlhf.task_table import TASKS


def read_task(run: Run, settings, task: str, *, seed: int, checks: dict | None = None):
    """(tokenizer, Splits) of the rows of `task`, a key of TASKS; UserError where no row is left for the evaluation.

    checks: further checks of columns, as in `rlhf.data.load.Scan`.
    """
    # A model from scratch has no tokenizer of its own.
    tokenizer = settings.load_tokenizer()
    splits: Splits = load_splits(settings, TASKS[task].trained_on, seed=seed, checks=checks)
    run.data(splits)
    if not splits.eval:
        raise UserError(
            "the model is evaluated on rows that it was not trained on: set eval_fraction or eval_dataset_name"
        )
    return tokenizer, splits


def start_encoder(run: Run, settings, tokenizer, task: str, *, pairs: bool, **options):
    """The model that a recipe fine-tunes, pretrained or from scratch, with the head of `task`, a key of TASKS.

    The tokenizer is fitted to it. options: labels and problem_type of the head.
    """
    from rlhf.models.parts import fit_embeddings, fit_tokenizer

    head = TASKS[task].head
    if settings.from_scratch and settings.use_peft:
        raise UserError(
            "use_peft freezes the model, and from_scratch makes it random: set one of the two to false"
        )
    if settings.from_scratch:
        model = new_encoder(tokenizer, head, **settings.sizes(), **options)
    else:
        # The head may be random: the recipe trains it.
        options |= settings.encoder_options()
        model = load_encoder(settings.model_name_or_path, head, new_head=True, **options)
        run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
    # GPT-2 class tokenizers lack a pad token and a separator; BERT class models need token types.
    fit_tokenizer(tokenizer, model, pairs=pairs)
    fit_embeddings(model, tokenizer)
    row = token_limit(run.args, model, tokenizer)
    tokens = run.args.per_device_train_batch_size * row
    set_precision(run, settings, model, tokens=tokens, default="auto")
    return model


def token_limit(args, model, tokenizer) -> int:
    """Tokens of the longest row: max_length, as far as the model and the tokenizer allow it."""
    return min(args.max_length, context_length(model), tokenizer.model_max_length)


def with_lora(model, settings, task: str):
    """The model, with LoRA matrices if the settings ask for them. Its head is then trained in full."""
    return settings.with_lora(model, task=TASKS[task].peft_type)
