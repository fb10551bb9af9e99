"""Reward modelling: rankings of K answers (pairs are K = 2) -> a model that scores an answer.

    accelerate launch recipes/reward.py --config recipes/configs/reward/demo.yaml
    accelerate launch recipes/reward.py --dataset_name rankings.jsonl --model_name_or_path runs/sft --output_dir runs/reward

Time: under a minute for the demo on two cores. Look at: accuracy on prompts that were not trained on (people agree with
each other in about 73 % of such pairs, InstructGPT) and plots/ranking.png. After training the scores are shifted so that
the demonstrations (or, without any, the first-ranked completions) score 0 on average.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.data.chat import add_chat_template
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_reward_model, save
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
    """The model that learns, and the rankings it learns from."""

    demonstrations: str | None = field(
        default=None,
        metadata={
            "help": "Rows prompt + completion whose mean score becomes 0. Default: rank 0 of the rankings."
        },
    )


def main(settings: RewardSettings, args: RewardConfig) -> None:
    with recording("reward", settings, args) as run:
        set_seed(args.seed)
        tokenizer = settings.load_tokenizer()
        model = load_reward_model(
            settings.model_name_or_path,
            revision=settings.model_revision,
            dtype=settings.dtype,
            new_head=True,
        )
        run.parent("base", settings.model_name_or_path, revision=settings.model_revision)
        add_chat_template(tokenizer)
        fit_embeddings(model, tokenizer)  # the template may have added tokens
        limit = min(args.max_length, context_length(model))

        splits = load_splits(settings, ("ranking",), seed=args.seed)
        run.data(splits)
        if not splits.eval:
            raise UserError(
                "a reward model is evaluated on prompts it has not seen: set eval_fraction or eval_dataset_name"
            )
        train, too_long = encode_rankings(tokenizer, splits.train, max_length=limit)
        evaluation, _ = encode_rankings(tokenizer, splits.eval, max_length=limit)
        run.say(
            f"{len(train)} rankings, {len(evaluation)} held out, {too_long} completions longer than {limit} dropped"
        )

        trainer = RewardTrainer(
            model=settings.with_lora(model, task="SEQ_CLS"),
            tokenizer=tokenizer,
            args=args,
            train_rows=train,
            eval_rows=evaluation,
        )
        use_run_progress(trainer, args.output_dir)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        run.best_checkpoint(trainer)

        report = ranking_report(trainer.scores(evaluation), evaluation)
        for name, value in report.items():
            if isinstance(value, int | float):
                run.metrics({name: value})
        run.metrics({"train_rankings": len(train), "completions_too_long": too_long})
        if run.main:
            # Without the wrappers of several processes, and without ScoreModel.
            model = trainer.accelerator.unwrap_model(trainer.model).model
            save_centred(run, settings, model, tokenizer, splits.train)
            show_report(run, report)


def save_centred(run, settings: RewardSettings, model, tokenizer, rankings: list[dict]) -> None:
    """Save the model, LoRA merged, with its scores shifted so that the demonstrations score 0 on average."""
    score = RewardModelScorer(model, tokenizer)
    centre = score(demonstrations(settings, rankings)).mean().item()
    if settings.use_peft:
        # For PPO with share_trunk: the LoRA matrices by themselves.
        save_adapter(model, str(run.folder), centre=-centre)
        model = model.merge_and_unload()
    try:
        shift_scores(model, -centre)
    except UserError as error:  # after hours of training, this is not a reason to lose the model
        run.say(f"demonstrations score {centre:.3f} on average and not 0: {error}")
    save(model, tokenizer, run.folder)


def demonstrations(
    settings: RewardSettings, rankings: list[dict], limit: int = 512
) -> ScoringBatch:
    """Completions that are to score 0 on average: demonstrations, or the best of the first rankings."""
    if settings.demonstrations:
        rows = load_rows(settings.demonstrations, kinds=("prompt_completion",), limit=limit).rows
        prompts = [row["prompt"] for row in rows]
        return ScoringBatch(prompts, [row["completion"] for row in rows])
    prompts, completions = [], []
    for row in rankings[:limit]:
        # The first of those that tie for best.
        best = row["ranks"].index(min(row["ranks"]))
        prompts.append(row["prompt"])
        completions.append(row["completions"][best])
    return ScoringBatch(prompts, completions)


def show_report(run, report: dict) -> None:
    """Write ranking.json and plots/ranking.png, and print the most misranked pairs."""
    run.write("ranking.json", report)
    (run.folder / "plots").mkdir(exist_ok=True)
    plot_ranking_report(report, run.folder / "plots" / "ranking.png")
    if report["worst"]:
        run.say("The most misranked pairs that were held out:")
        columns = ["prompt", "ranked higher", "scored higher", "margin"]
        run.say(sample_table(report["worst"], columns=columns, limit=5))


if __name__ == "__main__":
    start(main, __doc__)
