"""The key `defaults` of a recipe's YAML, and the settings that load a model's parts."""

import copy
import dataclasses
import os
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from rlhf.models.load import save
from rlhf.runs.settings import (
    DataSettings,
    ModelSettings,
    ScratchSettings,
    changed_settings,
    help_text,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]
PPO = ROOT / "recipes" / "configs" / "ppo"
CLASSES = [DataSettings, TrainingArguments]
OF_THE_DEMO = ("a2c", "reinforce", "rloo", "grpo", "trpo")  # they state their differences


@pytest.fixture
def folder(tmp_path):
    """A folder with demo.yaml; `folder(text)` adds own.yaml and gives the flags that name it."""
    (tmp_path / "demo.yaml").write_text("dataset_name: a.jsonl\ndataset_limit: 3\nseed: 5\n")

    def folder(text, name="own.yaml"):
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name), "--output_dir", str(tmp_path / "run")]

    return folder


def test_keys_of_defaults_apply_first_and_flags_last(folder):
    argv = folder("defaults: demo.yaml\ndataset_limit: 7\n")
    data, args = parse(CLASSES, "", argv)
    assert (data.dataset_name, data.dataset_limit, args.seed) == ("a.jsonl", 7, 5)
    data, args = parse(CLASSES, "", [*argv, "--dataset_limit", "9"])
    assert (data.dataset_limit, args.seed) == (9, 5)


def test_null_brings_back_the_default_of_an_optional_setting(folder):
    data, _ = parse(CLASSES, "", folder("defaults: demo.yaml\ndataset_limit: null\n"))
    assert data.dataset_limit is None


def test_null_is_an_empty_list_and_refused_where_a_key_needs_a_value(folder, refused):
    @dataclass
    class Rewards:
        reward_functions: list[str] = dataclasses.field(default_factory=lambda: ["a:b"])

    [rewards, _] = parse([Rewards, TrainingArguments], "", folder("reward_functions: null\n"))
    assert rewards.reward_functions == []
    assert "seed: null" in refused(parse, CLASSES, "", folder("seed: null\n"))


def test_the_record_has_settings_and_not_the_key(folder):
    data, args = parse(CLASSES, "", folder("defaults: demo.yaml\ndataset_limit: 7\n"))
    changed = changed_settings(data, args)
    assert "defaults" not in changed
    assert (changed["dataset_name"], changed["dataset_limit"]) == ("a.jsonl", 7)


def test_environment_variables_of_both_files_are_set(folder, monkeypatch):
    for name in ("RLHF_A", "RLHF_B"):
        monkeypatch.delenv(name, raising=False)
    folder("env: {RLHF_A: 1, RLHF_B: 2}\nseed: 3\n", name="base.yaml")
    _, args = parse(CLASSES, "", folder("defaults: base.yaml\nenv: {RLHF_B: x}\n"))
    assert (os.environ["RLHF_A"], os.environ["RLHF_B"], args.seed) == ("1", "x", 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("defaults: demos.yaml\n", ["own.yaml: defaults: demos.yaml", "holds demo.yaml, own.yaml"]),
        ("defaults: own.yaml\n", ["own.yaml: defaults: own.yaml", "one level deep"]),
        ("defaults: deeper.yaml\n", ["deeper.yaml has a key `defaults` itself", "one level deep"]),
        ("defaults: wrong.yaml\n", ["wrong.yaml: unknown key 'datset_name'", "'dataset_name'?"]),
        ("defaults: ../demo.yaml\n", ["must be the name of a YAML file in the same folder"]),
        ("defaults: [demo.yaml]\n", ["must be the name of a YAML file in the same folder"]),
        ("env: 3\n", ["own.yaml: env must be a map"]),
    ],
    ids=["missing", "itself", "two levels", "unknown key", "another folder", "a list", "env"],
)
def test_defaults_that_cannot_apply_are_refused(folder, refused, text, said):
    folder("defaults: demo.yaml\n", name="deeper.yaml")
    folder("datset_name: x\n", name="wrong.yaml")
    argv = folder(text)
    for name in ("deeper.yaml", "wrong.yaml"):
        if name not in text:
            Path(argv[1]).with_name(name).unlink()
    message = refused(parse, CLASSES, "", argv)
    for part in said:
        assert part in message


def test_defaults_are_a_key_of_files_only(folder, refused):
    message = refused(parse, CLASSES, "", [*folder("seed: 1\n"), "--defaults", "demo.yaml"])
    assert "unknown key 'defaults'" in message


def test_help_explains_the_key():
    assert "`defaults: demo.yaml`" in help_text(CLASSES, "Trains.")


