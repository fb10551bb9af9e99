"""A few updates of TRL 1.12's PPOTrainer, in its own environment: python trl_worker.py JOB.json

Prints one line of JSON, the same as our_worker.py's. Its stop token is off, so that every completion has its full length.
The data set is longer than the run: in the last batch of a pass over the data TRL takes an optimiser step for every
micro-batch (tests/algorithms/test_parity_with_trl.py, 5).
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from clock import Clock, peak_memory_gb
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, set_seed
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.trl_side import count_steps, load_models, use_precision


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
    use_precision(bf16=job["settings"]["bf16"])
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
        models = load_models(folder / "policy", folder / "reward")
        trainer = PPOTrainer(
            args=args,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[EndOfUpdate(clock)],
            **models,
        )
        steps = count_steps(trainer)
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
