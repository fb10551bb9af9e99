"""TRL 1.12's PPOTrainer as the benchmarks run it, in its own environment: its four models, and a count of its steps."""

import os
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

TRL = "1.12.0"


def use_precision(*, bf16: bool) -> None:
    """As `accelerate launch --mixed_precision bf16` does: PPOConfig's own bf16 has no effect. Call before PPOConfig."""
    assert version("trl") == TRL, f"this environment holds trl {version('trl')}, not {TRL}"
    if bf16:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"


def load_models(policy: str | Path, reward: str | Path) -> dict:
    """Policy, reference, reward model and value model, under the names of PPOTrainer's arguments, in fp32."""

    def causal():
        return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)

    def scoring():
        return AutoModelForSequenceClassification.from_pretrained(
            reward, num_labels=1, dtype=torch.float32
        )

    models = {"reward_model": scoring(), "value_model": scoring()}
    models |= {"model": causal(), "ref_model": causal()}
    assert models["model"].generation_config.use_cache is not False
    return models


def count_steps(trainer) -> list:
    """Check the precision, take all cores, and return a list that gets an entry at each optimiser step."""
    mixed_precision = "bf16" if trainer.args.bf16 else "no"
    assert trainer.accelerator.mixed_precision == mixed_precision
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as our recipes do
    optimizer = trainer.optimizer.optimizer
    steps, step = [], optimizer.step

    def counted_step(*args, **kwargs):
        steps.append(1)
        return step(*args, **kwargs)

    optimizer.step = counted_step
    return steps
