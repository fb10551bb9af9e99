from dataclasses import replace

import pytest
import torch

from rlhf.algorithms import ALGORITHMS
from rlhf.completions import batches
from rlhf.completions.rollout import (
    CollectSettings,
    Prompts,
    Rollout,
    collect,
    estimate,
    samples,
    statistics,
)
from rlhf.completions.sample import decode, uniform_numbers
from rlhf.completions.score import FunctionScorer, RewardModelScorer, WeightedSum
from rlhf.data.chat import encode_prompt
from rlhf.data.padding import left_pad
from rlhf.models.actor_critic import ActorCritic, ValueHead, frozen_copy, reference_log_probs

SETTINGS = dict(kl_coef=0.1, gamma=1.0, gae_lambda=0.95, num_generations=2)
WORDS = ["a", "b c", "d", "e f g", "h", "a b", "c", "d e"]


def length(prompts, completions, **columns):
    return [float(len(completion.split())) for completion in completions]


def gather(
    tokenizer,
    policy,
    words=WORDS,
    *,
    start=0,
    rewards=None,
    temperature=0.8,
    **settings,
):
    model = ActorCritic(policy, ValueHead(policy.config.hidden_size)).eval()
    with torch.no_grad():
        model.value_head.weight.copy_(torch.linspace(-1, 1, 16))
    reference = frozen_copy(policy)
    for parameter in reference.parameters():
        parameter.data.mul_(0.9)
    return collect(
        model,
        lambda batch: reference_log_probs(reference, batch, temperature=temperature),
        rewards or WeightedSum({"length": FunctionScorer(length, "length")}),
        tokenizer,
        Prompts(
            rows=[{"prompt": word, "place": place} for place, word in enumerate(words)],
            ids=[encode_prompt(tokenizer, word) for word in words],
            numbers=list(range(start, start + len(words))),
            name="training",
        ),
        uniform_numbers(len(WORDS), 6, seed=2, stream=0)[start : start + len(words)],
        CollectSettings(
            temperature=temperature,
            max_completion_length=6,
            columns=("place",),
            **{
                "stop_token_ids": (tokenizer.eos_token_id,),
                "batch_size": 3,
                "missing_eos_penalty": 0.0,
            }
            | settings,
        ),
    )


@pytest.fixture
def policy(tokenizer, make_policy):
    return make_policy(tokenizer, factor=5.0)


@pytest.fixture
def rollout(tokenizer, policy):
    return gather(tokenizer, policy)


def by_hand(mask, **tensors):
    """A rollout of which only what `estimate` and `statistics` read is filled in."""
    mask = torch.tensor(mask)
    zero = torch.zeros(mask.shape)
    names = dict(log_probs=zero, entropy=zero, ref_log_probs=zero, values=zero) | {
        k: torch.tensor(v) for k, v in tensors.items()
    }
    return Rollout(
        prompt_ids=torch.ones(len(mask), 1, dtype=torch.long), prompt_mask=torch.ones(len(mask), 1, dtype=torch.bool),
        completion_ids=torch.ones(mask.shape, dtype=torch.long), mask=mask,
        **{"ended": torch.ones(len(mask), dtype=torch.bool)} | names,
    )  # fmt: skip


