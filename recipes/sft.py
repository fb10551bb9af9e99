"""Supervised fine-tuning: demonstrations -> a model that answers. On trl.SFTTrainer.

    accelerate launch recipes/sft.py --config recipes/configs/sft/demo.yaml
    accelerate launch recipes/sft.py --dataset_name my.jsonl --model_name_or_path gpt2 --output_dir runs/sft

Time: under two minutes for the demo on two cores. Look at: eval_loss, and that EOS is learned (report: eos_rate). The loss
is taken on completions only (for messages: on the assistant's). rlhf/data/chat.py encodes the rows, so that SFT, reward
model, PPO and chat read the same tokens. Where a chat template rewrites earlier answers (Qwen 3), each answer of a
conversation is an example. `pretraining_dataset` mixes plain text in, as InstructGPT did (10 %).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain
from typing import ClassVar

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from rlhf.data.answers import check_answers, template_checks
from rlhf.data.chat import (
    add_chat_template,
    as_messages,
    learned_column,
    text_pieces,
)
from rlhf.data.encodings import encode_once
from rlhf.data.examples import COLUMNS, dataset_of, demonstrations, in_order, lengths_of
from rlhf.data.load import load_rows
from rlhf.data.splits import Splits, load_splits
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.activation_checkpointing import drop_default
from rlhf.models.load import load_policy
from rlhf.models.packed_rows import check_packing
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.models.scratch import new_policy
from rlhf.runs.checkpoints import check_is_measured
from rlhf.runs.keys import Unused
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.runs.trl_trainer import TrlTrainer, score_learned_tokens_only

KINDS = ("prompt_completion", "messages", "text")

# What an evaluation of SFTTrainer gives, of which metric_for_best_model names one.
MEASURED = ("eval_loss", "eval_mean_token_accuracy", "eval_entropy", "eval_num_tokens")
# Keys of SFTConfig that have no effect here -> what to do instead.
REFUSED = {
    "assistant_only_loss": "remove it: of messages only the assistant's turns are learned",
    "chat_template_path": "put the template into chat_template.jinja in the folder of the model",
    "completion_only_loss": "remove it: only the completion is learned; for all of a text, give rows with a text column",
    "dataset_kwargs": "remove it: the rows are encoded before TRL sees them",
    "dataset_num_proc": "remove it: the rows are encoded before TRL sees them",
    "dataset_text_field": "name the column with columns: text=NAME",
    "eos_token": "set eos_token in the tokenizer_config.json of the model",
    "model_init_kwargs": "use dtype and model_revision",
    "pad_token": "set pad_token in the tokenizer_config.json of the model",
    "padding_free": "set packing: true, whose batches have no padding either",
    "truncation_mode": "remove it: rows longer than max_length are dropped and counted, not cut",
    "trust_remote_code": "remove it: code of the Hub is never run",
}


@dataclass
class SFTSettings(DataSettings, ModelSettings, ScratchSettings):
    """The model that learns, and the rows it learns from."""

    pretraining_dataset: str | None = field(
        default=None, metadata={"help": "Plain text to mix in, file or Hub id."}
    )
    pretraining_share: float = field(
        default=0.1, metadata={"help": "Its share of all training examples. InstructGPT: 0.1."}
    )

    UNUSED: ClassVar[tuple] = (
        Unused(
            ("pretraining_share",),
            "set pretraining_dataset too",
            lambda run: run.pretraining_dataset is not None,
        ),
    )


class BatchesOfOneLength(LengthGroupedSampler):
    """Rows of about one length in a batch. The longest batch comes first, the others in random order.

    transformers goes from long to short, 50 batches at a time. The demo's model then forgot its dialogues, which are long:
    64 % of them were answered right instead of 76 %.
    """

    def __iter__(self):
        indices = list(super().__iter__())
        size = self.batch_size
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        # The first one shows early if the memory is enough, and the last one may be smaller.
        between = batches[1:-1]
        order = torch.randperm(len(between), generator=self.generator).tolist()
        mixed = batches[:1] + [between[i] for i in order] + batches[1:][-1:]
        return iter(chain.from_iterable(mixed))


class DemonstrationTrainer(TrlTrainer, SFTTrainer):
    """trl.SFTTrainer on rows that are encoded already."""

    def _get_train_sampler(self, train_dataset=None):
        """The sampler of transformers, or batches of one length in random order."""
        args = self.args
        if args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = lengths_of(self.train_dataset if train_dataset is None else train_dataset)
        size = args.train_batch_size * args.gradient_accumulation_steps
        return BatchesOfOneLength(size, lengths=lengths)


@dataclass
class PreparedSFT:
    """The trainer of a run, and what its evaluation needs.

    too_long, eval_too_long: training and evaluation examples that were dropped for their length.
    """

    trainer: DemonstrationTrainer
    tokenizer: PreTrainedTokenizerBase
    train_rows: int
    too_long: int
    eval_too_long: int


def main(settings: SFTSettings, args: SFTConfig) -> None:
    check_keys(args)
    with recording("sft", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        evaluate_sft(run, prepared)


def prepare(settings: SFTSettings, args: SFTConfig, run: Run) -> PreparedSFT:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    args.logging_nan_inf_filter = False  # a NaN must be seen
    # With accelerate's seedable sampler, groups by length lose rows on two processes from the second epoch on.
    args.accelerator_config.use_seedable_sampler = args.train_sampling_strategy != "group_by_length"
    check_share(settings.pretraining_share)
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    # All rows are read before a model is loaded.
    splits = load_splits(settings, KINDS, seed=args.seed, checks=template_checks(tokenizer))
    run.data(splits)
    check_can_evaluate(args, splits)
    texts = read_texts(settings, run)

    model = load_or_make_policy(settings, tokenizer, run)
    drop_default(args, model, run.say)
    if args.packing and args.packing_strategy != "wrapped":  # which lets examples read each other
        if args.world_size == 1:
            model.to(args.device)  # where kernels may keep apart what they mix on a CPU
        check_packing(model, settings.model_name_or_path)
    args.max_length = min(args.max_length or 10**9, context_length(model))
    tokens = args.per_device_train_batch_size * args.max_length
    set_precision(run, settings, model, tokens=tokens, default="auto")

    # The chat reads them: it cuts a longer history, and says if a system prompt means nothing to this model.
    model.config.trained_turns, model.config.trained_system = longest_and_system(splits.train)
    train, too_long = encode(tokenizer, splits.train, args.max_length)
    run.say(examples_line("train", train, splits.train, too_long, args.max_length))
    evaluation, eval_too_long = None, 0
    if splits.eval:
        evaluation, eval_too_long = encode(tokenizer, splits.eval, args.max_length)
        run.say(examples_line("eval", evaluation, splits.eval, eval_too_long, args.max_length))
    if texts:
        pieces = encode_texts(tokenizer, texts, run, limit=args.max_length)
        train = mix(train, pieces, settings.pretraining_share, args.seed)
    if not (args.packing or args.eval_packing or args.shuffle_dataset):
        # The examples are as TRL wants them, and it would copy them all to see that.
        args.dataset_kwargs = {"skip_prepare_dataset": True}
    if args.device.type == "cpu":
        score_learned_tokens_only()
    trainer = DemonstrationTrainer(
        model=settings.with_lora(model, task="CAUSAL_LM"),
        args=args,
        processing_class=tokenizer,
        train_dataset=train,
        eval_dataset=evaluation,
    )
    use_run_progress(trainer, args.output_dir)
    return PreparedSFT(trainer, tokenizer, len(train), too_long, eval_too_long)


def evaluate_sft(run: Run, prepared: PreparedSFT) -> None:
    """Measure the trained model on the evaluation rows, if there are any."""
    run.metrics({"train_rows": prepared.train_rows, "rows_too_long": prepared.too_long})
    if prepared.trainer.eval_dataset is None:
        return
    rows = len(prepared.trainer.eval_dataset)
    run.metrics({"eval_rows": rows, "eval_rows_too_long": prepared.eval_too_long})
    metrics = prepared.trainer.evaluate()
    accuracy = metrics["eval_mean_token_accuracy"]
    run.metrics({"eval_loss": metrics["eval_loss"], "token_accuracy": accuracy})


# ---- before training ---------------------------------------------------------------------------------------------


def load_or_make_policy(settings: SFTSettings, tokenizer, run: Run):
    """The model to train, loaded or with random weights, with room for the tokenizer's tokens."""
    if settings.from_scratch:
        model = new_policy(tokenizer, **settings.sizes())
        run.parent("tokenizer", settings.tokenizer_name_or_path or settings.model_name_or_path)
    else:
        model = load_policy(settings.model_name_or_path, **settings.load_options())
        run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
    fit_embeddings(model, tokenizer)
    return model


