"""Direct preference optimisation: rankings of K answers (pairs are K = 2) -> a policy that prefers the better ones. On trl.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo/demo.yaml
    accelerate launch recipes/dpo.py --dataset_name rankings.jsonl --model_name_or_path runs/sft --output_dir runs/dpo

Time: minutes for the demo on two cores. Look at: accuracy of the implicit reward on prompts that were not trained on,
logps/chosen (it should not fall far), kl and the table of samples. The rows are those of recipes/reward.py, and each ranking
counts once. Losses, equations and sources: docs/preferences.md.
"""

from dataclasses import dataclass

from transformers import set_seed

from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template
from rlhf.data.encodings import EncodedRows
from rlhf.data.splits import Splits, load_splits
from rlhf.direct_preference.config import PairConfig
from rlhf.direct_preference.dpo import RankingDPOTrainer
from rlhf.direct_preference.preparation import Prepared, make_trainer, train
from rlhf.direct_preference.roles import (
    DirectSettings,
    check_is_held_out,
    check_reference,
    counts_line,
    load_roles,
)
from rlhf.direct_preference.rows import encode_pairs_of_rankings
from rlhf.hub.recording import recording
from rlhf.reward_model.metrics import ranking_report
from rlhf.reward_model.rankings import require_order
from rlhf.reward_model.report import show_report
from rlhf.runs.run import Run, start


@dataclass
class DPOSettings(DirectSettings):
    """The model that learns, the reference, and the rankings."""


def main(settings: DPOSettings, args: PairConfig) -> None:
    with recording("dpo", settings, args) as run:
        prepared = prepare(settings, args, run)
        train(run, args, prepared)
        report_dpo(run, prepared.trainer)


def prepare(settings: DPOSettings, args: PairConfig, run: Run) -> Prepared:
    """Read and check all that the run needs, without a step of training. All rows are read before a model is loaded."""
    set_seed(args.seed)
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    splits = read_rankings(run, settings, tokenizer, args.seed)
    check_reference(settings, tokenizer)
    roles = load_roles(settings, args, tokenizer, run)
    args.max_length = roles.limit
    rows = encode_splits(run, splits, tokenizer, roles.limit)
    return make_trainer(
        RankingDPOTrainer, settings, args, run, roles=roles, rows=rows, asked=splits.eval
    )


def read_rankings(run: Run, settings: DPOSettings, tokenizer, seed: int) -> Splits:
    """The rankings, both sides with an ordered pair."""
    splits = load_splits(settings, ("ranking",), seed=seed, checks=template_checks(tokenizer))
    run.data(splits)
    check_is_held_out(splits, "DPO")
    require_order(splits.train, "training")
    require_order(splits.eval, "evaluation")
    return splits


def encode_splits(
    run: Run, splits: Splits, tokenizer, limit: int
) -> tuple[EncodedRows, EncodedRows]:
    """(training rows, held-out rows), encoded; what was dropped is said and recorded."""
    train, counts = encode_pairs_of_rankings(tokenizer, splits.train, max_length=limit)
    held_out, eval_counts = encode_pairs_of_rankings(tokenizer, splits.eval, max_length=limit)
    run.say(f"{len(train)} rankings, {len(held_out)} held out, at most {limit} tokens")
    for line in (counts_line(counts, "train"), counts_line(eval_counts, "eval")):
        if line:
            run.say(line)
    run.metrics({"train_rankings": len(train), **counts})
    run.metrics({f"eval_{name}": count for name, count in eval_counts.items()})
    return train, held_out


def report_dpo(run: Run, trainer: RankingDPOTrainer) -> None:
    """Report the last evaluation: the held-out rankings, and the answers of the policy to their prompts."""
    if run.main:
        show_report(run, ranking_report(trainer.held_out_rewards, trainer.eval_rows))
        run.say(trainer.table_of_samples())


if __name__ == "__main__":
    start(main, __doc__)
