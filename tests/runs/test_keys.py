"""Keys that a run does not read: refused where the user gives them, passed over where only `defaults` does."""

import dataclasses
import typing
from pathlib import Path

import pytest
from transformers import TrainingArguments

from rlhf.runs import keys
from rlhf.runs.settings import help_text, parse

PPO = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "ppo"
RECIPES = (
    "classification",
    "multiple_choice",
    "ner",
    "ppo",
    "pretrain",
    "question_answering",
    "reward",
    "sft",
    "tokenizer",
)
ENCODERS = ("classification", "multiple_choice", "ner", "question_answering", "pretrain")

# How we know that a field of TrainingArguments does what it says -> the fields.
EVERYWHERE = {
    "the frame of every recipe reads it (runs/run.py)": "output_dir seed resume_from_checkpoint use_cpu local_rank "
    "disable_tqdm",
    "Trainer's loop, or tests of ours with it": "max_steps gradient_accumulation_steps per_device_train_batch_size "
    "per_device_eval_batch_size bf16 fp16 tf32 torch_empty_cache_steps skip_memory_metrics debug full_determinism",
    "the optimizer and its schedule (test_trainer_keys.py in policy_gradient; the Trainer's own elsewhere)": "optim "
    "optim_args optim_target_modules learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
    "gradients are equal with and without (test_trainer_keys.py)": "activation_checkpointing gradient_checkpointing "
    "activation_checkpointing_kwargs gradient_checkpointing_kwargs",
    "when to evaluate and to save (test_schedule.py; the Trainer's own elsewhere)": "eval_strategy eval_steps eval_delay "
    "eval_on_start save_strategy save_steps save_total_limit save_only_model save_on_each_node",
    "the saved weights are the best checkpoint's (test_trainer_keys.py)": "load_best_model_at_end metric_for_best_model "
    "greater_is_better restore_callback_states_from_checkpoint",
    "Trainer's callbacks for reports": "report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id log_level log_level_replica log_on_each_node",
    "accelerate's DistributedDataParallel": "ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_static_graph "
    "ddp_find_unused_parameters ddp_timeout",
    "with use_liger_kernel only": "liger_kernel_config",
    "the push of the finished run (hub/test_recording.py)": " ".join(keys.PUSH),
}
LOADER = (
    "accelerator_config data_seed dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context "
    "dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor "
    "ignore_data_skip num_train_epochs train_sampling_strategy"
)
LOGS = "enable_jit_checkpoint logging_first_step logging_steps logging_strategy"
FORWARD = (
    "average_tokens_across_devices eval_accumulation_steps eval_use_gather_object include_num_input_tokens_seen "
    "label_smoothing_factor neftune_noise_alpha remove_unused_columns torch_compile torch_compile_backend "
    "torch_compile_mode use_cache use_liger_kernel"
)
# The loader, the loop and the forward pass are the Trainer's own.
OF_A_RECIPE = {
    "ppo": "",
    "reward": f"{LOADER} {LOGS} neftune_noise_alpha length_column_name",
    "sft": f"{LOADER} {LOGS} {FORWARD} length_column_name prediction_loss_only",
} | dict.fromkeys(ENCODERS, f"{LOADER} {LOGS} {FORWARD}")
OF_THE_TOKENIZER = " ".join(["output_dir seed use_cpu local_rank", *keys.PUSH])


def classes_of(module):
    hints = typing.get_type_hints(module.main)
    return [hints[name] for name in hints if name != "return"]


@pytest.fixture
def given(recipe_module, tmp_path):
    """Parse flags of a recipe."""

    def given(recipe, *flags):
        flags = ["--output_dir", str(tmp_path / "run"), *flags]
        return parse(classes_of(recipe_module(recipe)), "", flags)

    return given


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_of_the_trainer_works_or_is_refused(recipe_module, recipe):
    classes = classes_of(recipe_module(recipe))
    rules = list(keys.ARGUMENTS)
    for cls in classes:
        for base in cls.__mro__:
            rules += base.__dict__.get("UNUSED", ())
    refused = {key for rule in rules if rule.used is keys.never for key in rule.keys}
    works = " ".join(EVERYWHERE.values()).split() + OF_A_RECIPE.get(recipe, "").split()
    if recipe == "tokenizer":
        works = OF_THE_TOKENIZER.split()
    for f in dataclasses.fields(TrainingArguments):
        # in exactly one of the two
        assert (f.name in works) != (f.name in refused), f.name
    names = {f.name for cls in classes for f in dataclasses.fields(cls)}
    for rule in rules:
        assert rule.reason and set(rule.keys), rule
        if rule not in keys.ARGUMENTS and recipe != "pretrain":
            # those of the algorithms name keys of two classes
            assert set(rule.keys) <= names, rule


