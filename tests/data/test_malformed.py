"""The malformed corpus: what each damaged file is, and the message, or the number of rows, that a user gets for it.

Each file goes through the loader of the recipes and through `python -m rlhf validate`.
"""

import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from rlhf.__main__ import main
from rlhf.data import files
from rlhf.data.load import load_rows
from rlhf.data.rows import KINDS
from rlhf.errors import UserError

GOOD = b'{"text": "one"}\n{"text": "two"}\n'
SQUAD = {
    "question": "Who?",
    "context": "Ada did.",
    "answers": {"text": ["Ada"], "answer_start": [1]},
}


def parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"] * 500}), out)
    return out.getvalue()


def lines(*rows) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def labelled(*labels) -> bytes:
    return lines(*({"text": f"text {i}", "label": label} for i, label in enumerate(labels)))


# what it is: (file name, content, number of rows or a part of the message)
CORPUS = {
    # encodings
    "a byte order mark": ("rows.jsonl", b"\xef\xbb\xbf" + GOOD, 2),
    "a byte order mark in CSV": ("rows.csv", b"\xef\xbb\xbftext,label\na,x\nb,y\n", 2),
    "UTF-16": (
        "rows.jsonl",
        GOOD.decode().encode("utf-16"),
        "rows.jsonl:1: not UTF-8 (byte 0xff at column 1)",
    ),
    "latin-1": (
        "rows.jsonl",
        GOOD + '{"text": "caf\xe9"}\n'.encode("latin-1"),
        "rows.jsonl:3: not UTF-8 (byte 0xe9 at column 14)",
    ),
    "latin-1 in an array": (
        "rows.json",
        '[{"text": "caf\xe9"}]'.encode("latin-1"),
        "rows.json:1: not UTF-8",
    ),
    "NUL characters": ("rows.jsonl", GOOD + b"\0\0\0\0\n", "rows.jsonl:3: not valid JSON"),
    "NUL in a text": (
        "rows.jsonl",
        GOOD + b'{"text": "a\\u0000b"}\n',
        "rows.jsonl:3: text: NUL character at position 2",
    ),
    "half a surrogate pair": (
        "rows.jsonl",
        GOOD + b'{"text": "\\ud83d"}\n',
        "rows.jsonl:3: text: half a surrogate pair at position 1",
    ),
    "Windows line ends": ("rows.jsonl", GOOD.replace(b"\n", b"\r\n"), 2),
    "a line separator in a text": ("rows.jsonl", '{"text": "one\u2028two"}\n'.encode(), 1),
    # JSON
    "a torn last line": ("rows.jsonl", GOOD[:-4], "rows.jsonl:2: not valid JSON"),
    "no last line end": ("rows.jsonl", GOOD[:-1], 2),
    "a key twice": (
        "rows.jsonl",
        GOOD + b'{"text": "a", "text": "b"}\n',
        "rows.jsonl:3: the key 'text' is twice in one object",
    ),
    "a key twice in an inner object": (
        "rows.jsonl",
        GOOD + b'{"text": "a", "x": {"k": 1, "k": 2}}\n',
        "rows.jsonl:3: the key 'k' is twice",
    ),
    "a key twice in an array": (
        "rows.json",
        b'[{"text": "a"},\n{"text": "a", "text": "b"}]',
        "rows.json:2: the key 'text' is twice",
    ),
    "an array named .jsonl": ("rows.jsonl", b'[{"text": "one"},\n {"text": "two"}]', 2),
    "an array that is cut off": (
        "rows.json",
        b'[{"text": "one"},\n {"text": ',
        "rows.json:2: not valid JSON",
    ),
    "two arrays": (
        "rows.json",
        b'[{"text": "one"}]\n[{"text": "two"}]',
        "rows.json:2: not valid JSON (end of the file expected",
    ),
    "an array of strings": (
        "rows.json",
        b'["one", "two"]',
        "rows.json:1: an object is expected, 'one' given",
    ),
    "lines that are strings": (
        "rows.jsonl",
        b'"one"\n"two"\n',
        'rows.jsonl:1: an object {...} is expected, "one" given',
    ),
    "JSON lines named .json": ("rows.json", GOOD, 2),
    "deep nesting": (
        "rows.jsonl",
        GOOD + b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "rows.jsonl:3: not valid JSON",
    ),
    "nesting that Python can just read": (
        "rows.jsonl",
        GOOD + b'{"text": "a", "x": ' + b"[" * 400 + b"]" * 400 + b"}\n",
        "rows.jsonl:3: more than 100 lists and objects inside each other",
    ),
    "deep nesting in an array": (
        "rows.json",
        b'[{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
        "rows.json:1: not valid JSON",
    ),
    "a number of too many digits": (
        "rows.json",
        b'[{"text": "a", "x": ' + b"1" * 5000 + b"}]",
        "rows.json:1: not valid JSON",
    ),
    "a line that is too long": (
        "rows.jsonl",
        GOOD + lines({"text": "a" * 4000}) + GOOD,
        "rows.jsonl:3: a line of 4,013 bytes; allowed: 3,000",
    ),
    "an item that is too long": (
        "rows.json",
        b"[" + b" " * 4000 + lines({"text": "a" * 4000}) + b"]",
        "rows.json:1: not valid JSON (an item of more than 3,000 characters",
    ),
    "NaN as a text": (
        "rows.jsonl",
        GOOD + b'{"text": NaN}\n',
        "rows.jsonl:3: text: a string is expected, NaN given",
    ),
    "NaN as a label": (
        "rows.jsonl",
        labelled(0.5, float("nan")),
        "rows.jsonl:2: label: a number is expected, NaN given",
    ),
    # rows
    "mixed types": (
        "rows.jsonl",
        GOOD + b'{"text": 3}\n',
        "rows.jsonl:3: text: a string is expected, 3 given",
    ),
    "a missing column": ("rows.jsonl", labelled("x", "y") + GOOD, "rows.jsonl:3: label: missing"),
    "no known column": (
        "rows.jsonl",
        b'{"words": "one"}\n',
        "no known row form; the columns are words",
    ),
    "labels of mixed type": (
        "rows.jsonl",
        labelled("x", "y", 3),
        "rows.jsonl:3: label: 3 is an integer, but 'x' is a string",
    ),
    "a ranking of one answer": (
        "rows.jsonl",
        lines({"prompt": "a", "completions": ["b"], "ranks": [0]}),
        "completions: a list of at least 2 completions is expected",
    ),
    "more ranks than answers": (
        "rows.jsonl",
        lines({"prompt": "a", "completions": ["b", "c"], "ranks": [0, 1, 2]}),
        "ranks: 3 ranks for 2 completions",
    ),
    "an answer at another offset": (
        "rows.jsonl",
        lines(SQUAD),
        "answers: 'Ada' is not at character 1 of the context; it is at 0",
    ),
    "a conversation without an answer": (
        "rows.jsonl",
        lines({"messages": [{"role": "user", "content": "a"}]}),
        "messages: no assistant message to learn from",
    ),
    "an unknown role": (
        "rows.jsonl",
        lines({"messages": [{"role": "bot", "content": "a"}]}),
        "message 0: unknown role 'bot'",
    ),
    # empty files
    "empty": ("rows.jsonl", b"", "no rows (0 bytes): the file is empty"),
    "only blank lines": ("rows.jsonl", b"\n \n\n", "no rows (4 bytes)"),
    "only a header": ("rows.csv", b"text,label\n", "no rows (11 bytes)"),
    "an empty array": ("rows.json", b"[]", "no rows (2 bytes)"),
    "an empty table": ("rows.parquet", b"", "not a valid parquet file"),
    # tables
    "a row with too many fields": (
        "rows.csv",
        b"text,label\na,x\nb,y,z\n",
        "rows.csv:3: 3 fields, but the header has 2: text, label",
    ),
    "a row with too few fields": (
        "rows.tsv",
        b"text\tlabel\na\tx\nb\n",
        "rows.tsv:3: 1 fields, but the header has 2: text, label",
    ),
    "a quote that is never closed": (
        "rows.csv",
        b'text,label\na,x\n"b,y\nc,z\n',
        "rows.csv:3: not a valid row",
    ),
    "a column twice": (
        "rows.csv",
        b"text,text\na,b\n",
        "rows.csv:1: text: the header names this column twice",
    ),
    "NUL in a table": (
        "rows.csv",
        b"text,label\na\0b,x\n",
        "rows.csv:2: text: NUL character at position 2",
    ),
    # packed files
    "gzip cut in half": (
        "rows.jsonl.gz",
        gzip.compress(GOOD)[:-12],
        "damaged or truncated gzip file",
    ),
    "gzip that is not gzip": (
        "rows.jsonl.gz",
        GOOD,
        "damaged or truncated gzip file (Not a gzipped file",
    ),
    "gzip named .jsonl": ("rows.jsonl", gzip.compress(GOOD), "rows.jsonl:1: not UTF-8"),
    "a gzip bomb": (
        "rows.jsonl.gz",
        gzip.compress(b"a" * 100_000),
        "a line of more than 9,000 bytes; allowed: 3,000",
    ),
    "parquet cut in half": (
        "rows.parquet",
        parquet()[: len(parquet()) // 2],
        "not a valid parquet file",
    ),
    "parquet that is not parquet": ("rows.parquet", GOOD, "not a valid parquet file"),
    # CoNLL
    "a token without its tag": (
        "rows.conll",
        b"Ada B-x\nwrote\n\nBob B-x\n",
        "rows.conll:2: 'wrote' has no tag",
    ),
    "a line with more columns": (
        "rows.conll",
        b"Ada B-x\nwrote VB O\n",
        "rows.conll:2: 3 columns, but the lines before have 2",
    ),
    # other types
    "an unknown ending": ("rows.xlsx", b"PK", "unknown file type '.xlsx'; allowed: .jsonl, .json"),
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch, tmp_path):
    """Limits that small files pass, and a cache of its own."""
    monkeypatch.setattr(files, "LONGEST_LINE", 3000)
    monkeypatch.setattr(files, "LONGEST_COUNTED", 9000)
    monkeypatch.setattr(files, "BLOCK", 512)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))


