"""Reward modelling: rankings of K answers (pairs are K = 2) -> a model that scores an answer.

    accelerate launch recipes/reward.py --config recipes/configs/reward/demo.yaml
    accelerate launch recipes/reward.py --dataset_name rankings.jsonl --model_name_or_path runs/sft --output_dir runs/reward

Time: under a minute for the demo on two cores. Look at: accuracy on prompts that were not trained on (people agree with
each other in about 73 % of such pairs, InstructGPT) and plots/ranking.png. After training the scores are shifted so that
the demonstrations (or, without any, the first-ranked completions) score 0 on average. The base may be a decoder (GPT-2,
Llama), or an encoder (BERT, DeBERTa), which reads prompt and completion as its tokenizer pairs two texts.
"""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase, set_seed

from rlhf.completions.reward_inputs import RewardInput, RewardInputs
from rlhf.completions.score import RewardModelScorer
from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template
from rlhf.data.encodings import EncodedRows
from rlhf.data.splits import Splits, load_splits
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.load import load_reward_model, reward_model_outline, save
from rlhf.models.one_trunk import save_adapter
from rlhf.models.parts import context_length, fit_embeddings, fit_tokenizer
from rlhf.models.quantized import merged
from rlhf.models.scores import reads_pairs, shift_scores
from rlhf.reward_model.centre import best_completions, encode_demonstrations, read_demonstrations
from rlhf.reward_model.metrics import ranking_report
from rlhf.reward_model.rankings import encode_rankings, require_order
from rlhf.reward_model.report import show_report
from rlhf.reward_model.trainer import RewardConfig, RewardTrainer
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import use_run_progress
from rlhf.runs.replacement import replacement
from rlhf.runs.run import Run, start
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


@dataclass
class PreparedReward:
    """The trainer of a run, and what its evaluation needs.

    rows: the held-out rankings, encoded.
    centred_on: the inputs whose scores will be 0 on average.
    """

    trainer: RewardTrainer
    tokenizer: PreTrainedTokenizerBase
    rows: EncodedRows
    centred_on: list[RewardInput]


def main(settings: RewardSettings, args: RewardConfig) -> None:
    with recording("reward", settings, args) as run:
        prepared = prepare(settings, args, run)
        run.train(prepared.trainer, prepared.trainer.save_model)
        run.best_checkpoint(prepared.trainer)
        evaluate_reward(run, settings, prepared)


def prepare(settings: RewardSettings, args: RewardConfig, run: Run) -> PreparedReward:
    """Read and check all that the run needs, without a step of training."""
    set_seed(args.seed)
    tokenizer = settings.load_tokenizer()
    # All rows are read before a model is loaded.
    splits = read_rankings(run, settings, tokenizer, args.seed)
    demonstrations = []
    if settings.demonstrations:
        demonstrations = read_demonstrations(settings.demonstrations, skip_bad=settings.skip_bad)
    model = start_model(run, settings, tokenizer)
    limit = min(args.max_length, context_length(model))
    set_precision(run, settings, model, tokens=args.per_device_train_batch_size * limit)
    inputs = RewardInputs(model, tokenizer)
    train, held_out = encode_splits(run, splits, inputs, limit)
    centred_on = choose_centre(run, demonstrations, inputs, train, limit)
    trainer = RewardTrainer(
        model=settings.with_lora(model, task="SEQ_CLS"),
        tokenizer=tokenizer,
        args=args,
        train_rows=train,
        eval_rows=held_out,
    )
    use_run_progress(trainer, args.output_dir)
    return PreparedReward(trainer, tokenizer, held_out, centred_on)


def read_rankings(run: Run, settings: RewardSettings, tokenizer, seed: int) -> Splits:
    """The rankings, both sides with an ordered pair. The tokenizer of a decoder gets its chat template."""
    outline = reward_model_outline(settings.model_name_or_path, revision=settings.model_revision)
    checks = {}
    if not reads_pairs(outline):
        add_chat_template(tokenizer)
        checks = template_checks(tokenizer)
    splits = load_splits(settings, ("ranking",), seed=seed, checks=checks)
    run.data(splits)
    if not splits.eval:
        raise UserError(
            "a reward model is evaluated on prompts it has not seen: set eval_fraction or eval_dataset_name"
        )
    require_order(splits.train, "training")
    require_order(splits.eval, "evaluation")
    return splits


