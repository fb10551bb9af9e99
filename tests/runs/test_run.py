import dataclasses
import os
import re
import subprocess
import sys
import time
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import Trainer, TrainingArguments

from rlhf.completions.score import RewardModelScorer, ScoringBatch
from rlhf.errors import Interrupted, UserError
from rlhf.models.actor_critic import ValueHead
from rlhf.models.load import load_policy, load_reward_model, save
from rlhf.models.lora import add_lora
from rlhf.models.one_trunk import AdapterModel, save_adapter
from rlhf.runs import processes
from rlhf.runs.checkpoints import checkpoint_to_resume
from rlhf.runs.ending import LAUNCHER_STOPS
from rlhf.runs.output_folder import check_output_dir
from rlhf.runs.parents import parent_entry
from rlhf.runs.progress import use_run_progress
from rlhf.runs.record import RunRecord, find_runs
from rlhf.runs.run import start
from rlhf.runs.settings import DataSettings, changed_settings, parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCH = sorted((ROOT / "recipes" / "accelerate").rglob("*.yaml"))
CLASSES = [DataSettings, TrainingArguments]


def short(path):
    return str(path.relative_to(ROOT / "recipes"))


def classes_of(module):
    hints = typing.get_type_hints(module.main)
    return [hints[name] for name in hints if name != "return"]


