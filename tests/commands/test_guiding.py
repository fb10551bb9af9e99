"""`rlhf sample` and `rlhf report` with values: which values are read, and what is refused before sampling."""

import argparse
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf.commands import report as report_command
from rlhf.commands.sample import add_arguments, main
from rlhf.comparison.compare import ReportSettings, build_report, discount, load_runs
from rlhf.comparison.report import explanations
from rlhf.completions.functions import FunctionScorer
from rlhf.completions.score import WeightedSum
from rlhf.errors import UserError
from rlhf.models.action_values import ActionValueHeads, save_heads
from rlhf.models.actor_critic import ValueHead
from rlhf.models.load import save
from rlhf.models.value_functions import ADAPTER, load_actor_critic
from rlhf.runs.record import RunRecord, read_jsonl

PROMPTS = [{"prompt": text} for text in ("a b", "c", "d e f")]


def save_values(folder, value):
    """A head's tensors, as `policy_gradient.checkpoints` writes them."""
    folder.mkdir(parents=True)
    save_file(value.state_dict(), folder / "value_head.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer, make_policy, make_reward_model):
    """Four runs of the same policy: without values, with a model, with a head, and with the heads of ILQL."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer("a b c", truncation=True, max_length=2)  # which is saved, and means nothing
    for name in ("sft", "model", "head", "ilql"):
        save(make_policy(tokenizer, factor=2.0, seed=1), tokenizer, folder / name)
    save(make_reward_model(tokenizer), tokenizer, folder / "reward")
    save(make_reward_model(tokenizer, seed=3), tokenizer, folder / "model" / "value_model")
    head = ValueHead(16)
    nn.init.normal_(head.weight)
    save_values(folder / "head" / "value_model", head)
    torch.manual_seed(0)
    heads = ActionValueHeads(16, len(tokenizer))
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=0.25)
    save_heads(folder / "ilql" / "value_model", heads, 3.0)
    (folder / "adapter" / "value_model").mkdir(parents=True)
    (folder / "adapter" / "value_model" / ADAPTER).touch()  # of a trunk that is merged now
    return folder


@pytest.fixture
def sample(runs, write, tmp_path):
    """f(run, name, *flags) samples two answers to each prompt and returns the folder."""
    prompts = write("prompts.jsonl", PROMPTS)

    def sample(run, name, *flags):
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        argv = [runs / run, "--dataset_name", prompts, "--output", tmp_path / name, "--n", 2]
        argv += ["--max_completion_length", 4, "--reward_model", runs / "reward"]
        main(parser.parse_args([*map(str, argv), *map(str, flags)]))
        return tmp_path / name

    return sample


def texts(folder):
    rows = read_jsonl(folder / "answers.jsonl")
    return [answer["completion"] for row in rows for answer in row["answers"]]


def test_a_model_and_a_head_guide_the_sampling_and_the_record_says_so(sample, runs, capsys):
    plain = sample("sft", "plain", "--top_k", 4)
    assert "decoding" not in json.loads((plain / "sample.json").read_text())["settings"]
    still = sample("model", "still", "--top_k", 4, "--decoding", "value", "--value_coef", 0)
    assert texts(still) == texts(plain)
    for run in ("model", "head"):
        guided = sample(run, f"{run} value", "--top_k", 4, "--decoding", "value", "--value_coef", 9)
        assert texts(guided) != texts(plain)
    searched = sample("sft", "mcts", "--top_k", 4, "--decoding", "mcts", "--simulations", 3,
                      "--value_run", runs / "model", "--ref_model", runs / "sft", "--kl_coef", 0.1)  # fmt: skip
    record = json.loads((searched / "sample.json").read_text())
    assert record["settings"]["simulations"] == 3 and record["settings"]["kl_coef"] == 0.1
    # Both read each new state; so does the reference.
    passes = record["passes_per_token"]
    assert passes["policy"] == passes["value"] == passes["reference"] <= 3 + 3
    assert record["models"]["values"]["sha256"] and record["models"]["reference"]["sha256"]
    assert "forward passes per token: policy" in capsys.readouterr().out


def test_an_ilql_run_decodes_with_its_own_values_unless_told_otherwise(sample, runs, capsys):
    plain = texts(sample("sft", "plain of ilql"))
    assert texts(sample("ilql", "unguided", "--decoding", "sample")) == plain
    assert texts(sample("ilql", "zero", "--value_coef", 0)) == plain
    own = sample("ilql", "own")
    assert texts(own) != plain
    assert texts(sample("ilql", "three", "--value_coef", 3)) == texts(own)
    assert texts(sample("ilql", "less", "--value_coef", 0.3)) != texts(own)
    record = json.loads((own / "sample.json").read_text())
    assert record["settings"]["decoding"] == "value" and record["models"]["values"]


@pytest.mark.parametrize("values", ["ilql", "head"])
def test_answers_of_values_that_were_trained_again_are_not_kept(sample, runs, tmp_path, values):
    """The policy is the same, so that only the heads tell the two runs apart."""
    shutil.copytree(runs / values, tmp_path / "again")
    flags = ["--decoding", "value", *([] if values == "ilql" else ["--top_k", 4])]
    first = texts(sample(tmp_path / "again", "answers", *flags))
    assert texts(sample(tmp_path / "again", "answers", *flags)) == first
    (path,) = (tmp_path / "again" / "value_model").iterdir()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path, metadata)
    with pytest.raises(UserError, match=r"sampled with other models \(values"):
        sample(tmp_path / "again", "answers", *flags)


def test_a_report_shows_what_the_values_of_a_ppo_run_choose(runs):
    def columns(value_coef):
        settings = ReportSettings(
            max_completion_length=4, value_coef=value_coef, value_top_k=10**6, samples=2
        )
        report = build_report([str(runs / "sft"), str(runs / "model")], PROMPTS, settings=settings)
        assert [column.decoding for column in report.columns] == ["sampled", "sampled", "values"]
        return report.columns[1:]

    plain, unguided = columns(0.0)
    assert unguided.completions == plain.completions
    plain, guided = columns(20.0)
    assert guided.completions != plain.completions
    assert "kl" in plain.metrics and "kl" not in guided.metrics


def test_win_rates_are_those_of_the_last_two_runs_alone(runs):
    paths = [str(runs / name) for name in ("model", "sft", "head")]
    scorer = FunctionScorer(
        lambda prompts, completions, **columns: list(map(len, completions)), "length"
    )
    settings = ReportSettings(max_completion_length=4, value_coef=1.0, samples=0)
    rewards = WeightedSum({"length": scorer}, None)
    report = build_report(paths, PROMPTS, settings=settings, rewards=rewards)
    compared = [
        (column.label, column.decoding)
        for column in report.columns
        if any(name.startswith("win_rate") for name in column.metrics)
    ]
    assert compared == [("head", "sampled")]
    assert report.settings["value_coef"] == 1.0
    assert "re-ranked by the run's value model with the weight 1" in explanations(report)[-1]


@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("sft", ["--value_coef", "1"], "none of the runs keeps a value_model/"),
        ("ilql", ["--value_coef", "1"], "none of the runs keeps a value_model/"),
        ("adapter", ["--value_coef", "1"], "none of the runs keeps a value_model/"),
        ("model", ["--value_coef", "nan"], "at least 0 and finite"),
        ("model", ["--value_coef", "1", "--top_k", "0"], "--top_k 0"),
        ("model", ["--top_k", "4"], "read with --value_coef alone"),
    ],
)
def test_a_report_refuses_values_that_it_cannot_use(runs, run, flags, message):
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    args = parser.parse_args([str(runs / run), *flags])
    with pytest.raises(UserError, match=message):
        report_command.check_value_flags(args)


def test_a_report_measures_what_an_ilql_run_decodes_from(runs):
    report = build_report(
        [str(runs / "sft"), str(runs / "ilql")],
        PROMPTS,
        settings=ReportSettings(max_completion_length=4),
    )
    plain, guided = report.columns
    assert plain.completions != guided.completions
    assert guided.metrics["kl"].mean > 0
    assert any("ilql decodes with its values, at advantage_coef 3" in note for note in report.notes)
    [unguided] = load_runs([str(runs / "ilql")], advantage_coef=0.0)
    [sft] = load_runs([str(runs / "sft")])
    ids = torch.tensor([[2, 3, 4]])
    assert torch.equal(unguided.model(ids).logits, sft.model(ids).logits)


REFUSED = {
    "those of ILQL": ("ilql", ["--decoding", "mcts", "--top_k", "4"]),
    "--value_run is not read": ("ilql", ["--value_run", "other"]),
    "--value_coef is not read": ("sft", ["--value_coef", "1"]),
    "--simulations is not read": ("model", ["--decoding", "value", "--simulations", "4"]),
    "likeliest tokens": ("model", ["--decoding", "value"]),
    "belong together": ("model", ["--decoding", "mcts", "--top_k", "4", "--kl_coef", "0.1"]),
    "holds no value_model/": ("sft", ["--decoding", "mcts", "--top_k", "4"]),
    "at least 1": ("model", ["--decoding", "mcts", "--top_k", "4", "--simulations", "0"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_flags_that_mean_nothing_are_refused(sample, refused, message):
    run, flags = REFUSED[message]
    assert message in refused(sample, run, "refused", *flags)


def test_values_that_do_not_belong_to_the_policy_are_refused(
    runs, tmp_path, tokenizer, make_policy, make_reward_model, refused
):
    policy = make_policy(tokenizer, factor=2.0, seed=1)
    load = (load_actor_critic, policy, tokenizer, str(runs / "sft"))
    assert "head on the trunk" in refused(*load, value_run=str(runs / "head"))
    (tmp_path / "value_model").mkdir()
    save_file({}, tmp_path / "value_model" / "value_adapter.safetensors")
    assert "share_trunk" in refused(*load, value_run=str(tmp_path))
    short = tmp_path / "short"
    save(make_reward_model(tokenizer), tokenizer, short / "value_model")
    assert "guide" in refused(*load, value_run=str(runs / "ilql"))
    longer = make_policy(tokenizer, context=64)
    assert "reads at most 48 tokens" in refused(
        load_actor_critic, longer, tokenizer, str(runs / "sft"), value_run=str(short)
    )
    other = tmp_path / "other"
    save_values(other / "value_model", ValueHead(8))
    assert "8 numbers" in refused(load_actor_critic, policy, tokenizer, str(other))


def test_the_discount_is_that_of_the_ppo_run(tmp_path):
    assert discount(str(tmp_path)) == 1.0
    RunRecord(recipe="ppo", config={"gamma": 0.9}).save(tmp_path)
    assert discount(str(tmp_path)) == 0.9
