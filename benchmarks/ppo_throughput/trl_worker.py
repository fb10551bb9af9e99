"""A few updates of TRL 1.12's PPOTrainer, in its own environment: python trl_worker.py JOB.json

Prints one line of JSON, the same as our_worker.py's. Its stop token is off, so that every completion has its full length.
The data set is longer than the run: in the last batch of a pass over the data TRL takes an optimiser step for every
micro-batch (tests/algorithms/test_parity_with_trl.py, 5).
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from clock import Clock, peak_memory_gb
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class EndOfUpdate(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.begin()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.next_update()


def watch(clock: Clock, shape: dict) -> None:
    """Decoding is `batch_generation`; scoring is all between it and the whitening of the advantages."""
    generation, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten
    decoded = 0.0

    def timed_generation(*args, **kwargs):
        nonlocal decoded
        with clock.phase("decode"):
            result = generation(*args, **kwargs)
        decoded = time.perf_counter()
        return result

    def timed_whiten(values, mask, *args, **kwargs):
        assert mask.all() and mask.shape[1] == shape["completion"], (
            "a completion ended before its last token"
        )
        clock.add("score", time.perf_counter() - decoded)
        return whiten(values, mask, *args, **kwargs)

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = timed_generation, timed_whiten


def main(job: dict) -> None:
    imports, shape, folder = peak_memory_gb(), job["shape"], Path(job["folder"])
    prompts = json.loads((folder / "prompts.json").read_text())["ids"]
    if job["settings"][
        "bf16"
    ]:  # as `accelerate launch --mixed_precision bf16` does: PPOConfig's own bf16 has no effect
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    clock = Clock()
    watch(clock, shape)
    with tempfile.TemporaryDirectory() as output:
        args = PPOConfig(
            output_dir=output,
            total_episodes=shape["episodes"] * (1 + job["updates"]),
            per_device_train_batch_size=shape["micro_batch"],
            gradient_accumulation_steps=shape["episodes"] // shape["micro_batch"],
            num_mini_batches=1,
            num_ppo_epochs=shape["epochs"],
            response_length=shape["completion"],
            stop_token=None,
            num_sample_generations=0,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            report_to="none",
            **job["settings"],
        )
        set_seed(args.seed)
        tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
        reward, value = (
            AutoModelForSequenceClassification.from_pretrained(
                folder / "reward", num_labels=1, dtype=torch.float32
            )
            for _ in range(2)
        )
        policy, reference = (
            AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
            for _ in range(2)
        )
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[EndOfUpdate(clock)],
        )
        steps, step = [], trainer.optimizer.optimizer.step

        def counted_step(*args, **kwargs):
            steps.append(1)
            return step(*args, **kwargs)

        trainer.optimizer.optimizer.step = counted_step
        assert trainer.accelerator.mixed_precision == ("bf16" if args.bf16 else "no")
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # as our recipes do
        trainer.train()
    names = ("trl", "torch", "transformers", "accelerate", "datasets")
    result = {
        "updates": clock.updates,
        "optimizer_steps": len(steps),
        "threads": torch.get_num_threads(),
        "memory_gb": peak_memory_gb(),
        "memory_of_imports_gb": imports,
        "versions": {name: version(name) for name in names},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