@pytest.fixture
def config(tmp_path):
    def config(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return ["--config", str(tmp_path / name)]

    return config


# ---- keys ----


def test_flags_win_over_the_file(config, tmp_path):
    argv = config(f"dataset_name: a.jsonl\ndataset_limit: 3\noutput_dir: {tmp_path / 'run'}\n")
    data, args = parse(CLASSES, "", [*argv, "--dataset_limit", "7", "--learning_rate", "0.5"])
    assert (data.dataset_name, data.dataset_limit, args.learning_rate) == ("a.jsonl", 7, 0.5)


def test_an_unknown_key_of_the_file_suggests_the_nearest(config, refused):
    message = refused(parse, CLASSES, "", config("dataset_nam: x\n"))
    assert (
        "config.yaml" in message
        and "unknown key 'dataset_nam'; did you mean 'dataset_name'?" in message
    )


def test_an_unknown_flag_suggests_the_nearest(refused):
    message = refused(parse, CLASSES, "", ["--learning-rat", "1"])
    assert "the command line: unknown key 'learning_rat'; did you mean 'learning_rate'?" in message


def test_a_value_of_the_wrong_type_is_refused(refused, tmp_path):
    message = refused(
        parse, CLASSES, "", ["--output_dir", str(tmp_path), "--dataset_limit", "many"]
    )
    assert "dataset_limit" in message and "many" in message


def test_a_missing_config_names_those_that_are_there(config, tmp_path, refused):
    config("a: 1\n", name="here.yaml")
    assert "no such config file" in (
        message := refused(parse, CLASSES, "", ["--config", str(tmp_path / "no.yaml")])
    )
    assert "here.yaml" in message
    assert "needs the path" in refused(parse, CLASSES, "", ["--config"])


@pytest.mark.parametrize(
    ("text", "said"), [("- a\n- b\n", "found list"), ("a: [1\n", "not readable as YAML")]
)
def test_a_file_that_is_no_map_is_refused(config, refused, text, said):
    assert said in refused(parse, CLASSES, "", config(text))


# ---- errors, help, folder ----


def test_help_prints_the_docstring_and_every_key(recipe_module, capsys):
    ppo = recipe_module("ppo")
    with pytest.raises(SystemExit) as left:
        start(ppo.main, ppo.__doc__, ["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and ppo.__doc__.strip() in shown
    own = [f.name for cls in classes_of(ppo) for f in dataclasses.fields(cls)]
    for name in ("reward_model_path", "dataset_name", "use_peft", "kl_coef", "clip_range"):
        assert name in own and f"--{name} " in shown
    assert "--adam_beta1" not in shown  # TrainingArguments' hundred keys are named, not repeated


def test_a_user_error_is_one_line_and_exit_code_2():
    command = [
        sys.executable,
        "recipes/sft.py",
        "--config",
        "recipes/configs/sft/no-such-file.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "error: recipes/configs/sft/no-such-file.yaml: no such config file"
    )


def test_only_a_user_error_is_shortened(capsys):
    def broken(settings: DataSettings, args: TrainingArguments) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        start(broken, "", ["--output_dir", "unused"])


def test_an_error_of_another_process_alone_is_told_too(capsys, monkeypatch):
    """The first process may wait for this one, and knows nothing of it."""

    def broken(settings: DataSettings, args: TrainingArguments) -> None:
        raise UserError("a bad row")

    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for rank, said in (("0", "error: a bad row\n"), ("1", "error in process 1: a bad row\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            start(broken, "", ["--output_dir", "unused"])
        assert capsys.readouterr().err == said
    assert waits == [LAUNCHER_STOPS]


def test_a_process_that_the_launcher_stops_adds_nothing_to_the_error(capsys, monkeypatch):
    """The first process has printed the error, and the others wait for the launcher to stop them."""

    def broken(settings: DataSettings, args: TrainingArguments) -> None:
        raise UserError("a bad row")

    def stopped(seconds):
        raise Interrupted(15)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(time, "sleep", stopped)
    with pytest.raises(SystemExit) as left:
        start(broken, "", ["--output_dir", "unused"])
    assert left.value.code == 2 and capsys.readouterr().err == ""


def test_a_run_without_a_step_is_refused(tmp_path, refused):
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, dataloader_drop_last=True
    )  # fmt: skip
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=[{"x": 1}])
    message = refused(use_run_progress, trainer, tmp_path)
    assert "the 1 training rows are fewer than a batch of 8" in message
    assert "dataloader_drop_last" in message


def test_a_folder_without_a_checkpoint_is_told_how_to_start(tmp_path, refused):
    args = SimpleNamespace(resume_from_checkpoint="true", output_dir=str(tmp_path), process_index=0)
    message = refused(checkpoint_to_resume, args)
    assert "holds no checkpoint-N" in message and "--resume_from_checkpoint auto" in message
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    message = refused(checkpoint_to_resume, args)
    assert "holds no checkpoint-N" in message and "after removing this one" in message


def test_runs_are_seen_in_a_folder_whatever_its_name(tmp_path):
    root = tmp_path / "my-checkpoint-tests"
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "done"
    record.save(root / "sft")
    record.save(root / "sft" / "checkpoint-4")
    assert find_runs(root) == [root / "sft"]


def test_half_a_record_is_not_of_a_finished_run_and_breaks_nothing(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "done"
    record.save(tmp_path / "whole")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"recipe": "sft", "sta')
    assert find_runs(tmp_path) == [tmp_path / "whole"]
    assert parent_entry(str(tmp_path / "half")) == {"name": str(tmp_path / "half")}
    assert "already holds a run" in refused(check_output_dir, str(tmp_path / "half"), None)


def test_settings_that_differ_from_their_default_are_recorded(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.5, report_to="none")
    changed = changed_settings(DataSettings(dataset_name="a.jsonl"), args)
    assert changed["dataset_name"] == "a.jsonl" and changed["learning_rate"] == 0.5
    assert "eval_fraction" not in changed and "adam_beta1" not in changed


# ---- processes ----


def started_as(monkeypatch, command):
    import psutil

    parent = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: [parent]))


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        (["--cpu", "--num_processes", "2"], 2),
        (["--num_processes=3"], 3),
        (["--num-processes", "4"], 4),
        (["--config_file", str(ROOT / "recipes/accelerate/ddp_cpu.yaml")], 2),
        (["--config_file", str(ROOT / "recipes/accelerate/one_process.yaml")], 1),
        ([], None),
    ],
)
def test_how_many_processes_were_asked_for(monkeypatch, refused, flags, asked):
    started_as(monkeypatch, ["python", "/usr/bin/accelerate", "launch", *flags, "recipes/sft.py"])
    assert processes.requested_processes() == asked
    if asked is not None:
        processes.check_world(asked)
        message = refused(processes.check_world, asked + 1)
        assert (
            f"asked for {asked} processes, {asked + 1} started" in message
            and "ddp_cpu.yaml" in message
        )


