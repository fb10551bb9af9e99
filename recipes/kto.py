"""KTO: answers with a thumb up or down -> a policy that gives more of the good kind. On trl.KTOTrainer.

    accelerate launch recipes/kto.py --config recipes/configs/kto/demo.yaml
    accelerate launch recipes/kto.py --dataset_name thumbs.jsonl --model_name_or_path runs/sft --output_dir runs/kto

Time: minutes for the demo on two cores. Look at: auc, the share of good answers with a larger implicit reward than
bad ones, on prompts that were not trained on, and the table of samples. Rows: prompt, completion and label (true or false),
or a feedback store, whose thumbs are read. Equations and sources: docs/preferences.md.
"""

from dataclasses import dataclass

from transformers import set_seed

from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template
from rlhf.data.encodings import EncodedRows
from rlhf.data.splits import Splits, load_splits
from rlhf.direct_preference.config import ThumbConfig
from rlhf.direct_preference.kto import ThumbKTOTrainer
from rlhf.direct_preference.metrics import thumb_report
from rlhf.direct_preference.preparation import Prepared, make_trainer, train
from rlhf.direct_preference.roles import (
    DirectSettings,
    check_is_held_out,
    check_reference,
    counts_line,
    load_roles,
)
from rlhf.direct_preference.rows import balance_advice, encode_thumbs, require_both_thumbs
from rlhf.hub.recording import recording
from rlhf.runs.run import Run, start


@dataclass
class KTOSettings(DirectSettings):
    """The model that learns, the reference, and the rated answers."""


def main(settings: KTOSettings, args: ThumbConfig) -> None:
    with recording("kto", settings, args) as run:
        prepared = prepare(settings, args, run)
        train(run, args, prepared)
        report_kto(run, prepared.trainer)


def prepare(settings: KTOSettings, args: ThumbConfig, run: Run) -> Prepared:
    """Read and check all that the run needs, without a step of training. All rows are read before a model is loaded."""
    set_seed(args.seed)
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    splits = read_thumbs(run, settings, tokenizer, args.seed)
    check_reference(settings, tokenizer)
    roles = load_roles(settings, args, tokenizer, run)
    args.max_length = roles.limit
    rows = encode_splits(run, splits, tokenizer, args)
    return make_trainer(
        ThumbKTOTrainer, settings, args, run, roles=roles, rows=rows, asked=splits.eval
    )


def read_thumbs(run: Run, settings: KTOSettings, tokenizer, seed: int) -> Splits:
    """The rated answers, good and bad ones on both sides."""
    checks = template_checks(tokenizer)
    splits = load_splits(settings, ("unpaired_preference",), seed=seed, checks=checks)
    run.data(splits)
    check_is_held_out(splits, "KTO")
    require_both_thumbs(splits.train, "training")
    require_both_thumbs(splits.eval, "evaluation")
    return splits


def encode_splits(
    run: Run, splits: Splits, tokenizer, args: ThumbConfig
) -> tuple[EncodedRows, EncodedRows]:
    """(training rows, held-out rows), encoded; what was dropped is said and recorded."""
    options = {"max_length": args.max_length, "seed": args.seed}
    estimates_kl = args.loss_type == "kto"
    train, counts = encode_thumbs(tokenizer, splits.train, estimates_kl=estimates_kl, **options)
    held_out, eval_counts = encode_thumbs(tokenizer, splits.eval, estimates_kl=False, **options)
    labels = train.only("label")
    require_both_thumbs(labels, "training")
    require_both_thumbs(held_out.only("label"), "evaluation")
    good = sum(row["label"] for row in labels)
    run.say(
        f"{len(train)} answers, {good} of them good; {len(held_out)} held out; at most {args.max_length} tokens"
    )
    lines = [counts_line(counts, "train"), counts_line(eval_counts, "eval")]
    lines.append(
        balance_advice(labels, desirable=args.desirable_weight, undesirable=args.undesirable_weight)
    )
    for line in filter(None, lines):
        run.say(line)
    run.metrics({"train_answers": len(train), "train_good_answers": good, **counts})
    run.metrics({f"eval_{name}": count for name, count in eval_counts.items()})
    return train, held_out


def report_kto(run: Run, trainer: ThumbKTOTrainer) -> None:
    """Report the last evaluation: the held-out answers, and the policy's own to their prompts."""
    rewards = [reward for (reward,) in trainer.held_out_rewards]
    run.metrics(thumb_report(rewards, trainer.eval_rows))
    if run.main:
        run.say(trainer.table_of_samples())


if __name__ == "__main__":
    start(main, __doc__)
