"""What validate counts, what it prints, and its exit code."""

import argparse
import json
from copy import deepcopy

import pytest

from rlhf.commands import validate as module
from rlhf.commands.validate import (
    add_arguments,
    format_report,
    load_tokenizer,
    main,
    percentile,
    validate,
)
from rlhf.data.rows import KINDS
from rlhf.errors import UserError


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_nearest_rank_percentiles():
    assert [percentile([40, 10, 20, 30], p) for p in (5, 50, 75, 76, 100)] == [10, 20, 30, 40, 40]
    assert percentile([7], 5) == 7


def test_report_on_rankings(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "two words", "completions": ["a", "bb", "ccc"], "ranks": [0, 1, 1]}\n'
        '{"prompt": "two  words", "completions": ["a", "b"], "ranks": [0, 1]}\n'
        '{"prompt": "three", "completions": ["a", "b"], "ranks": [0]}\n'
        '{"prompt": "three", "comple\n'
    )
    report = validate(str(path))
    assert (report.kind, report.total, report.good, report.bad) == ("ranking", 4, 2, 2)
    assert (report.duplicates, report.prompt_duplicates) == (0, 1)
    assert report.lengths["prompt"] == {"characters": [9, 10], "words": [2, 2]}
    assert report.lengths["completions"]["characters"] == [1, 2, 3, 1, 1]
    assert (report.ranking_sizes, report.tied, report.pairs) == ({3: 1, 2: 1}, 1, 4)
    assert main(arguments(path)) == 2
    out = capsys.readouterr().out
    assert "rows        4 (2 good, 2 bad)" in out
    assert "rankings    K = 2: 1, K = 3: 1; 1 of 4 pairs tie (25.0%)" in out
    problems = f"{path}:3: ranks: 1 ranks for 2 completions: give each completion its rank\n{path}:4: not valid JSON"
    assert problems in out


def test_every_bad_row_is_listed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" + b"\xff\n" * 25)
    assert format_report(validate(str(path))).count(": not UTF-8 (byte 0xff at column 1)") == 25


def test_good_labels(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("sentence,class\na,x\nb,y\nb,y\n")
    assert main(arguments(path, "--columns", "text=sentence,label=class")) == 0
    out = capsys.readouterr().out
    assert "classification rows" in out and "labels      2: y 2, x 1" in out
    assert "duplicates  1 whole rows, 1 prompts or texts" in out


def test_report_on_tags(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"tokens": ["Ada", "wrote", "."], "tags": ["B-person", "O", "O"]}\n'
        '{"tokens": ["Bo"], "tags": ["B-person"]}\n'
        '{"tokens": ["Bo"], "tags": []}\n'
    )
    report = validate(str(path))
    assert (report.kind, report.good, report.bad) == ("ner", 2, 1)
    assert report.lengths == {"tokens": {"characters": [11, 2], "words": [3, 1]}}
    assert report.tags == {"B-person": 2, "O": 2}
    assert main(arguments(path)) == 2
    assert "tags        2: B-person 2, O 2" in capsys.readouterr().out


def test_report_on_questions(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    two = '{"text": ["Ada", "Ada Bo"], "answer_start": [0, 0]}'
    none = '{"text": [], "answer_start": []}'
    path.write_text(
        f'{{"question": "Who wrote it?", "context": "Ada Bo wrote it.", "answers": {two}}}\n'
        + f'{{"question": "Why?", "context": "Ada Bo wrote it.", "answers": {none}}}\n' * 3
    )
    report = validate(str(path))
    assert (report.kind, report.good) == ("question_answering", 4)
    assert report.answers_per_question == {2: 1, 0: 3}
    assert report.lengths["context"]["words"] == [4] * 4
    assert report.lengths["answers"] == {"characters": [3, 6], "words": [1, 2]}
    assert main(arguments(path)) == 0
    line = "answers     per question 0: 3, 2: 1; 75.0% of the questions without one"
    assert line in capsys.readouterr().out


def test_questions_without_any_answer(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"question": "Why?", "context": "Ada.", "answers": {"text": [], "answer_start": []}}\n'
    )
    assert main(arguments(path)) == 0
    out = capsys.readouterr().out
    assert "100.0% of the questions without one" in out and "answers, words" not in out


