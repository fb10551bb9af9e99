"""The folder of the recipes: `recipes/` of a checkout, `rlhf/recipes/` of an installed package."""

import os
from pathlib import Path

LADDER = "ladder.json"  # what `rlhf ladder` measured, in the folder of the ladder


def recipes_folder() -> Path:
    """The folder with the recipes, their configs/ and the process layouts in accelerate/."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    # Look here first: next to an installed rlhf, `recipes` may be somebody else's package.
    if (installed / "configs").is_dir():
        return installed
    return package.parent / "recipes"


def short_path(path: Path) -> str:
    """The path as a user would type it: relative to the working folder where it is inside it."""
    if path.is_relative_to(Path.cwd()):
        return os.path.relpath(path)
    return str(path)
