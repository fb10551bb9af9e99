"""Our formulas against the numbers of TRL 1.12.0, the last release with PPO, on one rollout.

trl_1_12.json holds what `trl.experimental.ppo.PPOTrainer` computed in one update on tiny models: 12 completions of 1 to 8
tokens, some ended by EOS early, one with EOS as its very last token, two cut off; 2 epochs of 2 mini-batches of 2
micro-batches. It is written by benchmarks/ppo_parity/run.py. Equal to 1e-5: log-probs, the k1 penalty, the missing-EOS
penalty, GAE, returns, the policy loss and the value loss of every token, and the whole loss of a micro-batch.

Where we differ, each with its test:
 1. Score: ours on the last token, EOS included; TRL's one token later when the completion ended early (invariant 13).
 2. After the last token: our value is 0, as the episode is over; TRL asks the value model once more where the score was
    moved to, and trains it there. With that longer mask as ours all rewards, advantages and value losses agree; without it
    ours are TRL's + lambda^(L-1-t) (1 - lambda) (score - V_L). Nothing differs at lambda = 1 or at full length.
 3. Whitening divides by the variance over n, TRL by that over n - 1: ours = TRL's * sqrt(n / (n - 1)).
 4. Mini-batch loss: mean over all its tokens; TRL's is the mean of its micro-batches' means, so that a token of a short
    micro-batch weighs more (invariant 20).
 5. An optimiser step per mini-batch; TRL steps after gradient_accumulation_steps micro-batches whatever num_mini_batches
    says, and after every micro-batch in the last batch of each pass over the data.
 6. approx_kl is k3 over the tokens that count; TRL's is k2 over padding too.
 7. clip_fraction counts ratios outside the range; TRL's those whose clipped loss is the larger one.
 8. Logged averages: ours are means over what was seen; TRL's losses, approxkl, clipfrac, entropy and ratio are divided by
    num_mini_batches once more, as their table has that many times too many places, which stay 0.
 9. Temperature: TRL divides by temperature + 1e-7; no number moves by 1e-5.
Differences that no formula shows: masks come from lengths, TRL's from comparing ids with the pad token, so that pad == EOS
hides EOS from it; TRL's penalty asks for the tokenizer's EOS even when stop_token_id is another token; its whitening is per
process, its Adam epsilon 1e-8, gradients are never clipped, and old log-probs come from decoding, ours from the training
forward. Our value loss is unclipped by default, TRL's clipped at 0.2.
"""

import json
from pathlib import Path

import pytest
import torch

from rlhf.algorithms.advantages import gae
from rlhf.algorithms.kl import k1, k2, k3
from rlhf.algorithms.log_probs import token_log_probs
from rlhf.algorithms.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    token_ratio,
    value_loss,
)
from rlhf.algorithms.masking import masked_mean, masked_sum, standardize
from rlhf.algorithms.rewards import missing_eos_penalty, token_rewards
from rlhf.policy_gradient.config import PolicyGradientConfig

TRL = json.loads((Path(__file__).parent / "trl_1_12.json").read_text(encoding="utf-8"))
SET = TRL["settings"]
ROLLOUT = {name: torch.tensor(value) for name, value in TRL["rollout"].items()}
SCORES, LOG_PROBS, REFERENCE, VALUES = (
    ROLLOUT[name] for name in ("scores", "logprobs", "ref_logprobs", "values")
)
LENGTHS = ROLLOUT["response_lengths"]
WIDTH = SET["response_length"]
MASK = torch.arange(WIDTH) < LENGTHS.unsqueeze(1)  # (12, 8), ours: up to the last token
LONGER = (
    torch.arange(WIDTH) < LENGTHS.unsqueeze(1) + 1
)  # TRL's of rewards and values: one more where there is room
EARLY = LENGTHS < WIDTH  # rows where it is one more


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def our_rewards(mask):
    log_ratio = k1(LOG_PROBS - REFERENCE).masked_fill(~MASK, 0.0)
    return token_rewards(SCORES, log_ratio, mask, kl_coef=SET["kl_coef"])


def our_advantages(rewards, mask):
    return gae(rewards, VALUES, mask, gamma=SET["gamma"], gae_lambda=SET["lam"])


MICRO_BATCHES = [
    {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in batch.items()
    }
    for batch in TRL["micro_batches"]
]
LOGGED = SET["num_mini_batches"]  # what TRL's logged averages are too small by, see 8
each_micro_batch = pytest.mark.parametrize("batch", MICRO_BATCHES, ids=range(len(MICRO_BATCHES)))


def test_the_rollout_holds_every_kind_of_completion():
    ended = ROLLOUT["contains_eos"]
    assert (
        (ended & EARLY).any() and (ended & ~EARLY).any() and (~ended).any() and (LENGTHS == 1).any()
    )
    assert torch.equal(MASK, ~ROLLOUT["padding_mask"]) and torch.equal(
        LONGER, ~ROLLOUT["padding_mask_p1"]
    )
    last = ROLLOUT["response_ids"].gather(1, LENGTHS.unsqueeze(1) - 1).squeeze(1)
    assert torch.equal(last == TRL["eos_token_id"], ended)


