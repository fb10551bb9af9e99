"""Files that a crash leaves as they were, or complete."""

import os

import pytest

from rlhf.runs import durable


def test_a_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    durable.write_text(path, "first")
    passed = []
    monkeypatch.setattr(durable, "boundary", lambda path: passed.append(path.name))
    durable.write_text(path, "second")
    assert path.read_text() == "second" and passed == ["run.json.tmp", "run.json"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_after_an_error_the_old_text_is_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    durable.write_text(path, "first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write_text(path, "second")
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
