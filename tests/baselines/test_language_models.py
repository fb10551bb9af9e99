"""The language models before the Transformer: padding, the state while decoding, files, gates and counts by hand."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.baselines.language_model import NOTHING
from rlhf.baselines.mlp import MlpConfig, MlpForCausalLM
from rlhf.baselines.ngram import (
    NgramConfig,
    NgramForCausalLM,
    add_counts,
    count_windows,
    discount,
)
from rlhf.baselines.table import BASELINES, register
from rlhf.completions.sample import decode, uniform_numbers
from rlhf.errors import UserError
from rlhf.models.load import load_policy

CAUSAL = [name for name, row in BASELINES.items() if row.is_causal()]
NEURAL = [name for name in CAUSAL if BASELINES[name].learns == "gradient"]
TEXTS = [[1, 2, 3, 4, 5, 1, 2, 3, 0], [1, 2, 6, 4, 1, 0], [5, 1, 2, 6, 3, 3, 3, 0], [4]]
VOCABULARY = 11


def tiny(name: str):
    register(name)
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "eos_token_id": 0, "pad_token_id": 0}
    if name != "ngram":
        sizes |= {"hidden_size": 8, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()
    if name == "ngram":
        model.set_counts(*count_windows(TEXTS, model.config.order))
    return model


def ngram(texts, order: int) -> NgramForCausalLM:
    model = NgramForCausalLM(NgramConfig(vocab_size=VOCABULARY, order=order)).eval()
    model.set_counts(*count_windows(texts, order))
    return model


@pytest.fixture(params=CAUSAL)
def model(request):
    return tiny(request.param)


PADDED = torch.tensor([[0, 0, 1, 2, 3, 4], [1, 2, 6, 4, 5, 6], [7, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])


def test_a_padded_row_gives_the_logits_of_the_row_alone(model):
    padded = model(input_ids=PADDED, attention_mask=MASK).logits
    for row in range(len(PADDED)):
        counts = MASK[row].bool()
        alone = model(input_ids=PADDED[row, counts].unsqueeze(0)).logits
        torch.testing.assert_close(padded[row, counts], alone[0], atol=1e-6, rtol=0)


def test_one_token_per_step_gives_the_logits_of_the_whole_row(model):
    ids, mask = PADDED[:2], MASK[:2]
    whole = model(input_ids=ids, attention_mask=mask).logits
    output = model(input_ids=ids[:, :3], attention_mask=mask[:, :3], use_cache=True)
    assert output.cache is not None
    for step in range(3, ids.shape[1]):
        output = model(
            input_ids=ids[:, step : step + 1],
            attention_mask=mask[:, : step + 1],
            cache=output.cache,
            use_cache=True,
        )
        torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-6, rtol=0)


def test_samples_do_not_depend_on_the_batch(model):
    """Some rows end early and leave the batch, so that the state loses rows too."""
    prompts, mask = PADDED[:2].repeat(4, 1), MASK[:2].repeat(4, 1)
    uniforms = uniform_numbers(len(prompts), 12, seed=0, stream=0)
    options = dict(stop_token_ids=[0, 3], max_completion_length=12, temperature=1.0)
    together = decode(model, prompts, mask.bool(), uniforms=uniforms, **options)
    lengths = together.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    for row in range(len(prompts)):
        ids = prompts[row, mask[row].bool()].unsqueeze(0)
        own = uniforms[row : row + 1]
        alone = decode(model, ids, torch.ones_like(ids).bool(), uniforms=own, **options)
        assert alone.ids[0].tolist() == together.ids[row, : lengths[row]].tolist()


def test_it_is_saved_loaded_and_generates(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = load_policy(str(tmp_path)).eval()
    assert type(loaded) is type(model)
    ids, mask = PADDED[:2], MASK[:2]
    expected = model(input_ids=ids, attention_mask=mask).logits
    actual = loaded(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    for beams in (1, 2):
        completed = loaded.generate(input_ids=ids, attention_mask=mask, num_beams=beams, **options)
        alone = loaded.generate(input_ids=ids[:1, 2:], num_beams=beams, **options)
        assert completed[0, 2:].tolist() == alone[0].tolist()


def test_the_loss_is_that_of_the_next_tokens(model):
    ids = PADDED[1:2]
    output = model(input_ids=ids, labels=ids)
    log_probs = output.logits[0, :-1].log_softmax(-1)
    expected = -log_probs.gather(1, ids[0, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=0)


def test_a_cache_of_keys_and_values_is_refused(model):
    with pytest.raises(TypeError, match="holds no state"):
        model(input_ids=PADDED, cache=object())


@pytest.mark.parametrize("name", NEURAL)
def test_no_output_depends_on_later_tokens_and_all_weights_learn(name):
    model = tiny(name)
    changed = PADDED[1:2].clone()
    changed[0, 4:] = 9
    before = model(input_ids=PADDED[1:2]).logits[:, :4]
    torch.testing.assert_close(model(input_ids=changed).logits[:, :4], before)
    model(input_ids=PADDED[1:2], labels=PADDED[1:2]).loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_the_table_imports_no_torch():
    code = "import sys, rlhf.baselines.table; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- equations by hand -------------------------------------------------------------------------------------------


def one_layer(name: str):
    register(name)
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, vocab_size=VOCABULARY, hidden_size=4)
    return AutoModelForCausalLM.from_config(config).eval().model


def products(trunk, token: int, state):
    """(W x + b, U h + c) of a layer."""
    layer, vector = trunk.layers, trunk.embeddings.weight[token]
    of_input = layer.weight_ih_l0 @ vector + layer.bias_ih_l0
    return of_input, layer.weight_hh_l0 @ state + layer.bias_hh_l0


def test_elman_by_hand():
    trunk, state = one_layer("rnn"), torch.zeros(4)
    for token in (3, 5):
        of_input, of_state = products(trunk, token, state)
        state = torch.tanh(of_input + of_state)
    actual = trunk(torch.tensor([[3, 5]])).last_hidden_state[0, -1]
    torch.testing.assert_close(actual, state)


def test_lstm_gates_by_hand():
    trunk, state, cell = one_layer("lstm"), torch.zeros(4), torch.zeros(4)
    for token in (3, 5):
        of_input, of_state = products(trunk, token, state)
        i, f, g, o = (of_input + of_state).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        state = torch.sigmoid(o) * torch.tanh(cell)
    output = trunk(torch.tensor([[3, 5]]), use_cache=True)
    torch.testing.assert_close(output.last_hidden_state[0, -1], state)
    torch.testing.assert_close(output.cache.tensors[1][0, 0], cell)


def test_gru_gates_by_hand():
    trunk, state = one_layer("gru"), torch.zeros(4)
    for token in (3, 5):
        of_input, of_state = products(trunk, token, state)
        r, z, n = of_input.chunk(3)
        r_state, z_state, n_state = of_state.chunk(3)
        new = torch.tanh(n + torch.sigmoid(r + r_state) * n_state)
        update = torch.sigmoid(z + z_state)
        state = (1 - update) * new + update * state
    actual = trunk(torch.tensor([[3, 5]])).last_hidden_state[0, -1]
    torch.testing.assert_close(actual, state)


def test_mlp_by_hand():
    """The window of the second token: zeros, zeros, both tokens."""
    config = MlpConfig(vocab_size=VOCABULARY, hidden_size=4, window=4)
    model = MlpForCausalLM(config).eval()
    vectors = model.model.embeddings.weight
    x = torch.cat([torch.zeros(8), vectors[3], vectors[5]])
    layer = model.model.layers[0]
    h = torch.tanh(layer.weight @ x + layer.bias)
    expected = model.lm_head.weight @ h + model.lm_head.bias
    actual = model(input_ids=torch.tensor([[3, 5]])).logits[0, -1]
    torch.testing.assert_close(actual, expected)


# ---- counts ------------------------------------------------------------------------------------------------------


def slow_probability(texts, order: int, history: tuple, token: int) -> float:
    """Interpolated Kneser-Ney by its definition, with dictionaries."""
    k = len(history) + 1
    before: dict[tuple, set] = {}
    times: Counter = Counter()
    for text in texts:
        for start in range(len(text) - k + 1):
            gram = tuple(text[start : start + k])
            times[gram] += 1
            before.setdefault(gram, set()).add(text[start - 1] if start else "start")
    counts = dict(times)
    if k < order:
        counts = {gram: len(kinds) for gram, kinds in before.items()}
    lower = 1 / VOCABULARY
    if history:
        lower = slow_probability(texts, order, history[1:], token)
    after = {gram: count for gram, count in counts.items() if gram[:-1] == history}
    if not after:
        return lower
    values = list(counts.values())
    once, twice = values.count(1), values.count(2)
    lowered = once / (once + 2 * twice) if once else 0.5
    total = sum(after.values())
    own = max(after.get((*history, token), 0) - lowered, 0)
    return own / total + lowered * len(after) / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_ngram_agrees_with_the_definition_and_sums_to_one(order):
    model = ngram(TEXTS, order)
    text = [5, 1, 2, 6, 9, 3, 3]  # with a token that was never seen
    probs = model(input_ids=torch.tensor([text])).logits[0].exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(text)), atol=1e-5, rtol=0)
    for position in range(len(text)):
        first = max(0, position + 1 - (order - 1))
        history = tuple(text[first : position + 1])
        for token in range(VOCABULARY):
            expected = slow_probability(TEXTS, order, history, token)
            assert probs[position, token].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow  # for the import of nltk, two seconds
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_ngram_agrees_with_nltk(order):
    """nltk's KneserNeyInterpolated is interpolated Kneser-Ney too (Chen and Goodman 1998, section 2.7), and differs in this:

    - It has one discount for all orders, and we have section 2.7's D_k = n_1 / (n_1 + 2 n_2). The test sets ours to nltk's.
    - Its p_1 has no discount and no p_0 below it, so that a token that was never seen has probability 0. Ours here: D_1 = 0.
    - Order 1 divides by 0: it counts the tokens before a token, and there are no bigrams to count them in.
    - It counts only what it is given. One token before each row is the start that we count.
    - A history that was not counted gives the lower order in both, and at the start of a row the order is lower.
    """
    lm = pytest.importorskip("nltk.lm", reason="nltk is not installed")
    from nltk.util import everygrams

    words = [str(token) for token in range(VOCABULARY)]  # nltk takes no numbers
    rows = (["start", *(words[token] for token in text)] for text in TEXTS)
    theirs = lm.KneserNeyInterpolated(order, discount=0.3)
    theirs.fit((everygrams(row, max_len=order) for row in rows), words)
    ours = ngram(TEXTS, order)
    ours.discounts.data[:] = torch.tensor([0.0] + [0.3] * (order - 1))
    for text in ([5, 1, 2, 6, 3, 3, 4], [1, 2, 3, 9, 4, 5, 1, 2]):  # 9 was never seen
        probs = ours(input_ids=torch.tensor([text])).logits[0].exp()
        for position in range(len(text)):
            history = [words[token] for token in text[: position + 1]]
            expected = torch.tensor([theirs.score(word, history) for word in words])
            torch.testing.assert_close(probs[position], expected, atol=1e-6, rtol=0)


def test_bigram_worked_by_hand():
    """Of the text 1 2 1 3: bigrams 12, 21, 13 once each, so D_2 = 1 and p(. | 1) is the unigrams' distribution.

    Different tokens before 1: the start and 2; before 2: 1; before 3: 1. D_1 = 2 / (2 + 2) = 0.5, total 4, three kinds.
    p(1) = (2 - 0.5) / 4 + 0.5 * 3 / 4 / 11.
    """
    model = ngram([[1, 2, 1, 3]], 2)
    assert model.discounts.tolist() == [0.5, 1.0]
    p = model(input_ids=torch.tensor([[1]])).logits[0, 0].exp()
    assert p[1].item() == pytest.approx(0.375 + 0.375 / 11)
    assert p[7].item() == pytest.approx(0.375 / 11)


def test_counts_of_parts_add_up():
    whole = count_windows(TEXTS, 3)
    parts = [count_windows(TEXTS[:2], 3), count_windows(TEXTS[2:], 3)]
    for actual, expected in zip(add_counts(parts), whole, strict=True):
        assert torch.equal(actual, expected)
    assert int(whole[1].sum()) == sum(len(text) for text in TEXTS)
    assert (whole[0][:, 0] == NOTHING).sum() == len({tuple(text[:3]) for text in TEXTS})


def test_a_discount_without_grams_that_occur_once():
    assert discount(torch.tensor([2, 2, 3])) == 0.5
    assert discount(torch.tensor([1, 1, 2])) == 0.5
    assert discount(torch.tensor([1, 2, 2])) == 0.2


def test_an_ngram_without_counts_or_of_a_wrong_order_is_refused():
    with pytest.raises(UserError, match="holds no counts"):
        NgramForCausalLM(NgramConfig(vocab_size=4))(input_ids=torch.tensor([[1]]))
    with pytest.raises(UserError, match="use 1 to 5"):
        NgramForCausalLM(NgramConfig(vocab_size=4, order=6))