@torch.no_grad()
def test_invariant_12_log_probs_are_those_of_the_tokens_that_were_sampled(rollout, policy):
    """A forward of each row by itself, without padding, at the sampling temperature."""
    for row in range(len(rollout)):
        prompt = rollout.prompt_ids[row][rollout.prompt_mask[row]]
        completion = rollout.completion_ids[row][rollout.mask[row]]
        logits = (
            policy(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
            / 0.8
        )
        expected = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(
            rollout.log_probs[row][rollout.mask[row]], expected, atol=1e-5, rtol=1e-4
        )
    assert rollout.mask.sum(1).unique().numel() > 1


def test_a_stop_token_that_is_not_special_is_no_part_of_the_text(tokenizer, policy):
    """As Gemma's <end_of_turn>, where the tokenizer holds it as an ordinary added token."""
    seen = []

    def remember(prompts, completions, **columns):
        seen.extend(completions)
        return [0.0] * len(completions)

    rewards = WeightedSum({"seen": FunctionScorer(remember, "seen")})
    prompts = [{"prompt": word} for word in WORDS]
    words = list(range(2, 10))  # "a" to "h"
    rollout = gather(tokenizer, policy, rewards=rewards, stop_token_ids=[0, *words])
    stops = [
        row[mask][-1].item() for row, mask in zip(rollout.completion_ids, rollout.mask, strict=True)
    ]
    assert set(stops) & set(words) and rollout.ended.all()
    assert not any(set(text.split()) & set("abcdefgh") for text in seen)
    assert [sample["completion"] for sample in samples(rollout, prompts, tokenizer)] == seen


def test_invariant_01_how_rows_are_batched_changes_nothing(rollout, tokenizer, policy):
    other = gather(tokenizer, policy, batch_size=8)
    for name, tensor in rollout.tensors().items():
        torch.testing.assert_close(getattr(other, name), tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_how_many_rows_are_sampled_at_a_time_changes_nothing(rollout, tokenizer, policy, rows):
    other = gather(tokenizer, policy, sampling_batch_size=rows)
    for name, tensor in rollout.tensors().items():
        if name == "completion_ids":  # whose padding may be any id
            tensor, found = tensor * rollout.mask, other.completion_ids * other.mask
        else:
            found = getattr(other, name)
        torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-4)


def test_no_more_rows_than_asked_are_sampled_at_a_time(tokenizer, policy, monkeypatch):
    sizes = []

    def counted(policy, prompt_ids, *args, **options):
        sizes.append(len(prompt_ids))
        return decode(policy, prompt_ids, *args, **options)

    monkeypatch.setattr(batches, "decode", counted)
    gather(tokenizer, policy, sampling_batch_size=3)
    gather(tokenizer, policy)
    assert sizes == [3, 3, 2, 8]


def test_greedy_completions_do_not_depend_on_the_batch_either(tokenizer, policy):
    ids, mask = left_pad([encode_prompt(tokenizer, word) for word in WORDS], tokenizer.pad_token_id)
    options = dict(stop_token_ids=(0,), max_completion_length=6, temperature=1.0, uniforms=None)
    whole, cut = (
        batches.decode_in_batches(policy, ids, mask, batch_size=rows, **options) for rows in (8, 3)
    )
    assert torch.equal(whole.mask, cut.mask) and torch.equal(whole.ended, cut.ended)
    assert torch.equal(whole.ids * whole.mask, cut.ids * cut.mask)


def test_invariant_02_pad_equal_to_eos_changes_nothing(rollout, eos_is_pad, policy):
    other = gather(eos_is_pad, policy)
    for name, tensor in rollout.tensors().items():
        if name != "prompt_ids":  # its padding
            torch.testing.assert_close(getattr(other, name), tensor, atol=1e-5, rtol=1e-4)
    last = other.mask.sum(1) - 1
    rows = torch.nonzero(other.ended).squeeze(1)
    assert (
        len(rows)
        and (other.completion_ids[rows, last[rows]] == 0).all()
        and (other.log_probs[rows, last[rows]] < 0).all()
    )


def test_invariant_02_reward_model_scores_eos_too(eos_is_pad, policy, make_reward_model):
    scorer = RewardModelScorer(make_reward_model(eos_is_pad), eos_is_pad)
    found = gather(eos_is_pad, policy, rewards=WeightedSum({"reward_model": scorer}))
    for row in range(len(found)):
        ids = torch.cat(
            [
                found.prompt_ids[row][found.prompt_mask[row]],
                found.completion_ids[row][found.mask[row]],
            ]
        )
        hidden = scorer.model.transformer(input_ids=ids[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(
            found.scores[row], scorer.model.score(hidden)[0], atol=1e-5, rtol=1e-4
        )


def test_invariant_05_missing_eos_is_judged_by_the_completion(rollout, tokenizer, policy):
    """Every prompt of the chat template holds an EOS; only the completion's own counts."""
    penalised = gather(tokenizer, policy, missing_eos_penalty=3.0)
    assert all((ids == 0).any() for ids in rollout.prompt_ids)
    stopped = torch.tensor(
        [row[mask][-1] == 0 for row, mask in zip(rollout.completion_ids, rollout.mask)]
    )
    assert rollout.ended.tolist() == stopped.tolist() and 0 < stopped.sum() < len(stopped)
    assert (rollout.scores - penalised.scores).tolist() == (3.0 * ~stopped).tolist()


def test_invariant_32_rewards_get_prompts_completions_and_the_other_columns(tokenizer, policy):
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [0.0] * len(prompts)

    found = gather(
        tokenizer, policy, rewards=WeightedSum({"reward": FunctionScorer(reward, "reward")})
    )
    assert (
        seen["prompts"] == WORDS
        and seen["place"] == list(range(8))
        and set(seen) == {"prompts", "completions", "place"}
    )
    texts = [
        tokenizer.decode(row[mask], skip_special_tokens=True)
        for row, mask in zip(found.completion_ids, found.mask)
    ]
    assert [text.strip() for text in texts] == seen["completions"]


# ---- rewards, advantages, returns ----


def test_invariant_13_score_stands_on_the_last_real_token_of_the_rollout(rollout):
    found = estimate(rollout, ALGORITHMS["ppo"], **SETTINGS | {"kl_coef": 0.0})
    for row in range(len(found)):
        expected = [0.0] * found.mask.shape[1]
        expected[int(found.mask[row].sum()) - 1] = found.scores[row].item()
        assert found.rewards[row].tolist() == expected


def test_invariant_13_kl_of_policy_and_reference_with_the_right_sign():
    found = by_hand(
        [[True, True]], log_probs=[[-1.0, -2.0]], ref_log_probs=[[-1.5, -1.0]], scores=[4.0]
    )
    rewards = estimate(found, ALGORITHMS["ppo"], **SETTINGS).rewards
    torch.testing.assert_close(rewards, torch.tensor([[-0.1 * 0.5, -0.1 * -1.0 + 4.0]]))


def test_invariant_17_returns_are_advantages_before_whitening_plus_values():
    """lambda 1, gamma 1: returns are rewards-to-go whatever the values are; whitened advantages would not give that."""
    found = by_hand(
        [[True, True, True], [True, False, False]],
        values=[[1.0, 2.0, 3.0], [5.0, 9.0, 9.0]],
        scores=[10.0, -1.0],
    )
    found = estimate(found, ALGORITHMS["ppo"], **SETTINGS | {"gae_lambda": 1.0})
    torch.testing.assert_close(found.returns, torch.tensor([[10.0, 10.0, 10.0], [-1.0, 0.0, 0.0]]))
    raw = torch.tensor([9.0, 8.0, 7.0, -6.0])
    torch.testing.assert_close(
        found.advantages[found.mask], (raw - raw.mean()) / raw.std(correction=0)
    )


def join(first: Rollout, second: Rollout) -> Rollout:
    """As processes gather their shares: prompts padded on the left, completions on the right."""

    def padded(name, tensor, width):
        extra = tensor.new_zeros(len(tensor), width - tensor.shape[1])
        return torch.cat([extra, tensor] if name.startswith("prompt") else [tensor, extra], 1)

    joined = {}
    for name, tensor in first.tensors().items():
        pair = [tensor, getattr(second, name)]
        if tensor.dim() == 2:
            width = max(t.shape[1] for t in pair)
            pair = [padded(name, t, width) for t in pair]
        joined[name] = torch.cat(pair)
    return replace(first, **joined)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_invariant_18_two_gathered_halves_equal_the_whole(name, rollout, tokenizer, policy):
    halves = [gather(tokenizer, policy, WORDS[i : i + 4], start=i) for i in (0, 4)]
    joined = estimate(join(*halves), ALGORITHMS[name], **SETTINGS)
    whole = estimate(rollout, ALGORITHMS[name], **SETTINGS)
    for part in ("rewards", "advantages", "returns"):
        torch.testing.assert_close(
            getattr(joined, part), getattr(whole, part), atol=1e-5, rtol=1e-5
        )


def test_invariant_18_whitening_spans_the_whole_rollout(rollout):
    found = estimate(rollout, ALGORITHMS["ppo"], **SETTINGS)
    white = found.advantages[found.mask].double()
    assert white.mean().item() == pytest.approx(0, abs=1e-5) and white.var(
        correction=0
    ).item() == pytest.approx(1, abs=1e-4)
    apart = estimate(
        replace(rollout, **{n: t[:4] for n, t in rollout.tensors().items()}),
        ALGORITHMS["ppo"],
        **SETTINGS,
    )
    assert not torch.allclose(
        apart.advantages, found.advantages[:4, : apart.mask.shape[1]], atol=1e-3
    )


def test_rloo_gives_every_token_of_a_completion_the_same_advantage():
    found = by_hand([[True, True], [True, False]], scores=[5.0, 1.0])
    found = estimate(found, ALGORITHMS["rloo"], **SETTINGS)
    assert found.advantages.tolist() == [[4.0, 4.0], [-4.0, 0.0]]


# ---- micro-batches and statistics ----


def test_invariant_03_a_micro_batch_leaves_out_only_padding(rollout):
    index = torch.tensor([6, 0])
    batch = rollout.rows(index)
    assert batch["mask"].shape[1] == int(rollout.mask[index].sum(1).max())
    assert batch["prompt_mask"].shape[1] == int(rollout.prompt_mask[index].sum(1).max())
    for row, place in enumerate(index.tolist()):
        for ids, mask in (
            ("prompt_ids", "prompt_mask"),
            ("completion_ids", "mask"),
            ("log_probs", "mask"),
        ):
            assert (
                batch[ids][row][batch[mask][row]].tolist()
                == getattr(rollout, ids)[place][getattr(rollout, mask)[place]].tolist()
            )


def test_invariant_30_statistics_by_hand():
    found = by_hand(
        [[True, True], [True, False]],
        log_probs=[[-1.0, -2.0], [-3.0, 77.0]],
        ref_log_probs=[[-2.0, -2.5], [-2.0, 55.0]],
        values=[[1.0, 1.0], [1.0, 50.0]],
        scores=[4.0, 2.0],
        ended=[True, False],
        entropy=[[0.5, 1.0], [3.0, 9.0]],
    )
    found = replace(found, parts={"length": torch.tensor([8.0, 4.0])})
    assert statistics(found) == pytest.approx(
        {
            "score": 3.0, "score_std": 1.0, "completion_length": 1.5, "eos_rate": 0.5, "score_length": 6.0,
            "kl": (1.5 - 1.0) / 2,  # 1 + 0.5 in the first row, -1 in the second
            "surprise": 2.0,  # (1 + 2 + 3) / 3
            "entropy": 1.5,
            "unique_completions": 1.0, "distinct_2": 1.0, "repetition": 0.0,  # ids 1 1 and 1: one 2-gram, no 3-gram
        }
    )  # fmt: skip
    found = replace(found, returns=torch.tensor([[1.0, 2.0], [3.0, 99.0]]))
    # returns 1, 2, 3: variance 2/3; errors 0, 1, 2: variance 2/3
    expected = {"value_mean": 1.0, "return_mean": 2.0, "explained_variance": 0.0}
    assert {k: v for k, v in statistics(found).items() if k in expected} == pytest.approx(
        expected, abs=1e-6
    )


def test_invariant_30_statistics_do_not_see_padding(rollout):
    wild = replace(
        rollout,
        **{n: torch.where(rollout.mask, getattr(rollout, n), 1e6) for n in ("log_probs", "values")},
    )
    assert statistics(wild) == statistics(rollout)