def check(path, expected, capsys):
    """The loader and the command give a number of rows, or the message."""
    if isinstance(expected, int):
        assert len(load_rows(str(path), kinds=tuple(KINDS)).rows) == expected
    else:
        with pytest.raises(UserError) as caught:
            load_rows(str(path), kinds=tuple(KINDS))
        assert expected in str(caught.value)
    code = main(["validate", str(path)])
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    if isinstance(expected, int):
        assert code == 0 and f"({expected} good, 0 bad)" in said
    else:
        assert code == 2 and expected in said


@pytest.mark.parametrize("what", CORPUS)
def test_malformed_files(what, tmp_path, capsys, monkeypatch):
    name, content, expected = CORPUS[what]
    if what.startswith(("deep", "nesting", "a number")):
        monkeypatch.setattr(files, "LONGEST_LINE", 1 << 20)
    path = tmp_path / name
    path.write_bytes(content)
    check(path, expected, capsys)


def test_the_corpus_is_large_enough():
    assert len(CORPUS) >= 50
    endings = {name.partition(".")[2] for name, _, _ in CORPUS.values()}
    assert {"jsonl", "json", "csv", "tsv", "parquet", "conll", "jsonl.gz"} <= endings


# ---- paths that are no files -----------------------------------------------------------------------------------------


