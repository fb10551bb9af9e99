"""Policy-gradient training of a chat model on rewards: REINFORCE, A2C, TRPO, PPO, RLOO or GRPO, by the key `algorithm`.

    accelerate launch recipes/ppo.py --config recipes/configs/ppo/demo.yaml
    accelerate launch recipes/ppo.py --model_name_or_path runs/sft --reward_model_path runs/reward \\
        --dataset_name prompts.jsonl --output_dir runs/ppo

Time: about a minute for the demo on two cores. Look at: score against kl in plots/curves.png, and the table of samples at
the end: does a higher score read better? What every key means: docs/algorithms.md.
"""

from dataclasses import dataclass, field

from transformers import set_seed

from rlhf.algorithms import ALGORITHMS
from rlhf.completions.score import RewardModelScorer, WeightedSum, load_scorers
from rlhf.data.chat import add_chat_template, encode_example, same_encoding
from rlhf.data.load import load_rows
from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_policy, load_reward_model, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.memory import free_memory
from rlhf.models.one_trunk import add_adapter_model
from rlhf.models.parts import context_length, fit_embeddings
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.trainer import PolicyGradientTrainer
from rlhf.runs.progress import sample_table, use_run_progress
from rlhf.runs.record import read_jsonl
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings


@dataclass
class PPOSettings(DataSettings, ModelSettings):
    """What is rewarded, and who estimates the value."""

    reward_model_path: list[str] = field(
        default_factory=list, metadata={"help": "Reward models, one or several."}
    )
    reward_functions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Python rewards as module:function, for example recipes.rewards:slot_coverage."
        },
    )
    reward_weights: list[float] = field(
        default_factory=list, metadata={"help": "One each, models first. Default: 1."}
    )
    value_model: str = field(
        default="reward_model",
        metadata={
            "help": "reward_model: a copy of the first one (InstructGPT); shared: a head on the policy; or a path."
        },
    )
    share_trunk: bool = field(
        default=False,
        metadata={
            "help": "With use_peft: policy, value, reward and reference are adapters of one frozen model. The reward model "
            "must have been trained with use_peft from the policy's own SFT run."
        },
    )
    watch_reward_model_path: str | None = field(
        default=None,
        metadata={
            "help": "A held-out reward model, logged as score_watched, never trained on: does the gain carry over?"
        },
    )
    ptx_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Plain text for PPO-ptx (ptx_coef): file or Hub id with a text column."},
    )
    eval_limit: int = field(default=256, metadata={"help": "Evaluation prompts at most."})


def load_rewards(
    settings: PPOSettings, policy, tokenizer, *, value_model: bool
) -> tuple[WeightedSum, object]:
    """What is rewarded, and the value model: None, "shared" (the trainer makes its head), or a model."""
    if settings.share_trunk:
        check_trunk(settings, tokenizer)
        reward = add_adapter_model(policy, settings.reward_model_path[0], "reward", trainable=False)
        scorers = {
            "reward_model": RewardModelScorer(reward, tokenizer),
            **load_scorers([], settings.reward_functions),
        }
    else:
        scorers = load_scorers(settings.reward_model_path, settings.reward_functions)
    weights = list(settings.reward_weights) or [1.0] * len(scorers)
    if settings.watch_reward_model_path:
        scorers["watched"] = RewardModelScorer.load(settings.watch_reward_model_path)
        weights.append(0.0)
    critic = load_value_model(settings, policy, tokenizer) if value_model else None
    return WeightedSum(scorers, weights), critic


def check_trunk(settings: PPOSettings, tokenizer) -> None:
    if not settings.use_peft or len(settings.reward_model_path) != 1:
        raise UserError("share_trunk: true needs use_peft: true and exactly one reward_model_path")
    if not same_encoding(tokenizer, load_tokenizer(settings.reward_model_path[0])):
        raise UserError(
            f"share_trunk: {settings.reward_model_path[0]} has another vocabulary or template than the policy: they cannot "
            "share a trunk; leave share_trunk out, and the text is tokenised again for the reward model"
        )


def load_value_model(settings: PPOSettings, policy, tokenizer):
    if settings.value_model == "shared":
        return "shared"
    path = settings.value_model
    if path == "reward_model":
        if not settings.reward_model_path:
            raise UserError(
                "value_model: reward_model needs a reward_model_path; with functions alone use value_model: shared"
            )
        path = settings.reward_model_path[0]
    if settings.share_trunk:
        return add_adapter_model(policy, path, "value", trainable=True)
    if not same_encoding(tokenizer, load_tokenizer(path)):
        raise UserError(
            f"value model {path} has another tokenizer than the policy: use value_model: shared"
        )
    return load_reward_model(path, dtype=settings.dtype)


TEXT_LENGTH = 512  # tokens of a piece of plain text at most


def load_texts(settings: PPOSettings, tokenizer, run, *, limit: int) -> list[list[int]]:
    """Plain text as token ids, in pieces of at most `limit`, each at least two long: one to read and one to predict."""
    if not settings.ptx_dataset_name:
        return []
    loaded = load_rows(settings.ptx_dataset_name, kinds=("text",), skip_bad=settings.skip_bad)
    run.data(loaded)
    ids = [encode_example(tokenizer, row)[0] for row in loaded.rows]
    return [
        row[start : start + limit]
        for row in ids
        for start in range(0, len(row), limit)
        if len(row) > start + 1
    ]


def main(settings: PPOSettings, args: PolicyGradientConfig) -> None:
    with recording("ppo", settings, args) as run:
        set_seed(args.seed)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        policy = load_policy(
            settings.model_name_or_path, revision=settings.model_revision, dtype=settings.dtype
        )
        run.parent("policy", settings.model_name_or_path)
        add_chat_template(tokenizer)
        fit_embeddings(policy, tokenizer)
        if settings.use_peft:
            policy = add_lora(
                policy, task="CAUSAL_LM", rank=settings.lora_r, alpha=settings.lora_alpha
            )
        for path in settings.reward_model_path:
            run.parent("reward", path)
        rewards, value_model = load_rewards(
            settings, policy, tokenizer, value_model=ALGORITHMS[args.algorithm].value_model
        )

        splits = load_splits(settings, ("prompt",), seed=args.seed)
        run.data(splits)
        trainer = PolicyGradientTrainer(
            policy=policy,
            tokenizer=tokenizer,
            rewards=rewards,
            args=args,
            rows=splits.train,
            eval_rows=splits.eval[: settings.eval_limit] if splits.eval else None,
            value_model=value_model,
            texts=load_texts(
                settings, tokenizer, run, limit=min(context_length(policy), TEXT_LENGTH)
            ),
        )
        memory = trainer.memory()
        run.say(memory.table())
        if warning := memory.warning(free_memory(args.device)):
            run.say(warning)
        use_run_progress(trainer, args.output_dir)
        before = trainer.evaluate() if splits.eval and not args.resume_from_checkpoint else {}
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        run.metrics({"episodes": args.total_episodes, "algorithm": args.algorithm})
        if splits.eval:
            after = trainer.evaluate()
            shown = ("score", "kl", "completion_length", "eos_rate")
            run.metrics({f"{name}_before": before[f"eval_{name}"] for name in shown if before})
            run.metrics({name.removeprefix("eval_"): value for name, value in after.items()})
        trainer.save_model()
        if run.main and splits.eval:
            samples = [
                row
                for row in read_jsonl(run.folder / "samples.jsonl")
                if row["step"] == trainer.state.global_step
            ]
            run.say(sample_table(samples, columns=["prompt", "completion", "score", "kl"], limit=8))


if __name__ == "__main__":
    start(main, __doc__)
