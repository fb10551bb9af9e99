"""Find the recipes and run one: `rlhf sft --config demo`.

The folder is scanned, so a new file in recipes/ is a new command. Nothing here imports torch before a recipe runs.
"""

import ast
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from rlhf.commands.configs import find_configs, unknown
from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder
from rlhf.runs.settings import split_config


@dataclass(frozen=True)
class Script:
    """A file of the recipes' folder that can be run.

    name: "sft"; summary: the first line of its docstring; is_recipe: it ends with `start(main, __doc__)`, so its keys
    come from a YAML or from flags. Other scripts read their flags with argparse.
    """

    name: str
    summary: str
    is_recipe: bool


def find_scripts(folder: Path | None = None) -> dict[str, Script]:
    """Every runnable script of the recipes' folder by name, read without importing it."""
    scripts = {}
    for path in sorted((folder or recipes_folder()).glob("*.py")):
        # Parsed, not imported: the recipes import torch.
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        started = calls_under_main(tree)
        # A file of functions alone, such as rewards.py, is not a command.
        if "main" in functions and started & {"start", "main"}:
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            scripts[path.stem] = Script(path.stem, summary, is_recipe="start" in started)
    return scripts


def calls_under_main(tree: ast.Module) -> set[str]:
    """The names of the functions that are called under `if __name__ == "__main__":`."""
    names = set()
    for block in tree.body:
        if isinstance(block, ast.If) and "__main__" in ast.dump(block.test):
            for node in ast.walk(block):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    names.add(node.func.id)
    return names


def run_script(script: Script, argv: list[str]) -> int:
    """Run a script as `python recipes/<name>.py` does, but let --config give the bare name of one of its YAMLs."""
    if script.is_recipe:  # before the import, which takes seconds
        argv = with_config_path(script.name, argv)
    module = import_module(f"rlhf.recipes.{script.name}")
    if script.is_recipe:
        from rlhf.runs.run import start

        start(module.main, module.__doc__, argv)
        return 0
    # argparse reads the flags from here, and its usage line names the program.
    sys.argv = [f"rlhf {script.name}", *argv]
    return module.main() or 0


def with_config_path(recipe: str, argv: list[str]) -> list[str]:
    """The same arguments, with `--config demo` as the path of the recipe's own demo.yaml. Paths stay as they are.

    The name may be written as `rlhf configs` lists it: sft/demo.
    """
    if argv and argv[-1] == "--config":  # `parse` says what is missing
        return argv
    path, others = split_config(argv)
    # A path, a name with an ending, or a file of the working folder: not one of ours.
    if path is None or Path(path).suffix in (".yaml", ".yml") or Path(path).is_file():
        return argv
    configs = find_configs(recipe)
    name = path if path in configs else f"{recipe}/{path}"
    if name in configs:
        return ["--config", str(configs[name]), *others]
    if Path(path).name != path:
        return argv
    known = [key.partition("/")[2] for key in configs]
    raise UserError(f"{unknown(f'{recipe} config', path, known)} (a path works too)")
