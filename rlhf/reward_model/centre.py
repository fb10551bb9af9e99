"""The completions whose scores are 0 on average after the training of a reward model (InstructGPT, C.2)."""

from collections.abc import Sequence

from rlhf.completions.reward_inputs import RewardInput, RewardInputs
from rlhf.data.load import load_rows
from rlhf.errors import UserError

MOST = 512  # completions that the centre is the mean of


def read_demonstrations(path: str, *, skip_bad: bool) -> list[dict]:
    """The first demonstrations of a file: rows with prompt and completion."""
    return load_rows(path, kinds=("prompt_completion",), limit=MOST, skip_bad=skip_bad).rows


def encode_demonstrations(
    rows: list[dict], inputs: RewardInputs, *, max_length: int
) -> tuple[list[RewardInput], int]:
    """The demonstrations that have at most max_length tokens, and how many were longer."""
    encoded: list[RewardInput] = []
    for row in rows:
        encoded += inputs.encode(row["prompt"], [row["completion"]])
    fitting = [one for one in encoded if len(one.ids) <= max_length]
    if not fitting:
        raise UserError(
            f"none of the {len(rows)} demonstrations fits max_length={max_length} tokens (prompt + completion counts): "
            "raise it, or give demonstrations with shorter texts"
        )
    return fitting, len(encoded) - len(fitting)


def best_completions(rankings: Sequence[dict]) -> tuple[list[RewardInput], int]:
    """The best completion of each of the first rankings, and how many rankings were passed over.

    rankings: as from `encode_rankings`. One whose best completion was too long is passed over, for the next best is not
    as good as a demonstration.
    """
    inputs: list[RewardInput] = []
    passed_over = 0
    for row in rankings:
        if len(inputs) == MOST:
            break
        best = min(row["ranks"])
        if best > min(row["row"]["ranks"]):
            passed_over += 1
            continue
        index = row["ranks"].index(best)  # the first of those that tie for best
        types = None
        if "token_type_ids" in row:
            types = row["token_type_ids"][index]
        inputs.append(RewardInput(row["input_ids"][index], types, row["lengths"][index]))
    if not inputs:
        raise UserError(
            "the best completion of every ranking is too long, so none can set the centre of the scores: raise "
            "max_length, or set demonstrations to a file of prompts and completions"
        )
    return inputs, passed_over
