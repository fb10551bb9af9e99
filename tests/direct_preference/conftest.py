"""Trainers of DPO and KTO on a tiny model, whose rows they also evaluate on."""

import pytest
import torch

from rlhf.direct_preference.config import PairConfig, ThumbConfig
from rlhf.direct_preference.dpo import RankingDPOTrainer
from rlhf.direct_preference.kto import ThumbKTOTrainer
from rlhf.direct_preference.rows import encode_pairs_of_rankings, encode_thumbs
from rlhf.direct_preference.trainer import Sampling, make_reference
from rlhf.models.lora import add_lora

DEFAULTS = dict(
    per_device_train_batch_size=4, per_device_eval_batch_size=4, num_train_epochs=2, report_to="none", use_cpu=True,
    disable_tqdm=True, logging_steps=1, save_strategy="no", seed=1, learning_rate=3e-3, bf16=False,
    gradient_checkpointing=False,
)  # fmt: skip


def rankings(count=12):
    """More c's are better; two of the three answers of every third prompt tie."""
    rows = []
    for i in range(count):
        prompt = "abdefgh"[i % 7] + " " + "abdefgh"[i // 7]
        ranks = [0, 1, 1 if i % 3 == 0 else 2]
        rows.append({"prompt": prompt, "completions": ["c c c", "c d c", "d d c"], "ranks": ranks})
    return rows


def thumbs(count=12):
    """An answer is good if it begins with c."""
    rows = []
    for i in range(count):
        prompt = "abdefgh"[i % 7] + " " + "abdefgh"[i // 7]
        rows.append({"prompt": prompt, "completion": "c c c", "label": True})
        rows.append({"prompt": prompt, "completion": "d d", "label": False})
    return rows


@pytest.fixture(scope="session")
def ranking_rows():
    return rankings


@pytest.fixture(scope="session")
def thumb_rows():
    return thumbs


@pytest.fixture
def make(tokenizer, make_policy, tmp_path):
    """f(folder, kind, lora, rows, ref_model, policy, **settings) -> a trainer. kind: "dpo" or "kto"."""

    def make(
        folder="run", kind="dpo", *, lora=False, rows=None, ref_model=None, policy=None, **settings
    ):
        policy = policy or make_policy(tokenizer, factor=2.0)
        if lora:
            torch.manual_seed(2)
            policy = add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4)
        if kind == "dpo":
            config, trainer = PairConfig, RankingDPOTrainer
            encoded, _ = encode_pairs_of_rankings(tokenizer, rows or rankings(), max_length=40)
        else:
            config, trainer = ThumbConfig, ThumbKTOTrainer
            encoded, _ = encode_thumbs(tokenizer, rows or thumbs(), max_length=40, seed=0)
        args = config(output_dir=str(tmp_path / folder), **DEFAULTS | settings)
        return trainer(
            model=policy,
            ref_model=make_reference(policy, ref_model, args),
            tokenizer=tokenizer,
            args=args,
            train_rows=encoded,
            eval_rows=encoded,
            sampling=Sampling([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "d"}], 4),
        )

    return make
