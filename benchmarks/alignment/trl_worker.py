"""TRL 1.12's PPOTrainer, in its own environment: python trl_worker.py JOB.json

Its loader is replaced by one that does not shuffle, since the job's prompts come in the order that our PPO takes them in.
JOB.json: `settings` of PPOConfig, `policy` and `reward` (folders), `prompt_ids`, `output` (folder for the trained policy).
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main(job: dict) -> None:
    output = Path(job["output"])
    if job["settings"]["bf16"]:
        # As `accelerate launch --mixed_precision bf16` does: PPOConfig's own key has no effect.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    args = PPOConfig(
        output_dir=str(output.with_name(f"{output.name}_trainer")),
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        **job["settings"],
    )
    # As TRL's script does it, before the models are made.
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            job["reward"], num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32) for _ in range(2)
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": job["prompt_ids"]}),
    )
    # Without the shuffling of TRL's own.
    loader = DataLoader(
        trainer.train_dataset, batch_size=args.local_batch_size, collate_fn=trainer.data_collator
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)
    assert trainer.accelerator.mixed_precision == ("bf16" if args.bf16 else "no")
    assert trainer.optimizer.optimizer.defaults["eps"] == args.adam_epsilon
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as our recipes do
    trainer.train()
    tokenizer.save_pretrained(output)
    policy.save_pretrained(output)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
