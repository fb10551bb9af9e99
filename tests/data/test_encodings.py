"""Encoded rows are what the encoder gave, and it is asked once for all that decides it."""

import errno
import shutil
import sys
from collections import Counter

import pyarrow
import pytest

from rlhf.data import cache, fingerprints
from rlhf.data.encodings import Converted, EncodedRows, encode_for_now, encode_once, input_columns
from rlhf.data.fingerprints import module_fingerprint
from rlhf.data.load import load_rows
from rlhf.data.stored_numbers import LISTS, NUMBER, NUMBERS, StoredNumbers
from rlhf.errors import UserError

COLUMNS = {
    "input_ids": NUMBERS,
    "choices": LISTS,
    "row": NUMBER,
    "score": pyarrow.float64(),
    "good": pyarrow.bool_(),
}
ENTRIES = [
    {"input_ids": [1, 2, 3], "choices": [[4], [5, 6, 7]], "row": 1, "score": 0.1, "good": True},
    {"input_ids": [], "choices": [[8, 9], [1]], "row": 0, "score": -2.5, "good": False},
    {"input_ids": [4], "choices": [[2]], "row": 1, "score": 1e300, "good": True},
    {"input_ids": [5, 6], "choices": [[3], [], [7, 7]], "row": 0, "score": 3.0, "good": True},
]
calls: list[dict] = []


def encode(tokenizer, rows, counts, *, longest=9):
    calls.append({"longest": longest})
    for entry in ENTRIES:
        if len(entry["input_ids"]) > longest:
            counts["too_long"] += 1
        else:
            yield entry


def failing(tokenizer, rows, counts):
    yield ENTRIES[0]
    raise UserError("the second row")