@pytest.mark.parametrize(
    ("recipe", "flags", "said"),
    [
        ("ppo", "--num_train_epochs 9", ["num_train_epochs=9", "use total_episodes"]),
        ("ppo", "--logging_steps 7", ["logging_steps=7", "one log per rollout"]),
        ("ppo", "--label_smoothing_factor 0.1", ["label_smoothing_factor=0.1"]),
        ("ppo", "--neftune_noise_alpha 5", ["neftune_noise_alpha=5", "ratio"]),
        ("ppo", "--dataloader_num_workers 2", ["dataloader_num_workers=2"]),
        ("ppo", "--remove_unused_columns true", ["remove_unused_columns=true"]),
        ("ppo", "--save_every 0 --save_total_limit 2", ["save_total_limit=2", "no checkpoints"]),
        ("ppo", "--max_kl 0.1", ["max_kl=0.1", "trpo"]),
        ("ppo", "--kl_horizon 5", ["kl_horizon=5", "kl_target"]),
        ("ppo", "--ptx_dataset_name a.txt", ["ptx_dataset_name=a.txt", "ptx_coef"]),
        ("ppo", "--ptx_per_episode 8", ["ptx_per_episode=8", "ptx_coef"]),
        ("ppo", "--algorithm reinforce --gae_lambda 1", ["gae_lambda=1", "GAE"]),
        ("ppo", "--algorithm reinforce --value_coef 1", ["value_coef=1", "no value model"]),
        ("ppo", "--algorithm reinforce --value_model shared", ["value_model=shared"]),
        ("ppo", "--algorithm a2c --clip_range 0.1", ["clip_range=0.1", "not clipped"]),
        ("ppo", "--algorithm rloo --num_generations 2 --gamma 0.9", ["gamma=0.9"]),
        ("ppo", "--lora_r 4", ["lora_r=4", "use_peft: true"]),
        ("ppo", "--reward_retries 2", ["reward_retries=2", "set reward_functions"]),
        ("reward", "--label_smoothing_factor 0.1", ["label_smoothing_factor=0.1", "same rank"]),
        ("reward", "--train_sampling_strategy group_by_length", ["several texts"]),
        ("reward", "--hub_model_id me/a", ["hub_model_id=me/a", "push_to_hub: true"]),
        ("tokenizer", "--hub_private_repo true", ["hub_private_repo=true", "push_to_hub: true"]),
        ("sft", "--push_to_hub --hub_token hf_a", ["hub_token=hf_a", "HF_TOKEN"]),
        ("sft", "--push_to_hub --hub_strategy end", ["hub_strategy=end", "pushed once"]),
        ("reward", "--eval_steps 5", ["eval_steps=5", "eval_strategy: steps"]),
        ("reward", "--eval_delay 5", ["eval_delay=5", "eval_strategy is no"]),
        ("reward", "--save_strategy no --save_total_limit 2", ["saves no checkpoints"]),
        ("sft", "--deepspeed zero.json", ["deepspeed=zero.json", "zero2.yaml"]),
        ("sft", "--pretraining_share 0.3", ["pretraining_share=0.3", "pretraining_dataset"]),
        ("sft", "--trust_remote_code true", ["trust_remote_code=true", "never run"]),
        ("sft", "--hidden_size 32", ["hidden_size=32", "from_scratch"]),
        (
            "sft",
            "--from_scratch --model_name_or_path a --tokenizer_name_or_path b",
            ["model_name_or_path=a", "random weights"],
        ),
        ("sft", "--auto_find_batch_size true", ["per_device_train_batch_size"]),
        ("sft", "--bf16_full_eval true", ["round the weights"]),
        ("classification", "--train_sampling_strategy sequential", ["at random"]),
        ("classification", "--do_train true", ["do_train=true"]),
        ("pretrain", "--train_sampling_strategy group_by_length", ["random order"]),
        ("pretrain", "--head_learning_rate 0.1", ["one learning rate"]),
        ("tokenizer", "--lowercase true", ["lowercase=true", "use wordpiece or unigram"]),
        (
            "tokenizer",
            "--chat true --tokenizer_type wordpiece",
            ["chat=true", "get no chat template"],
        ),
        ("tokenizer", "--learning_rate 0.1", ["learning_rate=0.1", "without training steps"]),
    ],
)
def test_a_key_that_the_run_would_pass_over_is_refused(given, refused, recipe, flags, said):
    message = refused(given, recipe, *flags.split())
    assert message.startswith("the command line: ") and "has no effect" in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("ppo", "--num_train_epochs 3.0 --push_to_hub false --report_to none --gamma 1"),
        ("ppo", "--push_to_hub --hub_model_id me/a --hub_private_repo true --hub_revision b"),
        ("tokenizer", "--push_to_hub"),
        ("ppo", "--max_kl 0.02 --algorithm trpo"),
        ("ppo", "--reward_functions a:b --reward_timeout 9.5 --reward_retries 2"),
        ("ppo", "--kl_horizon 5 --kl_target 6 --ptx_dataset_name a.txt --ptx_coef 1"),
        ("ppo", "--save_total_limit 2 --save_every 1 --remove_unused_columns false"),
        ("reward", "--eval_strategy steps --eval_steps 5 --logging_nan_inf_filter false"),
        (
            "reward",
            "--save_strategy best --eval_strategy epoch --metric_for_best_model loss --eval_delay 1",
        ),
        ("sft", "--hidden_size 32 --from_scratch --model_name_or_path gpt2"),
        ("pretrain", "--train_sampling_strategy group_by_length --objective masked"),
        ("tokenizer", "--lowercase true --tokenizer_type wordpiece --chat false"),
    ],
)
def test_defaults_and_keys_that_count_are_accepted(given, recipe, flags):
    given(recipe, *flags.split(), "--bf16", "false")


