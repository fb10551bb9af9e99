"""Policy-gradient training of a chat model on rewards. The key `algorithm` chooses one: PPO, TRPO, A2C, REINFORCE, RLOO,
GRPO, Dr. GRPO, DAPO or GSPO.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo/demo.yaml
    accelerate launch recipes/ppo.py --model_name_or_path runs/sft --reward_model_path runs/reward \\
        --dataset_name prompts.jsonl --output_dir runs/ppo

Time: about a minute for the demo on two cores. Look at: score against kl in plots/curves.png, and the table of samples at
the end: does a higher score read better? The algorithms: docs/algorithms.md. Every key: --help.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers import set_seed

from rlhf.algorithms import ALGORITHMS
from rlhf.data.answers import template_checks
from rlhf.data.chat import add_chat_template, text_pieces
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.hub.recording import recording
from rlhf.models.load import load_policy
from rlhf.models.logits import describe_logits
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.policy_gradient.checks import check_before_training, check_roles
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.memory import plan_memory
from rlhf.policy_gradient.roles import (
    Roles,
    RoleSettings,
    load_rewards,
    load_value_model,
)
from rlhf.policy_gradient.trainer import PolicyGradientTrainer
from rlhf.runs.precision import set_precision
from rlhf.runs.progress import sample_table, use_run_progress
from rlhf.runs.ranges import at_least
from rlhf.runs.record import read_jsonl
from rlhf.runs.run import Run, start
from rlhf.runs.settings import DataSettings, ModelSettings

TEXT_LENGTH = 512  # tokens of a piece of plain text at most
SHOWN = ("score", "kl", "completion_length", "eos_rate")  # compared before and after training


@dataclass
class PPOSettings(RoleSettings, DataSettings, ModelSettings):
    """The data, the models, and who plays which role."""

    ptx_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Plain text for PPO-ptx (ptx_coef): file or Hub id with a text column."},
    )
    eval_limit: int = field(default=256, metadata={"help": "Evaluation prompts at most."})

    RANGES: ClassVar[dict] = {"eval_limit": at_least(1)}


def main(settings: PPOSettings, args: PolicyGradientConfig) -> None:
    with recording("ppo", settings, args) as run:
        trainer = prepare(settings, args, run)
        evaluates = trainer.rollouts.eval_prompts is not None
        if evaluates and not args.resume_from_checkpoint:  # whose record has it
            before = trainer.evaluate()
            run.metrics({f"{name}_before": before[f"eval_{name}"] for name in SHOWN})
        run.train(trainer, trainer.save_model)
        run.best_checkpoint(trainer)
        episodes = args.episodes_after(trainer.state.global_step)
        run.metrics({"episodes": episodes, "algorithm": args.algorithm})
        if evaluates:
            after = trainer.evaluate()
            # The run's numbers are those of the evaluation at its end.
            run.metrics({name.removeprefix("eval_"): value for name, value in after.items()})
            show_samples(run, trainer.state.global_step)


def prepare(settings: PPOSettings, args: PolicyGradientConfig, run: Run) -> PolicyGradientTrainer:
    """Read and check all that the run needs, without a step of training. What needs no model comes first."""
    set_seed(args.seed)
    tokenizer = settings.load_tokenizer()
    add_chat_template(tokenizer)
    checks = template_checks(tokenizer)
    splits = load_splits(settings, ("prompt",), seed=args.seed, checks=checks)
    run.data(splits)
    texts = read_texts(settings, run)
    check_roles(settings, args, splits)
    roles = load_roles(settings, args, tokenizer, run)
    if note := describe_logits(roles.policy):
        run.say(note)
    text_length = min(context_length(roles.policy), TEXT_LENGTH)
    trainer = PolicyGradientTrainer(
        roles=roles,
        tokenizer=tokenizer,
        args=args,
        rows=splits.train,
        eval_rows=splits.eval[: settings.eval_limit] if splits.eval else None,
        texts=text_pieces(tokenizer, texts, text_length),
    )
    check_before_training(trainer)
    run.say(plan_memory(trainer))
    use_run_progress(trainer, args.output_dir)
    return trainer


def load_roles(settings: PPOSettings, args: PolicyGradientConfig, tokenizer, run: Run) -> Roles:
    """The policy, with LoRA if asked for, its rewards and its value model."""
    # In this order: LoRA goes over the fitted embeddings, a shared trunk's adapters over LoRA.
    policy = load_policy(settings.model_name_or_path, **settings.load_options())
    record_parents(settings, args, run)
    fit_embeddings(policy, tokenizer)
    policy = settings.with_lora(policy, task="CAUSAL_LM")
    row = args.prompt_limit(context_length(policy)) + args.max_completion_length
    set_precision(run, settings, policy, tokens=args.per_device_train_batch_size * row)
    rewards = load_rewards(settings, policy, tokenizer)
    value_model = None
    if ALGORITHMS[args.algorithm].needs_values:
        value_model = load_value_model(settings, policy, tokenizer)
    return Roles(policy, rewards, value_model)


def record_parents(settings: PPOSettings, args: PolicyGradientConfig, run: Run) -> None:
    """The models that the run starts from, for its record and its card."""
    run.parent("policy", settings.model_name_or_path, revision=settings.model_revision)
    for number, path in enumerate(settings.reward_model_path, start=1):
        role = "reward" if number == 1 else f"reward_{number}"
        run.parent(role, path)
    run.parent("watched_reward", settings.watch_reward_model_path)
    learns_values = ALGORITHMS[args.algorithm].needs_values
    if learns_values and settings.value_model not in ("reward_model", "shared"):
        run.parent("value", settings.value_model)


def read_texts(settings: PPOSettings, run: Run) -> list[dict]:
    """Rows of plain text for PPO-ptx, if the settings name some."""
    if not settings.ptx_dataset_name:
        return []
    loaded = load_rows(settings.ptx_dataset_name, kinds=("text",), skip_bad=settings.skip_bad)
    run.data(loaded)
    return loaded.rows


def show_samples(run: Run, step: int) -> None:
    """Print completions of the evaluation after an optimiser step."""
    if not run.main:
        return
    rows = read_jsonl(run.folder / "samples.jsonl")
    last = [row for row in rows if row["step"] == step]
    run.say(sample_table(last, columns=["prompt", "completion", "score", "kl"], limit=8))


if __name__ == "__main__":
    start(main, __doc__)
