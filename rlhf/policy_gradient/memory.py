"""The memory of a policy-gradient run before it starts: the table, and how many completions are sampled at a time."""

from rlhf.models.actor_critic import CHUNK
from rlhf.models.memory import Memory, estimate_memory, free_memory


def plan_memory(trainer) -> str:
    """Choose per_device_sampling_batch_size if it is unset. Returns the table, and a warning if the run does not fit.

    trainer: a PolicyGradientTrainer. What is sampled does not depend on the choice.
    """
    args = trainer.args
    free = free_memory(args.device)
    memory = estimate_run_memory(trainer)
    if args.per_device_sampling_batch_size is None:
        most = memory.sampling_batch
        args.per_device_sampling_batch_size = memory.fitting_sampling_batch(free, most=most)
        memory = estimate_run_memory(trainer)
    lines = [memory.table()]
    share = rows_per_process(trainer)
    if memory.sampling_batch < share:
        lines.append(
            f"memory: {memory.sampling_batch} of {share} completions are sampled at a time"
        )
    if warning := memory.warning(free):
        lines.append(warning)
    return "\n".join(lines)


def rows_per_process(trainer) -> int:
    """Most completions that one process samples for a rollout or an evaluation."""
    args, rollouts = trainer.args, trainer.rollouts
    most = args.rollout_batch_size
    if rollouts.eval_prompts is not None:
        most = max(most, len(rollouts.eval_prompts.ids))
    return -(-most // args.world_size)  # rounded up


def estimate_run_memory(trainer) -> Memory:
    """The memory that the run of a PolicyGradientTrainer will take, before it starts."""
    args, roles, rollouts = trainer.args, trainer.roles, trainer.rollouts
    model = trainer.accelerator.unwrap_model(trainer.model)
    models = {
        "policy": model.policy,
        "value model": model.value_head or model.value_model,
        "reference": roles.ref_model,
    }
    at_a_time = share = rows_per_process(trainer)
    if args.per_device_sampling_batch_size is not None:
        at_a_time = min(args.per_device_sampling_batch_size, share)
    texts, text_length = 0, 0
    if trainer.texts:  # PPO-ptx
        texts = args.per_device_train_batch_size * args.ptx_per_episode
        text_length = max(map(len, trainer.texts))
    return estimate_memory(
        models | roles.reward_models(),
        trainable=[p for p in model.parameters() if p.requires_grad],
        ema=args.ema_decay is not None,
        micro_batch=args.per_device_train_batch_size,
        rollout_batch=at_a_time,
        prompt_length=rollouts.prompts.longest,
        completion_length=args.max_completion_length,
        chunk=CHUNK,
        computes_in_16_bit=args.bf16 or args.fp16,
        texts=texts,
        text_length=text_length,
        checkpointing=args.gradient_checkpointing,
    )
