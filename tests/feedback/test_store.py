"""The feedback store: whole events under kills, torn lines, full disks; strict reading with line and field."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.feedback import store as module
from rlhf.feedback.events import ModelUsed, from_row, to_row
from rlhf.feedback.store import Cursor, Store

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from rlhf.feedback.events import ModelUsed, Rating
from rlhf.feedback.store import Store
store, name, number = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
messages = [{"role": "user", "content": "한글 " * 2000}]
print("ready", flush=True)
i = 0
while number < 0 or i < number:
    store.append(Rating(messages, f"{name} {i}", ModelUsed("m", "p"), {}, i, "up"))
    i += 1
"""


def test_events_come_back_as_they_were(store, make):
    events = [
        make.rating(reason="=1+1, \u2028 새 줄\n"),
        make.comparison("left", annotator="0" * 16),
        make.comparison(2, models=(make.old, make.new, None), shown=[2, 0, 1]),
        make.ranking([0, 1, 1], item="abc"),
    ]
    for event in events:
        store.append(event)
    assert list(store.events()) == events and store.problems == []
    assert list(Store(store.folder).events()) == events
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_an_empty_store_has_no_events_and_no_files(store):
    assert list(store.events()) == [] and not store.folder.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema: 3 given, this version reads 1 and 2"),
        ({"consent": 1}, "consent: a bool is expected"),
        ({"schema": True}, "schema: True given"),
        ({"event": "like"}, "event: one of rating, comparison, ranking"),
        ({"ranks": [0]}, "ranks: 2 whole numbers"),
        ({"ranks": [0, -1]}, "ranks: 2 whole numbers"),
        ({"ranks": [True, 0]}, "ranks: 2 whole numbers"),
        ({"shown": [0, 0]}, "shown: an order of 2 answers"),
        ({"annotator": "Ann"}, "annotator: a hash of 16"),
        ({"time": "2026-01-01T00:00:00"}, "time: an ISO time with its zone"),
        ({"source": "web"}, "source: one of app, api, import"),
        ({"messages": []}, "messages: a list of messages"),
        ({"answers": [{"text": "a"}, {}]}, "answers: answer 0: model: missing"),
        ({"answers": 3}, "answers: a list is expected"),
        ({"more": 1}, "more: unknown"),
        ({"item": None}, "item: a str is expected"),
        ({"id": "../x"}, "id: 32 hexadecimal digits"),
    ],
)
def test_a_bad_event_is_named_with_its_line_and_field(store, make, change, message):
    store.append(make.ranking([0, 1]))
    row = to_row(make.ranking([0, 1])) | change
    with open(store.path, "a") as file:
        file.write(json.dumps(row) + "\n")
    store.append(make.ranking([1, 0]))
    assert [event.ranks for event in store.events()] == [[0, 1], [1, 0]]
    [problem] = store.problems
    assert problem.startswith(f"{store.path}:2: {message}"), problem


def test_events_of_schema_1_are_read_and_have_no_consent(store, make):
    event = make.ranking([0, 1], consent=True)
    old = {name: value for name, value in to_row(event).items() if name != "consent"}
    assert from_row(old | {"schema": 1}) == replace(event, consent=False)
    assert from_row(to_row(event)) == event
    with pytest.raises(UserError, match="consent: unknown in schema 1"):
        from_row(to_row(event) | {"schema": 1})
    with pytest.raises(UserError, match="consent: missing"):
        from_row(old)


def test_a_bad_event_is_not_written(store, make):
    with pytest.raises(UserError, match="value: one of up, down"):
        store.append(make.rating(value="left"))
    with pytest.raises(UserError, match="verdict: one of 'left', 'right', 'tie', 'both bad'"):
        store.append(make.comparison(1))
    with pytest.raises(UserError, match="completion: empty"):
        store.append(replace(make.rating(), completion=" "))
    assert not store.path.exists()


def test_a_torn_last_line_is_reported_and_the_next_event_is_on_its_own_line(store, make):
    first, second = make.rating(), make.rating("second")
    store.append(first)
    with open(store.path, "ab") as file:
        file.write(json.dumps(to_row(second)).encode()[:-40])
    assert list(store.events()) == [first]
    assert store.problems[0].startswith(f"{store.path}:2: not a whole event")
    store.append(second)
    assert list(store.events()) == [first, second] and len(store.problems) == 1
    assert store.path.read_bytes().count(b"\n") == 3


