"""A few updates of PolicyGradientTrainer, built as recipes/ppo.py builds it: python our_worker.py JOB.json

Prints one line of JSON: seconds per update and phase, peak memory.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from clock import Clock, peak_memory_gb
from transformers import TrainerCallback, set_seed

import rlhf.completions.batches
import rlhf.policy_gradient.rollouts
from rlhf.completions.score import WeightedSum, load_scorers
from rlhf.data.chat import add_chat_template
from rlhf.models.actor_critic import ValueHead
from rlhf.models.load import load_policy, load_reward_model, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.parts import fit_embeddings
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.roles import Roles
from rlhf.policy_gradient.trainer import PolicyGradientTrainer
from rlhf.runs.processes import keep_freed_memory, use_all_cores
from rlhf.runs.record import package_versions


class EndOfUpdate(TrainerCallback):
    def __init__(self, clock: Clock, steps: int):
        self.clock, self.steps = clock, steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.clock.next_update()


def watch(clock: Clock) -> None:
    """Decoding is `decode`; scoring is all else in `collect`: reward, log-probs, values, reference."""
    decode, collect = rlhf.completions.batches.decode, rlhf.policy_gradient.rollouts.collect

    def timed_decode(*args, **kwargs):
        with clock.phase("decode"):
            return decode(*args, **kwargs)

    def timed_collect(*args, **kwargs):
        before = clock.phases.get("decode", 0.0)
        with clock.phase("score"):
            rollout = collect(*args, **kwargs)
        clock.add("score", before - clock.phases["decode"])
        width = rollout.mask.shape[1]
        assert rollout.mask.all() and not rollout.ended.any(), (
            f"a completion ended before its {width} tokens"
        )
        return rollout

    rlhf.completions.batches.decode, rlhf.policy_gradient.rollouts.collect = (
        timed_decode,
        timed_collect,
    )


def main(job: dict) -> None:
    imports, shape, folder = peak_memory_gb(), job["shape"], Path(job["folder"])
    keep_freed_memory()
    threads = use_all_cores(1)
    prompts = json.loads((folder / "prompts.json").read_text())
    lora = job["settings"].pop("lora", False)
    clock = Clock()
    watch(clock)
    with tempfile.TemporaryDirectory() as output:
        args = PolicyGradientConfig(
            output_dir=output,
            total_episodes=shape["episodes"] * (1 + job["updates"]),
            rollout_batch_size=shape["episodes"],
            epochs_per_rollout=shape["epochs"],
            per_device_train_batch_size=shape["micro_batch"],
            gradient_accumulation_steps=shape["episodes"] // shape["micro_batch"],
            max_prompt_length=shape["prompt"],
            max_completion_length=shape["completion"],
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            **job["settings"],
        )
        set_seed(args.seed)
        tokenizer = load_tokenizer(str(folder / "policy"))
        policy = load_policy(str(folder / "policy"))
        add_chat_template(tokenizer)
        fit_embeddings(policy, tokenizer)
        if lora:
            policy = add_lora(policy, task="CAUSAL_LM", rank=16, alpha=32)
        scorers = load_scorers([str(folder / "reward")], [])
        if job["value_model"] == "shared":
            value_model = ValueHead(policy.config.hidden_size)
        else:
            value_model = load_reward_model(str(folder / "reward"))
        trainer = PolicyGradientTrainer(
            roles=Roles(policy, WeightedSum(scorers), value_model),
            tokenizer=tokenizer,
            args=args,
            rows=prompts["rows"],
            callbacks=[EndOfUpdate(clock, args.steps_per_rollout)],
        )
        trainer.train()
    result = {
        "updates": clock.updates,
        "optimizer_steps": trainer.state.global_step,
        "threads": threads,
        "memory_gb": peak_memory_gb(),
        "memory_of_imports_gb": imports,
        "versions": package_versions(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
