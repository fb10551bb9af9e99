"""Rows -> prompts as token ids that leave room for a completion."""

from collections.abc import Sequence

from rlhf.completions.rollout import Prompts
from rlhf.data.chat import encode_prompt


def fitting_prompts(
    rows: Sequence[dict], tokenizer, *, limit: int, long_prompts: str, name: str
) -> tuple[Prompts, int]:
    """The prompts of the rows, and how many of them are longer than `limit` tokens.

    long_prompts: "drop" drops longer ones, "cut" keeps their end.
    name: of the prompts, for messages.
    """
    kept, ids, numbers, long = [], [], [], 0
    for number, row in enumerate(rows):
        prompt = encode_prompt(tokenizer, row["prompt"])
        if len(prompt) > limit:
            long += 1
            if long_prompts == "drop":
                continue
            prompt = prompt[-limit:]  # its end, where the question is
        kept.append(row)
        ids.append(prompt)
        numbers.append(number)
    return Prompts(kept, ids, numbers, name), long