def test_a_line_that_lacks_only_its_end_is_an_event(store, make):
    store.append(make.rating())
    store.path.write_bytes(store.path.read_bytes()[:-1])
    assert len(list(store.events())) == 1 and store.problems == []
    store.append(make.rating())
    assert len(list(store.events())) == 2 and store.problems == []


def test_a_full_disk_leaves_the_file_as_it_was(store, make, monkeypatch):
    store.append(make.rating())
    before = store.path.read_bytes()
    whole = os.write
    monkeypatch.setattr(module.os, "write", lambda file, data: whole(file, data[:50]))
    with pytest.raises(UserError, match="was not saved"):
        store.append(make.rating())
    monkeypatch.undo()
    assert store.path.read_bytes() == before


def test_reading_goes_on_after_a_cursor(store, make):
    store.append(make.rating("a"))
    events, cursor = store.read_from(Cursor(), [])
    assert [event.messages[0]["content"] for event in events] == ["a"]
    assert store.read_from(cursor, []) == ([], cursor)
    store.append(make.rating("b"))
    with open(store.path, "a") as file:
        file.write("{}\n")
    problems = []
    events, cursor = store.read_from(cursor, problems)
    assert [event.messages[0]["content"] for event in events] == ["b"]
    assert problems[0].startswith(f"{store.path}:3: schema") and cursor.line == 3


def test_all_events_are_read_on_from_where_they_ended(store, make):
    other = Store(store.folder)
    assert store.all() == []
    first = other.append(make.rating("a"))
    assert store.all() == [first]
    whole = store.path.read_bytes()
    second = other.append(make.rating("b"))
    line = store.path.read_bytes()[len(whole) :]
    store.path.write_bytes(
        whole + line[:-1]
    )  # whole but for its end: read once, when it is completed
    assert store.all() == [first] and list(store.events()) == [first, second]
    third = other.append(make.rating("c"))
    assert store.all() == [first, second, third] == store.all()
    store.path.write_bytes(whole)
    assert store.all() == [first]


