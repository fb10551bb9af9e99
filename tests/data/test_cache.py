"""Files of the cache are made once, by one process, and remade where they are not whole."""

import errno
import json
import multiprocessing
import os
import shutil
import time

import pyarrow
import pytest

from rlhf.data import cache, load
from rlhf.data.cache import Writer, folder, stored
from rlhf.data.load import load_rows
from rlhf.data.stored_numbers import number_columns
from rlhf.errors import UserError
from rlhf.tasks.classification.encode import LabelForm

SCHEMA = pyarrow.schema([("row", pyarrow.binary())])
ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "a", "label": "x"}]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home = tmp_path / "cache"
    monkeypatch.setenv("RLHF_CACHE", str(home))
    return home


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def passes(monkeypatch):
    """The names of the sources that are read, in order."""
    names = []
    read = load.CheckedRows.__iter__

    def counted(self):
        names.append(self.name)
        return read(self)

    monkeypatch.setattr(load.CheckedRows, "__iter__", counted)
    return names


def read(data, **options):
    return load_rows(str(data), kinds=("classification", "text"), **options)


def count_to(number):
    def fill(writer: Writer):
        for i in range(number):
            writer.add((str(i).encode(),), size=1)
        return {"total": number}

    return fill


def values(content):
    return [int(value) for value in content.table.column("row").to_pylist()]


def test_a_source_is_checked_once(data, passes):
    first, second = read(data), read(data)
    assert passes == [str(data)]
    assert second.rows == first.rows == ROWS
    assert first.counts == {"total": 3, "kept": 3, "bad": 0, "duplicates": 1}
    assert first.warnings == [f"{data}: 1 of 3 rows repeat an earlier one and are kept"]
    assert {**vars(first), "rows": 0} == {**vars(second), "rows": 0}


@pytest.mark.parametrize(
    "options", [{"limit": 2}, {"skip_bad": True}, {"columns": {"text": "label", "label": "text"}}]
)
def test_other_settings_are_another_file(data, passes, options):
    plain, other = read(data), read(data, **options)
    assert len(passes) == 2
    assert read(data) == plain and read(data, **options) == other
    assert len(passes) == 2


def test_other_content_is_another_file(data, passes):
    read(data)
    data.write_text(data.read_text().replace('"b"', '"c"'))
    assert read(data).rows[1]["text"] == "c"
    assert len(passes) == 2


def test_bad_rows_are_named_each_time(data, passes):
    data.write_text(data.read_text() + '{"text": 3, "label": "x"}\n')
    for _ in range(2):
        with pytest.raises(UserError, match=f"{data}:4: text: a string is expected, 3 given"):
            read(data)
    assert len(passes) == 2


def test_what_a_check_learned_is_restored(data, passes):
    states = []
    for _ in range(2):
        form = LabelForm()
        checked = load.CheckedRows(str(data), kinds=("classification",), checks={"label": form})
        load.collect_rows(checked, limit=None, skip_bad=False)
        states.append((form.task, form.why))
    assert states == [("single_label", "a row before has 'x'")] * 2 and len(passes) == 1


def test_a_check_that_cannot_be_named_is_made_each_time(data, passes):
    for reason in (None, "too short"):
        checked = load.CheckedRows(
            str(data), kinds=("classification",), checks={"label": lambda value, r=reason: r}
        )
        if reason is None:
            load.collect_rows(checked, limit=None, skip_bad=False)
            continue
        with pytest.raises(UserError, match="label: too short"):
            load.collect_rows(checked, limit=None, skip_bad=False)
    assert len(passes) == 2


