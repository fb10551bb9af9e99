"""Scored answers as rows of token ids, and their batches.

Three kinds of rows have scores:
    scored: prompt, completion and a number `score`
    ranking: completions with their `scores`, as `rlhf sample` writes them; without these the score falls with the rank in
        equal steps, from 1 for the best to 0 for the last. Of a pair, chosen and rejected, the two scores that its row gives
    unpaired_preference: 1 for a good answer and 0 for a bad one
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor, tensor

from rlhf.data.answers import check_answers
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.encodings import Columns, EncodedRows, encode_once
from rlhf.data.padding import left_pad, right_pad
from rlhf.data.rows import number, scores_of_pair, thumb
from rlhf.data.stored_numbers import NUMBERS, REAL
from rlhf.errors import UserError

KINDS = ("scored", "ranking", "unpaired_preference")
COLUMNS: Columns = {"prompt_ids": NUMBERS, "completion_ids": NUMBERS, "score": REAL}


def scored_answers(row: dict, kind: str) -> Iterator[tuple[str, float]]:
    """(completion, score) of each answer of a row. UserError where two columns of it say how good its answers are."""
    # A table writes its numbers as strings.
    if kind == "scored":
        yield row["completion"], float(number(row["score"]))
    elif kind == "unpaired_preference":
        if number(row.get("score")) is not None:
            raise UserError(
                "a row has a label and a score, which could each be what is learned: rename the other one, as in columns: "
                "{unused: label}"
            )
        yield row["completion"], float(thumb(row["label"]))
    else:
        yield from zip(row["completions"], scores_of_ranking(row), strict=True)


def scores_of_ranking(row: dict) -> list[float]:
    """The scores of the answers of a ranking, its own where it has them."""
    scores = row.get("scores")
    if scores is None and row["ranks"] == [0, 1]:  # a pair has the order of its scores
        return [float(score) for score in scores_of_pair(row)]
    if scores is None:
        # Ranks are an order. That of three answers with a tie has two steps or one.
        last = max(row["ranks"])
        return [1 - rank / max(last, 1) for rank in row["ranks"]]
    numbers = [number(score) for score in scores] if isinstance(scores, list) else []
    if None in numbers or len(numbers) != len(row["ranks"]):
        raise UserError(
            f"scores: a number for each of {len(row['ranks'])} completions is expected, {scores!r:.60} given"
        )
    return [float(score) for score in numbers]


def encode_scored(
    tokenizer, rows: Sequence[dict], kind: str, *, max_length: int
) -> tuple[EncodedRows, int]:
    """Encode the answers of rows of one of KINDS. Returns one row for each answer, and the number of those too long.

    An encoded row has
        prompt_ids, completion_ids: token ids, the completion closed by its end-of-turn token
        score: of the answer
    UserError where no answer fits.
    """
    encoded = encode_once(answers, tokenizer, rows, COLUMNS, kind=kind, max_length=max_length)
    if not encoded:
        raise UserError(
            f"no answer fits max_length={max_length} tokens: raise it (prompt + completion counts)"
        )
    return encoded, encoded.counts["too_long"]


def answers(
    tokenizer, rows: Sequence[dict], counts: Counter[str], *, kind: str, max_length: int
) -> Iterator[dict]:
    """Yields what `encode_scored` describes. Counts too_long."""
    check_answers(tokenizer, rows)
    for row in rows:
        prompt = encode_prompt(tokenizer, row["prompt"])
        for text, score in scored_answers(row, kind):
            completion = encode_completion(tokenizer, text)
            # Cut off, it would end without what it was scored for.
            if len(prompt) + len(completion) > max_length:
                counts["too_long"] += 1
                continue
            yield {"prompt_ids": prompt, "completion_ids": completion, "score": score}


def require_different_scores(rows: Sequence[dict], kind: str, side: str) -> None:
    """UserError where all answers of rows of one of KINDS have one score. side: "training" or "evaluation"."""
    scores = set()
    for row in rows:
        scores.update(score for _, score in scored_answers(row, kind))
    if len(scores) < 2:
        raise UserError(
            f"all answers of the {side} rows have the score {scores.pop():g}: there is nothing to tell good ones by. Give "
            "answers of different scores"
        )


def collate_scored(rows: Sequence[dict], pad_token_id: int) -> dict[str, Tensor]:
    """prompt_ids, prompt_mask (B, P) left-padded; completion_ids, mask (B, T) right-padded; scores (B,)."""
    prompt_ids, prompt_mask = left_pad([row["prompt_ids"] for row in rows], pad_token_id)
    completion_ids, mask = right_pad([row["completion_ids"] for row in rows], pad_token_id)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "mask": mask,
        "scores": tensor([row["score"] for row in rows]),
    }
