"""Rankings as batches of token ids."""

from torch import Tensor

from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.padding import right_pad
from rlhf.errors import UserError


def encode_rankings(tokenizer, rows: list[dict], *, max_length: int) -> tuple[list[dict], int]:
    """Rows {"prompt", "completions", "ranks"} -> {"input_ids": [K lists], "ranks": [K]}; and how many completions were
    too long. A row that has fewer than two completions left is dropped; none left at all is an error."""
    encoded, long = [], 0
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        candidates = [prompt + encode_completion(tokenizer, text) for text in row["completions"]]
        kept = [place for place, ids in enumerate(candidates) if len(ids) <= max_length]
        long += len(candidates) - len(kept)
        if len(kept) >= 2:
            encoded.append(
                {
                    "input_ids": [candidates[place] for place in kept],
                    "ranks": [row["ranks"][place] for place in kept],
                    "lengths": [len(candidates[place]) - len(prompt) for place in kept],
                    "places": kept,
                    "row": row,
                }
            )
    if not encoded:
        raise UserError(
            f"no ranking fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    return encoded, long


def collate_rankings(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids (N, L) right-padded with all completions of the batch, mask (N, L) bool; ranks and valid (B, K)."""
    sequences = [ids for row in rows for ids in row["input_ids"]]
    input_ids, mask = right_pad(sequences, pad_token_id)
    ranks, valid = right_pad([row["ranks"] for row in rows], 0)
    return {"input_ids": input_ids, "mask": mask, "ranks": ranks, "valid": valid}
