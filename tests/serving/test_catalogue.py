import json
import os
import shutil

import pytest

from rlhf.errors import UserError
from rlhf.runs.record import RunRecord, model_kind
from rlhf.serving.catalogue import find_models, label_models


def run_folder(folder, architecture: str, recipe: str, status: str = "done"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    RunRecord(recipe, status=status).save(folder)
    return folder


def test_models_are_named_and_grouped_by_what_they_do(runs):
    demo = runs / "demo"
    assert find_models(runs) == {
        "causal": {"ppo · demo": str(demo / "ppo"), "base · demo": str(demo / "pretrain")},
        "reward": {"reward · demo": str(demo / "reward")},
    }


def test_newest_ppo_run_comes_first(tmp_path, runs):
    for age, name, recipe in (
        (3, "old", "ppo"),
        (2, "tuned", "sft"),
        (1, "new", "ppo"),
        (0, "running", "ppo"),
    ):
        folder = tmp_path / name / recipe
        shutil.copytree(runs / "demo" / "ppo", folder)
        RunRecord(recipe, status="running" if name == "running" else "done").save(folder)
        os.utime(folder / "run.json", (1_000_000 - age, 1_000_000 - age))
    assert list(find_models(tmp_path)["causal"]) == ["ppo · new", "ppo · old", "sft · tuned"]


def test_encoders_stand_beside_the_models_that_chat(tmp_path):
    for name, architecture, recipe, status in (
        ("a", "BertForSequenceClassification", "classification", "done"),
        ("b", "BertForSequenceClassification", "classification", "failed"),
        ("c", "BertForTokenClassification", "ner", "done"),
        ("d", "BertForQuestionAnswering", "question_answering", "done"),
        ("e", "BertForMaskedLM", "pretrain", "done"),
        ("g", "BertForMultipleChoice", "multiple_choice", "done"),
        ("f", "BertForSequenceClassification", "reward", "done"),
    ):
        run_folder(tmp_path / name, architecture, recipe, status)
    assert find_models(tmp_path) == {
        "classification": {"classification · a": str(tmp_path / "a")},
        "ner": {"ner · c": str(tmp_path / "c")},
        "question_answering": {"question_answering · d": str(tmp_path / "d")},
        "multiple_choice": {"multiple_choice · g": str(tmp_path / "g")},
        "reward": {"reward · f": str(tmp_path / "f")},
    }
    assert model_kind(tmp_path / "f") == "reward" and model_kind(tmp_path) == ""


def test_a_plain_checkpoint_is_named_by_its_kind(tmp_path):
    folder = run_folder(tmp_path / "bert-ner", "BertForTokenClassification", "ner")
    (folder / "run.json").unlink()
    assert label_models([folder]) == {"ner": {"ner · bert-ner": str(folder)}}


@pytest.mark.parametrize(
    ("architecture", "recipe", "what"),
    [
        ("BertForMaskedLM", "pretrain", "a masked language model"),
        ("BertModel", "x", "no model"),
    ],
)
def test_a_folder_that_cannot_be_tried_is_an_error(tmp_path, architecture, recipe, what):
    with pytest.raises(
        UserError, match=f"holds {what}, which cannot be tried here: give the folder of"
    ):
        label_models([run_folder(tmp_path / "run", architecture, recipe)])
