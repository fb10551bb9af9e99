"""The keys of every recipe as the app's form has them: none is missing, and each check is the recipe's own."""

import dataclasses
import json
import subprocess
import sys

import pytest

from rlhf.commands.forms import describe_recipes, problem, recipes_with_classes
from rlhf.runs.keys import PUSH, rules_of
from rlhf.serving.ui.run_form import FIRST_KEYS, IN_THE_NAME, field_html, form_html
from rlhf.serving.ui.runs import TEXTS
from rlhf.serving.ui.setting_helps import KOREAN
from rlhf.serving.ui.texts import add_texts

add_texts(TEXTS)
RECIPES = (
    "tokenizer pretrain sft reward dpo kto ilql ppo classification ner question_answering multiple_choice "
    "seq2seq word_vectors"
).split()


@pytest.fixture(scope="module")
def forms():
    return describe_recipes()


def test_every_recipe_has_a_form(forms):
    assert set(forms) == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_form_reaches_every_key_that_a_run_reads(forms, recipe):
    classes = recipes_with_classes()[recipe]
    offered = {key["name"] for key in forms[recipe]["keys"]}
    html = form_html(recipe, forms[recipe])
    refused = set(PUSH)
    for rule in rules_of(classes):
        if rule.used.__name__ == "never":
            refused |= set(rule.keys)
    for cls in classes:
        for f in dataclasses.fields(cls):
            if not f.init or f.name in refused:
                continue
            assert f.name in offered, f.name
            # The name of the run decides this one.
            if f.name != "output_dir":
                assert html.count(f"data-key='{f.name}'") == 1, f.name
    assert "hub_token" not in offered and "push_to_hub" not in offered


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_fields_are_keys_of_the_recipe(forms, recipe):
    first = FIRST_KEYS.get(recipe)
    if first:
        assert set(first) <= {key["name"] for key in forms[recipe]["keys"]}


def test_a_key_has_its_kind_range_choices_and_help(forms):
    keys = {key["name"]: key for key in forms["ppo"]["keys"]}
    assert keys["kl_coef"]["kind"] == "float" and keys["kl_coef"]["range"] == "at least 0"
    assert keys["kl_coef"]["default"] == 0.02 and keys["kl_coef"]["help"].startswith("Weight")
    assert keys["rollout_batch_size"]["kind"] == "int"
    assert keys["max_steps"]["range"] == "at least 1, or -1"
    assert keys["dataset_limit"]["kind"] == "int"  # of int | None
    assert keys["use_peft"]["kind"] == "bool" and keys["reward_model_path"]["kind"] == "list"
    assert "grpo" in keys["algorithm"]["choices"]
    assert "cosine" in keys["lr_scheduler_type"]["choices"]
    assert keys["dataset_name"]["group"].startswith("The rows that are read")
    json.dumps(forms, allow_nan=False)


def test_a_config_shows_its_purpose_and_its_values(forms):
    configs = {entry["name"]: entry for entry in forms["ppo"]["configs"]}
    assert configs["demo"]["values"]["kl_coef"] == 0.2
    assert configs["demo"]["purpose"].startswith("PPO moves")
    # `a2c` names demo.yaml in its key `defaults`.
    assert configs["a2c"]["values"]["algorithm"] == "a2c"
    assert configs["a2c"]["values"]["total_episodes"] == 5120


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return str(path)


def test_a_check_gives_the_recipes_own_reason(rows, tmp_path):
    argv = ["--dataset_name", rows, "--output_dir", str(tmp_path / "run")]
    assert problem("sft", argv, []) is None
    assert "must be more than 0" in problem("sft", [*argv, "--num_train_epochs", "0"], [])
    assert "unknown key 'lerning_rate'" in problem("sft", [*argv, "--lerning_rate", "1"], [])
    assert "has no effect" in problem("sft", [*argv, "--lora_r", "4"], [])
    assert "dataset_name is not set" in problem("sft", argv[2:], [])
    assert "no config" in problem("sft", [*argv, "--config", "nothing"], []).replace(
        "sft config", "config"
    )
    assert "do not start a run" in problem("sft", ["--help"], [])
    assert "no recipe" in problem("chat", argv, [])
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_still_to_come_need_not_be_there(rows, tmp_path):
    argv = [
        "--dataset_name",
        rows,
        "--model_name_or_path",
        "gpt2",
        "--reward_model_path",
        "./coming/reward",
    ]
    argv += ["--output_dir", str(tmp_path / "run")]
    assert "coming/reward" in problem("ppo", argv, [])
    assert problem("ppo", argv, ["./coming/reward"]) is None


@pytest.mark.slow
def test_the_process_answers_each_line_and_keeps_no_environment(rows, tmp_path):
    config = tmp_path / "env.yaml"
    config.write_text(f"env: {{CHANGED: 'yes'}}\ndataset_name: {rows}\n")
    question = {
        "ask": "check",
        "recipe": "sft",
        "argv": ["--config", str(config), "--output_dir", "x"],
    }
    asked = [{"ask": "forms"}, question, {"ask": "check", "recipe": "sft", "argv": 3}, question]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf.commands.forms"],
        input="".join(json.dumps(line) + "\n" for line in asked),
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert set(answers[0]["forms"]) == set(RECIPES)
    assert answers[1] == {"error": None} == answers[3]
    assert answers[2]["error"]


def test_what_a_form_shows_at_once_has_its_help_in_korean(forms):
    """The rest, behind a search, may be in English."""
    missing, known = set(), set()
    for recipe, form in forms.items():
        keys = {key["name"] for key in form["keys"]} - set(IN_THE_NAME)
        known |= keys
        shown = set(FIRST_KEYS.get(recipe, FIRST_KEYS[""]))
        for config in form["configs"]:
            shown |= config["values"].keys()
        missing |= (shown & keys) - KOREAN.keys()
    assert not missing and not KOREAN.keys() - known
    key = next(key for key in forms["sft"]["keys"] if key["name"] == "seed")
    assert "시드" in field_html(key, {}, {}, "ko") and "seed that" in field_html(key, {}, {}, "en")
