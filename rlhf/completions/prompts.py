"""Rows -> prompts as token ids that leave room for a completion."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf.completions.rollout import Prompts
from rlhf.data.chat import encode_prompt
from rlhf.data.encodings import Columns, Converted, encode_once
from rlhf.data.stored_numbers import NUMBER, NUMBERS
from rlhf.data.stored_rows import take

COLUMNS: Columns = {"input_ids": NUMBERS, "in_row": NUMBER}


def fitting_prompts(
    rows: Sequence[dict], tokenizer, *, limit: int, long_prompts: str, name: str
) -> tuple[Prompts, int]:
    """The prompts of the rows, and how many of them are longer than `limit` tokens.

    long_prompts: "drop" drops longer ones, "cut" keeps their end.
    name: of the prompts, for messages.
    """
    settings = {"limit": limit, "long_prompts": long_prompts}
    encoded = encode_once(prompts, tokenizer, rows, COLUMNS, **settings)
    # Rows of prompts that were dropped are not there.
    numbers = np.fromiter(encoded.columns["in_row"], dtype=np.int64)
    ids = Converted(lambda entry: entry["input_ids"], encoded.only("input_ids"))
    fitting = Prompts(take(rows, numbers), ids, numbers.tolist(), name)
    return fitting, encoded.counts["long"]


def prompts(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, limit: int, long_prompts: str
) -> Iterator[dict]:
    """Yields the ids of the prompts with the indices of their rows. Counts those that are long."""
    for number, row in enumerate(rows):
        ids = encode_prompt(tokenizer, row["prompt"])
        if len(ids) > limit:
            counts["long"] += 1
            if long_prompts == "drop":
                continue
            ids = ids[-limit:]  # its end, where the question is
        yield {"input_ids": ids, "in_row": number}
