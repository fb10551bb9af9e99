"""Value-guided decoding and tree search, on trees that are small enough to search by hand."""

import itertools

import pytest
import torch
from torch import nn

from rlhf.completions.guided import Guide, GuideSettings, decode_by_value
from rlhf.completions.sample import decode, uniform_numbers
from rlhf.completions.tree_search import (
    State,
    best_token,
    decode_by_search,
    read_states,
    simulate,
)
from rlhf.data.padding import left_pad
from rlhf.models.actor_critic import ActorCritic, ValueHead
from rlhf.serving.engine.sampling import keep_likely

EOS = 0
PROMPTS = [[11, 2, 12], [11, 5, 3, 7, 12], [4], [6, 6]]


class Tables:
    """A guide of tables: log-probs by the last token (V, V), values by a function of the row."""

    def __init__(self, probabilities, value):
        self.table, self.value = torch.tensor(probabilities).log(), value
        self.passes = {"policy": 0, "value": 0, "final": 0}

    def log_probs(self, rows):
        self.passes["policy"] += len(rows)
        return torch.stack([self.table[row[-1]] for row in rows])

    def values(self, rows):
        self.passes["value"] += len(rows)
        return torch.tensor([float(self.value(row)) for row in rows])

    def log_probs_and_values(self, rows):
        return self.log_probs(rows), self.values(rows)

    offers = Guide.offers
    final_scores = Guide.final_scores
    reference, tokens = None, 0


# Token 1 is likeliest everywhere; 0 ends a text.
LIKELY_ONE = [[0.1, 0.6, 0.2, 0.1]] * 4


def score(completion):
    """A reward that greedy decoding misses: it wants 2, then 3, then the end."""
    wanted = [2, 3, EOS]
    hits = [own == best for own, best in zip(completion, wanted)]
    return float(sum(hits)) + 2.0 * (completion == wanted)


def final(prompts, completions, ended):
    return torch.tensor([score(completion) for completion in completions])


def settings(**changed):
    return GuideSettings(
        **{"top_k": 4, "stop_token_ids": (EOS,), "max_completion_length": 3} | changed
    )


def completions(sampled):
    return [row[mask].tolist() for row, mask in zip(sampled.ids, sampled.mask, strict=True)]


def all_texts(length):
    """Every text of tokens 0 to 3 that ends with 0 or at the length."""
    for size in range(1, length + 1):
        for text in itertools.product(range(4), repeat=size):
            ends = text[-1] == EOS
            if EOS not in text[:-1] and (ends or size == length):
                yield list(text)


def test_the_search_equals_the_exhaustive_one_and_greedy_misses_it():
    guide = Tables(LIKELY_ONE, value=lambda row: 0.0)
    best = max(all_texts(3), key=score)
    greedy = decode_by_value(guide, [[1]], settings(value_coef=0.0), uniforms=None)
    assert completions(greedy) == [[1, 1, 1]] and best == [2, 3, EOS]
    options = dict(uniforms=None, final=final)
    few = decode_by_search(guide, [[1]], settings(simulations=1), **options)
    assert completions(few) != [best]
    # The exploration is in the units of the score, which is up to 5 here.
    many = decode_by_search(guide, [[1]], settings(simulations=200, c_puct=10.0), **options)
    assert completions(many) == [best] and many.ended.tolist() == [True]


def test_exact_values_lead_one_step_of_look_ahead_to_the_best_text():
    def value(row):  # the best score that a text can still reach
        completion = row[1:]
        reachable = [text for text in all_texts(3) if text[: len(completion)] == completion]
        return max(map(score, reachable))

    guide = Tables(LIKELY_ONE, value)
    sampled = decode_by_value(guide, [[1]], settings(value_coef=50.0), uniforms=None, final=final)
    assert completions(sampled) == [[2, 3, EOS]]


def test_puct_by_hand():
    state = State([], 0.5, False, [7, 8, 9], [0.6, 0.3, 0.1], [0.0] * 3, [2, 1, 0], [0.4, 0.9, 0.0])
    # N(s) = 1 + 3: 0.2 + 0.6 * 2 / 3 = 0.6; 0.9 + 0.3 * 2 / 2 = 1.2; V(s) + 0.1 * 2 / 1 = 0.7
    assert best_token(state, c_puct=1.0) == 1
    # 0.2 + 4 = 4.2; 0.9 + 3 = 3.9; 0.5 + 2 = 2.5
    assert best_token(state, c_puct=10.0) == 0


def test_a_return_adds_the_rewards_and_discounts_all_but_the_score():
    guide = Tables(LIKELY_ONE, value=lambda row: 1.0)
    # The reference likes token 1 half as much: a reward of -0.5 log 2 each time.
    guide.reference = nn.Identity()
    guide._all_log_probs = lambda model, name, rows: (
        guide.log_probs(rows) - torch.log(torch.tensor(2.0))
    )
    own = settings(top_k=1, max_completion_length=2, kl_coef=0.5, gamma=0.9, simulations=2)
    scores = []

    def four(prompts, completions, ended):
        scores.append((completions, ended))
        return torch.full((len(completions),), 4.0)

    roots = read_states(guide, [[1]], [[]], own)
    for _ in range(2):
        simulate(guide, [[1]], roots, own, four)
    reward = -0.5 * torch.log(torch.tensor(2.0)).item()
    first = reward + 0.9 * 1.0  # the value of the state
    second = reward + 0.9 * (reward + 4.0)  # the score of the text that is cut off
    assert roots[0].totals == [pytest.approx(first + second)] and roots[0].visits == [2]
    assert scores == [([[1, 1]], [False])]