def test_without_accelerate_any_number_is_right(monkeypatch):
    started_as(monkeypatch, ["bash"])
    assert processes.requested_processes() is None
    processes.check_world(1)


@pytest.mark.slow
def test_two_processes_that_do_not_start_are_an_error(tmp_path):
    (tmp_path / "text.txt").write_text("a b c\n" * 20)
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [
        accelerate,
        "launch",
        "--quiet",
        "--cpu",
        "--num_processes",
        "2",
        "recipes/tokenizer.py",
    ]
    command += [
        "--dataset_name",
        tmp_path / "text.txt",
        "--output_dir",
        tmp_path / "run",
        "--report_to",
        "none",
    ]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert "accelerate was asked for 2 processes, 1 started" in done.stderr
    assert not (tmp_path / "run").exists()


# ---- committed files ----


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_every_config_is_parsed_by_its_recipe(recipe_module, path):
    module = recipe_module(path.parent.name)
    for settings in parse(classes_of(module), "", ["--config", str(path), "--bf16", "false"]):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        for f in dataclasses.fields(settings):
            if (
                f.name in given
                and f.name != "report_to"
                and isinstance(given[f.name], int | str)
                and f.type in ("int", "str", int, str)
            ):
                assert getattr(settings, f.name) == given[f.name], f.name


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_every_config_begins_with_purpose_machine_and_command(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    block = [
        line
        for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    ]
    assert len(block) >= 3 and len(block[0].split()) >= 5, "the first line says what it is for"
    assert any(line.startswith("# Machine: ") for line in block)
    name = path.parent.name
    command = rf"# accelerate launch .*recipes/{name}\.py --config recipes/configs/{name}/{re.escape(path.name)}"
    assert any(re.match(command, line) for line in block), command


@pytest.mark.parametrize("path", LAUNCH, ids=short)
def test_every_launch_config_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1
    assert path.read_text(encoding="utf-8").startswith("#")


def test_every_recipe_with_a_config_folder_exists():
    for folder in (ROOT / "recipes" / "configs").iterdir():
        assert (ROOT / "recipes" / f"{folder.name}.py").is_file()


# ---- ppo: the value model ----


@torch.no_grad()
def test_invariant_22_the_value_model_starts_from_the_reward_model(
    recipe_module, tokenizer, bytes_tokenizer, make_reward_model, make_policy, tmp_path, refused
):
    ppo = recipe_module("ppo")
    save(make_reward_model(tokenizer), tokenizer, tmp_path / "reward")
    save(make_reward_model(bytes_tokenizer), bytes_tokenizer, tmp_path / "other")
    save(make_policy(tokenizer), tokenizer, tmp_path / "policy")

    def value_model(**settings):
        return ppo.load_value_model(ppo.PPOSettings(**settings), make_policy(tokenizer), tokenizer)

    found = value_model(reward_model_path=[str(tmp_path / "reward")])  # the default of the recipe
    for name, parameter in make_reward_model(tokenizer).named_parameters():
        assert torch.equal(dict(found.named_parameters())[name], parameter), name
    assert isinstance(value_model(value_model="shared"), ValueHead)
    assert "value_model: shared" in refused(value_model)  # rewards by functions alone
    assert "another tokenizer" in refused(value_model, reward_model_path=[str(tmp_path / "other")])
    assert "no reward head" in refused(value_model, value_model=str(tmp_path / "policy"))


# ---- ppo: what is rewarded, one trunk, plain text ----


@pytest.fixture
def trunk_folders(tokenizer, bytes_tokenizer, make_policy, tmp_path):
    """An SFT run, a reward run with LoRA from it, and reward runs without adapters: the same vocabulary, and another."""
    save(make_policy(tokenizer), tokenizer, tmp_path / "sft")
    reward = add_lora(
        load_reward_model(str(tmp_path / "sft"), new_head=True), task="SEQ_CLS", rank=2, alpha=4
    )
    save_adapter(reward, str(tmp_path / "reward"), centre=0.5)
    save(reward, tokenizer, tmp_path / "reward")
    for name, each in (("plain", tokenizer), ("other", bytes_tokenizer)):
        save(load_reward_model(str(tmp_path / "sft"), new_head=True), each, tmp_path / name)
    return tmp_path


@pytest.fixture
def rewards_of(recipe_module, trunk_folders, tokenizer):
    """`load_rewards` and `load_value_model` for a policy of the SFT run."""
    ppo = recipe_module("ppo")

    def rewards_of(*, peft=True, **settings):
        policy = load_policy(str(trunk_folders / "sft"))
        if peft:
            policy = add_lora(policy, task="CAUSAL_LM", rank=2, alpha=4)
        settings["reward_model_path"] = [
            str(trunk_folders / path) for path in settings.get("reward_model_path", [])
        ]
        settings = ppo.PPOSettings(use_peft=peft, **settings)
        rewards = ppo.load_rewards(settings, policy, tokenizer)
        return rewards, ppo.load_value_model(settings, policy, tokenizer)

    return rewards_of


def test_one_trunk_gives_reward_and_value_as_adapters(rewards_of):
    settings = dict(
        share_trunk=True,
        reward_model_path=["reward"],
        reward_functions=["recipes.rewards:slot_coverage"],
    )
    rewards, value_model = rewards_of(reward_weights=[2.0, 0.5], **settings)
    reward = rewards.scorers["reward_model"].model
    assert isinstance(reward, AdapterModel) and isinstance(value_model, AdapterModel)
    assert reward.policy is value_model.policy and (reward.name, value_model.name) == (
        "reward",
        "value",
    )
    assert rewards.weights == {"reward_model": 2.0, "slot_coverage": 0.5}
    assert not any(p.requires_grad for p in reward.adapter_parameters())
    assert all(p.requires_grad for p in value_model.adapter_parameters())
    assert isinstance(rewards_of(value_model="shared", **settings)[1], ValueHead)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(peft=False, reward_model_path=["reward"]), "needs use_peft: true"),
        (dict(reward_model_path=["reward", "plain"]), "exactly one reward_model_path"),
        (dict(reward_functions=["recipes.rewards:slot_coverage"]), "exactly one reward_model_path"),
        (dict(reward_model_path=["other"]), "other has another vocabulary"),
        (dict(reward_model_path=["plain"]), "plain holds no adapter/"),
    ],
    ids=["no LoRA", "several reward models", "functions alone", "another vocabulary", "no adapter"],
)
def test_one_trunk_is_refused_where_it_cannot_be_shared(rewards_of, refused, settings, said):
    message = refused(rewards_of, share_trunk=True, **settings)
    assert said in message and "share_trunk" in message


