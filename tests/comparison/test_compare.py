"""Numbers worked by hand, and tiny models whose answers are known."""

import math

import pytest
import torch

from rlhf.comparison import compare
from rlhf.comparison.compare import (
    ChatRun,
    ReportSettings,
    RunCompletions,
    build_report,
    distinct,
    fitting,
    generate,
    load_runs,
    mean_estimate,
    measure,
    perplexity,
    rate_estimate,
    summed_log_probs,
    win_rate,
)
from rlhf.comparison.report import to_markdown
from rlhf.data.chat import decode_text
from rlhf.errors import UserError

SHORT = ReportSettings(max_completion_length=8)

# ---- statistics --------------------------------------------------------------------------------------------------


def test_estimate_of_a_mean():
    """1, 2, 3, 4: mean 2.5, s^2 = 5/3, half = 1.96 sqrt(5/12) = 1.26517."""
    estimate = mean_estimate([1.0, 2.0, 3.0, 4.0])
    assert (estimate.mean, estimate.n) == (2.5, 4)
    assert (estimate.low, estimate.high) == pytest.approx((1.234829, 3.765171), abs=1e-5)


def test_estimate_of_a_rate():
    """Wilson, 8 of 10: centre (0.8 + 0.19208) / 1.38416, half 1.96 sqrt(0.016 + 0.009604) / 1.38416."""
    estimate = rate_estimate([1.0] * 8 + [0.0] * 2)
    assert (estimate.low, estimate.high) == pytest.approx((0.490157, 0.943318), abs=1e-5)
    always = rate_estimate([1.0] * 10)
    assert always.low == pytest.approx(10 / 13.8416, abs=1e-6)  # never a width of 0
    assert always.high == 1.0


def test_estimate_of_one_value():
    assert (mean_estimate([2.5]).low, mean_estimate([2.5]).n) == (None, 1)


def test_broken_weights_are_an_error(rows, tokenizer, tiny, save_run, tmp_path):
    model = tiny(tokenizer, 1)
    model.transformer.ln_f.bias.data[0] = math.nan
    run = save_run(tmp_path / "broken", model, tokenizer, "sft")
    with pytest.raises(UserError, match="sft: kl: 4 of 4 values are not finite"):
        build_report([run, run], rows, settings=ReportSettings(max_completion_length=2))


def test_win_rate_counts_ties_half():
    assert win_rate([1.0, 0.0, 2.0, 3.0000001], [0.0, 1.0, 2.0, 3.0]) == [1.0, 0.0, 0.5, 0.5]


def test_distinct():
    """the cat, The dog: words the cat the dog, 3 of 4; pairs the-cat the-dog, 2 of 2."""
    assert distinct(["the cat", "The dog"], 1) == 0.75
    assert distinct(["the cat", "The dog"], 2) == 1.0
    assert distinct(["a a a"], 2) == 0.5
    assert distinct(["", "one"], 2) is None


# ---- models whose numbers are known ------------------------------------------------------------------------------


@pytest.fixture
def constant(tiny):
    """A model that gives `token` the probability weight / (V - 1 + weight), every other 1 / (V - 1 + weight)."""

    def make(tokenizer, token: int, weight: float):
        model = tiny(tokenizer, 0)
        for parameter in model.parameters():
            parameter.data.zero_()
        model.transformer.ln_f.bias.data[0] = 1.0  # every hidden state is (1, 0, 0, ...)
        model.transformer.wte.weight.data[token, 0] = math.log(weight)
        return model

    return make


def test_perplexity_of_a_uniform_model_is_the_vocabulary(
    rows, tokenizer, constant, save_run, tmp_path
):
    (run,) = load_runs([save_run(tmp_path / "u", constant(tokenizer, 0, 1.0), tokenizer, "sft")])
    for texts in (rows, [{"text": "Who are you?"}, {"text": "Hello!"}]):
        estimate, too_long = perplexity(run, texts)
        assert estimate.mean == pytest.approx(len(tokenizer), rel=1e-4) and too_long == 0
        interval = (estimate.low, estimate.high)
        assert interval == pytest.approx((estimate.mean, estimate.mean), rel=1e-3)
    long_row = {"prompt": "Hello!", "completion": "!?" * 64}
    estimate, too_long = perplexity(run, [*rows, long_row])
    assert (estimate.n, too_long) == (4, 1)  # over the context: dropped and counted
    assert perplexity(run, [{"text": "!?" * 64}]) == (None, 1)


def test_perplexity_of_a_known_model(tokenizer, constant, save_run, tmp_path):
    """Two completions of one token and EOS; EOS has probability a / (V - 1 + a), the other token 1 / (V - 1 + a)."""
    a, total = 20.0, len(tokenizer) - 1 + 20.0
    model = constant(tokenizer, tokenizer.eos_token_id, a)
    (run,) = load_runs([save_run(tmp_path / "k", model, tokenizer, "sft")])
    rows = [{"prompt": "Hello!", "completion": "A"}, {"prompt": "Hello!", "completion": "B"}]
    estimate, _ = perplexity(run, rows)
    expected = math.exp((math.log(total / a) + math.log(total)) / 2)
    assert estimate.mean == pytest.approx(expected, rel=1e-4)


