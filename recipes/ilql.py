"""ILQL: answers with scores, good and bad ones -> a policy with values of its tokens, by which it decodes. No sampling.

    accelerate launch recipes/ilql.py --config recipes/configs/ilql/e2e.yaml
    accelerate launch recipes/ilql.py --dataset_name scored.jsonl --model_name_or_path runs/sft --output_dir runs/ilql

Time: minutes for E2E on two cores. Look at: q_correlation, the rank correlation of Q and score on prompts that were not
trained on, kl, and the table of samples. Rows: prompt, completion and a number `score`; ranked.jsonl of `rlhf sample`;
rankings, pairs, and thumbs. `rlhf sample`, `rlhf report` and the chat decode with the values: docs/value_decoding.md.
"""

from dataclasses import dataclass
from functools import partial

from transformers import set_seed

from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template
from rlhf.data.encodings import EncodedRows
from rlhf.data.splits import Splits, load_splits
from rlhf.direct_preference.roles import SampledSettings, check_is_held_out, sampling_of
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.implicit_q.config import ILQLConfig
from rlhf.implicit_q.rows import KINDS, encode_scored, require_different_scores
from rlhf.implicit_q.trainer import MEASURED, ILQLTrainer, sample_names
from rlhf.models.action_values import ActionValueHeads, check_can_guide
from rlhf.models.load import load_policy
from rlhf.models.parts import context_length, fit_embeddings, hidden_size
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings


@dataclass
class ILQLSettings(SampledSettings, DataSettings, ModelSettings):
    """The model that learns, and the scored answers it learns from."""


def main(settings: ILQLSettings, args: ILQLConfig) -> None:
    with recording("ilql", settings, args) as run:
        trainer = prepare(settings, args, run)
        run.train(trainer, trainer.save_model)
        run.best_checkpoint(trainer)
        report_ilql(run, trainer)


def prepare(settings: ILQLSettings, args: ILQLConfig, run: Run) -> ILQLTrainer:
    """Read and check all that the run needs, without a step of training. All rows are read before a model is loaded."""
    set_seed(args.seed)
    if settings.use_peft and args.nll_coef == 0:
        raise UserError(
            "nll_coef=0 trains the heads alone, and LoRA would do nothing: drop use_peft"
        )
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    splits = read_scored(run, settings, tokenizer, args.seed)
    # Rows with scores are all read by now: what is wrong with them is said in seconds.
    policy = load_policy(settings.model_name_or_path, **settings.load_options())
    run.parent("policy", settings.model_name_or_path, revision=settings.model_revision)
    fit_embeddings(policy, tokenizer)
    # The advantage is added to what the output layer gives, and must be the last thing that happens to it.
    check_can_guide(policy)
    context = context_length(policy)
    limit = min(args.max_length, context)
    set_precision(run, settings, policy, tokens=args.per_device_train_batch_size * limit)
    train, held_out = encode_splits(run, splits, tokenizer, limit)
    heads = ActionValueHeads(hidden_size(policy), policy.get_output_embeddings().out_features)
    trainer = ILQLTrainer(
        policy=settings.with_lora(policy, task="CAUSAL_LM"),
        heads=heads,
        tokenizer=tokenizer,
        args=args,
        train_rows=train,
        eval_rows=held_out,
        sampling=sampling_of(settings, tokenizer, splits.eval, context, run),
    )
    use_run_progress(trainer, args.output_dir)
    return trainer


def read_scored(run: Run, settings: ILQLSettings, tokenizer, seed: int) -> Splits:
    """The scored answers, with some of prompts that are not trained on."""
    splits = load_splits(settings, KINDS, seed=seed, checks=template_checks(tokenizer))
    run.data(splits)
    check_is_held_out(splits, "ILQL")
    require_different_scores(splits.train, splits.kind, "training")
    return splits


def encode_splits(
    run: Run, splits: Splits, tokenizer, limit: int
) -> tuple[EncodedRows, EncodedRows]:
    """(training rows, held-out rows), encoded, one for each answer; what was dropped is said and recorded."""
    encode = partial(encode_scored, tokenizer, kind=splits.kind, max_length=limit)
    train, too_long = encode(splits.train)
    held_out, held_out_too_long = encode(splits.eval)
    scores = [row["score"] for row in train.only("score")]
    run.say(
        f"{len(train)} answers with scores from {min(scores):.3g} to {max(scores):.3g}, on average "
        f"{sum(scores) / len(scores):.3g}; {len(held_out)} held out, at most {limit} tokens"
    )
    for side, count in (("train", too_long), ("eval", held_out_too_long)):
        if count:
            run.say(f"{side}: {count} answers longer than {limit} tokens dropped")
    run.metrics({"train_answers": len(train), "answers_too_long": too_long})
    run.metrics({"eval_answers_too_long": held_out_too_long})
    return train, held_out


def report_ilql(run: Run, trainer: ILQLTrainer) -> None:
    """Report the last evaluation: the held-out answers, and the guided policy's own to their prompts."""
    metrics = trainer.evaluate()
    names = [*MEASURED, *sample_names(trainer.sampling)]
    run.metrics({name: metrics[f"eval_{name}"] for name in names})
    if run.main:
        run.say(trainer.table_of_samples())


if __name__ == "__main__":
    start(main, __doc__)
