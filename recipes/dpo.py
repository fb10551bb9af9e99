"""Direct preference optimisation: rankings of K answers (pairs are K = 2) -> a policy that prefers the better ones. On trl.

    accelerate launch recipes/dpo.py --config recipes/configs/dpo/demo.yaml
    accelerate launch recipes/dpo.py --dataset_name rankings.jsonl --model_name_or_path runs/sft --output_dir runs/dpo

Time: minutes for the demo on two cores. Look at: accuracy of the implicit reward on prompts that were not trained on,
logps/chosen (it should not fall far), kl and the table of samples. The rows are those of recipes/reward.py, and each ranking
counts once. Losses, equations and sources: docs/preferences.md.
"""

from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase, set_seed

from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template
from rlhf.data.splits import Splits, load_splits
from rlhf.direct_preference.alarms import PairAlarms
from rlhf.direct_preference.config import PairConfig
from rlhf.direct_preference.dpo import RankingDPOTrainer
from rlhf.direct_preference.roles import (
    DirectSettings,
    check_is_held_out,
    check_reference,
    counts_line,
    load_roles,
    sampling_of,
)
from rlhf.direct_preference.rows import encode_pairs_of_rankings
from rlhf.hub.recording import recording
from rlhf.reward_model.metrics import ranking_report
from rlhf.reward_model.rankings import require_order
from rlhf.reward_model.report import show_report
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import Run, start
from rlhf.runs.trl_trainer import score_learned_tokens_only


@dataclass
class DPOSettings(DirectSettings):
    """The model that learns, the reference, and the rankings."""


@dataclass
class PreparedDPO:
    """The trainer of a run, and its tokenizer."""

    trainer: RankingDPOTrainer
    tokenizer: PreTrainedTokenizerBase


def main(settings: DPOSettings, args: PairConfig) -> None:
    with recording("dpo", settings, args) as run:
        prepared = prepare(settings, args, run)
        trainer = prepared.trainer
        if not args.resume_from_checkpoint:  # whose record has it
            before = trainer.evaluate()
            run.metrics({f"{name}_before": before[f"eval_{name}"] for name in trainer.sampled})
        run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
        run.best_checkpoint(trainer)
        evaluate_dpo(run, trainer)


def prepare(settings: DPOSettings, args: PairConfig, run: Run) -> PreparedDPO:
    """Read and check all that the run needs, without a step of training. All rows are read before a model is loaded."""
    set_seed(args.seed)
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    splits = read_rankings(run, settings, tokenizer, args.seed)
    check_reference(settings, tokenizer)
    roles = load_roles(settings, args, tokenizer, run)
    args.max_length = roles.limit
    train, held_out = encode_splits(run, splits, tokenizer, roles.limit)
    if args.device.type == "cpu":
        score_learned_tokens_only()
    trainer = RankingDPOTrainer(
        model=roles.policy,
        ref_model=roles.ref_model,
        tokenizer=tokenizer,
        args=args,
        train_rows=train,
        eval_rows=held_out,
        sampling=sampling_of(settings, tokenizer, splits.eval, roles.policy, run),
    )
    use_run_progress(trainer, args.output_dir)
    trainer.add_callback(PairAlarms())
    return PreparedDPO(trainer, tokenizer)


def read_rankings(run: Run, settings: DPOSettings, tokenizer, seed: int) -> Splits:
    """The rankings, both sides with an ordered pair."""
    splits = load_splits(settings, ("ranking",), seed=seed, checks=template_checks(tokenizer))
    run.data(splits)
    check_is_held_out(splits, "DPO")
    require_order(splits.train, "training")
    require_order(splits.eval, "evaluation")
    return splits


def encode_splits(run: Run, splits: Splits, tokenizer, limit: int) -> tuple[list[dict], list[dict]]:
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


def evaluate_dpo(run: Run, trainer: RankingDPOTrainer) -> None:
    """Measure the policy on the held-out rankings, and let it answer their prompts."""
    trainer.evaluate()
    rewards = trainer.rewards()
    run.metrics(trainer.sampled)
    if run.main:
        show_report(run, ranking_report(rewards, trainer.eval_rows))
        run.say(trainer.table_of_samples())


if __name__ == "__main__":
    start(main, __doc__)
