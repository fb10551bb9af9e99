"""TRL 1.12's PPOTrainer, in its own environment: python trl_worker.py JOB.json

Its loader is replaced by one that does not shuffle, since the job's prompts come in the order that our PPO takes them in.
JOB.json: `settings` of PPOConfig, `policy` and `reward` (folders), `prompt_ids`, `output` (folder for the trained policy).
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.trl_side import count_steps, load_models, use_precision


def main(job: dict) -> None:
    output = Path(job["output"])
    use_precision(bf16=job["settings"]["bf16"])
    args = PPOConfig(
        output_dir=str(output.with_name(f"{output.name}_trainer")),
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        **job["settings"],
    )
    # As TRL's script does it, before the models are made.
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    models = load_models(job["policy"], job["reward"])
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": job["prompt_ids"]}),
        **models,
    )
    # Without the shuffling of TRL's own.
    loader = DataLoader(
        trainer.train_dataset, batch_size=args.local_batch_size, collate_fn=trainer.data_collator
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)
    assert trainer.optimizer.optimizer.defaults["eps"] == args.adam_epsilon
    steps = count_steps(trainer)
    trainer.train()
    updates = args.total_episodes // args.per_device_train_batch_size
    assert len(steps) == updates * args.num_ppo_epochs * args.num_mini_batches, len(steps)
    tokenizer.save_pretrained(output)
    models["model"].save_pretrained(output)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
