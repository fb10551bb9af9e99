"""Which files of a folder are read, and what is said about the others."""

import re

import pytest

from rlhf.data.files import READERS
from rlhf.data.folders import has_split, is_held_out
from rlhf.data.load import load_rows
from rlhf.errors import UserError


def load(folder, **options):
    return load_rows(str(folder), kinds=("text",), **options)


def texts(folder, **options):
    return [row["text"] for row in load(folder, **options).rows]


def test_all_parts_are_read_packed_or_not(write, tmp_path):
    write("set/part1.jsonl", [{"text": "a"}])
    write("set/part2.jsonl.gz", [{"text": "b"}])
    write("set/README.txt", "about the rows\n")
    assert texts(tmp_path / "set") == ["a", "b"]


def test_files_of_every_type_and_shards(write, tmp_path):
    write("csv/train-00000-of-00002.csv", "text\na\n")
    write("csv/train-00001-of-00002.csv", "text\nb\n")
    write("csv/test-00000-of-00001.csv", "text\nc\n")
    assert texts(tmp_path / "csv") == ["a", "b"]
    assert texts(tmp_path / "csv", split="test") == ["c"]
    assert has_split(tmp_path / "csv", "test", tuple(READERS))
    assert not has_split(tmp_path / "csv", "dev", tuple(READERS))


@pytest.mark.parametrize(
    "name",
    ["validation.jsonl", "test.jsonl", "my_dev_rows.jsonl", "Eval-2.jsonl", "held_out.jsonl.gz"],
)
def test_held_out_files_are_not_in_the_training_rows(write, tmp_path, name):
    write("set/part1.jsonl", [{"text": "a"}])
    write(f"set/{name}", [{"text": "b"}])
    for split in (None, "train"):
        loaded = load(tmp_path / "set", split=split)
        assert [row["text"] for row in loaded.rows] == ["a"]
        assert loaded.warnings == [f"{tmp_path / 'set'}: files that were not read: {name}"]


def test_names_that_only_look_like_held_out_files(tmp_path):
    for name in ("latest.jsonl", "evaluated.csv", "contest.txt", "value.json", "developers.jsonl"):
        assert not is_held_out(tmp_path / name)


def test_a_file_of_the_split_is_read_alone_and_the_others_are_named(write, tmp_path):
    write("set/train.jsonl", [{"text": "a"}])
    write("set/extra.jsonl", [{"text": "b"}])
    write("set/.cache.jsonl", [{"text": "hidden"}])
    (tmp_path / "set" / "raw").mkdir()
    write("set/raw/more.csv", "text\nc\n")
    loaded = load(tmp_path / "set")
    assert [row["text"] for row in loaded.rows] == ["a"]
    assert loaded.warnings == [f"{tmp_path / 'set'}: files that were not read: extra.jsonl, raw/"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("a.jsonl", "b.csv"),
            "files of several types, and it is not clear which are the rows: a.jsonl; b.csv",
        ),
        (("a.jsonl", "a.jsonl.gz"), "a.jsonl is there with and without .gz: remove one of them"),
        (("a.jsonl", "b.jsonl.zst"), "b.jsonl.zst cannot be read, and may be a part of the rows"),
        (("dev.jsonl", "test.jsonl"), "no file of the split 'train', and its other files are held"),
        (("notes.md",), "the folder holds no .jsonl file"),
    ],
)
def test_folders_that_are_unclear_are_refused_by_name(write, tmp_path, refused, names, message):
    for name in names:
        write(f"set/{name}", "text\n")
    assert message in refused(load, tmp_path / "set")


def test_a_link_to_a_file_that_is_gone_is_not_passed_over(write, tmp_path):
    """It may be a shard of the rows."""
    write("set/part1.jsonl", [{"text": "a"}])
    link = tmp_path / "set" / "part2.jsonl"
    link.symlink_to("gone.jsonl")
    for name in (link.parent, link):
        message = f"{link}: a link to gone.jsonl, where no such file is: fix the link, or remove it"
        with pytest.raises(UserError, match=re.escape(message)):
            load(name)
    write("set/gone.jsonl", [{"text": "b"}])
    assert texts(link) == ["b"]
