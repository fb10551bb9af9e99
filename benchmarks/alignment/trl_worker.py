"""TRL 1.12's PPOTrainer, in its own environment: python trl_worker.py JOB.json

Two things are not as its script has them. Its loader is replaced by one that does not shuffle, since the job's prompts come
in the order that ours takes them in. And a batch is one micro-batch of 64 cut into 2 mini-batches of 32, without
accumulation: with accumulation it could not step more than once per epoch, as it steps after gradient_accumulation_steps
micro-batches whatever num_mini_batches says (tests/algorithms/test_parity_with_trl.py, 5).
"""

import json
import os
import sys
import time
from importlib.metadata import version
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
    # As `accelerate launch --mixed_precision bf16` does: PPOConfig's own bf16 has no effect.
    if job["settings"]["bf16"]:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as our recipes do
    folder = Path(job["folder"])
    args = PPOConfig(
        output_dir=str(folder / "trainer"),
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        **job["settings"],
    )
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    policy, reference = (load(AutoModelForCausalLM, job["policy"]) for _ in range(2))
    reward, value = (
        load(AutoModelForSequenceClassification, job["reward"], num_labels=1) for _ in range(2)
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
    loader = DataLoader(
        trainer.train_dataset, batch_size=args.local_batch_size, collate_fn=trainer.data_collator
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)
    assert trainer.accelerator.mixed_precision == ("bf16" if args.bf16 else "no")
    assert trainer.optimizer.optimizer.defaults["eps"] == args.adam_epsilon
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    names = ("trl", "torch", "transformers", "accelerate", "datasets")
    result = {"seconds": seconds, "versions": {name: version(name) for name in names}}
    (folder / "result.json").write_text(json.dumps(result))


def load(auto_class, path: str, **keys):
    return auto_class.from_pretrained(path, dtype=torch.float32, **keys)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
