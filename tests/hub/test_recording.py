"""push_to_hub in a recipe: checked before the first step, pushed when all is on the disk, and worth no run if it fails."""

import json
import shlex
from argparse import ArgumentParser

import pytest
from transformers import TrainingArguments

from rlhf.__main__ import main
from rlhf.commands import finish
from rlhf.commands import share as command
from rlhf.errors import UserError
from rlhf.hub.recording import recording
from rlhf.models.load import save
from rlhf.runs.public_names import public_record
from rlhf.runs.record import TRAINED
from rlhf.runs.run import start
from rlhf.runs.settings import DataSettings
from tests.conftest import tiny_policy, word_tokenizer
from tests.hub.conftest import TOKEN

COMMIT = "POST /api/models/alice/words/commit/main"


@pytest.fixture
def train(recipe_module, tmp_path):
    """f(*flags, name): train a tokenizer and push it; its folder."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the {animal} sat" for animal in ("cat", "dog", "hen")) + "\n")

    def train(*flags, name="words"):
        flags = [*flags, "--tokenizer_type", "wordpiece", "--vocab_size", "24"]
        flags += ["--report_to", "none", "--use_cpu", "true", "--eval_fraction", "0"]
        folder = tmp_path / name
        argv = ["--dataset_name", str(text), "--output_dir", str(folder), *flags]
        start(recipe_module("tokenizer").main, "", argv)
        return folder

    return train


@pytest.fixture
def failing(train, capsys):
    """What the recipe says as it leaves with exit code 2."""

    def failing(*flags) -> str:
        with pytest.raises(SystemExit) as left:
            train(*flags)
        assert left.value.code == 2
        return capsys.readouterr().err

    return failing


def record_of(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_finished_run_is_pushed_once(hub, train, capsys):
    folder = train("--push_to_hub", "--hub_model_id", "alice/words", "--hub_private_repo", "true")
    assert f"tokenizer: pushed to {hub.url}/alice/words" in capsys.readouterr().out
    contents = hub.contents("alice/words")
    assert hub.repo("alice/words").private and len(hub.repo("alice/words").commits) == 2
    assert contents["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()
    # Folders of this machine stay here.
    assert json.loads(contents["run.json"]) == public_record(folder)
    assert str(folder.parent).encode() not in contents["run.json"] + contents["samples.jsonl"]
    assert json.loads(contents["run.json"])["status"] == "done"
    assert not {"push_to_hub", "hub_model_id"} & record_of(folder)["config"].keys()
    assert TOKEN not in b"".join(contents.values()).decode(errors="replace")


def test_the_name_is_that_of_the_folder_and_the_branch_is_made(hub, train):
    train("--push_to_hub", "--hub_revision", "trial")
    assert "tokenizer.json" in hub.contents("alice/words", revision="trial")
    assert "tokenizer.json" not in hub.contents("alice/words")


def test_a_run_is_the_same_pushed_or_not(hub, train):
    pushed, kept = record_of(train("--push_to_hub")), record_of(train(name="kept"))
    for record in (pushed, kept):
        record["config"].pop("output_dir")
    assert pushed["config"] == kept["config"] and pushed["metrics"] == kept["metrics"]
    assert {name for _, name in hub.repos} == {"alice/words"}


@pytest.mark.parametrize("fault", [500, 403, 401])
def test_a_push_that_fails_costs_nothing_but_itself(hub, failing, tmp_path, fault, capsys):
    hub.fail(COMMIT, fault, times=99)
    said = failing("--push_to_hub", "--hub_private_repo", "true")
    assert f"the run is finished and kept in {tmp_path / 'words'}, and was not pushed" in said
    assert (
        record_of(tmp_path / "words")["status"] == "done"
        and not record_of(tmp_path / "words")["error"]
    )
    assert TOKEN not in said
    # The line that the user is told to paste.
    hub.faults.clear()
    words = shlex.split(said.splitlines()[-1].partition("push it with: ")[2])
    parser = ArgumentParser()
    command.add_arguments(parser)
    assert words[:2] == ["rlhf", "share"] and command.main(parser.parse_args(words[2:])) == 0
    assert "tokenizer.json" in hub.contents("alice/words") and hub.repo("alice/words").private


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hub_model_id", "bob/words"], "no permission: alice is not a member of bob"),
        (["--hub_model_id", "a/b/c"], "not a name that the Hub allows"),
    ],
)
def test_a_repository_is_checked_before_the_first_step(hub, failing, tmp_path, flags, said):
    assert said in failing("--push_to_hub", *flags)
    assert not (tmp_path / "words").exists() and not hub.repos


def test_a_token_is_asked_for_before_the_first_step(hub, failing, tmp_path, log_out):
    assert "there is no token to push with" in failing("--push_to_hub")
    assert not (tmp_path / "words").exists()


def test_a_run_that_fails_leaves_no_repository(hub, failing):
    failing("--push_to_hub", "--dataset_limit", "0")
    assert not hub.repos


def test_a_run_that_was_finished_before_is_pushed_by_the_same_command(hub, tmp_path, capsys):
    folder = tmp_path / "words"
    flags = dict(output_dir=str(folder), report_to="none", use_cpu=True)
    settings = DataSettings(dataset_name="rows")
    with recording("sft", settings, TrainingArguments(**flags)) as run:
        tokenizer = word_tokenizer()
        save(tiny_policy(tokenizer), tokenizer, run.folder)
    again = TrainingArguments(**flags, push_to_hub=True, resume_from_checkpoint="auto")
    with pytest.raises(SystemExit) as left, recording("sft", settings, again):
        raise AssertionError("it began again")
    said = capsys.readouterr().out
    assert left.value.code == 0 and "is finished: nothing to resume" in said
    assert f"sft: pushed to {hub.url}/alice/words" in said
    weights = (folder / "model.safetensors").read_bytes()
    assert hub.contents("alice/words")["model.safetensors"] == weights


@pytest.fixture
def record_run(hub, tmp_path):
    """f(*, error, **keys): the folder of a tiny run that ends with this error, or as done."""

    def record_run(*, error=None, **keys):
        folder = tmp_path / "words"
        args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **keys)
        with recording("sft", DataSettings(dataset_name="rows"), args) as run:
            tokenizer = word_tokenizer()
            save(tiny_policy(tokenizer), tokenizer, run.folder)
            if error is not None:
                run.record.status = TRAINED
                raise error
        return folder

    return record_run


def test_a_run_whose_evaluation_failed_says_how_it_is_pushed(hub, record_run, tmp_path):
    keys = dict(push_to_hub=True, hub_private_repo=True, hub_revision="trial")
    with pytest.raises(UserError) as raised:
        record_run(error=UserError("no memory for the evaluation"), **keys)
    assert not hub.repos
    said = raised.value.notes[-1]
    assert "it was not pushed to words: `rlhf finish` will do that too" in said
    words = shlex.split(said.partition("as it is with: ")[2])
    assert words[:2] == ["rlhf", "share"] and main(words[1:]) == 0
    assert hub.repo("alice/words").private
    assert "push.json" not in hub.contents("alice/words", revision="trial")
    assert "model.safetensors" in hub.contents("alice/words", revision="trial")


def test_finish_pushes_a_run_that_was_to_be_pushed(hub, record_run, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError):
        record_run(error=UserError("no memory"), push_to_hub=True, hub_private_repo=True)
    folder = tmp_path / "words"
    # The recipe is asked to push, which the other tests look at.
    seen = []
    monkeypatch.setattr(finish, "run_script", lambda script, argv: seen.append(argv) or 0)
    monkeypatch.setattr(finish, "last_checkpoint", lambda folder, record: folder / "checkpoint-1")
    assert main(["finish", str(folder)]) == 0
    asked = "--push_to_hub true --hub_model_id words --hub_private_repo true"
    assert " ".join(seen[0]).endswith(asked)


def test_finish_pushes_a_done_run_whose_push_failed(hub, record_run, tmp_path, capsys):
    hub.fail(COMMIT, 403, times=99)
    with pytest.raises(UserError, match="was not pushed"):
        record_run(push_to_hub=True)
    hub.faults.clear()
    folder = tmp_path / "words"
    assert record_of(folder)["status"] == "done"
    assert main(["finish", str(folder)]) == 0
    assert f"sft: pushed to {hub.url}/alice/words" in capsys.readouterr().out
    assert not (folder / "push.json").exists()
    assert main(["finish", str(folder)]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert len(hub.repo("alice/words").commits) == 2


def test_a_run_without_a_push_has_no_plan_of_one(hub, record_run):
    folder = record_run()
    assert not (folder / "push.json").exists() and not hub.repos
