"""Rankings and thumbs as rows of token ids, and their batches."""

import random
from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor

from rlhf.data.answers import check_answers
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.judgements import merged
from rlhf.data.padding import right_pad
from rlhf.data.rows import thumb
from rlhf.data.splits import prompt_key
from rlhf.errors import UserError
from rlhf.reward_model.rankings import collate_rankings, encode_rankings

# Columns of an encoded ranking that the trainer reads. The others are for the report.
RANKING_COLUMNS = ("input_ids", "ranks", "lengths")


# ---- rankings ----------------------------------------------------------------------------------------------------


def encode_pairs_of_rankings(
    tokenizer, rows: Sequence[dict], *, max_length: int
) -> tuple[list[dict], dict[str, int]]:
    """Encode rankings, as `encode_rankings` does for a reward model, without those that order nothing.

    Completions with the same text are one, with the best of their ranks. Returns the rows, and counts of what they lack by
    its name. UserError where no row is left.
    """
    repeated = 0
    distinct = []
    for row in rows:
        completions, ranks = merged(row["completions"], row["ranks"])
        repeated += len(row["completions"]) - len(completions)
        distinct.append({**row, "completions": completions, "ranks": ranks})
    encoded, too_long = encode_rankings(tokenizer, distinct, max_length=max_length)
    ordered = [row for row in encoded if len(set(row["ranks"])) > 1]
    if not ordered:
        raise UserError(
            "no strictly ordered pair in the rankings: their answers are equal, all tie, or are longer than "
            f"max_length={max_length} tokens"
        )
    counts = {
        "completions_repeated": repeated,
        "completions_too_long": too_long,
        "rankings_without_order": len(rows) - len(ordered),
    }
    return ordered, counts


def rankings_dataset(rows: Sequence[dict]) -> Dataset:
    """Encoded rankings as trl wants its rows: the columns that are trained on."""
    columns = {name: [row[name] for row in rows] for name in RANKING_COLUMNS}
    return Dataset.from_dict(columns)


def collate_pairs(rows: list[dict], pad_token_id: int) -> dict[str, Tensor]:
    """A batch of B rankings with N completions in all, as `collate_rankings` makes it.

    Also completion_mask (N, L), True on the tokens of completions, and ref_log_probs (B, K) where the rows have them.
    """
    batch = collate_rankings(rows, pad_token_id)
    lengths = torch.cat([torch.tensor(row["lengths"]) for row in rows])  # (N,)
    batch["completion_mask"] = last_tokens(batch["mask"], lengths)
    if "ref_log_probs" in rows[0]:
        values = [torch.tensor(row["ref_log_probs"]) for row in rows]
        batch["ref_log_probs"], _ = right_pad(values, 0)
    batch["lengths"], _ = right_pad([row["lengths"] for row in rows], 1)  # (B, K)
    return batch


def last_tokens(mask: Tensor, lengths: Tensor) -> Tensor:
    """True on the last `lengths` (N,) tokens of each row of a right-padded mask (N, L)."""
    position = mask.cumsum(1)  # 1 for the first token
    begins = mask.sum(1) - lengths
    return mask & (position > begins.unsqueeze(1))


# ---- thumbs ------------------------------------------------------------------------------------------------------


def encode_thumbs(
    tokenizer, rows: Sequence[dict], *, max_length: int, seed: int
) -> tuple[list[dict], dict[str, int]]:
    """Encode rows {"prompt", "completion", "label"} in an order that `seed` draws.

    An encoded row has
        prompt_ids, completion_ids: token ids, the completion closed by its end-of-turn token
        KL_completion_ids: the completion of another prompt, by which KTO estimates how far the policy has moved
        label: true where the answer was good
        row: the row that was read
    Returns the rows, and the number of rows that are too long. UserError where no row is left, or where all have one prompt.
    """
    check_answers(tokenizer, rows)
    encoded, too_long = [], 0
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        completion = encode_completion(tokenizer, row["completion"])
        if len(prompt) + len(completion) > max_length:
            too_long += 1
            continue
        entry = {"prompt_ids": prompt, "completion_ids": completion, "label": thumb(row["label"])}
        encoded.append(entry | {"row": row})
    if not encoded:
        raise UserError(
            f"no row fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    # trl's KTO reads its rows in their order.
    random.Random(seed).shuffle(encoded)
    add_other_completions(encoded, max_length)
    return encoded, {"rows_too_long": too_long}


def add_other_completions(encoded: list[dict], max_length: int) -> None:
    """Give each row the completion of the nearest row before it that has another prompt and fits, as KL_completion_ids.

    trl takes the row before in the batch, whatever its prompt is. Here it does not depend on the size of the batches.
    """
    keys = [prompt_key(entry["row"], "unpaired_preference") for entry in encoded]
    if len(set(keys)) < 2:
        raise UserError(
            "all rows have one prompt, and KTO compares answers with those of other prompts: give more prompts"
        )
    for i, entry in enumerate(encoded):
        room = max_length - len(entry["prompt_ids"])
        # From the first row on to the last ones: the order is a circle.
        for distance in range(1, len(encoded)):
            other = encoded[i - distance]
            if keys[i - distance] != keys[i] and len(other["completion_ids"]) <= room:
                entry["KL_completion_ids"] = other["completion_ids"]
                break
        else:
            raise UserError(
                f"max_length={max_length}: a prompt of {len(entry['prompt_ids'])} tokens has no room for the completion of "
                "another prompt, by which KTO estimates the KL: raise max_length, or drop the longest prompts"
            )


def require_both_thumbs(rows: Sequence[dict], side: str) -> None:
    """UserError unless some answers are good and some bad. side: "training" or "evaluation"."""
    labels = {thumb(row["label"]) for row in rows}
    if len(labels) < 2:
        kind = "good (true)" if labels == {True} else "bad (false)"
        raise UserError(
            f"all answers of the {side} rows are {kind}: KTO learns from both kinds. Give both; of good ones alone learn "
            "with rlhf sft and good_answers: true"
        )


def thumbs_dataset(rows: Sequence[dict]) -> Dataset:
    """Encoded thumbs as trl's KTOTrainer wants its rows."""
    names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in names})


def balance_advice(encoded: Sequence[dict], *, desirable: float, undesirable: float) -> str:
    """A sentence where good and bad answers do not weigh alike, with weights that do; "" where they do.

    Ethayarajh et al. 2024 (arXiv 2402.01306), equation 8: desirable_weight x good / (undesirable_weight x bad) is to be
    from 1 to 4/3.
    """
    good = sum(row["label"] for row in encoded)
    bad = len(encoded) - good
    ratio = desirable * good / (undesirable * bad)
    if 1 <= ratio <= 4 / 3:
        return ""
    low, high = undesirable * bad / good, undesirable * bad / good * 4 / 3
    # The rarer kind gets the larger weight, so that no weight shrinks the loss.
    advice = f"desirable_weight from {low:.3g} to {high:.3g}"
    if good > bad:
        low, high = desirable * good / bad * 3 / 4, desirable * good / bad
        advice = f"undesirable_weight from {low:.3g} to {high:.3g}"
    return (
        f"{good} good and {bad} bad answers: desirable_weight x good / (undesirable_weight x bad) is {ratio:.3g}; KTO's "
        f"authors advise 1 to 1.33, as with {advice}"
    )
