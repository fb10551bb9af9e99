"""`rlhf configs`: the settings files of the recipes, with the purpose that each states in its first line."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path


def find_configs(recipe: str = "*") -> dict[str, Path]:
    """The YAMLs of one recipe, or of all: "ppo/demo" -> its path."""
    paths = sorted((recipes_folder() / "configs").glob(f"{recipe}/*.yaml"))
    return {f"{path.parent.name}/{path.stem}": path for path in paths}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", help="a recipe (sft) to list its files, or a file (sft/demo) to print it"
    )


def main(args: argparse.Namespace) -> int:
    configs = find_configs()
    if args.name in configs:
        # The file alone, so that `rlhf configs sft/demo > my.yaml` makes a copy to edit.
        print(configs[args.name].read_text(encoding="utf-8"), end="")
        return 0
    if args.name:
        configs = configs_of(args.name, configs)
    print(f"{short_path(recipes_folder() / 'configs')}\n")
    print_purposes(configs)
    print("\nRun one: rlhf sft --config demo. Print one: rlhf configs sft/demo")
    return 0


def configs_of(recipe: str, configs: dict[str, Path]) -> dict[str, Path]:
    """The YAMLs of one recipe. Names the nearest one where there is none."""
    result = find_configs(recipe)
    if result:
        return result
    # A typing error in the recipe's name is reported before one in the file's.
    recipes = {name.partition("/")[0] for name in configs}
    if recipe.partition("/")[0] in recipes:
        raise UserError(unknown("config", recipe, configs))
    raise UserError(unknown("recipe with configs", recipe, recipes))


def print_purposes(files: dict[str, Path]) -> None:
    """A line per file: its name and its first comment, which says what it is for."""
    width = max(map(len, files))
    for name, path in files.items():
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"  {name:<{width}}  {first_line.lstrip('# ')}")


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """An error text that names the nearest of the allowed names, or all of them where none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"no {kind} {name!r}, did you mean {near[0]!r}?"
    return f"no {kind} {name!r}; known: {', '.join(names) or 'none'}"