def check_keys(args: SFTConfig) -> None:
    """UserError for a key that TRL reads and this recipe does not."""
    for key in fields(SFTConfig):
        value = getattr(args, key.name)
        # An explicit default asks for nothing else.
        if key.name in REFUSED and value != key.default:
            raise UserError(f"{key.name}={value} has no effect here: {REFUSED[key.name]}")
    if args.max_length is not None and args.max_length < 2:
        raise UserError(f"max_length={args.max_length} must be at least 2")
    if args.activation_offloading and args.device.type == "cpu":
        raise UserError(
            "activation_offloading moves activations from the GPU to the CPU, and this run has no GPU: drop it, or use "
            "gradient_checkpointing"
        )
    check_is_measured(args.metric_for_best_model, MEASURED)


def check_can_evaluate(args: SFTConfig, splits: Splits) -> None:
    """UserError where evaluations are asked for, and there are no rows for them."""
    if not splits.eval and args.eval_strategy != "no":
        raise UserError(
            f"eval_strategy={args.eval_strategy.value}: there are no evaluation rows: give eval_dataset_name or "
            "eval_fraction, or set it to no"
        )


def check_share(share: float) -> None:
    """UserError where the examples cannot have this share of plain text."""
    if not 0 <= share < 1:
        raise UserError(f"pretraining_share={share} must be at least 0 and below 1")