@pytest.mark.parametrize("share", [False, True])
@torch.no_grad()
def test_a_watched_reward_model_is_a_part_of_weight_0(
    rewards_of, trunk_folders, tokenizer, make_reward_model, share
):
    save(make_reward_model(tokenizer, seed=5), tokenizer, trunk_folders / "watched")
    rewards, _ = rewards_of(
        share_trunk=share, peft=share, reward_model_path=["reward"],
        reward_functions=["recipes.rewards:slot_coverage"], reward_weights=[2.0, 1.0],
        watch_reward_model_path=str(trunk_folders / "watched"),
    )  # fmt: skip
    assert rewards.weights == {"reward_model": 2.0, "slot_coverage": 1.0, "watched": 0.0}
    batch = ScoringBatch(
        prompts=["a", "b c"], completions=["c d", "e"], columns={"meaning": ["x", "y"]}
    )
    rewards.scorers["slot_coverage"] = lambda batch: torch.tensor([1.0, 3.0])
    total, parts = rewards(batch)
    torch.testing.assert_close(total, 2.0 * parts["reward_model"] + torch.tensor([1.0, 3.0]))
    expected = RewardModelScorer(make_reward_model(tokenizer, seed=5), tokenizer)(batch)
    torch.testing.assert_close(parts["watched"], expected)
    assert expected.abs().max() > 0.1


