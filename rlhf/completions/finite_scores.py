"""Scores that are checked before they are used: one finite number for each row, or an error that names the rows."""

import math

import torch
from torch import Tensor

from rlhf.data.chat import as_text
from rlhf.errors import UserError

SHOWN = 5  # rows of a message
CHARACTERS = 60  # of a text in a message


def as_scores(values, batch, source: str) -> Tensor:
    """The values as scores, (B,), fp32. UserError where there is not one finite number for each row.

    values: of a list or a tensor, one for each row of the `ScoringBatch`
    source: who gave the scores, for the message
    """
    count = len(batch.completions)
    if len(values) != count:
        raise UserError(f"{source} returned {len(values)} scores for {count} completions")
    numbers = [as_number(value) for value in values]
    # Checked in fp32, where 1e39 is infinite.
    scores = torch.tensor(numbers, dtype=torch.float32)
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if not bad:
        return scores
    lines = []
    for i in bad[:SHOWN]:
        prompt = as_text(batch.prompts[i])[:CHARACTERS]
        text = batch.completions[i][:CHARACTERS]
        value = repr(values[i])[:CHARACTERS]
        lines.append(f"{row_name(batch, i)}: {text!r} -> {value} (prompt {prompt!r})")
    what = "1 score is not a finite number"
    if len(bad) > 1:
        what = f"{len(bad)} scores are not finite numbers"
    raise UserError(f"{source}: {what}: {'; '.join(lines)}")


def as_number(value) -> float:
    """The value as a float; NaN for what is not one number."""
    if isinstance(value, str | bytes):  # float("1") is a number
        return math.nan
    try:
        return float(value)
    except Exception:  # None, a list, several numbers, an integer of 400 digits, the user's class
        return math.nan


def row_name(batch, i: int) -> str:
    """The name of row i of a `ScoringBatch`: as in the data where that is known, else its number in the batch."""
    if batch.row_names is None:
        return f"row {i}"
    return batch.row_names[i]


def rows_text(batch) -> str:
    """The first rows of a batch by name, with the first prompt."""
    count = len(batch.completions)
    names = [row_name(batch, i) for i in range(min(count, SHOWN))]
    rest = f" and {count - SHOWN} more" if count > SHOWN else ""
    prompt = as_text(batch.prompts[0])[:CHARACTERS] if count else ""
    return f"{', '.join(names)}{rest}; the first prompt is {prompt!r}"
