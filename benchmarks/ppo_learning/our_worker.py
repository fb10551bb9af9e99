"""PolicyGradientTrainer, built as recipes/ppo.py builds it: python our_worker.py JOB.json"""

import json
import sys
from pathlib import Path

import torch
from snapshots import Snapshots
from transformers import set_seed

from rlhf.completions.score import WeightedSum, load_scorers
from rlhf.data.chat import add_chat_template
from rlhf.models.actor_critic import ValueHead
from rlhf.models.load import load_policy, load_reward_model, load_tokenizer
from rlhf.models.parts import fit_embeddings
from rlhf.policy_gradient.config import PolicyGradientConfig
from rlhf.policy_gradient.roles import Roles
from rlhf.policy_gradient.trainer import PolicyGradientTrainer
from rlhf.runs.processes import keep_freed_memory, use_all_cores
from rlhf.runs.record import package_versions


def main(job: dict) -> None:
    keep_freed_memory()
    use_all_cores(1)
    args = PolicyGradientConfig(
        output_dir=str(Path(job["folder"]) / "trainer"),
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        **job["settings"],
    )
    set_seed(args.seed)
    tokenizer = load_tokenizer(job["policy"])
    policy = load_policy(job["policy"])
    add_chat_template(tokenizer)
    fit_embeddings(policy, tokenizer)
    if job["value_model"] == "shared":
        value_model = ValueHead(policy.config.hidden_size)
    else:
        value_model = load_reward_model(job["reward"])
    snapshots = Snapshots(job, policy, steps=args.steps_per_rollout, score="score")
    trainer = PolicyGradientTrainer(
        roles=Roles(policy, WeightedSum(load_scorers([job["reward"]], [])), value_model),
        tokenizer=tokenizer,
        args=args,
        rows=job["rows"],
        callbacks=[snapshots],
    )
    trainer.train()
    snapshots.write(optimizer_steps=trainer.state.global_step, versions=package_versions())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
