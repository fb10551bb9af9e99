import dataclasses
import os
import re
import subprocess
import sys
import typing
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import TrainingArguments

from rlhf import recipe
from rlhf.models.load import save
from rlhf.recipe import DataSettings, check_output_dir, parse
from rlhf.runs import RunRecord

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCH = sorted((ROOT / "recipes" / "accelerate").rglob("*.yaml"))
CLASSES = [DataSettings, TrainingArguments]


def short(path):
    return str(path.relative_to(ROOT / "recipes"))


def load(name):
    """A recipe as a module, by its path: recipes are scripts, not a package."""
    spec = util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


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
    assert "config.yaml" in message and "unknown key 'dataset_nam'; did you mean 'dataset_name'?" in message


def test_an_unknown_flag_suggests_the_nearest(refused):
    message = refused(parse, CLASSES, "", ["--learning-rat", "1"])
    assert "the command line: unknown key 'learning_rat'; did you mean 'learning_rate'?" in message


def test_a_value_of_the_wrong_type_is_refused(refused, tmp_path):
    message = refused(parse, CLASSES, "", ["--output_dir", str(tmp_path), "--dataset_limit", "many"])
    assert "dataset_limit" in message and "many" in message


def test_a_missing_config_names_those_that_are_there(config, tmp_path, refused):
    config("a: 1\n", name="here.yaml")
    assert "no such config file" in (message := refused(parse, CLASSES, "", ["--config", str(tmp_path / "no.yaml")]))
    assert "here.yaml" in message
    assert "needs the path" in refused(parse, CLASSES, "", ["--config"])


@pytest.mark.parametrize(("text", "said"), [("- a\n- b\n", "found list"), ("a: [1\n", "not readable as YAML")])
def test_a_file_that_is_no_map_is_refused(config, refused, text, said):
    assert said in refused(parse, CLASSES, "", config(text))


# ---- errors, help, folder ----


def test_help_prints_the_docstring_and_every_key(capsys):
    ppo = load("ppo")
    with pytest.raises(SystemExit) as left:
        recipe.run(ppo.main, ppo.__doc__, ["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and ppo.__doc__.strip() in shown
    own = [f.name for cls in classes_of(ppo) for f in dataclasses.fields(cls)]
    for name in ("reward_model_path", "dataset_name", "use_peft", "kl_coef", "clip_range"):
        assert name in own and f"--{name} " in shown
    assert "--adam_beta1" not in shown  # TrainingArguments' hundred keys are named, not repeated


def test_a_user_error_is_one_line_and_exit_code_2():
    command = [sys.executable, "recipes/sft.py", "--config", "recipes/configs/sft/no-such-file.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: recipes/configs/sft/no-such-file.yaml: no such config file")


def test_only_a_user_error_is_shortened(capsys):
    def broken(settings: DataSettings, args: TrainingArguments) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        recipe.run(broken, "", ["--output_dir", "unused"])


def test_a_folder_that_holds_a_run_is_never_written_over(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "done"
    record.save(tmp_path)
    message = refused(check_output_dir, str(tmp_path), False)
    assert "already holds a run (run.json)" in message and "--resume_from_checkpoint true" in message
    check_output_dir(str(tmp_path), True)
    check_output_dir(str(tmp_path / "new"), False)


def test_a_failed_run_without_a_checkpoint_makes_room(tmp_path, refused):
    record = RunRecord.begin("sft", config={}, seed=0)
    record.status = "failed"
    record.save(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    check_output_dir(str(tmp_path), False)
    assert list(tmp_path.iterdir()) == []
    record.save(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    assert "already holds a run" in refused(check_output_dir, str(tmp_path), False)


def test_settings_that_differ_from_their_default_are_recorded(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=0.5, report_to="none")
    changed = recipe.changed_settings(DataSettings(dataset_name="a.jsonl"), args)
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
    assert recipe.asked_processes() == asked
    if asked is not None:
        recipe.check_world(asked)
        message = refused(recipe.check_world, asked + 1)
        assert f"asked for {asked} processes, {asked + 1} started" in message and "ddp_cpu.yaml" in message


def test_without_accelerate_any_number_is_right(monkeypatch):
    started_as(monkeypatch, ["bash"])
    assert recipe.asked_processes() is None
    recipe.check_world(1)


@pytest.mark.slow
def test_two_processes_that_do_not_start_are_an_error(tmp_path):
    (tmp_path / "text.txt").write_text("a b c\n" * 20)
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [accelerate, "launch", "--quiet", "--cpu", "--num_processes", "2", "recipes/tokenizer.py"]
    command += ["--dataset_name", tmp_path / "text.txt", "--output_dir", tmp_path / "run", "--report_to", "none"]
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
def test_every_config_is_parsed_by_its_recipe(path):
    module = load(path.parent.name)
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
    block = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
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
def test_ppo_md_22_the_value_model_starts_from_the_reward_model(
    tokenizer, bytes_tokenizer, make_reward_model, make_policy, tmp_path, refused
):
    ppo = load("ppo")
    save(make_reward_model(tokenizer), tokenizer, tmp_path / "reward")
    save(make_reward_model(bytes_tokenizer), bytes_tokenizer, tmp_path / "other")
    save(make_policy(tokenizer), tokenizer, tmp_path / "policy")

    def value_model(**settings):
        return ppo.load_value_model(ppo.PPOSettings(**settings), None, tokenizer)

    found = value_model(reward_model_path=[str(tmp_path / "reward")])  # the default of the recipe
    for name, parameter in make_reward_model(tokenizer).named_parameters():
        assert torch.equal(dict(found.named_parameters())[name], parameter), name
    assert value_model(value_model="shared") == "shared"
    assert "value_model: shared" in refused(value_model)  # rewards by functions alone
    assert "another tokenizer" in refused(value_model, reward_model_path=[str(tmp_path / "other")])
    assert "no reward head" in refused(value_model, value_model=str(tmp_path / "policy"))