def test_kl_of_known_models(tokenizer, constant, save_run, tmp_path):
    """log p - log q is log((V - 1 + a) / V) for each token, less log a where the token is EOS."""
    a, size, eos = 5.0, len(tokenizer), tokenizer.eos_token_id
    uniform = save_run(tmp_path / "u", constant(tokenizer, eos, 1.0), tokenizer, "sft")
    peaked = save_run(tmp_path / "p", constant(tokenizer, eos, a), tokenizer, "sft")
    policy, reference = load_runs([uniform, peaked])
    completions = RunCompletions(
        texts=["", ""], prompt_ids=[[5], [6, 7]], ids=[[8, 9, eos], [eos]], ended=[True, True]
    )
    rows = [{"prompt": ""}, {"prompt": ""}]
    values = measure(policy, completions, rows, rewards=None, reference=reference, temperature=1.0)
    step = math.log((size - 1 + a) / size)
    assert values["kl"] == pytest.approx([3 * step - math.log(a), step - math.log(a)], abs=1e-4)
    assert values["completion_length"] == [3.0, 1.0] and values["eos_rate"] == [1.0, 1.0]


@pytest.mark.parametrize("model_type", ["cohere", "gemma2", "granite"])
def test_log_probs_are_those_of_the_models_own_logits(tokenizer, make_architecture, model_type):
    """These models change their logits after the output layer."""
    model = make_architecture(model_type)
    run = ChatRun("policy", "", None, model, tokenizer)
    (found,) = summed_log_probs(run, [[5, 6]], [[8, 9]], temperature=0.7)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 8, 9]])).logits[0] / 0.7
    log_probs = torch.log_softmax(logits, -1)
    assert found == pytest.approx(float(log_probs[1, 8] + log_probs[2, 9]), abs=1e-4)


def test_a_run_against_itself(runs, rows, rewards):
    """The same weights twice: the same answers, KL 0, and every comparison a tie."""
    report = build_report([runs[1], runs[1]], rows, rewards=rewards, settings=SHORT)
    first, second = report.columns
    assert [first.label, second.label] == ["sft", "sft 2"]
    assert first.completions == second.completions
    assert second.values["kl"] == [0.0] * 4
    kl = second.metrics["kl"]
    assert (kl.low, kl.high) == (0.0, 0.0)  # zeros are not a rate here
    assert second.metrics["win_rate_letters"].mean == 0.5


def test_random_numbers_belong_to_the_row(runs, rows):
    run = load_runs(runs[1:2])[0]
    options = dict(temperature=1.0, max_completion_length=8)
    both = generate(run, rows, seed=1, **options)
    assert generate(run, rows[:2], seed=1, **options).ids == both.ids[:2]
    assert generate(run, rows, seed=2, **options).ids != both.ids
    greedy = generate(run, rows, seed=1, greedy=True, **options)
    assert greedy == generate(run, rows, seed=2, greedy=True, **options)


def test_a_stop_token_that_is_not_special_is_no_part_of_the_text(runs, rows, monkeypatch):
    run = load_runs(runs[:1])[0]
    options = dict(seed=0, temperature=1.0, max_completion_length=8)
    third = generate(run, rows[:1], **options).ids[0][2]
    assert third not in run.tokenizer.all_special_ids
    monkeypatch.setattr(compare, "stop_token_ids", lambda model, tokenizer: [third])
    stopped = generate(run, rows[:1], **options)
    assert stopped.ended == [True] and stopped.ids[0][2:] == [third]
    assert stopped.texts == [decode_text(run.tokenizer, stopped.ids[0][:2])]


def test_other_tokenizer_has_no_kl(runs, rows, other_tokenizer, tiny, save_run, tmp_path):
    model = tiny(other_tokenizer, 1)
    base = save_run(tmp_path / "o", model, other_tokenizer, "pretrain")
    report = build_report([base, *runs[1:]], rows, settings=SHORT)
    assert "kl" not in report.columns[0].metrics and "kl" in report.columns[2].metrics
    assert "tokenizers differ" in report.notes[0]
    (line,) = [line for line in to_markdown(report).splitlines() if line.startswith("| kl")]
    assert line.split(" | ")[1] == "-"


def test_long_prompts_are_counted(runs, rows):
    report = build_report(runs, [*rows, {"prompt": "fox " * 60}], settings=SHORT)
    assert report.settings["prompts"] == 4
    assert report.notes[0] == "1 of 5 prompts are too long and were dropped"
    with pytest.raises(UserError, match="max_completion_length"):
        fitting(rows, load_runs(runs), 64)


def test_temperature_is_checked():
    with pytest.raises(UserError, match="temperature"):
        ReportSettings(temperature=0.0)


def test_columns_of_three_runs(report):
    sampled, greedy = report.columns[::2], report.columns[1::2]
    assert [column.title for column in report.columns[2:5]] == ["sft", "sft (greedy)", "ppo"]
    base, sft, ppo = sampled
    assert sft.values["kl"] == [0.0] * 4 and ppo.metrics["kl"].mean > 0
    assert all("kl" not in column.metrics for column in greedy)  # an expectation over samples
    for column in report.columns:
        letters, even = column.values["score_letters"], column.values["score_even"]
        assert letters == [float(len(text)) for text in column.completions]
        assert column.values["score"] == [x + 2 * y for x, y in zip(letters, even, strict=True)]
    wins = win_rate(ppo.values["score_letters"], sft.values["score_letters"])
    assert ppo.metrics["win_rate_letters"].mean == sum(wins) / 4
    assert "win_rate_letters" in greedy[2].metrics and "win_rate_letters" not in sft.metrics
    assert report.rates == ["score_even", "eos_rate"]
    assert {"perplexity", "distinct_1"} <= set(base.metrics)
