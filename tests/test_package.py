"""What `pip install` brings, and the command `rlhf`: the recipes by name, their settings files, and errors."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import rlhf
from rlhf.__main__ import COMMANDS, list_of_commands, main
from rlhf.commands.configs import find_configs
from rlhf.commands.layouts import find_layouts
from rlhf.commands.recipes import find_scripts, with_config_path
from rlhf.runs.folders import recipes_folder, short_path
from rlhf.runs.record import command_line

ROOT = Path(__file__).resolve().parents[1]
RECIPES = (
    "classification dpo ilql kto multiple_choice ner ppo pretrain question_answering reward seq2seq sft tokenizer "
    "word_vectors"
).split()
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Builds the source archive from the copy, so that a file missing from the archive is missing from the wheel.
BUILD_SDIST = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"


def setuptools_version() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built from its source archive."""
    if setuptools_version() < 77:
        pytest.skip("needs setuptools>=77: pip install -r requirements-dev.txt")
    copy = tmp_path_factory.mktemp("wheel") / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("rlhf", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    options = {"cwd": copy, "check": True, "capture_output": True, "text": True}
    built = subprocess.run([sys.executable, "-c", BUILD_SDIST], **options)
    archive = built.stdout.splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", "dist", f"dist/{archive}"], **options)
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """f(*arguments): run Python with the wheel's files first on its path, in a folder that is not the checkout."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments, **options) -> str:
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        options = {
            "cwd": folder,
            "env": environment,
            "capture_output": True,
            "text": True,
        } | options
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.site, run.folder = site, folder
    return run


# ---- the wheel ---------------------------------------------------------------------------------------------------


def test_the_wheel_has_one_name_at_the_top_level(names):
    top = {name.partition("/")[0] for name in names}
    assert top == {"rlhf", f"rlhf-{rlhf.__version__}.dist-info"}


@pytest.mark.parametrize("folder", ["rlhf", "recipes"])
def test_the_wheel_has_every_file(names, folder):
    """The folder recipes/ is rlhf/recipes/ in the wheel; the checkout's own rlhf/recipes/__init__.py stays out."""
    prefix = "rlhf/recipes" if folder == "recipes" else "rlhf"
    expected = set()
    for path in (ROOT / folder).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            expected.add(f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}")
    expected.discard("rlhf/recipes/__init__.py")
    assert expected and expected <= names
    assert "rlhf/recipes/__init__.py" not in names


def test_the_wheel_has_the_settings_the_layouts_and_the_small_talk(names):
    for name in ("configs/ppo/demo.yaml", "accelerate/ddp_cpu.yaml", "data/smalltalk.jsonl"):
        assert f"rlhf/recipes/{name}" in names
    assert {"rlhf/recipes/sft.py", "rlhf/recipes/demo.sh", "rlhf/recipes/rewards.py"} <= names


def test_the_wheel_names_its_command_and_its_dependencies(wheel):
    info = f"rlhf-{rlhf.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as file:
        entry_points = file.read(f"{info}/entry_points.txt").decode()
        metadata = Parser().parsestr(file.read(f"{info}/METADATA").decode())
    assert "rlhf = rlhf.__main__:main" in entry_points.splitlines()
    assert metadata["Version"] == rlhf.__version__
    block = re.search(r"^dependencies = \[\n(.*?)^\]", PYPROJECT, flags=re.M | re.S)[1]
    declared = set(re.findall(r'^ +"([a-z0-9-]+)', block, flags=re.M))
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[a-z0-9-]+", line)[0] for line in required} == declared
    assert {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "gradio"} <= declared


def test_requirements_txt_leaves_the_dependencies_to_pyproject():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["-e ."]


def test_an_installed_package_lists_its_commands_and_files_from_any_folder(installed):
    assert all(f"\n  {name} " in installed("-m", "rlhf") for name in RECIPES)
    assert installed("-m", "rlhf", "configs", "ppo/demo") == find_configs()["ppo/demo"].read_text()
    folder = Path(installed("-m", "rlhf", "layouts").splitlines()[0])
    assert folder == installed.site / "rlhf" / "recipes" / "accelerate"


def test_an_installed_package_has_its_own_reward_functions(installed):
    code = "from rlhf.recipes import rewards; print(rewards.__file__)"
    assert Path(installed("-c", code).strip()) == installed.site / "rlhf" / "recipes" / "rewards.py"


@pytest.mark.slow
def test_an_installed_recipe_runs_by_name_alone_and_under_accelerate(installed):
    text = "".join(f"some words of text number {i}\n" for i in range(300))
    (installed.folder / "text.txt").write_text(text)
    flags = ["tokenizer", "--config", "ladder", "--dataset_name", "text.txt", "--vocab_size", "300"]
    installed("-m", "rlhf", *flags, "--output_dir", "alone")
    layout = installed.site / "rlhf" / "recipes" / "accelerate" / "one_process.yaml"
    launch = ["-m", "accelerate.commands.launch", "--quiet", "--config_file", layout]
    installed(*launch, "-m", "rlhf", *flags, "--output_dir", "launched")
    for name in ("alone", "launched"):
        record = json.loads((installed.folder / name / "run.json").read_text())
        assert record["status"] == "done" and record["metrics"]["vocab_size"] == 300
        expected = ["accelerate", "launch", "-m", "rlhf", *flags, "--output_dir", name]
        assert record["command"].split() == expected


# ---- the list of commands ----------------------------------------------------------------------------------------


def test_every_recipe_is_a_command_and_the_reward_functions_are_not():
    scripts = find_scripts()
    assert [name for name, script in scripts.items() if script.is_recipe] == RECIPES
    assert [name for name, script in scripts.items() if not script.is_recipe] == [
        "annotator",
        "e2e",
        "examples",
        "ladder_data",
        "smalltalk",
    ]
    assert not scripts.keys() & COMMANDS.keys()
    assert scripts["sft"].summary.startswith("Supervised fine-tuning")


def test_a_new_recipe_is_a_command_by_itself(tmp_path):
    main_block = '\n\nif __name__ == "__main__":\n    '
    recipe = '"""Distil a model.\n\nMore."""\n\n\ndef main(settings): ...\n'
    (tmp_path / "distil.py").write_text(f"{recipe}{main_block}start(main, __doc__)\n")
    (tmp_path / "fetch.py").write_text(f"{recipe}{main_block}main()\n")
    (tmp_path / "rewards.py").write_text('"""Functions."""\n\n\ndef main_topic(): ...\n')
    scripts = find_scripts(tmp_path)
    assert {name: script.is_recipe for name, script in scripts.items()} == {
        "distil": True,
        "fetch": False,
    }
    assert scripts["distil"].summary == "Distil a model."


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_rlhf_alone_lists_every_command_with_a_line_each(argv, capsys):
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in [*find_scripts(), *COMMANDS]:
        shown = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(shown) == 1 and len(shown[0].split()) > 3, name
    assert max(map(len, lines)) <= 100


def test_the_list_is_cheap():
    heavy = "torch transformers trl datasets gradio numpy accelerate".split()
    code = "import sys; from rlhf.__main__ import main; main([]); main(['configs']); main(['layouts']); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlhf {rlhf.__version__}\n"
    assert f'version = "{rlhf.__version__}"' in PYPROJECT


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["stf"], "no command 'stf', did you mean 'sft'?"),
        (["validat"], "no command 'validat', did you mean 'validate'?"),
        (["rewards"], "no command 'rewards', did you mean 'reward'?"),
        (
            ["zzz"],
            "no command 'zzz'; known: annotator, chat, classification, configs, demo, dpo, e2e, evaluate, examples",
        ),
        (["sft", "--config", "dem"], "no sft config 'dem', did you mean 'demo'?"),
        (["sft", "--config", "demo/x"], "demo/x: no such config file"),
        (["sft", "--config"], "--config needs the path of a YAML file"),
        (["sft", "--config="], "--config needs the path of a YAML file"),
        (["sft", "--config", "demo", "--config=e2e"], "--config was given 2 times (demo, e2e)"),
        (["configs", "pp"], "no recipe with configs 'pp', did you mean 'ppo'?"),
        (["configs", "ppo/dem"], "no config 'ppo/dem', did you mean 'ppo/demo'?"),
        (["layouts", "dpp_cpu"], "no layout 'dpp_cpu', did you mean 'ddp_cpu'?"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest_one_and_exit_code_2(argv, error, capsys):
    try:
        code = main(argv)
    except SystemExit as left:  # a recipe leaves by itself
        code = left.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith(f"error: {error}")


SFT_HELP = pytest.param(["sft", "--help"], marks=pytest.mark.slow)  # imports torch


@pytest.mark.parametrize("argv", [[], ["configs"], SFT_HELP], ids=str)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_leaves_early_gets_no_traceback(argv, buffered):
    """As in `rlhf | head -0`: nobody reads what is printed, now or while Python exits."""
    reading, writing = os.pipe()
    os.close(reading)
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf", *argv],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment | unbuffered,
    )
    os.close(writing)
    assert done.returncode == 1 and not done.stderr, done.stderr