def test_invariant_24_plain_text_is_cut_into_pieces(recipe_module, tokenizer, tmp_path, refused):
    ppo, read = recipe_module("ppo"), []
    record = SimpleNamespace(data=read.append)
    lines = ["a b c d e f g", "a b c d", "a", "a b c d e f g h a"]  # 8, 5, 2 and 10 tokens with EOS
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    settings = ppo.PPOSettings(ptx_dataset_name=str(tmp_path / "text.jsonl"))
    rows = ppo.read_texts(settings, record)
    found = ppo.text_pieces(tokenizer, rows, 4)
    # letters are 2 to 9, EOS is 0; the fifth token of the second text would have nothing to predict
    assert found == [
        [2, 3, 4, 5],
        [6, 7, 8, 0],
        [2, 3, 4, 5],
        [2, 0],
        [2, 3, 4, 5],
        [6, 7, 8, 9],
        [2, 0],
    ]
    assert len(read) == 1 and read[0].sources
    assert ppo.text_pieces(tokenizer, rows, 100)[0] == [2, 3, 4, 5, 6, 7, 8, 0]
    assert ppo.read_texts(ppo.PPOSettings(), record) == []


def test_invariant_24_pieces_of_text_fit_the_models_context(
    recipe_module, trunk_folders, tokenizer, monkeypatch
):
    ppo, limits = recipe_module("ppo"), []

    class Enough(Exception):
        pass

    def remember(tokenizer, rows, size):
        limits.append(size)
        raise Enough

    monkeypatch.setattr(ppo, "text_pieces", remember)
    (trunk_folders / "text.jsonl").write_text('{"text": "a b"}\n')
    (trunk_folders / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    names = dict(
        dataset_name="prompts.jsonl", model_name_or_path="sft", ptx_dataset_name="text.jsonl"
    )
    settings = ppo.PPOSettings(
        **{name: str(trunk_folders / path) for name, path in names.items()}, eval_fraction=0.0, value_model="shared",
        reward_functions=["recipes.rewards:slot_coverage"],
    )  # fmt: skip
    args = ppo.PolicyGradientConfig(
        output_dir=str(trunk_folders / "run"),
        ptx_coef=1.0,
        report_to="none",
        use_cpu=True,
        max_completion_length=8,
    )
    with pytest.raises(Enough):
        ppo.main(settings, args)
    assert limits[0] <= 48  # the context of these models; pieces have 512 tokens elsewhere


def test_a_trained_run_stays_trained_where_its_second_evaluation_fails_early(toy, tmp_path):
    """As in `rlhf finish` after the data file has changed: the model is still there."""

    def fail(run):
        raise UserError("boom")

    toy.evaluate = fail
    assert toy.run(tmp_path / "run", "--max_steps", 8) == 2
    assert RunRecord.load(tmp_path / "run").status == "evaluation failed"
    toy.prepare = fail
    assert toy.run(tmp_path / "run", "--max_steps", 8, "--resume_from_checkpoint", "true") == 2
    assert RunRecord.load(tmp_path / "run").status == "evaluation failed"
    # More steps are asked for: this is a run that trains.
    more = ("--max_steps", 12, "--resume_changed", "true", "--resume_from_checkpoint", "true")
    assert toy.run(tmp_path / "run", *more) == 2
    assert RunRecord.load(tmp_path / "run").status == "failed"
