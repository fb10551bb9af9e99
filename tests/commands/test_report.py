"""The report command from end to end: its flags, the files it writes, and how it finds the held-out prompts."""

import argparse
import json
import sys

import pytest

from rlhf.commands.report import add_arguments, held_out_rows, main
from rlhf.errors import UserError
from rlhf.models.load import save
from rlhf.runs.record import RunRecord

ROWS = [
    {"prompt": prompt, "completion": "A fine day.", "answers": {"calm": "A fine day."}}
    for prompt in ("Hello!", "Who are you?", "Is it late?", "What is a fox?")
]


def even(prompts, completions, answers, **columns):
    """A reward of zeros and ones, which checks that it is given the column `answers`."""
    assert all(answer == {"calm": "A fine day."} for answer in answers)
    return [len(text) % 2 for text in completions]


@pytest.fixture
def save_run(tmp_path, bytes_tokenizer, make_policy):
    """Saves a tiny policy as a finished run; returns its folder."""

    def save_run(recipe: str, seed: int, **config) -> str:
        folder = tmp_path / recipe
        save(make_policy(bytes_tokenizer, seed=seed, context=64), bytes_tokenizer, folder)
        RunRecord(recipe=recipe, config=config, status="done").save(folder)
        return str(folder)

    return save_run


@pytest.fixture
def runs(save_run):
    base, sft = save_run("pretrain", 1), save_run("sft", 2)
    return [base, sft, save_run("ppo", 3, max_completion_length=8)]


def command(*argv) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args(list(map(str, argv))))


def test_command(runs, bytes_tokenizer, make_reward_model, tmp_path, capsys, monkeypatch):
    save(make_reward_model(bytes_tokenizer, seed=4), bytes_tokenizer, tmp_path / "reward")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "text.txt").write_text("Who are you?\nIs it late?\n")
    monkeypatch.setitem(sys.modules, "some_rewards", sys.modules[__name__])
    flags = ["--prompts", tmp_path / "rows.jsonl", "--text", tmp_path / "text.txt"]
    flags += ["--reward_model", tmp_path / "reward", "--reward_functions", "some_rewards:even"]
    flags += ["--reward_weights", 1, 0, "--samples", 2, "--limit", 3]
    assert command(*runs, *flags, "--output", tmp_path / "out") == 0
    assert "win_rate_reward_model" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["settings"]["prompts"] == 3
    assert content["settings"]["weights"] == {"reward_model": 1.0, "even": 0.0}
    assert content["settings"]["max_completion_length"] == 8  # of the last run
    values = content["runs"][2]["values"]
    assert values["score"] == values["score_reward_model"]
    assert content["runs"][0]["metrics"]["perplexity"]["n"] == 2
    assert "](scores.png)" in (tmp_path / "out" / "report.md").read_text()


def test_command_finds_the_prompts_that_were_held_out(save_run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"Is it {n}?"}) for n in range(40)))
    config = {"dataset_name": str(rows), "eval_fraction": 0.25, "max_completion_length": 4}
    run = save_run("sft", 1, **config)
    assert command(run) == 0
    content = json.loads((tmp_path / "sft" / "report" / "report.json").read_text())
    assert 0 < content["settings"]["prompts"] < 40


def test_command_without_prompts(runs):
    with pytest.raises(UserError, match="--prompts"):
        command(*runs)


def test_bad_rows_of_the_prompts_are_named_or_dropped(write, capsys):
    path = write("p.jsonl", [{"prompt": ""}, {"prompt": "b"}])
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["run", "--prompts", path])
    with pytest.raises(UserError, match="drop them with --skip_bad"):
        held_out_rows(args, None)
    args = parser.parse_args(["run", "--prompts", path, "--skip_bad"])
    assert held_out_rows(args, None) == [{"prompt": "b"}]
    assert "1 of 2 rows are bad and were dropped" in capsys.readouterr().out
