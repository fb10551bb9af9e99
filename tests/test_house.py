"""Who may import whom. Imports point down; the circle from chat back to training closes through files."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import rlhf

ROOT = Path(__file__).resolve().parents[1]

# package: (layer, third-party packages). A package imports only from lower layers and from itself.
LAYERS = {
    "rlhf.errors": (0, ""),
    "rlhf.statistics": (0, "torch"),
    "rlhf.markdown": (0, ""),
    "rlhf.digests": (0, ""),
    "rlhf.online": (0, "huggingface_hub"),
    "rlhf.algorithms": (0, "torch"),
    "rlhf.task_table": (0, ""),  # pure data, which every layer may read
    "rlhf.data": (1, "datasets pyarrow transformers numpy torch huggingface_hub jinja2"),
    "rlhf.feedback": (2, "numpy krippendorff choix"),
    "rlhf.tokenizers": (1, "numpy transformers tokenizers"),
    "rlhf.baselines": (1, "torch transformers"),  # below models, which load them
    "rlhf.models": (
        2,
        "numpy torch transformers tokenizers peft safetensors psutil huggingface_hub",
    ),
    "rlhf.completions": (3, "numpy torch transformers"),
    "rlhf.runs": (
        3,
        "torch transformers trl datasets psutil yaml matplotlib rich tqdm huggingface_hub safetensors "
        "accelerate deepspeed",
    ),
    "rlhf.word_vectors": (4, "torch safetensors gensim"),
    "rlhf.policy_gradient": (4, "numpy torch transformers accelerate safetensors tqdm"),
    "rlhf.reward_model": (4, "torch transformers accelerate matplotlib safetensors"),
    # On the metrics of rlhf.reward_model and the alarms of rlhf.policy_gradient, hence above them.
    "rlhf.direct_preference": (5, "torch transformers trl datasets accelerate"),
    # On the sampling of rlhf.direct_preference.
    "rlhf.implicit_q": (6, "torch transformers safetensors"),
    "rlhf.few_shot": (5, "torch transformers"),  # on the runs of rlhf.comparison
    "rlhf.tasks": (
        4,
        "numpy torch transformers tokenizers sklearn seqeval sacrebleu matplotlib tqdm",
    ),
    "rlhf.comparison": (4, "torch matplotlib rich"),
    "rlhf.hub": (
        4,
        "huggingface_hub transformers torch safetensors yaml rich onnx onnxscript onnxruntime",
    ),
    "rlhf.serving": (
        5,
        "numpy torch transformers tokenizers fastapi starlette gradio uvicorn pydantic prometheus_client markdown_it",
    ),
    "rlhf.commands": (6, "torch transformers rich uvicorn"),
    "rlhf.__main__": (7, ""),
    "rlhf.stages": (8, ""),  # runs the commands of __main__
    "rlhf.recipes": (6, ""),  # of a checkout: only says that the modules are in recipes/
    "recipes": (7, "numpy torch transformers trl peft datasets tokenizers gradio_client"),
    "app": (7, ""),
}
TRAINERS = (
    "rlhf.policy_gradient",
    "rlhf.reward_model",
    "rlhf.direct_preference",
    "rlhf.tasks.trainer",
)  # not for what people see
NOT_FOR = {
    "rlhf.serving": TRAINERS,
    "rlhf.commands": TRAINERS,
    "app": TRAINERS,
    "recipes": ("rlhf.serving",),
}
HOMES = {  # package: only these
    "gradio": ("rlhf.serving.ui", "rlhf.serving.web.server"),
    "trl": ("recipes", "rlhf.runs", "rlhf.direct_preference"),
    "deepspeed": ("rlhf.runs.sharding",),
}


def modules() -> dict[str, Path]:
    files = [*(ROOT / "rlhf").rglob("*.py"), *(ROOT / "recipes").glob("*.py"), ROOT / "app.py"]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }
    names.pop("rlhf")  # the public names, imported lazily
    return names


@cache
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


def package_of(module: str) -> str:
    return max((name for name in LAYERS if within(module, name)), key=len, default="")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module):
    own = package_of(module)
    assert own, f"{module} is in no row of LAYERS"
    layer, third_party = LAYERS[own]
    for name in imports(modules()[module]):
        if name == "rlhf":  # for its version
            continue
        if not within(name, "rlhf") and not within(name, "recipes"):
            assert any(within(name, package) for package in third_party.split()), (
                f"{module} ({own}) imports {name}"
            )
            continue
        used = package_of(name)
        below = used == own or (used and LAYERS[used][0] < layer)
        assert below and (
            own != "recipes" or used != "recipes" or within(name, "recipes.rewards")
        ), f"{module} -> {name}"
        assert own != "rlhf.algorithms" or used == own, (
            f"{module}: formulas import nothing of the project but each other"
        )
        assert not any(within(name, barred) for barred in NOT_FOR.get(own, ())), (
            f"{module} -> {name}"
        )


def test_no_two_modules_import_each_other():
    known = modules()
    edges = {}
    for module, path in known.items():
        used = set()
        for name in imports(path):
            if name in known:
                used.add(name)
            elif name.rpartition(".")[0] in known:
                used.add(name.rpartition(".")[0])
        edges[module] = used - {module}
    while leaves := [module for module, used in edges.items() if not used & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"a cycle among {sorted(edges)}"


@pytest.mark.parametrize("package", HOMES)
def test_a_package_with_a_home_is_imported_nowhere_else(package):
    users = {
        module
        for module, path in modules().items()
        if any(within(name, package) for name in imports(path))
    }
    assert users and all(any(within(user, home) for home in HOMES[package]) for user in users), (
        users
    )


def test_the_table_would_notice():
    assert (
        package_of("rlhf.runs.progress") == "rlhf.runs" and package_of("recipes.ppo") == "recipes"
    )
    assert "transformers.Trainer" in imports(ROOT / "rlhf" / "policy_gradient" / "trainer.py")
    assert any(
        within(name, "trl") for name in imports(ROOT / "rlhf" / "runs" / "settings.py")
    )  # inside a function


def test_import_rlhf_is_cheap():
    heavy = "torch transformers trl peft datasets gradio numpy accelerate".split()
    code = f"import sys, rlhf; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
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
        assert re.search(stated, inspect.getdoc(formula)) or re.search(
            "[Ss]hape", inspect.getdoc(module)
        ), formula
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert parameter.default is inspect.Parameter.empty, (
                f"{formula}: {parameter.name} has a default"
            )
