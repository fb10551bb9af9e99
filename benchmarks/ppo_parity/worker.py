"""One update of TRL 1.12's PPOTrainer, watched from outside; prints one line of JSON. Runs in the TRL environment.

No line of TRL is copied or changed: three functions it calls are wrapped, and the local variables of its training loop are
read from the frame that called them.
"""

import copy
import json
import math
import sys
import tempfile
from importlib.metadata import version

import numpy
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

SEED = 23  # gives completions that end early, at the very last token, and not at all; checked below
VOCABULARY = ["<eos>", "<pad>", *"abcdefghij"]
EOS, PAD = 0, 1
BATCH, MICRO, MINI_BATCHES, EPOCHS, LENGTH = 12, 3, 2, 2, 8
SETTINGS = dict(
    kl_coef=0.1, gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, whiten_rewards=False,
    missing_eos_penalty=1.0, temperature=0.7, kl_estimator="k1", num_ppo_epochs=EPOCHS, num_mini_batches=MINI_BATCHES,
    response_length=LENGTH, learning_rate=0.02,
)  # fmt: skip


def tiny(cls, seed: int, **options):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=EOS, pad_token_id=PAD,
        bos_token_id=EOS, initializer_range=0.2, **options,
    )  # fmt: skip
    return cls(config)


@torch.no_grad()
def never_say(model: GPT2LMHeadModel, token: int) -> None:
    """One hidden unit is made the constant 10 and only `token` reads it, with weight -100: its probability is 0."""
    norm, words = model.transformer.ln_f, model.lm_head.weight
    norm.weight[0], norm.bias[0] = 0.0, 10.0
    words[:, 0] = 0.0
    words[token, 0] = -100.0


def update(rows: int, seed: int) -> dict:
    """One update on `rows` prompts, of which a batch is drawn; what was seen of it."""
    inner = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}, unk_token="a")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (rows,), generator=generator).tolist()
    prompts = [
        torch.randint(2, len(VOCABULARY), (length,), generator=generator).tolist()
        for length in lengths
    ]
    policy = tiny(GPT2LMHeadModel, seed)
    never_say(policy, PAD)
    reference = copy.deepcopy(policy)
    with torch.no_grad():  # a policy that has moved, so that the KL is not 0
        for parameter in reference.transformer.h.parameters():
            parameter.mul_(0.9)
    reward = tiny(GPT2ForSequenceClassification, seed + 1, num_labels=1)
    value = tiny(GPT2ForSequenceClassification, seed + 2, num_labels=1)
    seen = {"micro_batches": [], "raw_scores": [], "reference_logits": []}

    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder, total_episodes=BATCH, per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO, local_rollout_forward_batch_size=BATCH, stop_token="eos",
            num_sample_generations=0, report_to="none", bf16=False, use_cpu=True, gradient_checkpointing=False,
            save_strategy="no", disable_tqdm=True, logging_steps=1, seed=seed, **SETTINGS,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
            value_model=value, train_dataset=Dataset.from_dict({"input_ids": prompts}),
        )  # fmt: skip
        watch(trainer, reward, reference, seen)
        numpy.random.seed(seed)  # of its mini-batches, which args.seed does not reach
        trainer.train()
    return seen