def test_what_cannot_be_read_at_all_ends_with_2(tmp_path, capsys):
    assert main(arguments(tmp_path / "none.csv")) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(str(tmp_path))


def test_thumbs_are_named_with_what_can_be_learned(tmp_path, capsys):
    """A file of good and bad answers used to be reported as plain conversations."""
    path = tmp_path / "kto.json"
    rows = []
    for label in (True, False):
        turns = [("user", "Hi!"), ("assistant", f"It is {label}.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"messages": messages, "label": label})
    path.write_text(json.dumps(rows))
    assert main(arguments(path)) == 0
    out = capsys.readouterr().out
    assert "kto.json: unpaired_preference rows, imported from messages KTO" in out
    assert "learned     kto and ilql: to give more of the answers with the label true" in out
    assert "labels      2: True 1, False 1" in out
    assert "- user: Hi!\n  assistant (good): It is True.\n- user" in out and "[[It" not in out
    assert main(arguments(path, "--good_answers")) == 0
    out = capsys.readouterr().out
    assert "prompt_completion rows, imported from messages KTO, of unpaired_preference rows" in out
    assert "rows        2 (1 good, 0 bad)" in out
    assert "note        dropped: 1 answers that are not good (label false)" in out
    assert "learned     sft: the completion" in out
    assert "- user: Hi!\n  assistant: [[It is True.]]\n" in out + "\n" and "False" not in out


def test_scores_are_named_and_can_be_chosen(tmp_path, capsys):
    path = tmp_path / "scores.jsonl"
    rows = [{"prompt": "p", "response": answer, "helpfulness": i} for i, answer in enumerate("ab")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(arguments(path)) == 2
    assert "rank_by: helpfulness" in capsys.readouterr().err
    assert main(arguments(path, "--rank_by", "helpfulness")) == 0
    assert "- user: p\n  rank 0: [[b]]\n  rank 1: [[a]]" in capsys.readouterr().out


def test_lengths_in_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "a.txt"
    path.write_text("a b a\nb\n")
    report = validate(
        str(path), tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    )
    assert report.lengths["text"] == {"characters": [5, 1], "words": [3, 1], "tokens": [3, 1]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_has_a_report(kind, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(KINDS[kind].example) + "\n")
    report = validate(str(path))
    assert (report.kind, report.good, report.bad) == (kind, 1, 0)
    assert f"{kind} rows" in format_report(report)


def test_each_choice_is_a_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "choices": ["b", "c d"], "label": 1}) + "\n")
    report = validate(str(path))
    assert report.lengths["choices"]["words"] == [1, 2]
    assert report.labels == {"1": 1}


def test_a_row_that_the_chat_template_refuses_is_bad(write, bytes_tokenizer):
    tokenizer = deepcopy(bytes_tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ message.content + eos_token }}{% endfor %}"
    )
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system": "s"}]
    path = write("a.jsonl", rows)
    assert validate(path).exit_code == 0
    report = validate(path, tokenizer=tokenizer)
    assert (report.exit_code, report.bad) == (2, 1)
    assert "a.jsonl:2: prompt: " in report.problems[0] and "no system" in report.problems[0]


def test_the_second_report_of_a_file_comes_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i}", "label": ["a", "b"][i % 2]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    first = validate(str(path))
    read = module.read_report

    def fail(*_):
        raise AssertionError("it was read again")

    monkeypatch.setattr(module, "read_report", fail)
    again = validate(str(path))
    assert again == first and format_report(again) == format_report(first)
    assert again.labels == {"a": 3, "b": 3} and again.problems[0].startswith(f"{path}:7:")
    with pytest.raises(AssertionError, match="read again"):
        validate(str(path), columns="text=label,label=text")
    # Another content, or the same one under another name, whose problems have another path.
    monkeypatch.setattr(module, "read_report", read)
    path.write_text(json.dumps(rows[0]) + "\n")
    assert validate(str(path)).good == 1