# ---- settings files ----------------------------------------------------------------------------------------------


def test_a_bare_name_is_a_yaml_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(recipes_folder() / "configs" / "ppo" / "demo.yaml")
    assert with_config_path("ppo", ["--config", "demo", "--seed", "1"]) == [
        "--config", path, "--seed", "1",
    ]  # fmt: skip
    for argv in ([], ["--config"], ["--config", "demo.yaml"], ["--config", "a/demo"], ["demo"]):
        assert with_config_path("ppo", argv) == argv
    for argv in (["--config=demo"], ["--config", "ppo/demo"]):  # as `rlhf configs` lists it
        assert with_config_path("ppo", argv) == ["--config", path]
    (tmp_path / "demo").mkdir()  # runs/demo's folder, say, is not a settings file
    assert with_config_path("ppo", ["--config", "demo"])[1] == path
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("seed: 1\n")
    assert with_config_path("ppo", ["--config", "demo"])[1] == "demo"


def test_configs_lists_files_with_their_purpose_and_prints_one(capsys):
    assert main(["configs", "sft"]) == 0
    shown = capsys.readouterr().out
    first = find_configs()["sft/demo"].read_text().splitlines()[0]
    assert re.search(rf"^  sft/demo +{re.escape(first.lstrip('# '))}$", shown, flags=re.M)
    assert "ppo/demo" not in shown
    assert main(["configs", "sft/demo"]) == 0
    assert capsys.readouterr().out == find_configs()["sft/demo"].read_text()


