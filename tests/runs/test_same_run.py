"""A checkpoint goes on only in the run that made it."""

import json

import pytest

from rlhf.runs.record import RunRecord
from rlhf.runs.same_run import check_same_data, check_same_models, check_same_run


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint whose run had one process."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    facts = {
        "recipe": "sft",
        "config": {"learning_rate": 0.1, "optim": "sgd", "lora_r": 4},
        "data": [{"name": "a.jsonl", "rows": 5, "sha256": "a" * 64}],
        "models": {"policy": "c" * 64},
        "processes": 1,
    }
    (folder / "manifest.json").write_text(json.dumps(facts))
    return str(folder)


def facts(processes=1, recipe="sft", **config):
    return {"recipe": recipe, "config": config, "processes": processes}


SAME = {"learning_rate": 0.1, "optim": "sgd", "lora_r": 4}


def test_the_same_settings_pass(checkpoint):
    changed = SAME | {"output_dir": "elsewhere", "disable_tqdm": True, "save_steps": 7}
    assert check_same_run(checkpoint, facts(**changed)) == ""
    assert check_same_run(None, facts(**SAME)) == ""


def test_differences_are_refused_and_shown(checkpoint, refused):
    config = {"optim": "sgd", "lora_r": 4, "max_steps": 9}
    message = refused(check_same_run, checkpoint, facts(2, **config))
    listed = (
        "learning_rate its default (was 0.1), max_steps 9 (was its default), processes 2 (was 1)"
    )
    assert listed in message and "resume_changed: true" in message
    said = check_same_run(checkpoint, facts(2, **config), accept=True)
    assert said == f"resumed with other settings: {listed}"


@pytest.mark.parametrize(("name", "value"), [("optim", "adafactor"), ("lora_r", 8)])
def test_what_cannot_be_read_stays_refused(checkpoint, refused, name, value):
    config = SAME | {name: value}
    message = refused(check_same_run, checkpoint, facts(**config), accept=True)
    assert f"was trained with {name}: {SAME[name]}, and this run has {value}" in message


def test_another_recipe_stays_refused(checkpoint, refused):
    message = refused(check_same_run, checkpoint, facts(recipe="ppo", **SAME), accept=True)
    assert "is of a run of sft, and this is ppo" in message


def test_data_are_compared_by_their_content(checkpoint, refused):
    entry = {"name": "b.jsonl", "rows": 5, "sha256": "a" * 64}
    assert check_same_data(checkpoint, [entry]) == ""
    message = refused(check_same_data, checkpoint, [entry | {"sha256": "b" * 64}])
    assert "b.jsonl with 5 rows, sha256 bbbbbbbbbbbb (was a.jsonl with 5 rows" in message
    assert "nothing (was a.jsonl" in check_same_data(checkpoint, [], accept=True)
    assert check_same_data(None, [entry]) == ""


def test_other_models_are_refused_unless_accepted(checkpoint, refused):
    same = {"policy": "c" * 64, "ref": "e" * 64}  # of an older version, which noted no ref
    assert check_same_models(checkpoint, same) == ""
    message = refused(check_same_models, checkpoint, {"policy": "d" * 64})
    assert "other models: policy, sha256 dddddddddddd (was cccccccccccc)" in message
    assert "other models" in check_same_models(checkpoint, {"policy": "d" * 64}, accept=True)
    assert check_same_models(None, same) == ""


def test_a_checkpoint_without_a_manifest_is_compared_with_its_record(tmp_path, refused):
    record = RunRecord.begin("sft", config=SAME, seed=0)
    record.save(tmp_path)
    old = str(tmp_path / "checkpoint-3")
    assert check_same_run(old, facts(2, **SAME)) == ""  # it does not tell the processes
    assert "max_steps 9" in refused(check_same_run, old, facts(**SAME, max_steps=9))
    (tmp_path / "run.json").unlink()
    assert check_same_run(old, facts(max_steps=9)) == ""
