"""Stored rows are read like the list that they were, and split as it is."""

import datetime
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from rlhf.data import load
from rlhf.data.load import load_rows
from rlhf.data.splits import check_disjoint, drop_shared, split_rows
from rlhf.data.stored_rows import StoredRows, encode_with_digest, row_digest
from rlhf.errors import UserError

# Values of an extra column that are not to be mixed up.
VALUES = [1, 1.0, True, None, "1", [], {}, 2**70, 1e-310, -0.0, "\ud800", {"b": 1, "a": [None]}]


@pytest.fixture(params=[0, 1 << 24], ids=["mapped", "in memory"])
def load_file(request, tmp_path, monkeypatch):
    """Writes rows and loads them: (first time, from the cache)."""
    monkeypatch.setattr(load, "SMALL", request.param)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))

    def load_file(rows, kind="prompt"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = [load_rows(str(path), kinds=(kind,)).rows for _ in range(2)]
        is_mapped = [rows.decoded is None for rows in loaded]
        assert is_mapped == [request.param == 0] * 2
        return loaded

    return load_file


def test_rows_keep_their_columns_and_types(load_file):
    rows = [{"prompt": "a"}]  # without the column
    rows += [{"prompt": "b", "extra": value} for value in VALUES]
    for loaded in load_file(rows):
        assert list(map(repr, loaded)) == list(map(repr, rows))
        assert "extra" not in loaded[0] and loaded[4]["extra"] is None


def test_rows_are_a_sequence(load_file):
    rows = [{"prompt": str(i)} for i in range(2345)]  # of three batches
    for loaded in load_file(rows):
        assert len(loaded) == 2345 and bool(loaded)
        assert loaded[0] == rows[0] and loaded[1000] == rows[1000] and loaded[-1] == rows[-1]
        assert loaded[998:1002] == rows[998:1002] and loaded[::500] == rows[::500]
        assert loaded[np.int64(7)] == rows[7]
        assert list(loaded) == rows and loaded == rows and rows == loaded
        assert loaded != rows[1:] and loaded != rows[::-1]
        assert [i for i, row in enumerate(loaded) if row == rows[9]] == [9]
        assert rows[3] in loaded and loaded.index(rows[3]) == 3
        assert loaded[:1] + loaded == rows[:1] + rows and loaded * 2 == rows * 2
        for index in (2345, -2346):
            with pytest.raises(IndexError):
                loaded[index]


def test_stored_rows_are_split_as_a_list_is(load_file):
    rows = [{"prompt": str(i % 300), "answer": i} for i in range(1500)]
    for loaded in load_file(rows):
        train, test = split_rows(loaded, 0.2, 1, "prompt")
        assert isinstance(train, StoredRows)
        assert (train, test) == split_rows(rows, 0.2, 1, "prompt")
        assert sorted([row["answer"] for row in train + test]) == list(range(1500))
        check_disjoint(train, test)
        names = {loaded.fingerprint, train.fingerprint, test.fingerprint}
        assert len(names) == 3
        # a part of a part
        again, _ = split_rows(test, 0.5, 2, "prompt")
        assert again == split_rows(list(test), 0.5, 2, "prompt")[0]


def test_shared_prompts_are_dropped_from_stored_rows(load_file):
    rows = [{"prompt": str(i % 30)} for i in range(90)]
    test = [{"prompt": "7"}, {"prompt": " 3 "}, {"prompt": "99"}, {"prompt": "7"}]
    for loaded in load_file(rows):
        kept, shared = drop_shared(loaded, test)
        assert kept == [row for row in rows if row["prompt"] not in ("3", "7")]
        assert [json.loads(key)[0][1] for key in shared] == ["7", "3"]
        with pytest.raises(UserError, match="2 prompts are in both"):
            check_disjoint(loaded, test)


def test_a_split_is_a_pure_function_of_prompt_and_seed():
    """The sides are those of sha256 of seed and prompt, worked out here in another way."""
    from hashlib import sha256

    rows = [{"prompt": f"p{i}"} for i in range(200)]
    expected = []
    for row in rows:
        key = json.dumps([["user", row["prompt"]]], ensure_ascii=False)
        share = int(sha256(f"5 {key}".encode()).hexdigest()[:16], 16) / 2**64
        if share < 0.3:
            expected.append(row)
    assert split_rows(rows, 0.3, 5)[1] == expected


SCRIPT = """
import sys
from rlhf.data.load import load_rows
from rlhf.data.splits import split_rows

def anonymous():  # MiB that no file backs
    lines = open("/proc/self/status").read().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("RssAnon")][0] / 1024

import numpy, pyarrow.ipc
from rlhf.data import load
load.SMALL = 0
before = anonymous()
loaded = load_rows(sys.argv[1], kinds=("text",))
train, test = split_rows(loaded.rows, 0.1, 0, loaded.kind)
words = sum(len(row["text"]) for row in train)
print(len(train), len(test), anonymous() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        for i in range(200_000):
            file.write(f'{{"text": "the text of row {i}"}}\n')
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True
    )
    train, test, grown = result.stdout.split()
    assert int(train) + int(test) == 200_000
    assert float(grown) < 30  # dictionaries of all rows are more than 50 MiB


@pytest.mark.parametrize("value", [*VALUES, "a{", ["{"], [{"z": 1, "y": ["é"]}]])
def test_the_json_and_the_digest_of_a_row_are_those_of_json_itself(value):
    row = {"text": "é\u2028", "extra": value, "a": 0.5}
    data, digest = encode_with_digest(row)
    expected = json.dumps(row, ensure_ascii=False)
    assert data == expected.encode("utf-8", errors="surrogatepass")
    by_name = json.dumps(row, ensure_ascii=False, sort_keys=True)
    by_name = by_name.encode("utf-8", errors="surrogatepass")
    assert digest == hashlib.sha256(by_name).hexdigest()


def test_a_row_with_a_date_has_a_digest_and_not_a_json():
    row = {"text": "a", "day": datetime.date(2026, 1, 2)}
    assert encode_with_digest(row) == (None, row_digest({"text": "a", "day": "2026-01-02"}))
