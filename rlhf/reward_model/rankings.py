"""Rankings as batches of token ids."""

from torch import Tensor

from rlhf.data.answers import check_answers
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.padding import right_pad
from rlhf.errors import UserError


def encode_rankings(tokenizer, rows: list[dict], *, max_length: int) -> tuple[list[dict], int]:
    """Encode rows {"prompt", "completions", "ranks"}. Returns the encoded rows and the number of completions too long.

    An encoded row has K completions:
        input_ids: K lists of token ids, prompt and completion
        ranks: K numbers, 0 is best
        lengths: K lengths of the completions alone, in tokens
        places: K indices of the completions in the row that was read
        row: that row
    A row with fewer than two completions left is dropped. If no row is left, it is an error, and so is a chat template that
    does not write the completions as they are.
    """
    check_answers(tokenizer, rows)
    encoded, too_long = [], 0
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        candidates = [prompt + encode_completion(tokenizer, text) for text in row["completions"]]
        fitting = [i for i, ids in enumerate(candidates) if len(ids) <= max_length]
        too_long += len(candidates) - len(fitting)
        if len(fitting) < 2:
            continue
        encoded.append(
            {
                "input_ids": [candidates[i] for i in fitting],
                "ranks": [row["ranks"][i] for i in fitting],
                "lengths": [len(candidates[i]) - len(prompt) for i in fitting],
                "places": fitting,
                "row": row,
            }
        )
    if not encoded:
        raise UserError(
            f"no ranking fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    return encoded, too_long


def collate_rankings(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids (N, L) right-padded with all completions of the batch, mask (N, L) bool; ranks and valid (B, K)."""
    completions: list[list[int]] = []
    for row in rows:
        completions += row["input_ids"]
    input_ids, mask = right_pad(completions, pad_token_id)
    # Rows may have different K: `valid` tells ranks from padding.
    ranks, valid = right_pad([row["ranks"] for row in rows], 0)
    return {"input_ids": input_ids, "mask": mask, "ranks": ranks, "valid": valid}
