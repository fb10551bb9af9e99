"""Rows encoded by several processes are those of one."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from rlhf.data import parallel
from rlhf.errors import UserError


def squares(tokenizer, rows, counts, *, highest):
    """Two entries of each row that is not too high."""
    for i, row in enumerate(rows):
        if row["number"] > highest:
            counts["too_high"] += 1
            continue
        if row["number"] < 0:
            raise UserError(f"{row['number']} is negative")
        for power in (1, 2):
            yield {"value": row["number"] ** power, "row": i, "process": os.getpid()}


def numbers(count):
    return [{"number": number} for number in range(count)]


@pytest.fixture(autouse=True)
def many_small_parts(monkeypatch):
    monkeypatch.setattr(parallel, "PART", 7)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(parallel.sys, "platform", "linux")


def test_entries_come_in_order_with_the_index_of_their_row():
    rows, counts, alone = numbers(40), Counter(), Counter()
    entries = list(parallel.encode_in_parts(squares, None, rows, counts, highest=35))
    expected = list(squares(None, rows, alone, highest=35))
    assert counts == alone == {"too_high": 4}
    for entry in expected:
        assert entry.pop("process") == os.getpid()
    for entry in entries:
        assert entry.pop("process") != os.getpid()
    assert entries == expected


@pytest.mark.parametrize("why", ["few rows", "one core", "no fork"])
def test_one_process_encodes_where_more_bring_nothing(monkeypatch, why):
    if why == "one core":
        monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0})
    if why == "no fork":
        monkeypatch.setattr(parallel.sys, "platform", "darwin")
    rows = numbers(7 if why == "few rows" else 30)
    entries = parallel.encode_in_parts(squares, None, rows, Counter(), highest=100)
    assert {entry["process"] for entry in entries} == {os.getpid()}


def test_the_first_error_is_that_of_the_first_row():
    rows = numbers(40)
    rows[20] = {"number": -20}
    rows[35] = {"number": -35}
    with pytest.raises(UserError, match="-20 is negative"):
        list(parallel.encode_in_parts(squares, None, rows, Counter(), highest=100))


def test_the_rest_is_encoded_here_where_a_child_is_killed():
    first = os.getpid()

    def encode(tokenizer, rows, counts):
        for i, row in enumerate(rows):
            if row["number"] == 20 and os.getpid() != first:
                os.kill(os.getpid(), signal.SIGKILL)
            counts["rows"] += 1
            yield {"value": row["number"], "row": i}

    counts = Counter()
    entries = list(parallel.encode_in_parts(encode, None, numbers(40), counts))
    assert entries == [{"value": number, "row": number} for number in range(40)]
    assert counts == {"rows": 40}


def test_no_more_parts_are_encoded_than_are_read_soon(tmp_path):
    def encode(tokenizer, rows, counts):
        (tmp_path / str(rows[0]["number"])).touch()
        yield from rows

    entries = parallel.encode_in_parts(encode, None, numbers(7 * 50), Counter())
    next(entries)
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) <= 2 * 2 + 1
    entries.close()


def test_one_process_encodes_where_none_can_be_started(monkeypatch):
    def refuse(*arguments):
        raise OSError("no /dev/shm")

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", refuse)
    rows = numbers(30)
    entries = parallel.encode_in_parts(squares, None, rows, Counter(), highest=100)
    assert [entry["row"] for entry in entries] == [i for i in range(30) for _ in range(2)]


SLEEPER = """
import os, signal, sys, time
from collections import Counter
from rlhf.data import parallel
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
parallel.PART = 1
parallel.os.sched_getaffinity = lambda pid: {0, 1}
def encode(tokenizer, rows, counts):
    os.write(1, b"up\\n")
    time.sleep(0.2)
    yield {}
list(parallel.encode_in_parts(encode, None, [{}] * 200, Counter()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_end_with_the_first(number):
    run = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert [run.stdout.readline() for _ in range(2)] == [b"up\n"] * 2
    started = time.monotonic()
    run.send_signal(number)
    # the pipe closes when the last of them is gone
    run.stdout.read()
    assert time.monotonic() - started < 10  # of 20 seconds
    run.wait()
