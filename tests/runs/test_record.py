"""What a record says of the models that a run starts from, and of the checkpoint that it ends with."""

import hashlib
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from rlhf.models import load
from rlhf.runs.checkpoints import check_best_checkpoint
from rlhf.runs.parents import parent_entry
from rlhf.runs.run import Run
from rlhf.runs.settings import ModelSettings


def test_the_digest_of_a_parent_is_of_all_its_parts(tmp_path):
    for number, content in enumerate([b"first", b"second"], start=1):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(content)
    digests = [hashlib.sha256(content).digest() for content in (b"first", b"second")]
    assert parent_entry(str(tmp_path))["sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert parent_entry(str(tmp_path))["sha256"] == digests[0].hex()


def test_a_parent_of_the_hub_has_its_revision():
    assert parent_entry("gpt2", revision="abc") == {"name": "gpt2", "revision": "abc"}
    assert parent_entry("gpt2") == {"name": "gpt2"}


def test_the_revision_reaches_the_models_own_tokenizer_and_no_other(monkeypatch, tokenizer):
    asked = []

    def remember(path, **options):
        asked.append((path, options))
        return tokenizer

    monkeypatch.setattr(load, "load_tokenizer", remember)
    ModelSettings(model_name_or_path="gpt2", model_revision="v2").load_tokenizer()
    ModelSettings("gpt2", model_revision="v2", tokenizer_name_or_path="t").load_tokenizer()
    own = ("gpt2", {"revision": "v2"})
    assert asked == [own, ("t", {}), own]  # the last to compare the two


@pytest.mark.parametrize(
    ("settings", "parents"),
    [
        ({}, {"policy": "sft", "reward": "r1", "reward_2": "r2"}),
        ({"value_model": "v"}, {"policy": "sft", "reward": "r1", "reward_2": "r2", "value": "v"}),
        ({"watch_reward_model_path": "w"}, {"watched_reward": "w"}),
        ({"model_revision": "abc"}, {"policy": "sft abc"}),
    ],
)
def test_ppo_records_every_model_that_it_starts_from(recipe_module, settings, parents):
    ppo = recipe_module("ppo")
    recorded = {}

    def parent(role, path, *, revision=None):
        if path:
            recorded[role] = f"{path} {revision}" if revision else path

    ppo_settings = ppo.PPOSettings(
        model_name_or_path="sft", reward_model_path=["r1", "r2"], **settings
    )
    run = SimpleNamespace(parent=parent)
    ppo.record_parents(ppo_settings, SimpleNamespace(algorithm="ppo"), run)
    assert parents.items() <= recorded.items()
    assert ("value" in recorded) == ("value_model" in settings)


def test_a_misspelt_run_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, refused):
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    message = refused(load.load_tokenizer, "runs/sft2")
    assert "runs/sft2: no such model folder" in message and "the folder holds sft" in message


def test_the_best_evaluation_has_a_checkpoint_of_its_own(refused):
    """With a checkpoint in every second evaluation, an older one would be loaded as the best."""
    args = SimpleNamespace(
        load_best_model_at_end=True, save_strategy="steps", save_steps=20, eval_steps=10
    )
    message = refused(check_best_checkpoint, args)
    assert "save_steps=20" in message and "set save_steps to 10" in message
    args.save_steps = 10
    check_best_checkpoint(args)


def test_the_run_says_which_checkpoint_it_ends_with(tmp_path, capsys):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        load_best_model_at_end=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        metric_for_best_model="accuracy",
    )
    run = Run("reward", ModelSettings(), args)
    state = SimpleNamespace(best_model_checkpoint=f"{tmp_path}/checkpoint-20", best_metric=0.75)
    run.best_checkpoint(SimpleNamespace(args=args, state=state))
    assert run.record.metrics == {"best_step": 20}
    assert "by accuracy: step 20, 0.75" in capsys.readouterr().out
    state.best_model_checkpoint = None
    run.best_checkpoint(SimpleNamespace(args=args, state=state))
    assert "the last weights are kept" in capsys.readouterr().out