def watch(trainer, reward, reference, seen: dict) -> None:
    whiten, forward, get_reward = ORIGINAL
    backward, log = trainer.accelerator.backward, trainer.log

    def watched_whiten(values, mask, *args, **kwargs):
        caller, result = sys._getframe(1).f_locals, whiten(values, mask, *args, **kwargs)
        names = {
            "query_ids": "queries", "response_ids": "responses", "logprobs": "logprobs", "ref_logprobs": "ref_logprobs",
            "values": "values", "scores": "scores", "contains_eos": "contain_eos_token", "kl": "kl",
            "padding_mask": "padding_mask", "padding_mask_p1": "padding_mask_p1", "rewards": "rewards",
            "returns": "returns",
        }  # fmt: skip
        seen["rollout"] = {ours: caller[theirs].tolist() for ours, theirs in names.items()}
        seen["rollout"] |= {
            "response_lengths": (caller["sequence_lengths"] + 1).tolist(),
            "advantages_before_whitening": values.tolist(),
            "advantages": result.masked_fill(~mask, 0.0).tolist(),
        }
        return result

    def watched_forward(model, *args, **kwargs):
        output = forward(model, *args, **kwargs)
        if model is reference:
            seen["reference_logits"] = output.logits[
                0, -LENGTH - 1 : -1
            ].tolist()  # first row, untempered
        return output

    def watched_reward(model, *args, **kwargs):
        result = get_reward(model, *args, **kwargs)
        if model is reward:
            seen["raw_scores"] = result[1].tolist()
        return result

    def watched_backward(loss, **kwargs):
        caller = sys._getframe(1).f_locals
        seen["micro_batches"].append(
            {
                "epoch": caller["ppo_epoch_idx"],
                "mini_batch": caller["minibatch_idx"],
                "optimizer_steps": bool(trainer.accelerator.sync_gradients),
                "rows": caller["micro_batch_inds"].tolist(),
                "new_logprobs": caller["new_logprobs"].tolist(),
                "new_values": caller["vpred"].tolist(),
                "policy_losses": caller["pg_loss_max"].tolist(),
                "squared_errors": caller["vf_losses1"].tolist(),
                "squared_errors_clipped": caller["vf_loss_max"].tolist(),
                "pg_loss": caller["pg_loss"].item(),
                "vf_loss": caller["vf_loss"].item(),
                "loss": loss.item(),
            }
        )
        return backward(loss, **kwargs)

    ppo_trainer.masked_whiten, ppo_trainer.forward, ppo_trainer.get_reward = (
        watched_whiten, watched_forward, watched_reward,
    )  # fmt: skip
    trainer.accelerator.backward = watched_backward

    def watched_log(logs, *args, **kwargs):
        seen["metrics"] = {key: value for key, value in logs.items() if "/" in key}
        return log(logs, *args, **kwargs)

    trainer.log = watched_log


ORIGINAL = ppo_trainer.masked_whiten, ppo_trainer.forward, ppo_trainer.get_reward


def check(seen: dict) -> None:
    """The recorded rollout must hold the cases that the comparison is about."""
    rollout = seen["rollout"]
    rows = list(zip(rollout["response_lengths"], rollout["contains_eos"], strict=True))
    assert any(length < LENGTH and eos for length, eos in rows), rows
    assert any(length == LENGTH and eos for length, eos in rows), rows
    assert any(not eos for _, eos in rows), rows
    ratios, moves = [], []
    for batch in seen["micro_batches"]:
        for place, row in enumerate(batch["rows"]):
            for t in range(rollout["response_lengths"][row]):
                ratios.append(
                    math.exp(batch["new_logprobs"][place][t] - rollout["logprobs"][row][t])
                )
                moves.append(abs(batch["new_values"][place][t] - rollout["values"][row][t]))
    assert min(ratios) < 0.8 and max(ratios) > 1.2 and max(moves) > 0.2, (
        min(ratios),
        max(ratios),
        max(moves),
    )


def main() -> None:
    seen = update(rows=4 * BATCH, seed=SEED)
    check(seen)
    last = update(rows=BATCH, seed=SEED)  # the batch is the last one of the data set
    names = ("python", "trl", "torch", "transformers", "accelerate")
    versions = {
        name: version(name) if name != "python" else sys.version.split()[0] for name in names
    }
    result = {
        "versions": versions, "seed": SEED, "eos_token_id": EOS, "pad_token_id": PAD, "settings": SETTINGS,
        "batch": {"batch": BATCH, "micro_batch": MICRO, "gradient_accumulation_steps": BATCH // MICRO},
        "optimizer_steps_when_the_data_ends": [batch["optimizer_steps"] for batch in last["micro_batches"]],
        "metrics": seen["metrics"], "raw_scores": seen["raw_scores"], "reference_logits": seen["reference_logits"],
        "rollout": seen["rollout"], "micro_batches": seen["micro_batches"],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