# ---- equal -------------------------------------------------------------------------------------------------------


def test_log_probs_at_temperature_07():
    """Of the first row, from TRL's own logits; 9: its temperature is 1e-7 higher."""
    logits, ids = torch.tensor(TRL["reference_logits"]), ROLLOUT["response_ids"][0]
    found = token_log_probs(logits, ids, temperature=SET["temperature"])
    assert LENGTHS[0] == WIDTH
    close(found, REFERENCE[0])


def test_the_kl_of_a_token_is_k1_and_its_sum_the_logged_kl():
    kl = k1(LOG_PROBS - REFERENCE)
    close(kl[MASK], ROLLOUT["kl"][MASK])
    close(masked_sum(kl, MASK, 1).mean(), torch.tensor(TRL["metrics"]["objective/kl"]))


def test_a_completion_without_eos_loses_the_penalty():
    raw = torch.tensor(TRL["raw_scores"])
    close(
        missing_eos_penalty(raw, ROLLOUT["contains_eos"], penalty=SET["missing_eos_penalty"]),
        SCORES,
    )


def test_rewards_and_advantages_of_completions_of_full_length():
    """EOS as the last token that fits, or no EOS at all."""
    rewards = our_rewards(MASK)
    close(rewards[~EARLY], ROLLOUT["rewards"][~EARLY])
    close(our_advantages(rewards, MASK)[~EARLY], ROLLOUT["advantages_before_whitening"][~EARLY])


@each_micro_batch
def test_the_policy_loss_of_each_token_and_its_mean(batch):
    rows = batch["rows"]
    losses = clipped_surrogate_loss(
        token_ratio(batch["new_logprobs"], LOG_PROBS[rows]),
        ROLLOUT["advantages"][rows],
        clip_range=SET["cliprange"],
    )
    close(losses[MASK[rows]], batch["policy_losses"][MASK[rows]])
    close(masked_mean(losses, MASK[rows]), torch.tensor(batch["pg_loss"]))


@each_micro_batch
def test_the_value_loss_of_each_token_and_its_mean(batch):
    """TRL halves the mean, we halve each token; its mean goes over the longer mask, see 2."""
    rows, new = batch["rows"], batch["new_values"]
    returns = ROLLOUT["returns"][rows]
    close(value_loss(new, returns), 0.5 * batch["squared_errors"])
    losses = clipped_value_loss(new, VALUES[rows], returns, value_clip_range=SET["cliprange_value"])
    close(losses[LONGER[rows]], 0.5 * batch["squared_errors_clipped"][LONGER[rows]])
    close(masked_mean(losses, LONGER[rows]), torch.tensor(batch["vf_loss"]))
    close(
        torch.tensor(batch["pg_loss"] + SET["vf_coef"] * batch["vf_loss"]),
        torch.tensor(batch["loss"]),
    )


def test_the_micro_batches_hold_ratios_and_values_on_both_sides_of_the_clip_range():
    ratios = torch.cat(
        [(b["new_logprobs"] - LOG_PROBS[b["rows"]]).exp()[MASK[b["rows"]]] for b in MICRO_BATCHES]
    )
    moves = torch.cat(
        [(b["new_values"] - VALUES[b["rows"]]).abs()[MASK[b["rows"]]] for b in MICRO_BATCHES]
    )
    assert ratios.min() < 0.8 and ratios.max() > 1.2 and moves.min() < 0.2 < moves.max()
    first = MICRO_BATCHES[0]
    close(first["new_logprobs"], LOG_PROBS[first["rows"]])  # before the first step the ratio is 1


# ---- different on purpose ----------------------------------------------------------------------------------------


def test_1_the_score_stands_on_the_last_token_and_not_one_later():
    ours, theirs = our_rewards(MASK), ROLLOUT["rewards"]
    for row in torch.nonzero(EARLY).squeeze(1).tolist():
        last = int(LENGTHS[row]) - 1
        close(ours[row, :last], theirs[row, :last])
        close(ours[row, last], theirs[row, last] + SCORES[row])
        close(theirs[row, last + 1], SCORES[row])
        close(ours[row].sum(), theirs[row].sum())
    close(our_rewards(LONGER), theirs)


