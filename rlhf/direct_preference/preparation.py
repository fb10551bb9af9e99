"""The part that recipes/dpo.py and recipes/kto.py share: the trainer of a run, and the course of its training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from rlhf.data.encodings import EncodedRows
from rlhf.direct_preference.alarms import PairAlarms
from rlhf.direct_preference.roles import DirectRoles, DirectSettings, sampling_of
from rlhf.direct_preference.trainer import DirectTrainer
from rlhf.runs.progress import use_run_progress
from rlhf.runs.run import Run
from rlhf.runs.trl_trainer import score_learned_tokens_only


@dataclass
class Prepared:
    """The trainer of a run, and its tokenizer."""

    trainer: DirectTrainer
    tokenizer: PreTrainedTokenizerBase


def make_trainer(
    trainer_class: type[DirectTrainer],
    settings: DirectSettings,
    args,
    run: Run,
    *,
    roles: DirectRoles,
    rows: tuple[EncodedRows, EncodedRows],
    asked: Sequence[dict],
) -> Prepared:
    """The trainer with its progress bar and alarms.

    rows: training and held-out rows, encoded. asked: rows with the prompts that the policy answers at each evaluation.
    """
    if args.device.type == "cpu":
        score_learned_tokens_only()
    train_rows, eval_rows = rows
    trainer = trainer_class(
        model=roles.policy,
        ref_model=roles.ref_model,
        tokenizer=roles.tokenizer,
        args=args,
        train_rows=train_rows,
        eval_rows=eval_rows,
        sampling=sampling_of(settings, roles.tokenizer, asked, roles.context, run),
    )
    use_run_progress(trainer, args.output_dir)
    trainer.add_callback(PairAlarms())
    return Prepared(trainer, roles.tokenizer)


def train(run: Run, args, prepared: Prepared) -> None:
    """Measure the policy's own answers, train, save the model, and evaluate what was saved."""
    trainer = prepared.trainer
    if not args.resume_from_checkpoint:  # whose record has it
        before = trainer.evaluate()
        run.metrics({f"{name}_before": before[f"eval_{name}"] for name in trainer.sampled})
    run.train(trainer, partial(run.save_model, trainer, prepared.tokenizer))
    run.best_checkpoint(trainer)
    trainer.evaluate()
    run.metrics(trainer.sampled)