def test_dates_of_a_parquet_file_stay_dates(tmp_path, passes):
    from datetime import date

    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    rows = [{"text": "a", "day": date(2020, 1, i)} for i in (1, 2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for _ in range(2):  # JSON has no dates, so nothing is cached
        loaded = load_rows(str(path), kinds=("text",))
        assert loaded.rows == rows and loaded.rows.fingerprint is None
    assert len(passes) == 2


def test_a_torn_or_foreign_file_is_made_again(home, data, passes):
    good = read(data)
    (file,) = home.glob("*.arrow")
    content = file.read_bytes()
    other = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(other, SCHEMA) as stream:
        stream.write_table(pyarrow.table({"row": [b"{}"]}, schema=SCHEMA))
    torn = [content[:size] for size in range(0, len(content), 97)]
    for wrong in [*torn, b"something else", other.getvalue().to_pybytes()]:
        file.write_bytes(wrong)
        before = len(passes)
        assert read(data).rows == good.rows
        assert len(passes) == before + 1 and file.read_bytes() == content


def test_a_folder_that_cannot_be_written_costs_only_time(home, data, passes):
    home.write_text("a file where the folder would be")
    assert read(data).rows == read(data).rows == ROWS
    assert len(passes) == 2


@pytest.mark.parametrize("written", [0, 1, 3])
def test_a_full_disk_costs_only_memory(home, monkeypatch, written):
    monkeypatch.setattr(cache, "BATCH_ROWS", 4)
    new_stream = pyarrow.ipc.new_stream

    class Full:
        def __init__(self, sink, schema):
            self.stream, self.left = new_stream(sink, schema), written

        def write_batch(self, batch, **options):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= 1
            self.stream.write_batch(batch, **options)

    monkeypatch.setattr(pyarrow.ipc, "new_stream", Full)
    content = stored("full", SCHEMA, count_to(14), "counting")
    assert values(content) == list(range(14)) and content.note["total"] == 14
    assert content.path is None and not list(home.glob("*.tmp")) + list(home.glob("*.arrow"))


def test_an_error_leaves_nothing_behind(home):
    def fill(writer):
        count_to(5)(writer)
        raise UserError("bad")

    for _ in range(2):
        with pytest.raises(UserError, match="bad"):
            stored("wrong", SCHEMA, fill, "counting")
    assert [path.suffix for path in home.iterdir()] == [".lock"]


def test_without_a_key_or_with_the_cache_off_no_file_stays(home, monkeypatch):
    assert values(stored(None, SCHEMA, count_to(2500), "counting")) == list(range(2500))
    assert not list(home.iterdir())
    monkeypatch.setenv("RLHF_CACHE", "off")
    assert folder() is None
    assert values(stored("key", SCHEMA, count_to(3), "counting")) == [0, 1, 2]
    assert not list(home.iterdir())


def _make(path):
    def fill(writer):
        with open(path, "a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return count_to(3)(writer)

    assert values(stored("shared", SCHEMA, fill, "counting")) == [0, 1, 2]


def test_one_of_several_processes_makes_a_file(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_make, args=(tmp_path / "made",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "made\n"


def test_the_folder_is_that_of_datasets(monkeypatch):
    monkeypatch.delenv("RLHF_CACHE")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/data/hf")
    assert str(folder()) == "/data/hf/rlhf"
    monkeypatch.delenv("HF_DATASETS_CACHE")
    monkeypatch.setenv("HF_HOME", "/home/hf")
    assert str(folder()) == "/home/hf/datasets/rlhf"


def test_a_long_pass_says_how_far_it_is(home, monkeypatch, capsys):
    monkeypatch.setattr(cache, "SECONDS_BETWEEN_LINES", -1)
    stored("long", SCHEMA, count_to(2100), "reading rows.jsonl")
    assert capsys.readouterr().err.splitlines() == [
        "reading rows.jsonl: 1,000 rows in 0 s",
        "reading rows.jsonl: 2,000 rows in 0 s",
        "reading rows.jsonl: 2,100 rows in 0 s",
    ]


def test_a_changed_byte_is_noticed(home):
    good = stored("bytes", SCHEMA, count_to(9), "counting")
    content = good.path.read_bytes()
    for index in range(3, len(content), 23):
        wrong = bytearray(content)
        wrong[index] ^= 16
        good.path.write_bytes(wrong)
        again = stored("bytes", SCHEMA, count_to(9), "counting")
        assert values(again) == list(range(9)) and again.note == good.note


@pytest.mark.parametrize("key", ["gone", None])
def test_a_folder_that_is_removed_costs_only_the_file(home, key):
    def fill(writer):
        note = count_to(2500)(writer)
        shutil.rmtree(home)
        return note

    content = stored(key, SCHEMA, fill, "counting")
    assert values(content) == list(range(2500)) and content.path is None


@pytest.mark.parametrize(("key", "left"), [("one", 1), (None, 0)])
def test_what_a_killed_process_left_is_removed(home, key, left):
    def killed(writer):
        count_to(2000)(writer)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=stored, args=(key, SCHEMA, killed, "counting")
    )
    process.start()
    process.join()
    (home / "two-1.tmp").write_text("of another process")
    assert len(list(home.glob("*.tmp"))) == 1 + left
    assert values(stored("one", SCHEMA, count_to(3), "counting")) == [0, 1, 2]
    assert [path.name for path in home.glob("*.tmp")] == ["two-1.tmp"]


def test_a_file_that_is_replaced_while_it_is_read_is_not_cached(home, data, monkeypatch):
    """By one of the same size and time, as `cp -p` makes it."""
    other = data.with_name("other.jsonl")
    other.write_text(data.read_text().replace('"b"', '"c"'))
    status = data.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    read_rows = load.CheckedRows.__iter__

    def replaced(self):
        if other.exists():
            other.replace(data)
        return read_rows(self)

    monkeypatch.setattr(load.CheckedRows, "__iter__", replaced)
    before = data.read_text()
    assert read(data).rows[1]["text"] == "c"
    data.write_text(before)
    assert read(data).rows == ROWS


def test_without_file_locks_the_content_stays_in_memory(tmp_path, monkeypatch):
    """Windows has none, and no open file there gives up its name."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "fcntl", None)

    def fill(writer):
        writer.add(([1, 2],), size=8)
        return {"kept": 1}

    content = cache.stored("key", number_columns("ids"), fill, "counting")
    assert content.table["ids"].to_pylist() == [[1, 2]]
    assert content.note["kept"] == 1 and content.path is None
    assert not list(tmp_path.iterdir())