def test_2_no_value_after_the_last_token():
    """delta_{L-1} and delta_L of TRL, r + V_L - V_{L-1} and score - V_L, are one in ours: r + score - V_{L-1}."""
    theirs = ROLLOUT["advantages_before_whitening"]
    close(our_advantages(our_rewards(LONGER), LONGER), theirs)
    close(ROLLOUT["returns"], theirs + VALUES)
    ours = our_advantages(our_rewards(MASK), MASK)
    for row in torch.nonzero(EARLY).squeeze(1).tolist():
        last = int(LENGTHS[row]) - 1
        decay = SET["lam"] ** torch.arange(last, -1, -1)
        moved = decay * (1 - SET["lam"]) * (SCORES[row] - VALUES[row, last + 1])
        assert moved.abs().max() > 1e-3
        close(ours[row, : last + 1], theirs[row, : last + 1] + moved)


def test_2_nothing_differs_at_lambda_1():
    found = [
        gae(our_rewards(mask), VALUES, mask, gamma=1.0, gae_lambda=1.0).masked_fill(~MASK, 0.0)
        for mask in (MASK, LONGER)
    ]
    close(*found)


def test_3_whitening_divides_by_n():
    count = int(MASK.sum())
    found = standardize(ROLLOUT["advantages_before_whitening"], MASK)
    close(found, ROLLOUT["advantages"] * (count / (count - 1)) ** 0.5)
    assert (found - ROLLOUT["advantages"]).abs().max() > 1e-3


@pytest.mark.parametrize("place", range(0, len(MICRO_BATCHES), 2))
def test_4_a_mini_batch_is_the_mean_over_its_tokens(place):
    """The trainer sums over micro-batches and divides by the tokens of the mini-batch; TRL's means need those weights."""
    pair = MICRO_BATCHES[place : place + 2]
    assert pair[0]["mini_batch"] == pair[1]["mini_batch"]
    tokens = [int(MASK[batch["rows"]].sum()) for batch in pair]
    losses = [
        clipped_surrogate_loss(
            token_ratio(batch["new_logprobs"], LOG_PROBS[batch["rows"]]), ROLLOUT["advantages"][batch["rows"]],
            clip_range=SET["cliprange"],
        )
        for batch in pair
    ]  # fmt: skip
    ours = sum(masked_sum(loss, MASK[batch["rows"]]) for loss, batch in zip(losses, pair)) / sum(
        tokens
    )
    weighted = sum(n * batch["pg_loss"] for n, batch in zip(tokens, pair)) / sum(tokens)
    close(ours, torch.tensor(weighted))
    if tokens[0] != tokens[1]:
        assert abs(float(ours) - sum(batch["pg_loss"] for batch in pair) / 2) > 1e-3


def test_5_a_mini_batch_is_an_optimiser_step(tmp_path):
    settings = PolicyGradientConfig(
        output_dir=str(tmp_path), rollout_batch_size=12, total_episodes=12, per_device_train_batch_size=3,
        gradient_accumulation_steps=2, epochs_per_rollout=2, report_to="none", use_cpu=True,
    )  # fmt: skip
    assert settings.steps_per_rollout == SET["num_ppo_epochs"] * SET["num_mini_batches"] == 4
    assert [batch["optimizer_steps"] for batch in MICRO_BATCHES] == [False, False, False, True] * 2
    assert TRL["optimizer_steps_when_the_data_ends"] == [True] * 8


def test_6_approx_kl_is_k3_without_padding():
    ratios = [
        batch["new_logprobs"] - LOG_PROBS[batch["rows"]] for batch in MICRO_BATCHES
    ]  # 0 in padding
    theirs = torch.stack([k2(log_ratio).mean() for log_ratio in ratios]).mean()
    close(theirs / LOGGED, torch.tensor(TRL["metrics"]["policy/approxkl_avg"]))
    ours = [masked_mean(k3(-x), MASK[batch["rows"]]) for x, batch in zip(ratios, MICRO_BATCHES)]
    assert (torch.stack(ours).mean() - theirs).abs() > 1e-2


def test_7_the_clip_fraction_counts_ratios_outside_the_range():
    theirs, ours = [], []
    for batch in MICRO_BATCHES:
        rows, clip = batch["rows"], SET["cliprange"]
        ratio = (batch["new_logprobs"] - LOG_PROBS[rows]).exp()
        outside = (ratio - 1).abs() > clip
        ours.append(masked_mean(outside.float(), MASK[rows]))
        for_better = (ratio - 1) * ROLLOUT["advantages"][
            rows
        ] > 0  # clipped losses are larger on this side only
        theirs.append(masked_mean((outside & for_better).float(), MASK[rows]))
    close(torch.stack(theirs).mean() / LOGGED, torch.tensor(TRL["metrics"]["policy/clipfrac_avg"]))
    assert torch.stack(ours).mean() > torch.stack(theirs).mean() + 0.05


@pytest.mark.parametrize(
    ("metric", "name"), [("loss/policy_avg", "pg_loss"), ("loss/value_avg", "vf_loss")]
)
def test_8_logged_losses_are_means(metric, name):
    mean = sum(batch[name] for batch in MICRO_BATCHES) / len(MICRO_BATCHES)
    close(torch.tensor(TRL["metrics"][metric]), torch.tensor(mean / LOGGED))