def test_eight_writers_of_which_one_is_killed_leave_only_whole_lines(store):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(name: str, number: int):
        command = [sys.executable, "-c", WRITER, str(store.folder), name, str(number)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    # The eighth writes until it is killed, so the kill comes while it writes.
    writers = [start(f"w{i}", 25) for i in range(7)]
    victim = start("victim", -1)
    assert victim.stdout.readline() == b"ready\n"
    for writer in writers[:3]:
        writer.wait()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert [writer.wait() for writer in writers] == [0] * 7
    written = [event.completion for event in store.events()]
    assert store.problems == [] and store.path.read_bytes().endswith(b"\n")
    for i in range(7):
        own = [text for text in written if text.startswith(f"w{i} ")]
        assert own == [f"w{i} {n}" for n in range(25)]
    last = [text for text in written if text.startswith("victim")]
    assert last == [f"victim {n}" for n in range(len(last))] and last


def test_threads_append_whole_lines(store, make):
    threads = [
        threading.Thread(target=lambda: [store.append(make.rating()) for _ in range(20)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.events())) == 80 and store.problems == []


def test_a_name_is_stored_as_a_salted_hash(store, tmp_path):
    ann = store.annotator("Ann")
    assert len(ann) == 16 and ann == store.annotator("  ann ") != store.annotator("Bob")
    assert store.annotator("") == ""
    assert Store(store.folder).annotator("Ann") == ann
    assert Store(tmp_path / "other").annotator("Ann") != ann
    assert stat.S_IMODE((store.folder / ".salt").stat().st_mode) == 0o600
    assert [path.name for path in store.folder.iterdir()] == [".salt"]


def test_a_row_that_is_no_object_is_no_event():
    for row in (None, [], "x", 3):
        with pytest.raises(UserError, match="event: an object"):
            from_row(row)


def test_a_mark_that_an_editor_puts_first_hides_no_event(store, make):
    first = store.append(make.rating("a"))
    store.path.write_bytes(b"\xef\xbb\xbf" + store.path.read_bytes().replace(b"\n", b"\r\n"))
    second = store.append(make.rating("b"))
    assert list(store.events()) == [first, second] == store.all() and store.problems == []


def test_an_event_that_is_there_twice_counts_once(store, make):
    first = store.append(make.rating("a"))
    store.path.write_bytes(store.path.read_bytes() * 2)
    assert list(store.events()) == [first] == store.all()
    assert store.problems[0].startswith(f"{store.path}:2: id: {first.id}")
    other = Store(store.folder)
    assert other.all() == [first]
    store.path.write_bytes(store.path.read_bytes() * 2)
    assert other.all() == [first]


@pytest.mark.parametrize("size", ["shorter", "longer"])
def test_a_file_that_was_replaced_is_read_from_its_beginning(size, store, make):
    for text in ("a", "b", "c"):
        store.append(make.rating(text))
    assert len(store.all()) == 3
    store.path.unlink()
    assert store.all() == []
    for text in ("a", "b", "c"):
        store.append(make.rating(text))
    assert len(store.all()) == 3
    other = Store(store.folder.with_name("other"))
    texts = ["x"] if size == "shorter" else ["x" * 500, "y", "z", "w"]
    events = [other.append(make.rating(text)) for text in texts]
    store.path.write_bytes(other.path.read_bytes())
    assert store.all() == events


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reason": "\ud800"}, "reason: half a surrogate pair"),
        ({"settings": {"top_p": float("nan")}}, "settings: not JSON"),
        ({"settings": {"stop": {1, 2}}}, "settings: not JSON"),
        ({"model": ModelUsed("\udc80", "runs/sft")}, "model: name: half a surrogate pair"),
        ({"seed": 10**5000}, "seed: a whole number"),
    ],
)
def test_what_no_file_can_hold_is_refused_and_not_a_crash(change, message, store, make):
    with pytest.raises(UserError, match=message):
        store.append(replace(make.rating(), **change))
    assert not store.path.exists()


def test_a_disk_that_is_full_at_the_sync_leaves_the_file_as_it_was(store, make, monkeypatch):
    store.append(make.rating())
    before = store.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="was not saved"):
        store.append(make.rating())
    assert store.path.read_bytes() == before
    with pytest.raises(UserError, match="names cannot be hashed"):
        store.annotator("Ann")
    assert [path.name for path in store.folder.iterdir()] == ["events.jsonl"]


def test_a_salt_that_is_lost_is_told_and_an_empty_one_is_refused(store, make, caplog):
    ann = store.annotator("Ann")
    store.append(make.rating(annotator=ann))
    assert "salt" not in caplog.text
    (store.folder / ".salt").unlink()
    assert store.annotator("Ann") != ann and ".salt is gone" in caplog.text
    (store.folder / ".salt").write_text("")
    with pytest.raises(UserError, match="restore it"):
        store.annotator("Ann")


def test_a_name_typed_on_another_keyboard_is_the_same_person(store):
    assert store.annotator("Zo\u00eb") == store.annotator("ZOE\u0308")
    assert store.annotator("\ud800") != ""  # half a character is no crash


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(store):
    store.path.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read"):
        store.all()


@pytest.mark.parametrize("block", [1, 700, 10**9])
def test_blocks_of_any_size_give_the_same_events_and_problems(store, make, monkeypatch, block):
    events = [store.append(make.ranking([0, 1], f"prompt {i}")) for i in range(5)]
    with open(store.path, "a") as file:
        file.write('{"event": "rating"\n\n' + json.dumps(to_row(make.rating()))[:-9])
    monkeypatch.setattr(module, "BLOCK", block)
    assert list(store.events()) == events
    assert [problem.split(":")[1] for problem in store.problems] == ["6", "8"]


def test_a_store_that_is_replaced_while_it_is_read_is_an_error(store, make, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    for i in range(3):
        store.append(make.ranking([0, 1], f"prompt {i}"))
    reading = store.events()
    next(reading)
    store.path.write_text("")
    with pytest.raises(UserError, match="was replaced while it was read: try again"):
        list(reading)
