"""chrF of answers that no model wrote, which the record of a ladder has."""

import json

import pytest

from benchmarks.ladder.retrieval import chrf_without_model


def test_the_nearest_question_has_the_answer_and_a_random_one_rarely(tmp_path):
    words = [f"{letter}{letter}{letter} question" for letter in "abcdefghijklmnop"]
    known = [{"prompt": word, "completion": word[:3] * 4} for word in words]
    asked = [{"prompt": f"{row['prompt']}s", "reference": row["completion"]} for row in known[:8]]
    for name, rows in (("sft", known), ("heldout", asked)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    means = chrf_without_model(tmp_path)
    assert means["nearest"] == pytest.approx(100)
    assert means["random"] < 50 and means == chrf_without_model(tmp_path)
