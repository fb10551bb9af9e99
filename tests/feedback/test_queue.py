"""The queue of prompts: who gets which, overlap, skips, several processes, and files of prompts."""

import json
import os
import shutil

import pytest

from rlhf.data.load import load_rows
from rlhf.errors import UserError
from rlhf.feedback import queue as module
from rlhf.feedback import store as store_module
from rlhf.feedback.queue import Overlap, Queue, item_id, read_prompts

ANN, BOB, EVE = "a" * 16, "b" * 16, "e" * 16


@pytest.fixture
def queue(store):
    return Queue(store)


def kept(text):
    drafts = [{"model": "sft", "seed": seed, "text": f"{text} {seed}"} for seed in (1, 2)]
    return {"drafts": drafts, "settings": {}}


def fill(queue, make, count=4):
    assert queue.add([make.prompt(f"prompt {i}") for i in range(count)]) == count


def rank(store, make, queue, item, annotator):
    store.append(
        make.ranking([0, 1], item.messages[0]["content"], annotator=annotator, item=item.id)
    )
    queue.release(item.id, annotator)


def test_each_prompt_goes_to_one_person_without_overlap(queue, make, store):
    queue.set_overlap(Overlap(0.0))
    fill(queue, make)
    seen = []
    for annotator in (ANN, BOB, ANN, BOB):
        item = queue.next(annotator)
        seen.append(item.messages[0]["content"])
        rank(store, make, queue, item, annotator)
    assert sorted(seen) == [f"prompt {i}" for i in range(4)]
    assert queue.next(ANN) is None and queue.next(EVE) is None
    progress = queue.progress(ANN)
    assert (progress.prompts, progress.done, progress.mine) == (4, 4, 2)


def test_a_prompt_on_a_screen_is_not_given_to_somebody_else_until_the_lease_ends(
    queue, make, monkeypatch
):
    queue.set_overlap(Overlap(0.0))
    fill(queue, make, 1)
    item = queue.next(ANN)
    assert queue.next(BOB) is None
    assert queue.next(ANN) == item  # after a reload of the page
    later = module.time.monotonic() + module.LEASE_SECONDS + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    assert queue.next(BOB) == item


def test_with_overlap_two_people_rank_a_prompt_and_a_third_does_not(queue, make, store):
    queue.set_overlap(Overlap(1.0, 2))
    fill(queue, make, 1)
    for annotator in (ANN, BOB):
        rank(store, make, queue, queue.next(annotator), annotator)
        assert queue.next(annotator) is None
    assert queue.next(EVE) is None and queue.progress(EVE).done == 1


def test_prompts_that_need_a_second_person_come_first(queue, make, store):
    queue.set_overlap(Overlap(1.0, 2))
    fill(queue, make, 5)
    queue.next(ANN)
    last = queue.item(item_id(make.prompt("prompt 4")))
    rank(store, make, queue, last, EVE)
    assert queue.next(BOB) == last


def test_about_the_share_of_prompts_overlaps(queue, make):
    queue.set_overlap(Overlap(0.3, 3))
    needs = [queue.needs(item_id(make.prompt(str(i)))) for i in range(500)]
    assert set(needs) == {1, 3} and 110 < needs.count(3) < 190
    with pytest.raises(UserError, match="overlap=2"):
        Overlap(2)
    with pytest.raises(UserError, match="people=1"):
        Overlap(0.1, 1)


def test_a_skipped_prompt_is_for_others(queue, make, store):
    fill(queue, make, 1)
    item = queue.next(ANN)
    queue.skip(item.id, ANN)
    assert queue.next(ANN) is None and queue.next(BOB) == item
    assert Queue(store).next(ANN) is None and Queue(store).progress(ANN).skipped == 1


def test_everything_is_there_after_a_restart_and_in_another_process(queue, make, store):
    fill(queue, make, 3)
    other = Queue(store)
    first = queue.next(ANN)
    rank(store, make, queue, first, ANN)
    second = queue.next(ANN)
    queue.keep_answers(second.id, kept("one"))
    assert other.progress(ANN).mine == 1
    assert other.answers(second.id) == kept("one")
    assert other.keep_answers(second.id, kept("two")) == kept("one")
    assert other.add([make.prompt("prompt 0"), make.prompt("new")]) == 1
    assert queue.progress(ANN).prompts == 4


def test_the_queue_is_no_part_of_the_data(queue, make, store):
    fill(queue, make)
    queue.set_overlap(Overlap(0.5))
    store.annotator("Ann")
    store.append(make.ranking([0, 1]))
    loaded = load_rows(str(store.folder), kinds=("ranking",))
    assert len(loaded.rows) == 1 and not any("not read" in text for text in loaded.warnings)


