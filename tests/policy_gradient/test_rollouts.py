from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from rlhf.completions.rollout import Rollout
from rlhf.policy_gradient.rollouts import RolloutLoader, choose_rows, permutation

LENGTHS = [3, 1, 4, 2, 2, 5, 1, 3]


def numbered(index=0):
    """Eight completions; completion_ids holds the row's number, `values` the rollout's."""
    mask = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    zero = torch.zeros(8, 5)
    return Rollout(
        prompt_ids=torch.ones(8, 2, dtype=torch.long), prompt_mask=torch.ones(8, 2, dtype=torch.bool),
        completion_ids=torch.arange(8)[:, None].expand(8, 5), mask=mask, ended=torch.ones(8, dtype=torch.bool),
        log_probs=zero, entropy=zero, ref_log_probs=zero, values=zero + index, scores=torch.zeros(8),
    )  # fmt: skip


def loader(process=0, processes=1, epochs=2, micro=2, mini=4, make=numbered, **more):
    args = SimpleNamespace(
        epochs_per_rollout=epochs,
        mini_batch_size=mini,
        per_device_train_batch_size=micro,
        process_index=process,
        world_size=processes,
        seed=0,
    )
    return RolloutLoader(make, args, **more)


def rows_of(batch):
    return batch["completion_ids"][:, 0].tolist()


def test_invariant_21_each_epoch_is_a_fresh_permutation_with_every_sample_once():
    batches = list(islice(iter(loader(epochs=3)), 24))  # 2 rollouts x 3 epochs x 4 micro-batches
    epochs = [
        [row for batch in batches[i : i + 4] for row in rows_of(batch)] for i in range(0, 24, 4)
    ]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_invariant_26_processes_share_each_mini_batch_without_overlap():
    alone = list(islice(iter(loader()), 8))
    pair = [list(islice(iter(loader(process, 2, micro=1)), 8)) for process in (0, 1)]
    for step in range(4):
        mini = sorted(row for batch in alone[2 * step : 2 * step + 2] for row in rows_of(batch))
        shared = sorted(
            row
            for share in pair
            for batch in share[2 * step : 2 * step + 2]
            for row in rows_of(batch)
        )
        assert mini == shared and len(set(mini)) == 4


@pytest.mark.parametrize(("processes", "micro"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)])
def test_invariant_20_every_micro_batch_knows_the_tokens_of_its_whole_mini_batch(processes, micro):
    per_step = 4 // micro // processes
    shares = [
        list(islice(iter(loader(p, processes, micro=micro)), 4 * per_step))
        for p in range(processes)
    ]
    for step in range(4):
        batches = [
            batch for share in shares for batch in share[step * per_step : (step + 1) * per_step]
        ]
        tokens = sum(int(batch["mask"].sum()) for batch in batches)
        assert {int(batch["num_tokens"]) for batch in batches} == {tokens}
        assert {batch["num_completions"] for batch in batches} == {4}
        assert tokens == sum(LENGTHS[row] for batch in batches for row in rows_of(batch))


def test_invariant_08_the_next_rollout_is_made_only_when_it_is_asked_for():
    """It must see the weights after the last update of the one before."""
    made = []
    batches = iter(loader(epochs=1, make=lambda index: made.append(index) or numbered(index)))
    assert made == []
    for place in range(8):
        batch = next(batches)
        assert made == list(range(place // 4 + 1))
        assert batch["values"].unique().tolist() == [place // 4]
        assert (batch["epoch"] == batch["update"] == 0) == (place % 4 < 2)


def test_invariant_27_a_later_rollout_is_the_same_whether_one_starts_there_or_not():
    through = [rows_of(batch) for batch in islice(iter(loader()), 8, 16)]
    assert through == [rows_of(batch) for batch in islice(iter(loader(first_rollout=1)), 8)]


def test_invariant_21_prompts_come_in_permutations_each_once():
    stream = [row for start in range(0, 30, 3) for row in choose_rows(10, 3, start=start, seed=4)]
    rounds = [stream[i : i + 10] for i in range(0, 30, 10)]
    assert (
        all(sorted(part) == list(range(10)) for part in rounds)
        and len({tuple(part) for part in rounds}) == 3
    )
    assert choose_rows(10, 25, start=0, seed=4) == stream[:25]


def test_reward_functions_get_every_column_of_the_file_in_every_batch(make_trainer):
    # Only one row has a topic. It reaches the function in each call, as None where it is missing.
    rows = [{"prompt": word} for word in "abcdefg"] + [{"prompt": "h", "topic": "letters"}]
    topics = []

    def score(prompts, completions, *, topic, **columns):
        topics.append(topic)
        assert [name == "letters" for name in topic] == [prompt == "h" for prompt in prompts]
        return [0.0] * len(prompts)

    trainer = make_trainer(rows=rows, eval_rows=[{"prompt": "a"}], score=score)
    trainer.rollouts.make(0)
    trainer.rollouts.make_for_evaluation()
    assert "letters" in topics[0] and topics[1] == [None]


def test_a_rollout_ends_at_every_stop_token_of_the_policy(make_trainer, make_policy, tokenizer):
    policy = make_policy(tokenizer, factor=2.0, seed=1, context=32)
    stop = tokenizer.convert_tokens_to_ids("<|user|>")
    policy.generation_config.eos_token_id = [0, stop]
    rollout = make_trainer(policy=policy, rollout_batch_size=32, total_episodes=32).rollouts.make(0)
    last = rollout.mask.sum(1, keepdim=True) - 1
    tokens = rollout.completion_ids.gather(1, last).squeeze(1)
    assert (tokens == stop).any()
    assert torch.equal(rollout.ended, (tokens == 0) | (tokens == stop))
    # Nothing was sampled after it.
    assert (rollout.completion_ids == stop).logical_and(rollout.mask).sum(1).max() == 1


def test_permutation_depends_on_seed_and_stream_only():
    first = permutation(20, seed=1, stream=2)
    torch.manual_seed(9)
    assert torch.equal(first, permutation(20, seed=1, stream=2))
    assert not torch.equal(first, permutation(20, seed=1, stream=3))
    assert not torch.equal(first, permutation(20, seed=2, stream=2))
