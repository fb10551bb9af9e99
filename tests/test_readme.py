"""The README says what the committed records say, and names files that exist."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_newest_records():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in module.PAGES:
        text = page.read_text(encoding="utf-8")
        assert module.written(text) == text, f"{page.name}: run python benchmarks/readme.py"


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [
        link for link in links if not link.startswith("http") and not (ROOT / link).exists()
    ] == []


def test_named_recipes_and_targets_exist():
    for recipe in re.findall(r"recipes/\w+\.(?:py|sh)", README):
        assert (ROOT / recipe).is_file(), recipe
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.M)) <= set(targets)
