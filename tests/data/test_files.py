import gzip
from pathlib import Path

import pytest

from rlhf.data.files import BrokenLine, read_rows
from rlhf.errors import UserError


def read(path):
    """All rows of a file, none of them broken."""
    rows = list(read_rows(Path(path)))
    assert not any(isinstance(row, BrokenLine) for _, row in rows)
    return rows


def first_problem(path):
    """What stops the reading, or else the first broken line, as a user is told it."""
    try:
        for line, row in read_rows(Path(path)):
            if isinstance(row, BrokenLine):
                return f"{path}:{line}: {row}"
    except UserError as error:
        return str(error)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "é"}\n\n{"text": "b"}', [(1, {"text": "é"}), (3, {"text": "b"})]),
        ("bom.jsonl", '\ufeff{"text": "a"}\r\n', [(1, {"text": "a"})]),
        ("a.jsonl.gz", '{"text": "a"}\n', [(1, {"text": "a"})]),
        (
            "array.jsonl",
            '\ufeff [\n  {"text": "a"},\n  {"text":\n "b"}\n]\n',
            [(2, {"text": "a"}), (3, {"text": "b"})],
        ),
        (
            "data.json",
            '{"version": {"data": 1},\n "data": [{"text": "a"}], "x": 1}',
            [(2, {"text": "a"})],
        ),
        ("one_line.json", '{"data": [{"text": "a"}]}', [(1, {"text": "a"})]),
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n', [(1, {"text": "a"}), (2, {"text": "b"})]),
        (
            "a.csv",
            'text,label\n"x,\ny",0\nz,1\n',
            [(2, {"text": "x,\ny", "label": "0"}), (4, {"text": "z", "label": "1"})],
        ),
        ("a.tsv", 'text\tlabel\n"open\t1\n', [(2, {"text": '"open', "label": "1"})]),
        ("a.txt", "one\n\n two \n", [(1, {"text": "one"}), (3, {"text": " two "})]),
        ("u2028.jsonl", '{"text": "a\u2028b"}\n', [(1, {"text": "a\u2028b"})]),
    ],
)
def test_every_form_of_file(write, name, content, expected):
    assert read(write(name, content)) == expected


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
        {"prompt": [], "completion": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [(1, rows[0]), (2, rows[1])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "empty.jsonl: no rows (0 bytes): the file is empty"),
        ("empty.json", "", "empty.json: no rows (0 bytes): the file is empty"),
        ("blank.json", " \n", "blank.json: no rows (2 bytes): the file is empty"),
        ("blank.txt", "\n\n", "blank.txt: no rows (2 bytes): the file is empty"),
        ("header.csv", "text,label\n", "header.csv: no rows (11 bytes)"),
        ("array.json", "[]", "array.json: no rows (2 bytes)"),
        (
            "latin.jsonl",
            b'{"text": "a"}\n{"text": "\xff"}\n',
            "latin.jsonl:2: not UTF-8 (byte 0xff at column 11): save the file as UTF-8",
        ),
        (
            "latin.csv",
            b"text\nok\ncaf\xe9\n",
            "latin.csv:3: not UTF-8 (byte 0xe9 at column 4): save the file as UTF-8",
        ),
        (
            "latin.json",
            b'[\n{"text": "\xff"}]',
            "latin.json:2: not UTF-8 (byte 0xff at column 11): save the file as UTF-8",
        ),
        (
            "utf16.txt",
            "a".encode("utf-16"),
            "utf16.txt:1: not UTF-8 (byte 0xff at column 1): save the file as UTF-8",
        ),
        (
            "cut.jsonl",
            '{"text": "a"}\n{"text": "b',
            "cut.jsonl:2: not valid JSON (Unterminated string starting at, column 10): the line is cut off or damaged",
        ),
        (
            "cut.json",
            '[\n{"text": "a"},\n{"text"',
            "cut.json:3: not valid JSON (Expecting ':' delimiter, column 8): cut off, damaged, or of another form",
        ),
        (
            "open.json",
            '[\n{"text": "a"}',
            "open.json:2: not valid JSON (, or ] expected, column 14): cut off",
        ),
        ("number.jsonl", "3\n", "number.jsonl:1: an object {...} is expected, 3 given"),
        (
            "object.json",
            '{\n"text": "a"}',
            "object.json:2: not valid JSON (, expected, column 12): cut off",
        ),
        (
            "quote.csv",
            'text,label\na,0\n"b,1\nc,2\n',
            "quote.csv:3: not a valid row (unexpected end of data): is a quote opened here and never closed?",
        ),
        (
            "header.csv",
            '"text,label\na,0\n',
            "header.csv:1: not a valid header (unexpected end of data)",
        ),
        (
            "wide.csv",
            "text,label\na,b,0\n",
            "wide.csv:2: 3 fields, but the header has 2: text, label",
        ),
        ("twice.csv", "text,text\na,b\n", "twice.csv:1: text: the header names this column twice"),
        (
            "rows.xlsx",
            "x",
            "rows.xlsx: unknown file type '.xlsx'; allowed: .jsonl, .json, .csv, .tsv, .parquet, .txt, .conll, .iob,",
        ),
        ("bad.parquet", "x", "bad.parquet: not a valid parquet file"),
    ],
)
def test_files_that_cannot_be_read_say_where_and_why(write, name, content, message):
    assert message in first_problem(write(name, content))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "label": 1, "text": "c"}\n{"text": "d"}\n', 2),
        ("a.jsonl", '{"text": "a"}\n{"x": [{"text": 1, "text": 2}]}\n{"text": "d"}\n', 2),
        ("a.json", '[{"text": "a"},\n\n{"text": "b", "text": "c"},\n{"text": "d"}]', 3),
        (
            "a.json",
            '{"v": {"k": 1, "k": 2}, "data": [{"text": "a"},\n{"text": 1, "text": 2}, {}]}',
            2,
        ),
    ],
)
def test_a_key_that_is_twice_in_a_row_makes_it_bad(write, name, content, line):
    rows = list(read_rows(Path(write(name, content))))
    assert [isinstance(row, BrokenLine) for _, row in rows] == [False, True, False]
    assert rows[1] == (line, "the key 'text' is twice in one object: remove one of them")


