import pytest
import torch

from rlhf.completions.sample import decode, sample_tokens, uniform_numbers
from rlhf.data.padding import left_pad

EOS = 0
PROMPTS = [
    [11, 2, 0, 12],
    [11, 5, 3, 7, 0, 12],
    [4],
    [11, 0, 12],
    [6, 6],
    [7, 2, 3],
]  # most have an EOS inside


@pytest.fixture(params=["gpt2", "llama"])
def policy(request, tokenizer, make_policy, make_llama):
    return (
        make_policy(tokenizer, factor=2.0, seed=1)
        if request.param == "gpt2"
        else make_llama(tokenizer)
    )


def run(policy, prompts, uniforms, *, length=8, temperature=1.0, pad=13, stops=(EOS,)):
    ids, mask = left_pad(prompts, pad)
    settings = dict(stop_token_ids=stops, max_completion_length=length, temperature=temperature)
    return decode(policy, ids, mask, uniforms=uniforms, **settings)


@torch.no_grad()
def slow(policy, prompt, uniforms, length, temperature):
    """One row, one full forward per token, no cache, no padding."""
    ids = list(prompt)
    for step in range(length):
        logits = policy(input_ids=torch.tensor([ids])).logits[0, -1]
        if uniforms is None:
            token = logits.argmax().item()
        else:
            cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(0).tolist()
            token = next(
                token for token, reached in enumerate(cumulative) if reached > uniforms[step]
            )
        ids.append(token)
        if token == EOS:
            break
    return ids[len(prompt) :]


def completions(done):
    return [row[mask].tolist() for row, mask in zip(done.ids, done.mask, strict=True)]


def test_any_stop_token_ends_a_completion_and_the_first_one_counts(policy):
    uniforms = uniform_numbers(len(PROMPTS), 12, seed=3, stream=0)
    until_eos = completions(run(policy, PROMPTS, uniforms, length=12))
    done = run(policy, PROMPTS, uniforms, length=12, stops=(EOS, 3, 5))
    for row, ended, longer in zip(completions(done), done.ended, until_eos, strict=True):
        stops = [i for i, token in enumerate(longer) if token in (EOS, 3, 5)]
        # The same tokens as without the others, up to the first stop token inclusive.
        assert row == longer[: stops[0] + 1 if stops else 12]
        assert bool(ended) == bool(stops)
    assert {row[-1] for row in completions(done)} > {3}, "more than one of them was drawn"


