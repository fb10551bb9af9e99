"""recipes/ladder.sh: the commands that it gives for small talk, for questions with answers, and for plain text."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "ladder.sh"
# A python that prints the commands instead of running them.
PYTHON = """#!/usr/bin/env bash
if [ "$2" = rlhf.stages ]; then cat; else echo "${@:3}"; fi
"""


@pytest.fixture
def commands(tmp_path):
    """f(**environment) -> the arguments of each command."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)

    def commands(**environment) -> list[list[str]]:
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", SCRIPT],
            cwd=tmp_path,
            env=os.environ | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [shlex.split(line) for line in done.stdout.splitlines()]

    return commands


def data(folder: Path, *names: str) -> None:
    """Empty files of ladder_data."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.jsonl").touch()


def folders(lines: list[list[str]]) -> list[str]:
    """The last parts of the output folders of the runs."""
    return [Path(line[-1]).name for line in lines if "--output_dir" in line]


RUNGS = "tokenizer 1-gram 2-gram 3-gram 4-gram 5-gram mlp rnn gru lstm gpt2".split()


def test_a_finished_demo_gives_its_text_its_sft_and_its_ppo(commands):
    lines = commands(DEMO="runs/demo-a")
    assert folders(lines) == RUNGS
    assert "runs/demo-a/data/turns_heldout.jsonl" in lines[-2]
    assert lines[-1][:4] == ["ladder", "runs/ladder/rungs", "runs/demo-a/sft", "runs/demo-a/ppo"]
    assert "rlhf.recipes.rewards:on_topic" in lines[-1]


def test_questions_with_answers_end_with_sft_and_chrf(commands, tmp_path):
    data(tmp_path / "runs/ladder-chat/data", "sft", "heldout")
    lines = commands(DATA="here/chat.csv", DATA_FLAGS="--columns prompt=a,completion=b", SEED="3")
    flags = ["--columns", "prompt=a,completion=b", "--output", "runs/ladder-chat/data"]
    assert lines[0] == ["ladder_data", "here/chat.csv", *flags]
    assert folders(lines) == [*RUNGS, "sft"]
    sft = lines[-2]
    assert sft[:3] == ["sft", "--config", "ladder"] and "runs/ladder-chat/rungs/gpt2" in sft
    assert sft[sft.index("--seed") + 1] == "3"
    assert lines[-1][:2] == ["ladder", "runs/ladder-chat/rungs"]
    assert "runs/ladder-chat/data/heldout.jsonl" in lines[-1]
    assert "rlhf.recipes.rewards:chrf" in lines[-1]


def test_plain_text_ends_with_gpt_and_takes_settings_and_flags(commands, tmp_path):
    data(tmp_path / "run/data", "heldout")
    given = {"DATA": "stories.txt.gz", "RUN": "run", "CONFIG": "stories", "VOCAB": "500"}
    lines = commands(**given, FLAGS="--max_steps 5")
    assert folders(lines[:-2]) == RUNGS[:-1] and lines[-2][2] == "stories_gpt2"
    assert lines[-2][-4:] == ["--max_steps", "5", "--output_dir", "run/rungs/gpt2"]
    assert lines[1][lines[1].index("--vocab_size") + 1] == "500"
    assert "--max_steps" not in lines[2]  # an n-gram has no steps
    assert "--prompts" in lines[-1] and "--reward_functions" not in lines[-1]


def test_texts_without_prompts_are_compared_without_answers(commands, tmp_path):
    data(tmp_path / "runs/ladder-lines/data")
    last = commands(DATA="lines.txt")[-1]
    assert last == ["ladder", "runs/ladder-lines/rungs", *last[2:]] and "--prompts" not in last


def test_a_finished_rung_is_not_trained_again_and_one_that_was_cut_off_is(commands, tmp_path):
    for name, status in (("mlp", "done"), ("rnn", "running")):
        folder = tmp_path / "runs/ladder/rungs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(f'{{\n "status": "{status}"\n}}')
    assert folders(commands(DEMO="runs/demo-a")) == [name for name in RUNGS if name != "mlp"]
    assert not (tmp_path / "runs/ladder/rungs/rnn").exists()