def encode(tokenizer, rows: Sequence[dict], max_length: int) -> tuple[Dataset, int]:
    """Encode rows as examples: token ids with labels (IGNORED where nothing is learned).

    Returns them, and how many were too long.
    """
    check_answers(tokenizer, rows)
    encoded = encode_once(
        demonstrations, tokenizer, rows, COLUMNS, row_by_row=True, longest=max_length
    )
    if not encoded:
        raise UserError(
            f"no row fits max_length={max_length} tokens: raise it, up to the model's context"
        )
    return dataset_of(encoded), encoded.counts["too_long"]


def examples_line(
    side: str, encoded: list[dict], rows: list[dict], too_long: int, limit: int
) -> str:
    """One line about the examples of a side, "train" or "eval"."""
    line = f"{side}: {len(encoded)} examples of {len(rows)} rows"
    if too_long:
        line += f", {too_long} longer than {limit} tokens dropped"
    return line


def read_texts(settings: SFTSettings, run: Run) -> list[dict]:
    """Rows of plain text to mix in, if the settings name some."""
    if not settings.pretraining_dataset:
        return []
    loaded = load_rows(settings.pretraining_dataset, kinds=("text",), skip_bad=settings.skip_bad)
    run.data(loaded)
    return loaded.rows


def encode_texts(tokenizer, rows: list[dict], run: Run, *, limit: int) -> list[dict]:
    """Plain text as examples of at most `limit` tokens, all of them learned."""
    pieces = text_pieces(tokenizer, rows, limit)
    run.say(f"plain text: {len(pieces)} pieces of {len(rows)} texts")
    return [{"input_ids": ids, "labels": list(ids)} for ids in pieces]


def longest_and_system(rows: Sequence[dict]) -> tuple[int, bool]:
    """The most user messages of one row, and True if any row has a system message: what the model learns to follow."""
    longest, system = 0, False
    for row in rows:
        column = "messages"
        if learned_column(row) == "completion":
            column = "prompt"
        roles = [message["role"] for message in as_messages(row.get(column) or "")]
        longest = max(longest, roles.count("user"))
        system = system or "system" in roles
    return longest, system


def mix(
    demonstrations: Sequence[dict], text: list[dict], share: float, seed: int
) -> Sequence[dict]:
    """Add random text to the demonstrations until it is `share` of all examples, and shuffle. Short text is repeated."""
    check_share(share)
    # text / (text + demonstrations) = share
    count = round(len(demonstrations) * share / (1 - share))
    generator = random.Random(seed)
    picked: list[int] = []
    while len(picked) < count:
        again = generator.sample(range(len(text)), len(text))  # every text before any comes again
        picked += again[: count - len(picked)]
    order = [*range(len(demonstrations))]
    order += [len(demonstrations) + i for i in picked]
    generator.shuffle(order)
    return in_order(demonstrations, text, order)


if __name__ == "__main__":
    start(main, __doc__)
