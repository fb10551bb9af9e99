"""Markdown tables and fences."""

import re
from collections.abc import Iterable, Iterator, Sequence

MAX_CELL_LENGTH = 300  # characters in a cell of a table
REPLACEMENT = "\ufffd"  # for characters that cannot be printed


def markdown_table(
    header: Sequence[str], rows: Iterable[Iterable], right: int | None = None
) -> str:
    """A table; right: the index of a column that is aligned to the right."""
    rule = ["---"] * len(header)
    if right is not None:
        rule[right] = "---:"
    lines = [_line(map(markdown_cell, header)), _line(rule)]
    for row in rows:
        lines.append(_line(map(markdown_cell, row)))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_cell(value) -> str:
    """Any text as one Markdown table cell that shows it as it is."""
    text = str(value)
    if len(text) > MAX_CELL_LENGTH:
        text = text[: MAX_CELL_LENGTH - 1] + "…"
    text = re.sub(r"[^\n\r\t]", _printable, text.strip())
    # "&" first: the other two replacements write one
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", text)
    text = re.sub(r"\r\n|\r|\n", "<br>", text)
    return text.replace("\t", " ")


def _printable(match: re.Match) -> str:
    character = match.group()
    if character.isprintable():
        return character
    return REPLACEMENT


def inline_code(text) -> str:
    """Any text as code in the middle of a line. Its fence is longer than any run of backticks in it."""
    text = re.sub(".", _printable, " ".join(str(text).split()))
    runs = re.findall("`+", text)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    # Of spaces around backticks Markdown drops one.
    if text.startswith("`") or text.endswith("`"):
        text = f" {text} "
    return f"{fence}{text}{fence}"


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    runs = re.findall("`+", text)
    longest = max(map(len, runs), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _flat(metrics: dict, prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """(name, number or text) of nested metrics; lists (curves, examples) are only in run.json."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
