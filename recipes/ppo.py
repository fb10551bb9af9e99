"""Policy-gradient training of a chat model on rewards. The key `algorithm` chooses one: PPO, TRPO, A2C, REINFORCE, RLOO,
GRPO, Dr. GRPO, DAPO or GSPO.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo/demo.yaml
    accelerate launch recipes/ppo.py --model_name_or_path runs/sft --reward_model_path runs/reward \\
        --dataset_name prompts.jsonl --output_dir runs/ppo

Time: about a minute for the demo on two cores. Look at: score against kl in plots/curves.png, and the table of samples at
the end: does a higher score read better? The algorithms: docs/algorithms.md. Every key: --help.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from rlhf.algorithms import ALGORITHMS
from rlhf.data.chat import add_chat_template, encode_example
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.logits import describe_logits
from rlhf.models.memory import free_memory
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.roles import (
    Roles,
    RoleSettings,
    estimate_run_memory,
    load_rewards,
    load_value_model,
)
from rlhf.policy_gradient.trainer import PolicyGradientTrainer
from rlhf.runs.progress import sample_table, use_run_progress
from rlhf.runs.record import read_jsonl
from rlhf.runs.run import recording, start
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


def main(settings: PPOSettings, args: PolicyGradientConfig) -> None:
    with recording("ppo", settings, args) as run:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        roles = load_roles(settings, args, tokenizer, run)
        if note := describe_logits(roles.policy):
            run.say(note)
        splits = load_splits(settings, ("prompt",), seed=args.seed)
        run.data(splits)
        text_length = min(context_length(roles.policy), TEXT_LENGTH)
        trainer = PolicyGradientTrainer(
            roles=roles,
            tokenizer=tokenizer,
            args=args,
            rows=splits.train,
            eval_rows=splits.eval[: settings.eval_limit] if splits.eval else None,
            texts=load_texts(settings, tokenizer, run, limit=text_length),
        )
        memory = estimate_run_memory(trainer)
        run.say(memory.table())
        if warning := memory.warning(free_memory(args.device)):
            run.say(warning)
        use_run_progress(trainer, args.output_dir)
        before = {}  # a resumed run has begun elsewhere
        if splits.eval and not args.resume_from_checkpoint:
            before = trainer.evaluate()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        run.metrics({"episodes": args.total_episodes, "algorithm": args.algorithm})
        if splits.eval:
            after = trainer.evaluate()
            run.metrics({f"{name}_before": before[f"eval_{name}"] for name in SHOWN if before})
            # The run's numbers are those of the evaluation at its end.
            run.metrics({name.removeprefix("eval_"): value for name, value in after.items()})
        trainer.save_model()
        if run.main and splits.eval:
            rows = read_jsonl(run.folder / "samples.jsonl")
            last = [row for row in rows if row["step"] == trainer.state.global_step]
            run.say(sample_table(last, columns=["prompt", "completion", "score", "kl"], limit=8))


def load_roles(settings: PPOSettings, args: PolicyGradientConfig, tokenizer, run) -> Roles:
    """The policy, with LoRA if asked for, its rewards and its value model."""
    # In this order: LoRA goes over the fitted embeddings, a shared trunk's adapters over LoRA.
    policy = load_policy(
        settings.model_name_or_path, revision=settings.model_revision, dtype=settings.dtype
    )
    run.parent("policy", settings.model_name_or_path)
    add_chat_template(tokenizer)
    fit_embeddings(policy, tokenizer)
    policy = settings.with_lora(policy, task="CAUSAL_LM")
    for path in settings.reward_model_path:  # for the model card
        run.parent("reward", path)
    rewards = load_rewards(settings, policy, tokenizer)
    value_model = None
    if ALGORITHMS[args.algorithm].needs_values:
        value_model = load_value_model(settings, policy, tokenizer)
    return Roles(policy, rewards, value_model)


def load_texts(settings: PPOSettings, tokenizer, run, *, limit: int) -> list[list[int]]:
    """Plain text as token ids, in pieces of at most `limit`, each at least two long: one to read and one to predict."""
    if not settings.ptx_dataset_name:
        return []
    loaded = load_rows(settings.ptx_dataset_name, kinds=("text",), skip_bad=settings.skip_bad)
    run.data(loaded)
    pieces = []
    for row in loaded.rows:
        ids, _ = encode_example(tokenizer, row)
        for i in range(0, len(ids) - 1, limit):  # a last token alone has nothing to predict
            pieces.append(ids[i : i + limit])
    return pieces


if __name__ == "__main__":
    start(main, __doc__)
