"""Rankings as batches of token ids."""

import torch
from torch import Tensor

from rlhf.data.chat import encode_completion, encode_prompt
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
    flat = [ids for row in rows for ids in row["input_ids"]]
    width, widest = max(map(len, flat)), max(len(row["ranks"]) for row in rows)
    input_ids = torch.full((len(flat), width), pad_token_id)
    mask = torch.zeros((len(flat), width), dtype=torch.bool)
    for place, ids in enumerate(flat):
        input_ids[place, : len(ids)] = torch.tensor(ids)
        mask[place, : len(ids)] = True
    ranks, valid = (
        torch.zeros((len(rows), widest), dtype=torch.long),
        torch.zeros((len(rows), widest), dtype=torch.bool),
    )
    for place, row in enumerate(rows):
        ranks[place, : len(row["ranks"])] = torch.tensor(row["ranks"])
        valid[place, : len(row["ranks"])] = True
    return {"input_ids": input_ids, "mask": mask, "ranks": ranks, "valid": valid}
