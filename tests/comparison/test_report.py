"""The report: numbers worked by hand, tiny models whose answers are known, and the command from end to end."""

import argparse
import inspect
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast

from rlhf.commands.report import add_arguments, main
from rlhf.comparison.compare import (
    Answers,
    build_report,
    distinct,
    fitting,
    generate,
    load_runs,
    mean_estimate,
    measure,
    perplexity,
    rate_estimate,
    win_rate,
)
from rlhf.comparison.report import plot, to_json, to_markdown, to_table
from rlhf.completions.rollout import Rollout, statistics
from rlhf.completions.score import FunctionScorer, WeightedSum
from rlhf.data.chat import add_chat_template
from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.models.scratch import new_policy
from rlhf.policy_gradient import update
from rlhf.reward_model.metrics import ranking_report
from rlhf.runs.record import RunRecord

PROMPTS = ["Hello!", "Who are you?", "Is it late?", "What is a fox?"]
ROWS = [
    {"prompt": p, "completion": "A fine day.", "answers": {"calm": "A fine day."}} for p in PROMPTS
]


def make_tokenizer(words: list[str]):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    add_chat_template(fast)
    return fast


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(PROMPTS * 4)


def tiny(tokenizer, seed: int):
    torch.manual_seed(seed)
    model = new_policy(tokenizer, model_type="gpt2", hidden_size=32, layers=2, heads=2, context=64)
    for parameter in model.parameters():  # GPT-2's own 0.02 is all but uniform
        parameter.data *= 3
    return model


def constant(tokenizer, token: int, weight: float):
    """Whatever came: says `token` with probability weight / (V - 1 + weight), every other with 1 / (V - 1 + weight)."""
    model = tiny(tokenizer, 0)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.transformer.ln_f.bias.data[0] = 1.0  # every hidden state is (1, 0, 0, ...)
    model.transformer.wte.weight.data[token, 0] = math.log(weight)
    return model


def put(folder, model, tokenizer, recipe: str, **config) -> str:
    save(model, tokenizer, folder)
    RunRecord(recipe=recipe, config=config, status="done").save(folder)
    return str(folder)


