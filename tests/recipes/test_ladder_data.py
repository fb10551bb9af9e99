"""The files of `make ladder` from a text of one's own: sides without common questions, and what is refused."""

import json
import sys

import pytest

from rlhf.completions.functions import FunctionScorer
from rlhf.completions.score import ScoringBatch, column_names
from rlhf.errors import UserError


@pytest.fixture
def ladder_data(recipe_module):
    return recipe_module("ladder_data")


@pytest.fixture
def run(ladder_data, tmp_path, monkeypatch):
    """f(file name, text, *flags) -> rows by file name."""

    def run(name: str, text: str, *flags) -> dict[str, list[dict]]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        output = tmp_path / "data"
        argv = ["ladder_data", str(tmp_path / name), "--output", str(output), *flags]
        monkeypatch.setattr(sys, "argv", argv)
        ladder_data.main()
        files = {}
        for path in output.iterdir():
            lines = path.read_text(encoding="utf-8").splitlines()
            files[path.stem] = [json.loads(line) for line in lines]
        return files

    return run


def questions(count: int, answer: str = "답") -> str:
    """A CSV as ChatbotData.csv, with each question twice."""
    rows = [f"질문 {i // 2}?,{answer} {i},0" for i in range(count)]
    return "\n".join(["Q,A,label", *rows]) + "\n"


def test_no_question_is_on_two_sides_and_every_row_on_one(run):
    files = run("chat.csv", questions(200))
    sides = {}
    for side in ("text", "text_dev", "text_heldout"):
        sides[side] = {row["text"].split("\n")[0] for row in files[side]}
    assert len(set.union(*sides.values())) == sum(map(len, sides.values())) == 100
    assert sum(len(files[side]) for side in sides) == 200
    assert [row["prompt"] for row in files["sft"]] == [
        row["text"].split("\n")[0] for row in files["text"]
    ]
    assert set(files["sft"][0]) == {"prompt", "completion"}
    assert set(files["heldout"][0]) == {"prompt", "reference", "label"}
    texts = [f"{row['prompt']}\n{row['reference']}" for row in files["heldout"]]
    assert texts == [row["text"] for row in files["text_heldout"]]


def test_a_question_keeps_its_side_when_others_are_added(ladder_data, run, tmp_path):
    before = run("chat.csv", questions(200))
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    after = run("chat.csv", questions(300))
    for name, rows in before.items():
        assert all(row in after[name] for row in rows)


def test_plain_text_is_kept_whole_and_its_first_lines_are_prompts(run):
    stories = [f"Story {i}.\nIt goes on." if i % 2 else f"Line {i}." for i in range(100)]
    flags = ("--document_separator", "<|endoftext|>")
    files = run("stories.txt", "\n<|endoftext|>\n".join(stories), *flags)
    assert "sft" not in files
    texts = [row["text"] for side in ("text", "text_dev", "text_heldout") for row in files[side]]
    assert sorted(texts) == sorted(stories)
    asked = [row["text"] for row in files["text_heldout"] if "\n" in row["text"]]
    assert asked and files["heldout"] == [
        {"prompt": text.split("\n")[0], "reference": "It goes on."} for text in asked
    ]


def test_texts_of_one_line_have_no_prompts(run):
    files = run("lines.txt", "\n".join(f"Line {i}." for i in range(100)))
    assert set(files) == {"text", "text_dev", "text_heldout"}


def test_the_same_rows_may_be_written_again_and_others_may_not(run):
    first = run("chat.csv", questions(200))
    assert run("chat.csv", questions(200)) == first
    with pytest.raises(UserError, match="files of other rows"):
        run("chat.csv", questions(200, answer="다른 답"))


def test_answers_need_sacrebleu_before_anything_is_written(ladder_data, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ladder_data, "is_installed", lambda: False)
    with pytest.raises(UserError, match="sacrebleu"):
        run("chat.csv", questions(200))
    assert not (tmp_path / "data").exists()
    assert run("lines.txt", "\n".join(f"Line {i}." for i in range(100)))


def test_answers_are_scored_by_chrf_with_those_of_the_file(run):
    rows = run("chat.csv", questions(200))["heldout"][:3]
    columns = {name: [row[name] for row in rows] for name in column_names(rows)}
    written = [rows[0]["reference"], "xyz", rows[2]["reference"][:-1]]
    batch = ScoringBatch([row["prompt"] for row in rows], written, columns)
    scores = FunctionScorer.load("rlhf.recipes.rewards:chrf")(batch).tolist()
    assert scores[0] == pytest.approx(100) and scores[1] == 0 and 0 < scores[2] < 100