def test_paths_that_are_no_files(tmp_path, capsys):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "notes.md").write_text("no rows")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "gone.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")  # reading it would wait for ever
    check(tmp_path / "folder.jsonl", "the folder holds no .jsonl file", capsys)
    check(tmp_path / "unreadable", "the folder holds no .jsonl file", capsys)
    check(tmp_path / "loop.jsonl", "no such file", capsys)
    check(tmp_path / "dangling.jsonl", "no such file", capsys)
    check(tmp_path / "pipe.jsonl", "not a regular file", capsys)
    check("/dev/zero.jsonl", "no such file", capsys)


def test_a_pipe_in_a_folder_is_passed_over(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "pipe.jsonl")
    (tmp_path / "data" / "rows.jsonl").write_bytes(GOOD)
    check(tmp_path / "data", 2, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    check(path, "cannot be read (Permission denied)", capsys)


def test_a_disk_that_fails_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)

    class Failing(io.BytesIO):
        def readline(self, *size):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "_open", lambda path: Failing(GOOD))
    with pytest.raises(
        UserError, match="cannot be read .Input/output error.: check its permissions"
    ):
        load_rows(str(path), kinds=("text",))


# ---- long lines ------------------------------------------------------------------------------------------------------


def test_a_long_line_is_dropped_with_skip_bad(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + lines({"text": "a" * 4000}) + GOOD)
    loaded = load_rows(str(path), kinds=("text",), skip_bad=True)
    assert [row["text"] for row in loaded.rows] == ["one", "two", "one", "two"]
    assert loaded.counts["bad"] == 1


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_an_array_is_read_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK", block)
    rows = [
        {"text": "äé\n\u2028" * i + "x", "n": 12345678901234567890 + i, "f": -1.5e-3}
        for i in range(9)
    ]
    path = tmp_path / "rows.json"
    for content in (rows, {"version": 1, "data": rows, "more": [1]}):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1))
        assert load_rows(str(path), kinds=("text",)).rows == rows
    path.write_text("[1234567, 89]")
    with pytest.raises(UserError, match="an object is expected, 1234567 given"):
        load_rows(str(path), kinds=("text",))
    path.write_text('\n[{"text": "a"},\n\n   {"text": "b"} {"text": "c"}]')
    with pytest.raises(
        UserError, match=r"rows.json:4: not valid JSON \(, or \] expected, column 18\)"
    ):
        load_rows(str(path), kinds=("text",))