def log(folder: str, rows: list[dict]) -> None:
    Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def runs(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    base = put(root / "base", tiny(tokenizer, 1), tokenizer, "pretrain")
    sft = put(root / "sft", tiny(tokenizer, 2), tokenizer, "sft")
    ppo = put(root / "ppo", tiny(tokenizer, 3), tokenizer, "ppo", max_completion_length=8)
    log(
        ppo,
        [
            {"step": s, "score": 0.1 * s, "score_letters": 5 + s, "kl": 0.2 * s, "eval_score": s}
            for s in range(4)
        ],
    )
    log(sft, [{"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "eval_loss": 2}])
    return [base, sft, ppo]


def letters(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def even(prompts, completions, answers, **columns):
    assert all(answer == {"calm": "A fine day."} for answer in answers)
    return [len(text) % 2 for text in completions]


def rewards():
    return WeightedSum(
        {f.__name__: FunctionScorer(f, f.__name__) for f in (letters, even)}, [1.0, 2.0]
    )


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_estimate_of_a_mean():
    """1, 2, 3, 4: mean 2.5, s^2 = 5/3, half = 1.96 sqrt(5/12) = 1.26517."""
    found = mean_estimate([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.n) == (2.5, 4)
    assert (found.low, found.high) == pytest.approx((1.234829, 3.765171), abs=1e-5)


def test_estimate_of_a_rate():
    """Wilson, 8 of 10: centre (0.8 + 0.19208) / 1.38416, half 1.96 sqrt(0.016 + 0.009604) / 1.38416."""
    found = rate_estimate([1.0] * 8 + [0.0] * 2)
    assert (found.low, found.high) == pytest.approx((0.490157, 0.943318), abs=1e-5)
    assert rate_estimate([1.0] * 10).low == pytest.approx(
        10 / 13.8416, abs=1e-6
    )  # never a width of 0
    assert rate_estimate([1.0] * 10).high == 1.0


def test_estimate_of_one_value():
    assert (mean_estimate([2.5]).low, mean_estimate([2.5]).n) == (None, 1)


def test_broken_weights_are_an_error(tokenizer, tmp_path):
    model = tiny(tokenizer, 1)
    model.transformer.ln_f.bias.data[0] = math.nan
    run = put(tmp_path / "broken", model, tokenizer, "sft")
    with pytest.raises(UserError, match="sft: kl: 4 of 4 values are not finite"):
        build_report([run, run], ROWS, max_completion_length=2)


def test_win_rate_counts_ties_half():
    assert win_rate([1.0, 0.0, 2.0, 3.0000001], [0.0, 1.0, 2.0, 3.0]) == [1.0, 0.0, 0.5, 0.5]


def test_distinct():
    """the cat, The dog: words the cat the dog, 3 of 4; pairs the-cat the-dog, 2 of 2."""
    assert distinct(["the cat", "The dog"], 1) == 0.75
    assert distinct(["the cat", "The dog"], 2) == 1.0
    assert distinct(["a a a"], 2) == 0.5
    assert distinct(["", "one"], 2) is None


# ---- models whose numbers are known ------------------------------------------------------------------------------


def test_perplexity_of_a_uniform_model_is_the_vocabulary(tokenizer, tmp_path):
    (run,) = load_runs([put(tmp_path / "u", constant(tokenizer, 0, 1.0), tokenizer, "sft")])
    for rows in (ROWS, [{"text": "Who are you?"}, {"text": "Hello!"}]):
        found, long = perplexity(run, rows)
        assert found.mean == pytest.approx(len(tokenizer), rel=1e-4) and long == 0
        assert (found.low, found.high) == pytest.approx((found.mean, found.mean), rel=1e-3)
    found, long = perplexity(run, [*ROWS, {"prompt": "Hello!", "completion": "!?" * 64}])
    assert (found.n, long) == (4, 1)  # over the context: left out and counted
    assert perplexity(run, [{"text": "!?" * 64}]) == (None, 1)


def test_perplexity_of_a_known_model(tokenizer, tmp_path):
    """Two completions of one token and EOS; EOS has probability a / (V - 1 + a), the other token 1 / (V - 1 + a)."""
    a, total = 20.0, len(tokenizer) - 1 + 20.0
    (run,) = load_runs(
        [put(tmp_path / "k", constant(tokenizer, tokenizer.eos_token_id, a), tokenizer, "sft")]
    )
    found, _ = perplexity(
        run, [{"prompt": "Hello!", "completion": "A"}, {"prompt": "Hello!", "completion": "B"}]
    )
    assert found.mean == pytest.approx(
        math.exp((math.log(total / a) + math.log(total)) / 2), rel=1e-4
    )


def test_kl_of_known_models(tokenizer, tmp_path):
    """log p - log q is log((V - 1 + a) / V) for each token, less log a where the token is EOS."""
    a, size, eos = 5.0, len(tokenizer), tokenizer.eos_token_id
    uniform = put(tmp_path / "u", constant(tokenizer, eos, 1.0), tokenizer, "sft")
    peaked = put(tmp_path / "p", constant(tokenizer, eos, a), tokenizer, "sft")
    policy, reference = load_runs([uniform, peaked])
    answers = Answers(["", ""], [[5], [6, 7]], [[8, 9, eos], [eos]], [True, True])
    rows = [{"prompt": ""}, {"prompt": ""}]
    values = measure(policy, answers, rows, rewards=None, reference=reference, temperature=1.0)
    step = math.log((size - 1 + a) / size)
    assert values["kl"] == pytest.approx([3 * step - math.log(a), step - math.log(a)], abs=1e-4)
    assert values["completion_length"] == [3.0, 1.0] and values["eos_rate"] == [1.0, 1.0]


def test_a_run_against_itself(runs):
    """The same weights twice: the same answers, KL 0, and every comparison a tie."""
    report = build_report([runs[1], runs[1]], ROWS, rewards=rewards(), max_completion_length=8)
    first, second = report.columns
    assert [first.label, second.label] == ["sft", "sft 2"]
    assert first.completions == second.completions
    assert second.values["kl"] == [0.0] * 4
    assert (second.metrics["kl"].low, second.metrics["kl"].high) == (
        0.0,
        0.0,
    )  # zeros are no rate here
    assert second.metrics["win_rate_letters"].mean == 0.5


def test_random_numbers_belong_to_the_row(runs):
    run = load_runs(runs[1:2])[0]
    options = dict(temperature=1.0, max_completion_length=8)
    both = generate(run, ROWS, seed=1, **options)
    assert generate(run, ROWS[:2], seed=1, **options).ids == both.ids[:2]
    assert generate(run, ROWS, seed=2, **options).ids != both.ids
    greedy = generate(run, ROWS, seed=1, greedy=True, **options)
    assert greedy == generate(run, ROWS, seed=2, greedy=True, **options)


def test_other_tokenizer_has_no_kl(runs, tmp_path):
    other = make_tokenizer(["zebra quiz"] * 4)
    base = put(tmp_path / "o", tiny(other, 1), other, "pretrain")
    report = build_report([base, *runs[1:]], ROWS, max_completion_length=8)
    assert "kl" not in report.columns[0].metrics and "kl" in report.columns[2].metrics
    assert "tokenizers differ" in report.notes[0]
    (line,) = [line for line in to_markdown(report).splitlines() if line.startswith("| kl")]
    assert line.split(" | ")[1] == "-"


def test_long_prompts_are_counted(runs):
    report = build_report(runs, [*ROWS, {"prompt": "fox " * 60}], max_completion_length=8)
    assert (
        report.settings["prompts"] == 4
        and report.notes[0] == "1 of 5 prompts are too long and were left out"
    )
    with pytest.raises(UserError, match="max_completion_length"):
        fitting(ROWS, load_runs(runs), 64)


def test_temperature_is_checked(runs):
    with pytest.raises(UserError, match="temperature"):
        build_report(runs, ROWS, temperature=0.0)


# ---- what is shown -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(runs):
    return build_report(
        runs, ROWS, rewards=rewards(), samples=3, max_completion_length=8, greedy=True
    )


def test_report(report):
    sampled, greedy = report.columns[::2], report.columns[1::2]
    assert [column.title for column in report.columns[2:5]] == ["sft", "sft (greedy)", "ppo"]
    base, sft, ppo = sampled
    assert sft.values["kl"] == [0.0] * 4 and ppo.metrics["kl"].mean > 0
    assert all("kl" not in column.metrics for column in greedy)  # an expectation over samples
    for column in report.columns:
        assert column.values["score_letters"] == letters(None, column.completions)
        total = [
            x + 2 * y
            for x, y in zip(
                column.values["score_letters"], column.values["score_even"], strict=True
            )
        ]
        assert column.values["score"] == total
    wins = win_rate(ppo.values["score_letters"], sft.values["score_letters"])
    assert ppo.metrics["win_rate_letters"].mean == sum(wins) / 4
    assert "win_rate_letters" in greedy[2].metrics and "win_rate_letters" not in sft.metrics
    assert report.rates == ["score_even", "eos_rate"]
    assert {"perplexity", "distinct_1"} <= set(base.metrics)


def test_views(report, tmp_path):
    table, page, content = to_table(report), to_markdown(report), json.loads(to_json(report))
    for text in (table, page.replace("\\_", "_")):
        assert "score_even (%)" in text and "kl (nats)" in text and "win_rate_letters (%)" in text
    assert max(map(len, table.splitlines())) <= 140
    assert len(content["samples"]) == 3 and len(content["runs"]) == 6
    assert set(content["samples"][0]["scores"]["ppo"]) == {"score", "score_letters", "score_even"}
    entry = content["runs"][4]
    assert entry["metrics"]["kl"]["n"] == 4 and len(entry["values"]["kl"]) == 4
    pictures = plot(report, tmp_path)
    assert [path.name for path in pictures] == ["learning_curves.png", "score_kl.png", "scores.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_terminal_shows_no_control_codes(report):
    column = report.columns[0]
    kept, column.completions[report.samples[0]] = (
        column.completions[report.samples[0]],
        "\x1b[31m[bold]red",
    )
    try:
        assert "\x1b" not in to_table(report) and "[bold]" in to_table(report).replace("\n", "")
    finally:
        column.completions[report.samples[0]] = kept


def test_without_rewards_or_record(tokenizer, tmp_path):
    """One plain from_pretrained folder, no scores, no completions: what can be said is said."""
    save(tiny(tokenizer, 1), tokenizer, tmp_path / "plain")
    report = build_report(
        [str(tmp_path / "plain")], [{"prompt": "Hello!"}], max_completion_length=4
    )
    assert report.columns[0].label == "plain" and set(report.columns[0].metrics) >= {
        "completion_length",
        "eos_rate",
    }
    assert to_table(report) and plot(report, tmp_path) == []


# ---- the command -------------------------------------------------------------------------------------------------


def command(*argv) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(list(map(str, argv))))


def test_command(runs, tokenizer, tmp_path, capsys, monkeypatch):
    policy = tiny(tokenizer, 4)
    config = policy.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    save(GPT2ForSequenceClassification(config), tokenizer, tmp_path / "reward")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "text.txt").write_text("Who are you?\nIs it late?\n")
    monkeypatch.setitem(sys.modules, "some_rewards", sys.modules[__name__])
    flags = [
        "--prompts",
        tmp_path / "rows.jsonl",
        "--reward_model",
        tmp_path / "reward",
        "--reward_functions",
    ]
    flags += [
        "some_rewards:even",
        "--reward_weights",
        1,
        0,
        "--text",
        tmp_path / "text.txt",
        "--samples",
        2,
    ]
    assert command(*runs, *flags, "--output", tmp_path / "out", "--limit", 3) == 0
    assert "win_rate_reward_model" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["settings"]["prompts"] == 3 and content["settings"]["weights"] == {
        "reward_model": 1.0,
        "even": 0.0,
    }
    assert content["settings"]["max_completion_length"] == 8  # of the last run
    values = content["runs"][2]["values"]
    assert values["score"] == values["score_reward_model"]
    assert content["runs"][0]["metrics"]["perplexity"]["n"] == 2
    assert "](scores.png)" in (tmp_path / "out" / "report.md").read_text()


def test_command_finds_the_prompts_that_were_held_out(tokenizer, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"Is it {n}?"}) for n in range(40)))
    config = {"dataset_name": str(rows), "eval_fraction": 0.25, "max_completion_length": 4}
    run = put(tmp_path / "sft", tiny(tokenizer, 1), tokenizer, "sft", **config)
    assert command(run) == 0
    content = json.loads((tmp_path / "sft" / "report" / "report.json").read_text())
    assert 0 < content["settings"]["prompts"] < 40


def test_command_without_prompts(runs):
    with pytest.raises(UserError, match="--prompts"):
        command(*runs)


# ---- the manual --------------------------------------------------------------------------------------------------


def test_every_metric_is_in_the_manual(report):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`([a-z_0-9]+)`", page))
    grid = torch.ones(1, 1)
    rollout = Rollout(
        *[grid] * 2,
        grid,
        grid.bool(),
        grid.bool(),
        *[grid] * 4,
        torch.ones(1),
        {},
        grid,
        grid,
        grid,
    )
    ranking = {
        "ranks": [0, 1],
        "lengths": [1, 2],
        "places": [0, 1],
        "row": {"prompt": "", "completions": ["", ""]},
    }
    named = {*statistics(rollout), *ranking_report([[1.0, 0.0]], [ranking])}
    named |= {
        name
        for column in report.columns
        for name in column.metrics
        if not re.search("_(letters|even)$", name)
    }
    source = inspect.getsource(update)
    logged = re.findall(r'(?:sums|metrics)\["(\w+)"\]|"(\w+)": masked_sum', source)
    logged = {one or other for one, other in logged}
    assert {"approx_kl", "policy_loss", "ptx_loss", "first_ratio_error"} <= logged
    assert {*named, *logged} <= explained, {*named, *logged} - explained