def test_a_constant_value_gives_back_the_policy():
    guide = Tables(LIKELY_ONE, value=lambda row: 3.0)
    # Without scores an end is worth what the state before it is.
    own = settings(max_completion_length=6, simulations=400)
    roots = read_states(guide, [[1]], [[]], own)
    for _ in range(400):
        simulate(guide, [[1]], roots, own, None)
    shares = torch.tensor(roots[0].visits) / 400
    order = torch.tensor(roots[0].tokens)
    torch.testing.assert_close(shares, torch.tensor(LIKELY_ONE[0])[order], atol=0.01, rtol=0)
    uniforms = uniform_numbers(20, 6, seed=1, stream=0)
    drawn = [
        decode_by_value(
            guide, [[1]] * 20, settings(max_completion_length=6, value_coef=coef), uniforms=uniforms
        )
        for coef in (0.0, 5.0)
    ]
    assert completions(drawn[0]) == completions(drawn[1])
    assert len({len(row) for row in completions(drawn[0])}) > 1


# ---- with models -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["own model", "head"])
def guide(request, tokenizer, make_policy, make_reward_model):
    policy = make_policy(tokenizer, factor=2.0, seed=1)
    value = make_reward_model(tokenizer)
    if request.param == "head":
        value = ValueHead(policy.config.hidden_size)
        nn.init.normal_(value.weight)
    return Guide(ActorCritic(policy, value), pad_token_id=13, batch_size=3)


def test_a_coefficient_of_0_gives_the_policys_own_samples(guide):
    uniforms = uniform_numbers(len(PROMPTS), 8, seed=3, stream=0)
    own = settings(top_k=5, value_coef=0.0, max_completion_length=8)
    guided = decode_by_value(guide, PROMPTS, own, uniforms=uniforms)
    ids, mask = left_pad(PROMPTS, 13)

    def warp(logits):
        rows = len(logits)
        return keep_likely(logits, top_k=torch.full((rows,), 5), top_p=torch.ones(rows))

    options = dict(stop_token_ids=(EOS,), max_completion_length=8, temperature=1.0, warp=warp)
    plain = decode(guide.model.policy, ids, mask, uniforms=uniforms, **options)
    assert completions(guided) == completions(plain)
    assert guided.ended.tolist() == plain.ended.tolist()
    changed = decode_by_value(
        guide,
        PROMPTS,
        settings(top_k=5, value_coef=9.0, max_completion_length=8),
        uniforms=uniforms,
    )
    assert completions(changed) != completions(plain), "else the values would do nothing"


@pytest.mark.parametrize("decoding", [decode_by_value, decode_by_search])
def test_each_row_of_a_batch_is_decoded_as_if_alone(guide, decoding):
    uniforms = uniform_numbers(len(PROMPTS), 4, seed=3, stream=0)
    own = settings(top_k=3, max_completion_length=4, simulations=4)
    together = completions(decoding(guide, PROMPTS, own, uniforms=uniforms))
    alone = []
    for prompt, numbers in zip(PROMPTS, uniforms, strict=True):
        alone += completions(decoding(guide, [prompt], own, uniforms=numbers.unsqueeze(0)))
    assert together == alone


def test_the_passes_are_counted(guide):
    own = settings(top_k=3, max_completion_length=1, stop_token_ids=(99,))
    shared = guide.model.value_head is not None
    decode_by_value(guide, [[4], [6]], own, uniforms=None)
    # Of two prompts: V and log-probs before the token, and V after each of three.
    expected = {"policy": 2, "value": 2 + 6}
    if shared:
        expected = {"policy": 2 + 2 + 6}
    assert dict(guide.passes) == expected
    guide.passes.clear()
    decode_by_search(
        guide,
        [[4]],
        settings(top_k=13, simulations=5, max_completion_length=1, stop_token_ids=(99,)),
        uniforms=None,
    )
    read = guide.passes["policy"]
    assert 2 <= read <= 1 + 5, "the root, and at most one new state for each simulation"
    assert guide.passes["value"] == (0 if shared else read)


def test_the_values_are_those_that_ppo_trained(guide):
    """The value of a state is what training reads before the state's next token."""
    prompt, completion = PROMPTS[1], [4, 5, 6]
    ids, mask = left_pad([prompt], 13)
    after = torch.tensor([completion])
    with torch.no_grad():
        trained = guide.model(ids, mask, after, torch.ones_like(after).bool(), 1.0)
        values = guide.values([prompt + completion[:size] for size in range(3)])
        log_probs = guide.log_probs([prompt + completion[:size] for size in range(3)])
    torch.testing.assert_close(values, trained.values[0], atol=1e-5, rtol=1e-5)
    own = log_probs.gather(1, after.T).squeeze(1)
    torch.testing.assert_close(own, trained.log_probs[0], atol=1e-5, rtol=1e-5)


def test_numbers_that_are_not_finite_are_refused(guide, refused):
    with torch.no_grad():
        for parameter in guide.model.value_parameters() or guide.model.value_model.parameters():
            parameter.fill_(float("nan"))
    assert "no finite numbers" in refused(
        decode_by_value, guide, PROMPTS, settings(), uniforms=None
    )
