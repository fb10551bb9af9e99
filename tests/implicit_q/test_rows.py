"""Scored answers: which rows have scores, what they are, and what is refused."""

import pytest

from rlhf.data.load import load_rows
from rlhf.implicit_q.rows import (
    KINDS,
    collate_scored,
    encode_scored,
    require_different_scores,
    scored_answers,
)

SCORED = {"prompt": "a", "completion": "b", "score": 0.25}


def answers(path):
    loaded = load_rows(path, kinds=KINDS)
    pairs = []
    for row in loaded.rows:
        pairs += scored_answers(row, loaded.kind)
    return pairs


RANKING = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [0, 2, 1]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
ROWS = {
    "scores": ([SCORED, SCORED | {"score": -2}], [("b", 0.25), ("b", -2.0)]),
    "ranks": ([RANKING], [("b", 1.0), ("c", 0.0), ("d", 0.5)]),
    "ties": ([RANKING | {"ranks": [0, 0, 0]}], [("b", 1.0), ("c", 1.0), ("d", 1.0)]),
    "rlhf sample": ([RANKING | {"scores": [3.5, -1, 2]}], [("b", 3.5), ("c", -1.0), ("d", 2.0)]),
    "pair": ([PAIR], [("b", 1.0), ("c", 0.0)]),
    "scored pair": (
        [PAIR | {"score_chosen": 8, "score_rejected": 3.5}],
        [("b", 8.0), ("c", 3.5)],
    ),
    "thumbs": (
        [{"prompt": "a", "completion": text, "label": text == "b"} for text in "bc"],
        [("b", 1.0), ("c", 0.0)],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_the_scores_of_each_kind_of_row(write, case):
    rows, expected = ROWS[case]
    assert answers(write("rows.jsonl", rows)) == expected


def test_a_column_of_another_name_is_mapped(write):
    path = write("rows.jsonl", [{"prompt": "a", "completion": "b", "reward": "1.5"}])
    loaded = load_rows(path, kinds=KINDS, columns={"score": "reward"})
    assert list(scored_answers(loaded.rows[0], loaded.kind)) == [("b", 1.5)]


def test_rows_without_scores_and_with_two_are_refused(write, refused):
    plain = write("plain.jsonl", [{"prompt": "a", "completion": "b"}])
    assert "prompt_completion rows are for sft" in refused(load_rows, plain, kinds=KINDS)
    bad = write("bad.jsonl", [SCORED, SCORED, SCORED | {"score": "good"}])
    assert "bad.jsonl:3: score" in refused(load_rows, bad, kinds=KINDS)
    both = SCORED | {"label": True}
    assert "rename the other one" in refused(list, scored_answers(both, "unpaired_preference"))
    short = RANKING | {"scores": [1, 2]}
    assert "a number for each of 3 completions" in refused(list, scored_answers(short, "ranking"))


def test_scored_answers_are_still_demonstrations_for_sft(write):
    path = write("rows.jsonl", [SCORED])
    loaded = load_rows(path, kinds=("prompt_completion", "messages", "text"))
    assert loaded.kind == "prompt_completion" and loaded.rows[0]["completion"] == "b"
    assert any("score says how good it is" in text for text in loaded.warnings)


def test_a_reward_model_is_told_how_to_rank_them(write, refused):
    path = write("rows.jsonl", [SCORED])
    assert "rank_by: score" in refused(load_rows, path, kinds=("ranking",))


def test_an_answer_is_closed_and_long_ones_are_counted(tokenizer, refused):
    rows = [SCORED, SCORED | {"completion": "b " * 30}]
    encoded, too_long = encode_scored(tokenizer, rows, "scored", max_length=16)
    assert len(encoded) == 1 and too_long == 1
    assert encoded[0]["completion_ids"][-1] == tokenizer.eos_token_id
    assert "no answer fits" in refused(encode_scored, tokenizer, rows, "scored", max_length=2)
    assert "nothing to tell good ones by" in refused(
        require_different_scores, rows, "scored", "training"
    )


def test_a_batch_pads_prompts_left_and_completions_right():
    rows = [
        {"prompt_ids": [5], "completion_ids": [6, 7, 0], "score": 1.0},
        {"prompt_ids": [8, 9], "completion_ids": [0], "score": -1.0},
    ]
    batch = collate_scored(rows, 3)
    assert batch["prompt_ids"].tolist() == [[3, 5], [8, 9]]
    assert batch["completion_ids"].tolist() == [[6, 7, 0], [0, 3, 3]]
    assert batch["mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["scores"].tolist() == [1.0, -1.0]
