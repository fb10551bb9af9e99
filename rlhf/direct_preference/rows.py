"""Rankings and thumbs as rows of token ids, and their batches."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256

import torch
from datasets import Dataset
from torch import Tensor

from rlhf.data.answers import check_answers
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.encodings import Columns, EncodedRows, encode_for_now, encode_once
from rlhf.data.examples import dataset_of
from rlhf.data.padding import right_pad
from rlhf.data.rows import thumb
from rlhf.data.splits import prompt_key
from rlhf.data.stored_numbers import FLAG, NUMBER, NUMBERS
from rlhf.errors import UserError
from rlhf.reward_model.rankings import COLUMNS, collate_rankings, rankings

# Columns of an encoded ranking that the trainer reads. The others are for the report.
RANKING_COLUMNS = ("input_ids", "ranks", "lengths")
ANSWER_COLUMNS: Columns = {
    "prompt_ids": NUMBERS,
    "completion_ids": NUMBERS,
    "label": FLAG,
    "row": NUMBER,
}


# ---- rankings ----------------------------------------------------------------------------------------------------


def encode_pairs_of_rankings(
    tokenizer, rows: Sequence[dict], *, max_length: int
) -> tuple[EncodedRows, dict[str, int]]:
    """Encode rankings, as `encode_rankings` does for a reward model, without those that order nothing.

    Completions of the same tokens are one, with the best of their ranks. Returns the rows, and counts of what they lack by
    its name. UserError where no row is left.
    """
    check_answers(tokenizer, rows)
    ordered = encode_once(
        ordered_rankings, tokenizer, rows, COLUMNS, row_by_row=True, max_length=max_length
    )
    if not ordered:
        raise UserError(
            "no strictly ordered pair in the rankings: their answers are equal, all tie, or are longer than "
            f"max_length={max_length} tokens"
        )
    counts = {
        name: ordered.counts[name] for name in ("completions_repeated", "completions_too_long")
    }
    return ordered, counts | {"rankings_without_order": len(rows) - len(ordered)}


def ordered_rankings(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, max_length: int
) -> Iterator[dict]:
    """Yields `rankings` without equal completions, if two of them differ in rank. Also counts completions_repeated."""
    for entry in rankings(tokenizer, rows, counts, max_length=max_length):
        distinct = without_repeats(entry)
        counts["completions_repeated"] += len(entry["ranks"]) - len(distinct["ranks"])
        if len(set(distinct["ranks"])) > 1:
            yield distinct


def without_repeats(entry: dict) -> dict:
    """An encoded ranking without completions of the same tokens, which two texts may have: a template trims its answers."""
    first: dict[tuple, int] = {}  # token ids -> the first completion that has them
    ranks = list(entry["ranks"])
    for i, ids in enumerate(entry["input_ids"]):
        kept = first.setdefault(tuple(ids), i)
        ranks[kept] = min(ranks[kept], ranks[i])
    columns = {"ranks": ranks} | {name: entry[name] for name in ("input_ids", "lengths", "places")}
    return entry | {name: [values[i] for i in first.values()] for name, values in columns.items()}


def rankings_dataset(rows: EncodedRows) -> Dataset:
    """Encoded rankings as trl wants its rows: the columns that are trained on."""
    return dataset_of(rows.only(*RANKING_COLUMNS))


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
    tokenizer, rows: Sequence[dict], *, max_length: int, seed: int, estimates_kl: bool = True
) -> tuple[EncodedRows, dict[str, int]]:
    """Encode rows {"prompt", "completion", "label"} in an order that `seed` draws.

    estimates_kl: true for rows that KTO's own loss is trained on

    An encoded row has
        prompt_ids, completion_ids: token ids, the completion closed by its end-of-turn token
        KL_completion_ids: the completion of another prompt, by which KTO estimates how far the policy has moved; only
            with estimates_kl
        label: true where the answer was good
        row: the row that was read
    Returns the rows, and counts of those that were dropped. UserError where no row is left, or with estimates_kl where
    all have one prompt.
    """
    columns = ANSWER_COLUMNS
    if estimates_kl:
        columns = columns | {"KL_completion_ids": NUMBERS}
    settings = {"max_length": max_length, "seed": seed, "estimates_kl": estimates_kl}
    encoded = encode_once(mixed_thumbs, tokenizer, rows, columns, **settings)
    return encoded, {
        name: encoded.counts[name] for name in ("rows_too_long", "thumbs_changed_later")
    }


def mixed_thumbs(
    tokenizer,
    rows: Sequence[dict],
    counts: Counter[str],
    *,
    max_length: int,
    seed: int,
    estimates_kl: bool,
) -> Iterator[dict]:
    """Yields what `encode_thumbs` describes, with the index of the row. Counts rows_too_long and thumbs_changed_later."""
    check_answers(tokenizer, rows)
    newest = newest_thumbs(rows)
    counts["thumbs_changed_later"] = len(rows) - len(newest)
    # Two passes: the other completion of the first answer in this order may be that of the last.
    answers = encode_for_now(
        fitting_answers, tokenizer, rows, ANSWER_COLUMNS, indices=newest, max_length=max_length
    )
    counts.update(answers.counts)
    if not answers:
        raise UserError(
            f"no row fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    # trl's KTO reads its rows in their order.
    order = list(range(len(answers)))
    random.Random(seed).shuffle(order)
    others = order
    if estimates_kl:
        others = other_answers(answers, order, max_length)
    columns = answers.columns
    for index, other in zip(order, others, strict=True):
        entry = {name: column[index] for name, column in columns.items()}
        yield entry | {"KL_completion_ids": columns["completion_ids"][other]}


def fitting_answers(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, indices: list[int], max_length: int
) -> Iterator[dict]:
    """Yields ANSWER_COLUMNS of some of the rows. Counts rows_too_long."""
    for index in indices:
        row = rows[index]
        prompt = encode_prompt(tokenizer, row["prompt"])
        completion = encode_completion(tokenizer, row["completion"])
        if len(prompt) + len(completion) > max_length:
            counts["rows_too_long"] += 1
            continue
        entry = {"prompt_ids": prompt, "completion_ids": completion, "label": thumb(row["label"])}
        yield entry | {"row": index}


def newest_thumbs(rows: Sequence[dict]) -> list[int]:
    """The indices of the rows without thumbs that the same person changed later.

    Rows of a feedback store name their annotator.
    """
    kept: dict = {}
    for i, row in enumerate(rows):
        key = i  # nobody's thumbs all count
        if row.get("annotator"):
            key = (prompt_key(row, "unpaired_preference"), row["completion"], row["annotator"])
        kept[key] = i
    return list(kept.values())


def other_answers(answers: EncodedRows, order: list[int], max_length: int) -> Iterator[int]:
    """For each answer in this order the nearest one before it that has another prompt and fits.

    trl takes the row before in the batch, whatever its prompt is. Here it does not depend on the size of the batches.
    """
    prompts, completions = answers.columns["prompt_ids"], answers.columns["completion_ids"]
    # As the template writes a prompt.
    keys = [sha256(prompts[index]).digest() for index in order]
    if len(set(keys)) < 2:
        raise UserError(
            "all training rows have one prompt, and KTO compares answers with those of other prompts: give more prompts"
        )
    tokens, needed = prompts.lengths, completions.lengths
    for i, index in enumerate(order):
        room = max_length - tokens[index]
        # From the first row on to the last ones: the order is a circle.
        for distance in range(1, len(order)):
            other = order[i - distance]
            if keys[i - distance] != keys[i] and needed[other] <= room:
                yield other
                break
        else:
            raise UserError(
                f"max_length={max_length}: a prompt of {tokens[index]} tokens has no room for the completion of "
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


def thumbs_dataset(rows: EncodedRows) -> Dataset:
    """Encoded thumbs as trl's KTOTrainer wants its rows."""
    return dataset_of(rows.without("row"))


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
