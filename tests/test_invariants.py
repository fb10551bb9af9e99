"""Every invariant of docs/invariants.md has a test with its number, and no test names a number that is not there."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
NUMBERS = range(1, 39)


def sections() -> dict[int, str]:
    """The text of each numbered section of the page."""
    parts = re.split(r"^### (\d+)\. ", PAGE, flags=re.M)[1:]
    return {int(number): text for number, text in zip(parts[::2], parts[1::2])}


@cache
def files_by_number() -> dict[int, set[str]]:
    """The files with a test of each number. `test_invariant_20_26_x` is a test of 20 and of 26."""
    files = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            match = re.match(r"test_invariant((?:_\d\d)+)_", node.name)
            if match is None:
                assert not node.name.startswith("test_invariant"), f"{node.name} has no number"
                continue
            for number in match.group(1).strip("_").split("_"):
                files[int(number)].add(str(path.relative_to(ROOT)))
    return files


def line_of_tests(number: int) -> str:
    """The last line of a section as it must be."""
    names = [f"`{name}`" for name in sorted(files_by_number()[number])]
    return f"Tests: {', '.join(names)}"


def test_the_page_has_every_number_once_and_in_order():
    numbers = re.findall(r"^### (\d+)\. ", PAGE, flags=re.M)
    assert [int(number) for number in numbers] == list(NUMBERS)


def test_no_test_names_a_number_that_is_not_on_the_page():
    assert set(files_by_number()) == set(NUMBERS)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_section_names_the_files_of_its_tests(number):
    lines = [line for line in sections()[number].splitlines() if line.startswith("Tests: ")]
    assert lines == [line_of_tests(number)], "run python tests/test_invariants.py"


def rewrite_page() -> None:
    """Correct the last line of every section, after tests were moved."""
    text = PAGE
    for number, section in sections().items():
        corrected = re.sub(r"^Tests: .*$", line_of_tests(number), section, flags=re.M)
        text = text.replace(section, corrected)
    (ROOT / "docs" / "invariants.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite_page()
