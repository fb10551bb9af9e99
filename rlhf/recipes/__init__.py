"""The recipes as a package: `rlhf.recipes.sft` is recipes/sft.py of this checkout.

An installed package has no such file. There `rlhf/recipes/` is the folder `recipes/` itself (see pyproject.toml).
"""

from pathlib import Path

# Python looks for the modules of a package in the folders of its __path__.
__path__ = [str(Path(__file__).resolve().parents[2] / "recipes")]