def test_a_key_of_the_defaults_file_may_not_apply(given, refused, recipe_module, tmp_path):
    """It goes back to its default, and the record does not name it."""
    (tmp_path / "base.yaml").write_text("gae_lambda: 1.0\nvalue_coef: 0.5\nkl_coef: 0.3\n")
    (tmp_path / "own.yaml").write_text("defaults: base.yaml\nalgorithm: reinforce\n")
    _, args = given("ppo", "--config", str(tmp_path / "own.yaml"))
    assert (args.gae_lambda, args.value_coef, args.kl_coef) == (0.95, 0.1, 0.3)
    (tmp_path / "own.yaml").write_text(
        "defaults: base.yaml\nalgorithm: reinforce\ngae_lambda: 1.0\n"
    )
    message = refused(given, "ppo", "--config", str(tmp_path / "own.yaml"))
    assert "own.yaml: gae_lambda=1.0 has no effect" in message
    assert "passed over" in help_text(classes_of(recipe_module("ppo")), "")


def test_a_flag_may_make_a_key_of_the_file_idle(given, refused, tmp_path):
    """The file alone is right; a key that the file itself makes idle is refused, whatever the flags are."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "use_peft: true\nlora_r: 4\nsave_every: 1\nsave_total_limit: 2\nvalue_coef: 0.5\n"
    )
    flags = ["--config", str(path), "--use_peft", "false", "--save_every", "0"]
    settings, args = given("ppo", *flags, "--algorithm", "reinforce")
    assert (settings.lora_r, args.save_total_limit, args.value_coef) == (16, None, 0.1)
    message = refused(given, "ppo", *flags, "--lora_r", "4")
    assert "the command line: lora_r=4 has no effect" in message
    path.write_text("lora_r: 4\n")
    assert "own.yaml: lora_r=4" in refused(given, "ppo", "--config", str(path), "--seed", "1")


def test_values_of_files_and_flags_are_compared_by_their_meaning():
    assert keys.same("1e-4", 0.0001) and keys.same(True, True) and keys.same("False", False)
    assert keys.same(None, None) and keys.same("none", None) and keys.same("none", "none")
    assert not keys.same("true", False) and not keys.same("0.2", 0.1) and not keys.same(None, 1)


def test_flags_in_every_form():
    flags = ["--a", "1", "--b=x", "--no_c", "--d", "--e", "1", "2", "--f-g", "-1"]
    given = keys.given_flags(flags)
    expected = {"a": "1", "b": "x", "c": False, "d": True, "e": "1 2", "f_g": "-1"}
    assert {name: given[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("recipe", "flags", "said"),
    [
        ("sft", "--learning_rate -1", "learning_rate=-1.0 must be at least 0"),
        ("sft", "--learning_rate nan", "learning_rate=nan must be at least 0"),
        ("sft", "--max_steps 0", "max_steps=0 must be at least 1, or -1"),
        ("sft", "--use_peft --lora_r 0", "lora_r=0 must be at least 1"),
        ("sft", "--dtype fp32", "dtype='fp32': use float32 or bfloat16"),
        ("reward", "--num_train_epochs 0", "num_train_epochs=0.0 must be more than 0"),
        ("ppo", "--kl_target 0", "kl_target=0.0 must be more than 0"),
        ("ppo", "--epochs_per_rollout 0", "epochs_per_rollout=0 must be at least 1"),
        ("ppo", "--max_completion_length 0", "max_completion_length=0 must be at least 1"),
        ("ppo", "--gamma 7", "gamma=7.0 must be at least 0 and at most 1"),
        ("ppo", "--gae_lambda -3", "gae_lambda=-3.0 must be at least 0 and at most 1"),
        ("ppo", "--kl_coef -1", "kl_coef=-1.0 must be at least 0"),
        ("ppo", "--value_coef -1", "value_coef=-1.0 must be at least 0"),
        ("ppo", "--algorithm trpo --max_kl -1", "max_kl=-1.0 must be more than 0"),
        ("ppo", "--save_every -2", "save_every=-2 must be at least 0"),
        ("ppo", "--per_device_train_batch_size 0", "per_device_train_batch_size=0"),
        ("classification", "--max_length 1", "max_length=1 must be at least 2"),
        ("classification", "--consistency_coef nan", "consistency_coef=nan must be at least 0"),
        ("question_answering", "--max_answer_length 0", "max_answer_length=0 must be at least 1"),
        ("ppo", "--temperature nan", "temperature=nan must be at least 0"),
        ("ppo", "--temperature inf", "temperature=inf must be at least 0"),
        ("ppo", "--eval_limit -3", "eval_limit=-3 must be at least 1"),
        (
            "ppo",
            "--reward_functions a:b --reward_timeout 0",
            "reward_timeout=0.0 must be more than 0",
        ),
        (
            "ppo",
            "--reward_functions a:b --reward_retries -1",
            "reward_retries=-1 must be at least 0",
        ),
        ("sft", "--dataset_limit -3", "dataset_limit=-3 must be at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(given, refused, recipe, flags, said):
    assert said in refused(given, recipe, *flags.split())


def test_a_key_that_occurs_twice_names_both_lines(given, refused, tmp_path):
    (tmp_path / "own.yaml").write_text("seed: 1\nkl_coef: 0.1\nseed: 2\n")
    message = refused(given, "ppo", "--config", str(tmp_path / "own.yaml"))
    assert "the key 'seed' is on line 1 and again on line 3" in message
    (tmp_path / "own.yaml").write_text("columns: {text: a, text: b}\n")
    message = refused(given, "sft", "--config", str(tmp_path / "own.yaml"))
    assert "'text' is on line 1 and again on line 1" in message


def test_empty_defaults_name_the_file(given, refused, tmp_path):
    (tmp_path / "own.yaml").write_text('defaults: ""\n')
    message = refused(given, "ppo", "--config", str(tmp_path / "own.yaml"))
    assert "own.yaml: defaults: '' must be the name of a YAML file" in message