def test_a_damaged_line_is_passed_over(queue, make, store):
    fill(queue, make, 2)
    with open(queue.folder / "prompts.jsonl", "a") as file:
        file.write('{"item": 3}\n{"item"')
    fresh = Queue(store)
    assert fresh.progress(ANN).prompts == 2 and "prompts.jsonl:3" in fresh.problems[0]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("prompts.jsonl", {"item": 5, "messages": [{"role": "user", "content": "x"}]}),
        ("prompts.jsonl", {"item": "x", "messages": "x"}),
        ("prompts.jsonl", {"item": "x", "messages": [{"role": "user"}]}),
        ("prompts.jsonl", ["x"]),
        ("skipped.jsonl", {"item": [], "annotator": ANN}),
        ("answers.jsonl", {"item": "ITEM", "content": {"answers": []}}),
        ("answers.jsonl", {"item": "ITEM", "content": kept("x") | {"drafts": [{"text": 1}] * 2}}),
    ],
)
def test_a_line_that_somebody_edited_does_not_stop_the_queue(name, row, queue, make):
    fill(queue, make, 1)
    item = queue.next(ANN)
    with open(queue.folder / name, "a") as file:
        file.write(json.dumps(row).replace("ITEM", item.id) + "\n")
    fresh = Queue(queue.store)
    assert fresh.next(ANN) == item and fresh.answers(item.id) is None
    if row != {"item": "x", "messages": "x"}:  # a text is a prompt too
        assert name in fresh.problems[0]


def test_a_folder_that_was_emptied_is_an_empty_queue_and_can_be_filled_again(queue, make, store):
    fill(queue, make, 3)
    rank(store, make, queue, queue.next(ANN), ANN)
    shutil.rmtree(store.folder)
    assert queue.progress(ANN).prompts == 0 and queue.next(ANN) is None
    fill(queue, make, 5)
    assert queue.progress(ANN).prompts == Queue(store).progress(ANN).prompts == 5
    assert queue.progress(ANN).mine == 0


def test_overlap_that_is_raised_later_shows_the_answers_that_were_ranked(queue, make, store):
    queue.set_overlap(Overlap(0.0))
    fill(queue, make, 1)
    item = queue.next(ANN)
    rank(store, make, queue, item, ANN)
    assert queue.next(BOB) is None
    queue.set_overlap(Overlap(1.0))
    assert queue.next(BOB) == item
    content = queue.answers(item.id)
    assert [draft["text"] for draft in content["drafts"]] == ["answer 0", "answer 1"]
    assert queue.keep_answers(item.id, kept("other")) == content


def test_a_full_queue_still_takes_a_file_that_it_has(queue, make, monkeypatch):
    monkeypatch.setattr(module, "MAX_PROMPTS", 2)
    fill(queue, make, 2)
    again = [make.prompt("prompt 0"), make.prompt("prompt 1")]
    assert queue.add(again) == 0
    syncs = []
    monkeypatch.setattr(module, "MAX_PROMPTS", 100)
    monkeypatch.setattr(store_module.os, "fsync", syncs.append)
    assert queue.add([make.prompt(f"{i % 50}") for i in range(90)]) == 50
    assert len(syncs) == 1  # not one for each prompt
    assert Queue(queue.store).progress(ANN).prompts == 52


def test_an_unknown_item_is_refused(queue, make):
    for name in ("nothing", "../../etc/passwd"):
        with pytest.raises(UserError, match="no prompt"):
            queue.skip(name, ANN)
    assert not os.path.exists(queue.folder)


def test_the_queue_has_an_end(queue, make, monkeypatch):
    monkeypatch.setattr(module, "MAX_PROMPTS", 2)
    with pytest.raises(UserError, match="the queue holds 2"):
        fill(queue, make, 3)


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", b"\xef\xbb\xbfHi!\r\n\r\nBye\n", ["Hi!", "Bye"]),
        ("a.jsonl", b'{"prompt": "Hi!", "voice": 1}\n', ["Hi!"]),
        ("A.JSONL", b'{"messages": [{"role": "user", "content": "\xec\x95\x88"}]}', ["안"]),
    ],
)
def test_files_of_prompts(name, data, texts):
    assert [messages[-1]["content"] for messages in read_prompts(data, name)] == texts


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"x", "give a .txt file"),
        ("a.txt", b" \n", "no prompts"),
        ("a.txt", b"ok\n\xff", "byte 3 is not UTF-8"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "a.jsonl:2: prompt: missing"),
        ("a.jsonl", b'{"prompt": 3}', "a.jsonl:1: prompt: "),
        ("a.jsonl", b"{", "a.jsonl:1: not a whole event"),
        ("a.jsonl", b"[1]", "a.jsonl:1: an object"),
        ("a.jsonl", b'{"prompt": [{"role": "system", "content": "x"}]}', "must be the user's"),
        ("a.txt", b"x" * 40_000, "a.txt:1: prompt: 40000 characters"),
    ],
)
def test_bad_files_of_prompts_are_named_by_line(name, data, message):
    with pytest.raises(UserError) as error:
        read_prompts(data, name)
    assert message in str(error.value)


def test_a_large_file_of_prompts_is_refused():
    with pytest.raises(UserError, match="at most 1048576"):
        read_prompts(b"x" * (module.MAX_FILE + 1), "a.txt")


def test_what_is_open_for_somebody_is_known_until_they_skip_it(queue, make, store):
    fill(queue, make, 2)
    assert queue.open_for(ANN) is None
    item = queue.next(ANN)
    assert queue.open_for(ANN) == item.id and queue.open_for(BOB) is None
    queue.skip(item.id, ANN)
    assert queue.open_for(ANN) is None and queue.next(ANN) != item
