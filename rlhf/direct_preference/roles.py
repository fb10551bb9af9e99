"""Policy and reference of a run, and the prompts that the policy answers at each evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import add_chat_template, encode_prompt, same_encoding
from rlhf.data.splits import Splits, prompt_key
from rlhf.direct_preference.trainer import Sampling, make_reference
from rlhf.errors import UserError
from rlhf.models.activation_checkpointing import drop_default
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.runs.precision import set_precision
from rlhf.runs.ranges import at_least
from rlhf.runs.run import Run
from rlhf.runs.settings import DataSettings, ModelSettings


@dataclass
class SampledSettings:
    """The answers of the policy that an evaluation looks at."""

    eval_limit: int = field(
        default=64,
        metadata={"help": "Held-out prompts that the policy answers at each evaluation, at most."},
    )
    max_completion_length: int = field(
        default=128, metadata={"help": "Tokens of such an answer, at most."}
    )

    RANGES: ClassVar[dict] = {"eval_limit": at_least(0), "max_completion_length": at_least(1)}


@dataclass
class DirectSettings(SampledSettings, DataSettings, ModelSettings):
    """The model that learns, the reference, and the rows."""

    ref_model: str | None = field(
        default=None,
        metadata={
            "help": "Run folder or Hub id of another reference. Default: the model that the training starts from."
        },
    )


@dataclass
class DirectRoles:
    """The models of a run, and the policy's tokenizer.

    ref_model: None, see `trainer.make_reference`. context: the most tokens that policy and reference read.
    limit: tokens of prompt + completion.
    """

    policy: nn.Module
    ref_model: nn.Module | None
    tokenizer: PreTrainedTokenizerBase
    context: int
    limit: int


def check_reference(settings: DirectSettings, tokenizer) -> None:
    """UserError where the reference that is named reads other tokens than the policy. No model is loaded."""
    if not settings.ref_model:
        return
    theirs = load_tokenizer(settings.ref_model)
    add_chat_template(theirs)
    if not same_encoding(tokenizer, theirs):
        raise UserError(
            f"ref_model {settings.ref_model} has another tokenizer or chat template than {settings.model_name_or_path}: "
            "their log-probs are of other tokens. Give a reference that was trained from the same base, or drop ref_model"
        )


def check_is_held_out(splits: Splits, name: str) -> None:
    """UserError without evaluation rows. name: of the method."""
    if not splits.eval:
        raise UserError(
            f"{name} is evaluated on prompts it has not seen: set eval_fraction or eval_dataset_name"
        )


def load_roles(settings: DirectSettings, args, tokenizer, run: Run) -> DirectRoles:
    """The policy, with LoRA if asked for, and its reference."""
    policy = load_policy(settings.model_name_or_path, **settings.load_options())
    run.parent("policy", settings.model_name_or_path, revision=settings.model_revision)
    fit_embeddings(policy, tokenizer)
    drop_default(args, policy, run.say)
    context = context_length(policy)
    limit = min(args.max_length or 10**9, context)
    set_precision(run, settings, policy, tokens=args.per_device_train_batch_size * limit)
    named = None
    if settings.ref_model:
        # The revision is the policy's.
        options = settings.load_options() | {"revision": None}
        named = load_policy(settings.ref_model, **options)
        run.parent("ref", settings.ref_model)
        fit_embeddings(named, tokenizer)
        context = min(context, context_length(named))
    if args.precompute_ref_log_probs and not settings.use_peft and named is None:
        run.say(
            "precompute_ref_log_probs: no reference is kept, so the KL of samples is not measured"
        )
    # LoRA goes over the fitted embeddings, and a copy is of the model without it.
    policy = settings.with_lora(policy, task="CAUSAL_LM")
    reference = make_reference(policy, named, args)
    return DirectRoles(policy, reference, tokenizer, context=context, limit=min(limit, context))


def sampling_of(
    settings: SampledSettings, tokenizer, rows: Sequence[dict], context: int, run: Run
) -> Sampling:
    """The first different prompts of the evaluation rows that leave room for an answer in `context` tokens."""
    room = context - settings.max_completion_length
    prompts: dict[str, dict] = {}
    too_long = 0
    for row in rows:
        if len(prompts) == settings.eval_limit:
            break
        key = prompt_key(row)
        if key in prompts:
            continue
        if len(encode_prompt(tokenizer, row["prompt"])) > room:
            too_long += 1
            continue
        prompts[key] = {"prompt": row["prompt"]}
    if too_long:
        run.say(
            f"{too_long} held-out prompts are not answered: they leave no room for "
            f"max_completion_length={settings.max_completion_length}"
        )
    return Sampling(list(prompts.values()), settings.max_completion_length)


def counts_line(counts: dict[str, int], side: str) -> str:
    """One line about what was dropped of a side, "train" or "eval"; "" where nothing was."""
    parts = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    return f"{side}: {', '.join(parts)}" if parts else ""
