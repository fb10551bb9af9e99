"""Reward modelling: rankings of K answers (pairs are K = 2) -> a model that scores an answer.

    accelerate launch recipes/reward.py --config recipes/configs/reward/demo.yaml
    accelerate launch recipes/reward.py --dataset_name rankings.jsonl --model_name_or_path runs/sft --output_dir runs/reward

Time: about half a minute for the demo on two cores. Look at: accuracy on prompts that were not trained on (people agree
with each other in about 73 % of such pairs, InstructGPT) and plots/ranking.png. After training the scores are shifted
so that the demonstrations (or, without any, the first-ranked completions) score 0 on average.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.data.chat import add_chat_template
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_reward_model, load_tokenizer, save
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import save_adapter
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.models.scores import shift_scores
from rlhf.reward_model.metrics import plot_ranking_report, ranking_report
from rlhf.reward_model.rankings import encode_rankings
from rlhf.reward_model.trainer import RewardConfig, RewardTrainer
from rlhf.runs.progress import sample_table, use_run_progress
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings


@dataclass
class RewardSettings(DataSettings, ModelSettings):
    """What is learned, from which rankings."""

    demonstrations: str | None = field(
        default=None,
        metadata={
            "help": "Rows prompt + completion whose mean score becomes 0. Default: rank 0 of the rankings."
        },
    )


def demonstrations(
    settings: RewardSettings, rankings: list[dict], limit: int = 512
) -> ScoringBatch:
    """What is to score 0 on average."""
    if settings.demonstrations:
        rows = load_rows(settings.demonstrations, kinds=("prompt_completion",), limit=limit).rows
        return ScoringBatch([row["prompt"] for row in rows], [row["completion"] for row in rows])
    best = [
        (row["prompt"], row["completions"][row["ranks"].index(min(row["ranks"]))])
        for row in rankings[:limit]
    ]
    return ScoringBatch(*map(list, zip(*best, strict=True)))


def main(settings: RewardSettings, args: RewardConfig) -> None:
    with recording("reward", settings, args) as run:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        model = load_reward_model(
            settings.model_name_or_path,
            revision=settings.model_revision,
            dtype=settings.dtype,
            new_head=True,
        )
        run.parent("base", settings.model_name_or_path)
        add_chat_template(tokenizer)
        fit_embeddings(model, tokenizer)
        limit = min(args.max_length, context_length(model))

        splits = load_splits(settings, ("ranking",), seed=args.seed)
        run.data(splits)
        if not splits.eval:
            raise UserError(
                "a reward model is judged on prompts it has not seen: set eval_fraction or eval_dataset_name"
            )
        train, long = encode_rankings(tokenizer, splits.train, max_length=limit)
        evaluation, _ = encode_rankings(tokenizer, splits.eval, max_length=limit)
        run.say(
            f"{len(train)} rankings, {len(evaluation)} held out, {long} completions longer than {limit} left out"
        )

        if settings.use_peft:
            model = add_lora(model, task="SEQ_CLS", rank=settings.lora_r, alpha=settings.lora_alpha)
        trainer = RewardTrainer(
            model=model, tokenizer=tokenizer, args=args, train_rows=train, eval_rows=evaluation
        )
        use_run_progress(trainer, args.output_dir)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        report = ranking_report(trainer.scores(evaluation), evaluation)
        run.metrics(
            {name: value for name, value in report.items() if isinstance(value, int | float)}
        )
        run.metrics({"train_rankings": len(train), "completions_too_long": long})
        if not run.main:
            return
        model = trainer.accelerator.unwrap_model(trainer.model).model
        centre = (
            RewardModelScorer(model, tokenizer)(demonstrations(settings, splits.train))
            .mean()
            .item()
        )
        if settings.use_peft:
            save_adapter(model, args.output_dir, centre=-centre)
            model = model.merge_and_unload()
        try:
            shift_scores(model, -centre)
        except UserError as error:  # after hours of training no reason to lose the model
            run.say(f"demonstrations score {centre:.3f} on average and not 0: {error}")
        save(model, tokenizer, args.output_dir)
        run.write("ranking.json", report)
        (run.folder / "plots").mkdir(exist_ok=True)
        plot_ranking_report(report, run.folder / "plots" / "ranking.png")
        if report["worst"]:
            run.say("Held-out pairs that the model orders most wrongly:")
            columns = ["prompt", "ranked higher", "scored higher", "margin"]
            run.say(sample_table(report["worst"], columns=columns, limit=5))


if __name__ == "__main__":
    start(main, __doc__)
