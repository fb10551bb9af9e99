"""The code stays readable at first sight: one step per line, and a comment where a reader would ask why."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("density.py")
SPEC = importlib.util.spec_from_file_location("density", PATH)
density = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(density)

# tokens per code line, lines with a comment in per cent, the others per 1,000 code lines
AT_MOST = {"tokens": 8.5, "nested": 1.0, "conditionals": 15.0}
AT_LEAST = {"comments": 6.0}


@pytest.fixture(scope="module")
def rates() -> dict[str, float]:
    """The rates of rlhf/, recipes/ and app.py together."""
    total = density.Density()
    for path in density.source_files():
        total = total + density.count(path.read_text(encoding="utf-8"))
    return total.rates()


@pytest.mark.parametrize("name", AT_MOST)
def test_the_tree_has_at_most(rates, name):
    assert rates[name] <= AT_MOST[name], "see the densest files: python tests/density.py"


@pytest.mark.parametrize("name", AT_LEAST)
def test_the_tree_has_at_least(rates, name):
    assert rates[name] >= AT_LEAST[name], "see the densest files: python tests/density.py"


def test_counts_by_hand():
    source = (
        '"""A docstring\n\nof three lines."""\n'
        "# a comment\n"
        "x = [a for a in b]  # another one\n"
        "y = 1 if x else 2\n"
        "z = [[c for c in d] for d in y]\n"
        "w = {e for f in z for e in f}\n"
    )
    counts = density.count(source)
    # 9 + 7 + 15 + 13 tokens: names, numbers and operators, brackets included
    assert counts == density.Density(
        code_lines=4, tokens=44, comments=2, conditionals=1, comprehensions=4, nested=2
    )
    assert counts.rates()["comments"] == 50 and counts.rates()["nested"] == 500


@pytest.mark.parametrize(
    "comment",
    [
        "# fmt: skip",
        "# noqa: B018",
        "# type: ignore",
        "# ----",
        "# ---- rows ----",
        "#",
        "#!/bin/sh",
    ],
)
def test_rulers_and_notes_to_tools_are_no_comments(comment):
    assert density.count(f"x = 1  {comment}\n").comments == 0


@pytest.mark.parametrize("comment", ["# (B, T)", "# type of the head", "# no padding here", "# 4"])
def test_what_says_something_is_a_comment(comment):
    assert density.count(f"x = 1  {comment}\n").comments == 1
