"""Who may import whom. Imports point down; the circle from chat back to training closes through files."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import rlhf

ROOT = Path(__file__).resolve().parents[1]

# module: (what it may import from rlhf, third-party packages). A module may always import its own submodules, and all
# but `algorithms` may import rlhf.errors.
HOUSE = {
    # layer 0: formulas
    "rlhf.algorithms": ("", "torch"),
    "rlhf.errors": ("", ""),
    # layer 1: rows, models, records
    "rlhf.data": ("", "datasets pyarrow transformers numpy torch"),
    "rlhf.models": ("algorithms", "numpy torch transformers tokenizers peft safetensors psutil"),
    "rlhf.evaluation": ("data", "numpy sklearn seqeval matplotlib"),
    "rlhf.runs.record": ("", ""),
    "rlhf.feedback": ("data.rows", ""),
    # layer 2: completions
    "rlhf.completions.sample": ("models", "torch transformers"),
    "rlhf.completions.score": ("data models", "torch transformers"),
    "rlhf.completions.rollout": ("algorithms data models decoding scoring", "torch transformers"),
    "rlhf.inference": (
        "algorithms data evaluation models decoding scoring runs",
        "numpy torch transformers tokenizers",
    ),
    # layer 3: training; sharing and comparing
    "rlhf.trainers": (
        "algorithms data models decoding rollout scoring runs evaluation",
        "torch transformers accelerate safetensors matplotlib rich tqdm deepspeed",
    ),
    "rlhf.hub": ("data feedback runs inference scoring", "huggingface_hub yaml matplotlib"),
    "rlhf.comparison.compare": ("algorithms data models decoding runs scoring evaluation", "torch"),
    "rlhf.commands.predict": ("data models evaluation inference runs", "rich torch"),
    # report takes the defaults of DataSettings from recipe, to find the rows that a run held out
    "rlhf.comparison.report": (
        "comparison data feedback runs inference scoring hub recipe.DataSettings",
        "matplotlib rich",
    ),
    # layer 4: what people see; never trainers or algorithms
    "rlhf.ui": ("data.chat inference feedback runs hub report", "gradio"),
    "rlhf.serving.server": ("ui data.chat inference feedback runs hub report", "gradio fastapi starlette"),
    # layer 5: what people run
    "rlhf.runs.run": ("data models runs", "torch transformers trl datasets psutil yaml"),
    "rlhf.__main__": ("", ""),  # imports its commands by name, when they are called
    "app": ("server inference feedback runs", "torch uvicorn"),
    "recipes": (
        "algorithms data models decoding rollout scoring trainers runs recipe hub report evaluation inference",
        "numpy torch transformers trl peft datasets tokenizers",
    ),
}
HOMES = {  # package: only these
    "gradio": ("rlhf.ui", "rlhf.serving.server"),
    "trl": ("recipes", "rlhf.runs.run"),
    "deepspeed": ("rlhf.policy_gradient.sharding",),
}


def modules() -> dict[str, Path]:
    files = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "recipes").glob("*.py"), ROOT / "app.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    names.pop("rlhf")  # the public names, imported lazily
    return names


def imports(path: Path) -> set[str]:
    """Every import of a file, those inside functions too; `from a.b import c` as a.b.c."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def layer(module: str) -> str:
    return max((name for name in HOUSE if within(module, name)), key=len, default="")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    own = layer(module)
    assert own, f"{module} stands in no row of HOUSE"
    inside, outside = HOUSE[own]
    allowed = [f"rlhf.{name}" for name in inside.split()] + [own] * (own != "recipes")
    allowed += ["rlhf.errors"] * (own != "rlhf.algorithms") + ["recipes.rewards"] * (own == "recipes") + outside.split()
    for name in imports(modules()[module]):
        if within(name, "rlhf") and name.count(".") == 1 and name.split(".")[1] in ("__version__",):
            continue
        if name == "rlhf.rlhf" or name == "rlhf":  # `import rlhf`, for its version
            continue
        assert any(within(name, package) for package in allowed), f"{module} ({own}) imports {name}"


@pytest.mark.parametrize("package", HOMES)
def test_a_package_with_a_home_is_imported_nowhere_else(package):
    users = {module for module, path in modules().items() if any(within(name, package) for name in imports(path))}
    assert users and all(any(within(user, home) for home in HOMES[package]) for user in users), users


def test_the_table_would_notice():
    assert layer("rlhf.runs.progress") == "rlhf.trainers" and layer("recipes.ppo") == "recipes"
    assert "transformers.Trainer" in imports(ROOT / "rlhf" / "trainers" / "policy_gradient.py")
    assert any(within(name, "trl") for name in imports(ROOT / "rlhf" / "recipe.py"))  # inside a function


def test_import_rlhf_is_cheap():
    heavy = "torch transformers trl peft datasets gradio numpy accelerate".split()
    code = f"import sys, rlhf; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", rlhf.__all__)
def test_every_public_name_exists(name):
    assert getattr(rlhf, name).__name__ == name if name not in ("ALGORITHMS",) else rlhf.ALGORITHMS
    assert name in dir(rlhf)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        rlhf.nothing  # noqa: B018


def formulas():
    import rlhf.algorithms

    for info in pkgutil.iter_modules(rlhf.algorithms.__path__):
        module = import_module(f"rlhf.algorithms.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield pytest.param(function, module, id=f"{info.name}.{name}")


@pytest.mark.parametrize(("formula", "module"), formulas())
def test_every_formula_says_what_it_computes_and_its_shapes(formula, module):
    """In its own docstring, or where all of a file share them, in the file's. Settings have no defaults."""
    assert inspect.getdoc(formula), formula
    signature = inspect.signature(formula)
    if any("Tensor" in str(parameter.annotation) for parameter in signature.parameters.values()):
        stated = rf"\((B|N|\.\.\.)[,)]|{'[Ss]hape'}"
        assert re.search(stated, inspect.getdoc(formula)) or re.search("[Ss]hape", inspect.getdoc(module)), formula
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert parameter.default is inspect.Parameter.empty, f"{formula}: {parameter.name} has a default"