def test_layouts_lists_files_with_their_folder_and_prints_one(capsys):
    assert main(["layouts"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(short_path(ROOT / "recipes" / "accelerate"))
    assert all(f"  {name} " in shown for name in find_layouts())
    assert main(["layouts", "ddp_cpu"]) == 0
    assert capsys.readouterr().out == find_layouts()["ddp_cpu"].read_text()


def test_the_demo_stages_have_configs():
    text = (ROOT / "recipes" / "demo.sh").read_text(encoding="utf-8")
    stages = re.findall(r"^(\w+) --config demo", text, flags=re.M)
    assert stages == ["tokenizer", "pretrain", "sft", "reward", "ppo"]
    assert all(f"{stage}/demo" in find_configs() for stage in stages)


def test_the_recipes_of_a_checkout_are_modules():
    from rlhf.recipes import rewards, smalltalk

    assert Path(rewards.__file__) == ROOT / "recipes" / "rewards.py"
    assert smalltalk.SOURCE.is_file()


@pytest.mark.parametrize("module", ["recipes.rewards", "rlhf.recipes.rewards"])
def test_a_checkout_knows_its_reward_functions_by_both_names(module, monkeypatch):
    from rlhf.completions.score import FunctionScorer

    monkeypatch.chdir(ROOT)
    function = FunctionScorer.load(f"{module}:on_topic").function
    assert function.__module__ == module


# ---- the command in the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/venv/bin/rlhf", "sft", "--config", "demo"], "rlhf sft --config demo"),
        ([r"rlhf.exe", "sft"], "rlhf sft"),
        (["/site/rlhf/__main__.py", "ppo", "--seed", "1"], "accelerate launch -m rlhf ppo --seed 1"),
        (["recipes/sft.py", "--seed", "1"], "accelerate launch recipes/sft.py --seed 1"),
        (["train.py"], "python train.py"),
        (["rlhf", "sft", "--system", "be kind"], "rlhf sft --system 'be kind'"),
        (["rlhf", "sft", "--hub_token", "hf_abc", "--seed", "1"], "rlhf sft --hub_token *** --seed 1"),
        (["rlhf", "sft", "--hub_token=hf_abc"], "rlhf sft --hub_token=***"),
        (["rlhf", "sft", "--hub-token", "hf_abc"], "rlhf sft --hub-token ***"),
    ],
)  # fmt: skip
def test_the_recorded_command_can_be_pasted(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == command


def test_the_list_of_commands_tells_how_to_use_several_processes():
    assert "accelerate launch --config_file LAYOUT -m rlhf sft" in list_of_commands()