def test_what_is_not_a_regular_file(tmp_path):
    assert "/dev/null: not a regular file, but a device" in first_problem("/dev/null")
    assert "not a regular file" in first_problem(tmp_path)


def test_truncated_gzip(tmp_path):
    data = gzip.compress(b'{"text": "some text"}\n' * 100)
    (tmp_path / "a.txt.gz").write_bytes(data[:-20])
    assert "a.txt.gz: damaged or truncated gzip file" in first_problem(tmp_path / "a.txt.gz")


CONLL = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\n# # B-NP O\n\nhi UH O O\n"


@pytest.mark.parametrize("name", ["a.conll", "a.iob2", "a.txt", "a.tsv", "a.bioes.gz"])
def test_conll_files_by_their_name_or_by_what_they_hold(write, name):
    assert read(write(name, CONLL)) == [
        (3, {"tokens": ["EU", "#"], "tags": ["B-ORG", "O"]}),
        (6, {"tokens": ["hi"], "tags": ["O"]}),
    ]


def test_a_conll_file_of_one_column_has_tokens_alone(write):
    assert read(write("a.conll", "Ada\nleft\n\nhi\n")) == [
        (1, {"tokens": ["Ada", "left"]}),
        (4, {"tokens": ["hi"]}),
    ]


def test_conll_comments_spaces_as_tokens_and_lines_with_only_a_tab(write):
    content = "## format : TOKEN\tTAG\n## id-1\t<A:PS> B\nA\tB-PS\n \tI-PS\n##\tO\n\t\n# id 2\nB\tO\n## \tO\n"
    assert read(write("a.tsv", content)) == [
        (3, {"tokens": ["A", " ", "##"], "tags": ["B-PS", "I-PS", "O"]}),
        (8, {"tokens": ["B", "## "], "tags": ["O", "O"]}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b", "a.conll:2: 'b' has no tag: a token and its tag are expected"),
        ("b\tx\tO", "a.conll:2: 3 columns, but the lines before have 2"),
        ("\tO", "a.conll:2: no token before the tag O"),
        (b"\xff\tO", "a.conll:2: not UTF-8 (byte 0xff at column 1)"),
    ],
)
def test_bad_lines_of_conll_files(write, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    path = write("a.conll", b"a\tO\n" + line + b"\nc\n\nd\tO\n")
    assert message in first_problem(path)
    found = list(read_rows(Path(path)))
    assert [number for number, _ in found] == [
        2,
        5,
    ]  # the sentence is one bad row; the next one is good


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.tsv",
            "text\tlabel\na\tO\nb\tB-x\n",
        ),  # a table whose labels look like tags: its header does not
        ("a.txt", "all of it is O\nbut most lines are text\n"),
        ("a.txt", "one\ntwo\n"),
        ("a.txt", "type O\nblood\nis\nrare\n"),
    ],
)
def test_tables_and_texts_are_no_conll(write, name, content):
    assert all("tokens" not in row for _, row in read(write(name, content)))


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        ("a\nb\n---\n\nc\n---\n", "---", [(1, "a\nb"), (5, "c")]),
        ("a\r\n\r\n\r\nb\r\nc", "blank", [(1, "a"), (4, "b\nc")]),
        ("a --- b\n---\nc\n", "---", [(1, "a --- b"), (3, "c")]),
    ],
)
def test_texts_of_several_lines(write, content, separator, expected):
    found = [
        (line, row["text"]) for line, row in read_rows(Path(write("a.txt", content)), separator)
    ]
    assert found == expected


def test_a_separator_that_is_nowhere(write, refused):
    message = refused(lambda: list(read_rows(Path(write("a.txt", "a\nb\n")), "***")))
    assert "document_separator: the file has no line '***', so it would be one document" in message
    message = refused(lambda: list(read_rows(Path(write("b.txt", "a\nb\n")), "blank")))
    assert "the file has no empty line" in message


@pytest.mark.parametrize("end", ['[{"text": "b"}]', "rest", '"data"'])
@pytest.mark.parametrize(
    "array", ['[{"text": "a"}]\n', '{"data": [{"text": "a"}], "version": {"b": []}}\n']
)
def test_nothing_may_follow_the_array_of_a_file(array, end, write, refused):
    path = Path(write("whole.json", array))
    assert list(read_rows(path)) == [(1, {"text": "a"})]
    path = Path(write("more.json", array + end))
    assert "more.json:2: not valid JSON (end of the file expected" in refused(list, read_rows(path))


def test_a_tsv_field_that_a_csv_writer_quoted_is_named(write):
    # As pandas writes it with sep="\t".
    path = Path(
        write("a.tsv", 'prompt\tcompletion\n"He said ""hi"""\tok\n"b"\t"c" or ""d""\n"""\t""\n')
    )
    (_, broken), *rows = read_rows(path)
    assert isinstance(broken, BrokenLine)
    assert "prompt: '\"He said" in broken and "is quoted as in a CSV file" in broken
    ordinary = [('"b"', '"c" or ""d""'), ('"""', '""')]
    assert [tuple(row.values()) for _, row in rows] == ordinary