@pytest.mark.parametrize("pad", [13, EOS], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_invariant_01_02_each_row_of_a_mixed_batch_is_sampled_as_if_alone(policy, temperature, pad):
    uniforms = uniform_numbers(len(PROMPTS), 12, seed=3, stream=0)
    done = run(policy, PROMPTS, uniforms, length=12, temperature=temperature, pad=pad)
    expected = [
        slow(policy, p, u.tolist(), 12, temperature) for p, u in zip(PROMPTS, uniforms, strict=True)
    ]
    assert completions(done) == expected
    assert done.ended.tolist() == [row[-1] == EOS for row in expected]
    assert len({len(row) for row in expected}) > 1  # else the test would say little


def test_greedy_is_the_most_probable_token(policy):
    assert completions(run(policy, PROMPTS, None)) == [
        slow(policy, p, None, 8, 1.0) for p in PROMPTS
    ]


def test_greedy_equals_generate(policy):
    prompt = torch.tensor([PROMPTS[0]])
    theirs = policy.generate(
        prompt, max_new_tokens=8, do_sample=False, eos_token_id=EOS, pad_token_id=13
    )
    assert completions(run(policy, PROMPTS[:1], None)) == [theirs[0, prompt.shape[1] :].tolist()]


class Scripted(torch.nn.Module):
    """Says script[row][step] to prompt [row]; keeps the batch sizes it was called with."""

    def __init__(self, script):
        super().__init__()
        self.script, self.sizes = script, []

    def forward(self, input_ids, past_key_values, **kwargs):
        from types import SimpleNamespace

        cache = past_key_values or Memory(input_ids[:, -1])
        self.sizes.append(len(input_ids))
        logits = torch.full((len(input_ids), 1, 20), -1e9)
        for place, row in enumerate(cache.rows.tolist()):
            logits[place, 0, self.script[row][cache.step]] = 0.0
        cache.step += 1
        return SimpleNamespace(logits=logits, past_key_values=cache)


class Memory:
    def __init__(self, rows):
        self.rows, self.step = rows, 0

    def batch_select_indices(self, kept):
        self.rows = self.rows[kept]


SCRIPT = [[5, 0, 9, 9], [0, 9, 9, 9], [5, 6, 7, 8], [4, 3, 0, 9]]


def test_invariant_03_mask_runs_to_the_first_stop_token_inclusive():
    done = run(Scripted(SCRIPT), [[0], [1], [2], [3]], None, length=4)
    assert completions(done) == [[5, 0], [0], [5, 6, 7, 8], [4, 3, 0]]
    assert done.ended.tolist() == [True, True, False, True]
    assert done.mask.sum(1).tolist() == [2, 1, 4, 3]


def test_finished_rows_leave_the_batch():
    policy = Scripted(SCRIPT)
    run(policy, [[0], [1], [2], [3]], None, length=4)
    assert policy.sizes == [4, 3, 2, 1]


def test_result_is_as_wide_as_its_longest_row_and_stops_when_all_have_ended():
    policy = Scripted([[5, 0, 9, 9], [0, 9, 9, 9]])
    done = run(policy, [[0], [1]], None, length=4)
    assert done.ids.shape == done.mask.shape == (2, 2)
    assert len(policy.sizes) == 2


def test_invariant_05_an_eos_in_the_prompt_is_no_end():
    done = run(Scripted([[5, 6, 7, 8]]), [[EOS, EOS, 0]], None, length=3)
    assert done.ended.tolist() == [False] and completions(done) == [[5, 6, 7]]


def test_sampling_by_hand():
    """Probabilities 1/4, 0, 1/4, 1/2: cumulative 1/4, 1/4, 1/2, 1."""
    logits = torch.tensor([1.0, 0.0, 1.0, 2.0]).log().expand(6, 4)
    numbers = torch.tensor([0.0, 0.2, 0.25, 0.499, 0.5, 0.999], dtype=torch.double)
    assert sample_tokens(logits, numbers, temperature=1.0).tolist() == [0, 0, 2, 2, 3, 3]


def test_invariant_07_sampling_follows_the_temperature_and_leaves_no_token_out():
    """Evenly spread numbers hit each token in proportion to its probability: odds 1 : 2 : 5 squared at 1/2."""
    logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(3000, 3)
    numbers = (torch.arange(3000, dtype=torch.double) + 0.5) / 3000
    assert sample_tokens(logits, numbers, temperature=0.5).bincount().tolist() == [100, 400, 2500]


def test_sampling_in_blocks_is_sampling_over_all():
    """A vocabulary of several blocks, with impossible tokens: the token is that of one long cumulative sum."""
    logits = 3 * torch.randn(200, 300)
    logits[:, ::3] = -float("inf")
    logits[:, 290:] = -float("inf")
    numbers = torch.rand(200, dtype=torch.double)
    numbers[0], numbers[1] = 0.0, 1 - 1e-16
    cumulative = torch.softmax(logits, -1).double().cumsum(-1)
    expected = [
        next(t for t, c in enumerate(row) if c > u * row[-1])
        for row, u in zip(cumulative, numbers.tolist())
    ]
    chosen = sample_tokens(logits, numbers, temperature=1.0)
    assert chosen.tolist()[2:] == expected[2:]
    assert torch.isfinite(logits[torch.arange(200), chosen]).all()


def test_uniform_numbers_depend_on_seed_and_stream_only():
    first = uniform_numbers(4, 3, seed=1, stream=0)
    torch.manual_seed(5)
    assert torch.equal(first, uniform_numbers(4, 3, seed=1, stream=0))
    for seed, stream in ((2, 0), (1, 1)):
        assert not torch.equal(first, uniform_numbers(4, 3, seed=seed, stream=stream))
    assert (first >= 0).all() and (first < 1).all()


def test_left_pad_by_hand():
    ids, mask = left_pad([[5, 6, 7], [8]], 13)
    assert ids.tolist() == [[5, 6, 7], [13, 13, 8]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