@pytest.fixture
def rows(write, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    calls.clear()
    return load_rows(write("rows.jsonl", [{"text": "a"}, {"text": "b"}]), kinds=("text",)).rows


@pytest.mark.parametrize("rows_in_batch", [1, 3, 9])
def test_numbers_and_lists_come_back(rows, tokenizer, monkeypatch, rows_in_batch):
    monkeypatch.setattr(cache, "BATCH_ROWS", rows_in_batch)
    encoded = encode_once(encode, tokenizer, rows, COLUMNS)
    expected = [{**entry, "row": rows[entry["row"]]} for entry in ENTRIES]
    assert list(encoded) == expected and encoded[-1] == expected[-1]
    assert encoded[1:3] == expected[1:3] and encoded[::-2] == expected[::-2]
    assert type(encoded[0]["good"]) is bool and type(encoded[0]["input_ids"][0]) is int
    assert list(encoded.only("row", "score").without("row")) == [
        {"score": entry["score"]} for entry in ENTRIES
    ]
    with pytest.raises(IndexError):
        encoded[4]


def test_the_shortest_row_comes_first(rows, tokenizer):
    encoded = encode_once(encode, tokenizer, rows, COLUMNS)
    assert encoded.lengths == [3, 0, 1, 2]
    ordered = encoded.by_length()
    assert ordered.lengths == [0, 1, 2, 3] and ordered.by_length().lengths == ordered.lengths
    assert [row["score"] for row in ordered] == [-2.5, 1e300, 3.0, 0.1]
    assert ordered.only("score")[3] == {"score": 0.1}
    assert list(Converted(lambda row: row["score"] * 2, ordered.only("score")))[2] == 6.0


def test_the_length_of_several_lists_is_that_of_the_longest(rows, tokenizer, monkeypatch):
    monkeypatch.setattr(cache, "BATCH_ROWS", 3)
    encoded = encode_once(encode, tokenizer, rows, COLUMNS)
    assert StoredNumbers(encoded.table.column("choices")).lengths.tolist() == [3, 2, 1, 2]


def test_rows_are_encoded_once_for_all_that_decides_it(rows, tokenizer):
    for _ in range(2):
        encoded = encode_once(encode, tokenizer, rows, COLUMNS, longest=1)
        assert len(encoded) == 2
        assert encoded.counts["too_long"] == 2 and encoded.counts["anything else"] == 0
    assert calls == [{"longest": 1}]
    assert len(encode_once(encode, tokenizer, rows, COLUMNS, longest=2)) == 3
    encode_once(encode, tokenizer, rows.take([1, 0]), COLUMNS, longest=2)
    some = {"score": COLUMNS["score"]}
    assert list(encode_once(encode, tokenizer, rows, some, longest=2)[0]) == ["score"]
    assert len(calls) == 4
    # Rows without a name, and a file for this process alone.
    for _ in range(2):
        encode_once(encode, tokenizer, list(rows), COLUMNS)
        encode_for_now(encode, tokenizer, rows, COLUMNS)
    assert len(calls) == 8


def unwritable(folder, monkeypatch):
    shutil.rmtree(folder)
    folder.write_text("a file where the folder would be")


def full(folder, monkeypatch):
    write = pyarrow.ipc.RecordBatchStreamWriter.write_batch

    def write_one(self, batch, **options):
        if self.written:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written = True
        write(self, batch, **options)

    class OneBatch(pyarrow.ipc.RecordBatchStreamWriter):
        written = False
        write_batch = write_one

    monkeypatch.setattr(pyarrow.ipc, "new_stream", OneBatch)


def torn(folder, monkeypatch):
    for path in folder.glob("encode-*.arrow"):
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("disk, times", [(unwritable, 2), (full, 1), (torn, 2)])
def test_a_disk_that_fails_costs_only_time(rows, tokenizer, tmp_path, monkeypatch, disk, times):
    monkeypatch.setattr(cache, "BATCH_ROWS", 1)
    expected = list(encode_once(encode, tokenizer, rows, COLUMNS, longest=9))
    disk(tmp_path / "cache", monkeypatch)
    calls.clear()
    assert list(encode_once(encode, tokenizer, rows, COLUMNS, longest=9)) == expected
    # What the cache has not had yet.
    assert list(encode_once(encode, tokenizer, rows, COLUMNS, longest=8)) == expected
    assert len(calls) == times


def test_an_encoder_that_refuses_a_row_does_so_each_time(rows, tokenizer):
    for _ in range(2):
        with pytest.raises(UserError, match="the second row"):
            encode_once(failing, tokenizer, rows, COLUMNS)


def test_no_row_at_all(tokenizer):
    def nothing(tokenizer, rows, counts):
        yield from ()

    encoded = encode_for_now(nothing, tokenizer, [], COLUMNS)
    assert not encoded and list(encoded) == [] and encoded.lengths == []
    assert encoded.counts == Counter()


def test_the_columns_are_those_of_the_tokenizer(bert_tokenizer):
    assert input_columns(bert_tokenizer, LISTS) == dict.fromkeys(bert_tokenizer("a"), LISTS)


def test_the_code_of_an_encoder_is_also_what_it_imports(tmp_path, monkeypatch):
    package = tmp_path / "rlhf_double.py"
    inner = tmp_path / "inner.py"
    package.write_text("from rlhf.inner import x\n")
    inner.write_text("x = 1\n")
    modules = {"rlhf_double": package, "rlhf.inner": inner}
    for name, path in modules.items():
        monkeypatch.setitem(sys.modules, name, type("Module", (), {"__file__": str(path)}))

    def name():
        module_fingerprint.cache_clear()
        return module_fingerprint("rlhf_double")

    first = name()
    assert name() == first
    inner.write_text("x = 2\n")
    second = name()
    package.write_text("from rlhf.inner import x, y\n")
    assert len({first, second, name()}) == 3
    assert module_fingerprint("no such module") is None
    module_fingerprint.cache_clear()


def cutting(tokenizer, rows, counts):
    yield dict(tokenizer("a b", truncation=True, max_length=4))


def test_a_saved_tokenizer_is_the_same_with_and_without_the_cache(rows, bert_tokenizer, tmp_path):
    saved = set()
    for _ in range(2):
        encode_once(cutting, bert_tokenizer, rows, input_columns(bert_tokenizer))
        bert_tokenizer.save_pretrained(tmp_path)
        saved.add((tmp_path / "tokenizer.json").read_text())
    assert len(saved) == 1 and '"truncation": null' in saved.pop()


def test_a_slow_tokenizer_has_no_name(rows, tokenizer, monkeypatch):
    monkeypatch.setattr(fingerprints, "tokenizer_fingerprint", lambda tokenizer: None)
    for _ in range(2):
        assert isinstance(encode_once(encode, tokenizer, rows, COLUMNS), EncodedRows)
    assert len(calls) == 2
