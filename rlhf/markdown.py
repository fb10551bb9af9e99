"""Markdown tables and fences."""

import re

CELL = 300  # characters in a cell of a table


def markdown_table(header: list[str], rows, right: int | None = None) -> str:
    rule = ["---:" if place == right else "---" for place in range(len(header))]
    lines = [
        [markdown_cell(name) for name in header],
        rule,
        *([markdown_cell(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_cell(value) -> str:
    """Any text as one Markdown table cell that shows it as it is."""
    text = str(value)
    text = text if len(text) <= CELL else text[: CELL - 1] + "…"
    text = "".join(
        sign if sign.isprintable() or sign in "\n\r\t" else "\ufffd" for sign in text.strip()
    )
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", text)
    return re.sub(r"\r\n|\r|\n", "<br>", text).replace("\t", " ")


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _flat(metrics: dict, prefix: str = ""):
    """(name, number or text) of nested metrics; lists (curves, examples) are left to run.json."""
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
