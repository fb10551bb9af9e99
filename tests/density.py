"""Count how dense the code is: `python tests/density.py` prints a row per file, the densest first, and the total.

A code line is a line with a token that is neither a comment nor part of a docstring. Rulers and notes to tools (`# noqa`)
do not count as comments. Nested comprehensions are comprehensions inside another one, or with more than one `for`.
"""

import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYOUT = (
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
)
NO_COMMENT = re.compile(
    r"#[!\s]*(fmt: |noqa\b|type: |isort: |ruff: |pragma: )|#[\W_]*$|# ?[-=#]{3,}|#!"
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Density:
    """Counts of one file, or of several added up."""

    code_lines: int = 0
    tokens: int = 0
    comments: int = 0
    conditionals: int = 0
    comprehensions: int = 0
    nested: int = 0

    def __add__(self, other: "Density") -> "Density":
        sums = [getattr(self, field.name) + getattr(other, field.name) for field in fields(self)]
        return Density(*sums)

    def rates(self) -> dict[str, float]:
        """Tokens per code line, lines with a comment in per cent, and the rest per 1,000 code lines."""
        lines = max(self.code_lines, 1)
        return {
            "tokens": self.tokens / lines,
            "comments": 100 * self.comments / lines,
            "conditionals": 1000 * self.conditionals / lines,
            "comprehensions": 1000 * self.comprehensions / lines,
            "nested": 1000 * self.nested / lines,
        }


def source_files() -> list[Path]:
    """The Python files of rlhf/ and recipes/, and app.py."""
    return [
        *sorted((ROOT / "rlhf").rglob("*.py")),
        *sorted((ROOT / "recipes").rglob("*.py")),
        ROOT / "app.py",
    ]


def count(source: str) -> Density:
    """Density of one file's text."""
    tree = ast.parse(source)
    docstrings = docstring_lines(tree)
    code_lines, comment_lines, tokens = set(), set(), 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT:
            continue
        if token.type == tokenize.COMMENT:
            if not NO_COMMENT.match(token.string):
                comment_lines.add(token.start[0])
            continue
        if token.start[0] in docstrings:
            continue
        tokens += 1
        code_lines.update(range(token.start[0], token.end[0] + 1))
    conditionals = comprehensions = nested = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            conditionals += 1
        if isinstance(node, COMPREHENSIONS):
            comprehensions += 1
            nested += len(node.generators) > 1
            inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
            nested += len(inner) > 1
    return Density(
        len(code_lines), tokens, len(comment_lines), conditionals, comprehensions, nested
    )


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of all lines that belong to docstrings."""
    lines = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def main() -> None:
    print(f"{'tokens':>7} {'comments':>9} {'cond.':>6} {'compr.':>7} {'nested':>7} {'lines':>6}")
    rows = [
        (str(path.relative_to(ROOT)), count(path.read_text(encoding="utf-8")))
        for path in source_files()
    ]
    rows = [row for row in rows if not sys.argv[1:] or row[0].startswith(tuple(sys.argv[1:]))]
    total = Density()
    for _, density in rows:
        total = total + density
    rows.sort(key=lambda row: row[1].rates()["tokens"], reverse=True)
    for name, density in [*rows, ("total", total)]:
        rates = density.rates()
        print(
            f"{rates['tokens']:7.1f} {rates['comments']:8.1f}% {rates['conditionals']:6.1f} "
            f"{rates['comprehensions']:7.1f} {rates['nested']:7.1f} {density.code_lines:6d}  {name}"
        )


if __name__ == "__main__":
    main()
