"""A recipe on a few rows: run in this process, or started as a user starts it."""

import json
from pathlib import Path

import pytest

from rlhf.runs.run import start

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# The packages of the extra rlhf[ladder], which a recipe needs.
EXTRAS = {"seq2seq": "sacrebleu", "word_vectors": "gensim"}


@pytest.fixture(autouse=True)
def skipped_without_its_package(request):
    """A test with the parameter `recipe` is skipped where the package that the recipe needs is not installed."""
    parameters = getattr(request.node, "callspec", None)
    recipe = parameters.params.get("recipe") if parameters else None
    if recipe in EXTRAS:
        pytest.importorskip(EXTRAS[recipe], reason=f"{EXTRAS[recipe]} is not installed")


@pytest.fixture
def write(tmp_path):
    def write(name: str, rows: list[dict]) -> str:
        (tmp_path / name).write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        return str(tmp_path / name)

    return write


SIZES = ("--model_type", "--hidden_size", "--layers", "--heads", "--context", "--dropout")


def applicable(argv: list[str]) -> list[str]:
    """The flags, without the sizes of a model from scratch where a later flag says that there is none."""
    values = [argv[i + 1] for i, flag in enumerate(argv) if flag == "--from_scratch"]
    if not values or values[-1] != "false":
        return argv
    kept, flags = [], iter(argv)
    for flag in flags:
        if flag in SIZES:
            next(flags)  # its value
        else:
            kept.append(flag)
    return kept


@pytest.fixture
def trainer_of(recipe_module, make_tokenizer, tmp_path):
    """f(recipe, words, defaults) -> train(*flags, kind, name), which runs it in this process; the folder of its run."""

    def trainer_of(name: str, words: list[str], defaults: list[str]):
        module = recipe_module(name)

        def train(*flags, kind="bert", name="run"):
            make_tokenizer(words, kind).save_pretrained(tmp_path / kind)
            places = [
                "--tokenizer_name_or_path",
                str(tmp_path / kind),
                "--output_dir",
                str(tmp_path / name),
            ]
            argv = applicable([*defaults, "--use_cpu", *places, *flags])
            start(module.main, module.__doc__, argv)
            return tmp_path / name

        return train

    return trainer_of


@pytest.fixture
def failing(train, capsys):
    """What `train` says as it leaves with exit code 2."""

    def failing(*flags, **options) -> str:
        with pytest.raises(SystemExit) as left:
            train(*flags, **options)
        assert left.value.code == 2
        return capsys.readouterr().err

    return failing


@pytest.fixture
def launch_two(launch, make_tokenizer, tmp_path):
    """f(recipe, words, *flags): the folder of a run on two processes (or another layout)."""

    def launch_two(
        name: str, words: list[str], *flags, layout: str = "ddp_cpu", folder: str = "two"
    ):
        make_tokenizer(words).save_pretrained(tmp_path / "bert")
        places = ["--tokenizer_name_or_path", tmp_path / "bert", "--output_dir", tmp_path / folder]
        launch(RECIPES / f"{name}.py", *flags, *places, layout=layout)
        return tmp_path / folder

    return launch_two
