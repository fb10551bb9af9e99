"""Rankings as batches of token ids."""

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor

from rlhf.completions.reward_inputs import encode_conversations, encode_pairs
from rlhf.data.answers import check_answers
from rlhf.data.encodings import Columns, EncodedRows, encode_once
from rlhf.data.padding import right_pad
from rlhf.data.stored_numbers import LARGE_NUMBERS, LISTS, NUMBER, NUMBERS
from rlhf.errors import UserError

COLUMNS: Columns = {
    "input_ids": LISTS,
    "ranks": LARGE_NUMBERS,  # any whole number may be a rank
    "lengths": NUMBERS,
    "places": NUMBERS,
    "row": NUMBER,
}


def encode_rankings(
    tokenizer, rows: Sequence[dict], *, max_length: int, pairs: bool = False
) -> tuple[EncodedRows, int]:
    """Encode rows {"prompt", "completions", "ranks"}. Returns the encoded rows and the number of completions too long.

    pairs: for an encoder, as `models.scores.reads_pairs` tells

    An encoded row has K completions:
        input_ids: K lists of token ids, prompt and completion
        token_type_ids: K lists of the tokens' types, where an encoder reads them
        ranks: K numbers, 0 is best
        lengths: K lengths of the completions alone, in tokens
        places: K indices of the completions in the row that was read
        row: that row
    A row with fewer than two completions left is dropped. If no row is left, it is an error, and so is a chat template that
    does not write the completions as they are.
    """
    columns = COLUMNS
    if pairs and encode_pairs(tokenizer, "a", ["a"])[0].types is not None:
        columns = COLUMNS | {"token_type_ids": LISTS}
    if not pairs:
        check_answers(tokenizer, rows)
    encoded = encode_once(
        rankings, tokenizer, rows, columns, row_by_row=True, max_length=max_length, pairs=pairs
    )
    if not encoded:
        raise UserError(
            f"no ranking fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    return encoded, encoded.counts["completions_too_long"]


def rankings(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, max_length: int, pairs: bool = False
) -> Iterator[dict]:
    """Yields what `encode_rankings` describes, with the index of the row. Counts completions_too_long."""
    encode = encode_pairs if pairs else encode_conversations
    for index, row in enumerate(rows):
        candidates = encode(tokenizer, row["prompt"], row["completions"])
        fitting = [i for i, one in enumerate(candidates) if len(one.ids) <= max_length]
        counts["completions_too_long"] += len(candidates) - len(fitting)
        if len(fitting) < 2:
            continue
        kept = [candidates[i] for i in fitting]
        yield {
            "input_ids": [one.ids for one in kept],
            "token_type_ids": [one.types for one in kept],
            "ranks": [row["ranks"][i] for i in fitting],
            "lengths": [one.completion_tokens for one in kept],
            "places": fitting,
            "row": index,
        }


def require_order(rows: Sequence[dict], side: str) -> None:
    """UserError unless a row has two completions of different ranks. side: "training" or "evaluation"."""
    for row in rows:
        if len(set(row["ranks"])) > 1:
            return
    raise UserError(
        f"no strictly ordered pair in the {side} rankings: they are all ties. Give rows whose completions differ in rank, "
        "or another seed or eval_fraction where one file is split"
    )


def collate_rankings(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids (N, L) right-padded with all completions of the batch, mask (N, L) bool; ranks and valid (B, K).

    token_type_ids (N, L) where the rows have them.
    """
    input_ids, mask = right_pad(_joined(rows, "input_ids"), pad_token_id)
    # Rows may have different K: `valid` tells ranks from padding.
    ranks, valid = right_pad([row["ranks"] for row in rows], 0)
    batch = {"input_ids": input_ids, "mask": mask, "ranks": ranks, "valid": valid}
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"], _ = right_pad(_joined(rows, "token_type_ids"), 0)
    return batch


def _joined(rows: list[dict], column: str) -> list[list[int]]:
    """The lists of all completions of all rows."""
    joined: list[list[int]] = []
    for row in rows:
        joined += row[column]
    return joined