@pytest.mark.parametrize("name", OF_THE_DEMO)
def test_an_algorithms_yaml_is_the_demo_but_for_what_it_states(recipe_module, name):
    ppo = recipe_module("ppo")
    hints = typing.get_type_hints(ppo.main)
    classes = [hints[key] for key in hints if key != "return"]
    flags = ["--bf16", "false"]
    changed, of_demo = [
        changed_settings(*parse(classes, "", ["--config", str(PPO / file), *flags]))
        for file in (f"{name}.yaml", "demo.yaml")
    ]
    stated = yaml.safe_load((PPO / f"{name}.yaml").read_text(encoding="utf-8"))
    assert stated["defaults"] == "demo.yaml"
    assert changed["algorithm"] == name and changed["output_dir"] == f"runs/demo/{name}"
    for key in yaml.safe_load((PPO / "demo.yaml").read_text(encoding="utf-8")):
        assert key in stated or changed.get(key) == of_demo.get(key), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a2c", dict(epochs_per_rollout=1, gae_lambda=1.0, value_learning_rate=1e-3)),
        ("reinforce", dict(epochs_per_rollout=1, gae_lambda=0.95, value_learning_rate=None)),
        ("rloo", dict(epochs_per_rollout=1, num_generations=4, value_learning_rate=None)),
        ("grpo", dict(epochs_per_rollout=2, num_generations=4, value_learning_rate=None)),
        ("trpo", dict(epochs_per_rollout=4, max_kl=0.02, gae_lambda=1.0, warmup_steps=0)),
    ],
)
def test_the_essentials_of_each_algorithms_yaml(recipe_module, name, expected):
    ppo = recipe_module("ppo")
    flags = ["--config", str(PPO / f"{name}.yaml"), "--bf16", "false"]
    settings, args = parse([ppo.PPOSettings, ppo.PolicyGradientConfig], "", flags)
    assert settings.dataset_name == "runs/demo/data/prompts.jsonl"
    assert settings.reward_model_path == ["runs/demo/reward"]
    assert settings.eval_fraction == 0.02
    common = dict(
        total_episodes=5120,
        rollout_batch_size=512,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=128,
        max_prompt_length=64,
        max_completion_length=32,
        missing_eos_penalty=1.0,
        learning_rate=5e-4,
        kl_coef=0.2,
        eval_every=5,
        seed=0,
    )
    for key, value in (common | expected).items():
        assert getattr(args, key) == value, key
    linear = "constant_with_warmup" if name == "trpo" else "linear"
    assert args.lr_scheduler_type == linear


# ---- settings that load a model's parts ----


def test_the_tokenizer_is_the_models_own_unless_another_is_named(
    tokenizer, bytes_tokenizer, make_policy, tmp_path
):
    save(make_policy(tokenizer), tokenizer, tmp_path / "model")
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens("another")
    larger.save_pretrained(tmp_path / "other")
    settings = ModelSettings(model_name_or_path=str(tmp_path / "model"))
    assert settings.load_tokenizer().get_vocab() == tokenizer.get_vocab()
    settings.tokenizer_name_or_path = str(tmp_path / "other")
    assert settings.load_tokenizer().get_vocab() == larger.get_vocab()


@dataclass
class AnyStart(ModelSettings, ScratchSettings):
    """Settings of recipes that load a model or begin from scratch."""


def test_a_tokenizer_of_other_ids_is_refused_for_a_trained_model(
    tokenizer, bytes_tokenizer, make_policy, tmp_path, refused
):
    save(make_policy(tokenizer), tokenizer, tmp_path / "model")
    bytes_tokenizer.save_pretrained(tmp_path / "other")
    paths = {
        "model_name_or_path": str(tmp_path / "model"),
        "tokenizer_name_or_path": str(tmp_path / "other"),
    }
    message = refused(ModelSettings(**paths).load_tokenizer)
    assert "only adds tokens" in message and "14 of 14 ids" in message
    # The remedies.
    settings = AnyStart(**paths, from_scratch=True)
    assert settings.load_tokenizer().get_vocab() == bytes_tokenizer.get_vocab()
    bytes_tokenizer.save_pretrained(tmp_path / "model")
    again = ModelSettings(**paths).load_tokenizer()
    assert again.get_vocab() == bytes_tokenizer.get_vocab()


def test_lora_is_added_only_with_use_peft(tokenizer, make_policy):
    model = make_policy(tokenizer)
    assert ModelSettings().with_lora(model, task="CAUSAL_LM") is model
    settings = ModelSettings(use_peft=True, lora_r=2, lora_alpha=6)
    config = settings.with_lora(model, task="CAUSAL_LM").peft_config["default"]
    assert (config.r, config.lora_alpha) == (2, 6)


def test_the_name_of_an_environment_variable_may_look_like_a_number(folder, monkeypatch):
    monkeypatch.delenv("1", raising=False)
    parse(CLASSES, "", folder("env: {1: a}\n"))
    assert os.environ.pop("1") == "a"