def start_model(run: Run, settings: RewardSettings, tokenizer):
    """The model with a new head, and the tokenizer of an encoder fitted to it."""
    path = settings.model_name_or_path
    model = load_reward_model(path, new_head=True, **settings.load_options())
    run.parent("base", path, revision=settings.model_revision)
    if reads_pairs(model):
        fit_tokenizer(tokenizer, model, pairs=True)
        model.config.trained_pairs = True  # read by the model card
    fit_embeddings(model, tokenizer)  # the template may have added tokens
    return model


def encode_splits(
    run: Run, splits: Splits, inputs: RewardInputs, limit: int
) -> tuple[EncodedRows, EncodedRows]:
    """(training rows, held-out rows), encoded, both with an ordered pair that is not too long."""
    options = {"max_length": limit, "pairs": inputs.pairs}
    train, too_long = encode_rankings(inputs.tokenizer, splits.train, **options)
    held_out, held_out_too_long = encode_rankings(inputs.tokenizer, splits.eval, **options)
    require_order(train, "training")
    require_order(held_out, "evaluation")
    run.say(
        f"{len(train)} rankings, {len(held_out)} held out, {too_long} completions longer than {limit} dropped"
    )
    if held_out_too_long:
        run.say(
            f"of the held-out rankings {held_out_too_long} completions were as long, and dropped"
        )
    run.metrics({"train_rankings": len(train), "completions_too_long": too_long})
    run.metrics({"eval_completions_too_long": held_out_too_long})
    return train, held_out


def choose_centre(
    run: Run, demonstrations: list[dict], inputs: RewardInputs, train: EncodedRows, limit: int
) -> list[RewardInput]:
    """The inputs whose scores will be 0 on average: the demonstrations, or the best completions of the rankings."""
    if demonstrations:
        centred_on, dropped = encode_demonstrations(demonstrations, inputs, max_length=limit)
        reason = f"demonstrations longer than {limit} tokens"
    else:
        centred_on, dropped = best_completions(train)
        reason = "rankings whose best completion is too long"
    if dropped:
        run.say(f"the centre of the scores is set without {dropped} {reason}")
    run.metrics({"centred_on": len(centred_on)})
    return centred_on


def evaluate_reward(run: Run, settings: RewardSettings, prepared: PreparedReward) -> None:
    """Score the held-out rankings, centre the scores of the saved model, and write the report."""
    trainer, rows = prepared.trainer, prepared.rows
    try:
        scores = trainer.scores(rows)
        if run.main:
            # Without the wrappers of several processes, and without ScoreModel.
            model = trainer.accelerator.unwrap_model(trainer.model).model
            save_centred(run, settings, model, prepared.tokenizer, prepared.centred_on)
    except BaseException:
        run.say(f"the trained model is saved in {run.folder}, but its scores are not centred")
        raise
    if run.main:
        show_report(run, ranking_report(scores, rows))


def save_centred(run: Run, settings: RewardSettings, model, tokenizer, centred_on) -> None:
    """Save the model again, LoRA merged, with its scores shifted so that the demonstrations score 0 on average."""
    centre = RewardModelScorer(model, tokenizer).score(centred_on).mean().item()
    with replacement(run.folder) as folder:
        if settings.use_peft:
            # For PPO with share_trunk: the LoRA matrices by themselves.
            save_adapter(model, str(folder), centre=-centre)
            model = merged(model)
        stored_in = shift_scores(model, -centre)
        save(model, tokenizer, folder)
    run.say(f"scores shifted by {-centre:.3f}, in {stored_in}")
    run.metrics({"score_centre": centre, "score_centre_in": stored_in})


if __name__ == "__main__":
    start(main, __doc__)
