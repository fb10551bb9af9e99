"""Files are looked at in another process: progress, limits, and nothing that outlives the reader."""

import gzip
import json
import sys
import time

import pytest

from rlhf.errors import UserError
from rlhf.serving import data_look
from rlhf.serving.data_look import look


def report_of(path, **request) -> dict:
    return list(look({"file": str(path)} | request))[-1]["report"]


def test_a_file_is_reported_as_validate_does(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"prompt": "a b", "completions": ["x", "y", "z"], "ranks": [0, 1, 1]}
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"ranks": [0]}) + "\n{bad\n")
    report = report_of(path)
    assert (report["kind"], report["total"], report["good"], report["bad"]) == ("ranking", 3, 1, 2)
    assert report["problem_count"] == 2 and f"{path}:2" in report["problems"][0]
    assert (report["pairs"], report["tied"]) == (3, 1)
    assert report["recipes"] == ["reward", "dpo", "ilql", "ppo"]
    assert report["learned"].startswith("reward and dpo:")
    assert report["shown"][0][:2] == ["user: a b", "rank 0: [[x]]"]
    words = [
        row for row in report["lengths"] if row["column"] == "prompt" and row["unit"] == "words"
    ]
    assert words[0]["50"] == 2 and words[0]["100"] == 2


@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "rows.xyz"])
def test_what_cannot_be_read_says_why(name, tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "rows.xyz").write_text("x")
    with pytest.raises(UserError, match=name.partition(".")[0]):
        report_of(tmp_path / name)


def fake(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import json, sys, time\n{code}")


def test_progress_is_told_and_a_long_look_ends():
    code = "for n in range(1, 1000):\n    print(json.dumps({'rows': n}), flush=True)\n    time.sleep(0.05)"
    answers = []
    with pytest.raises(UserError, match=r"stopped after 1 s and \d+ good rows"):
        for answer in look({"file": "x"}, limit=1, command=fake(code)):
            answers.append(answer["rows"])
    assert len(answers) > 3 and answers == sorted(answers)


def test_a_reader_that_dies_is_told():
    with pytest.raises(UserError, match="without a report"):
        list(look({"file": "x"}, command=fake("sys.exit(3)")))


def test_the_process_ends_with_its_reader(tmp_path):
    alive = tmp_path / "alive"
    code = f"while True:\n    open({str(alive)!r}, 'w').write(str(time.time()))\n    print('{{\"rows\": 1}}', flush=True)"
    reader = look({"file": "x"}, command=fake(code))
    next(reader)
    reader.close()
    time.sleep(0.1)
    before = alive.read_text()
    time.sleep(0.2)
    assert alive.read_text() == before


def test_two_files_at_once_and_the_third_is_refused():
    readers = [look({"file": "x"}, command=fake("time.sleep(60)")) for _ in range(2)]
    for reader in readers:
        next(reader)
    with pytest.raises(UserError, match="2 files are being read"):
        next(look({"file": "x"}, command=fake("")))
    for reader in readers:
        reader.close()
    assert data_look._free.acquire(blocking=False)
    data_look._free.release()


@pytest.mark.slow
def test_a_file_of_a_gigabyte_keeps_the_memory_of_the_server_flat(tmp_path):
    import psutil

    path = tmp_path / "big.jsonl.gz"
    row = json.dumps({"text": "word " * 2000}) + "\n"
    with gzip.open(path, "wt", compresslevel=1) as file:
        for _ in range(100_000):
            file.write(row)
    before = psutil.Process().memory_info().rss
    rows = []
    with pytest.raises(UserError, match="stopped after 5 s"):
        for answer in look({"file": str(path)}, limit=5):
            rows.append(answer["rows"])
    assert rows[-1] > 0
    assert psutil.Process().memory_info().rss - before < 50e6


def test_what_a_library_prints_is_no_answer():
    code = "print('downloading'); print('[1]'); print(json.dumps({'report': {'good': 3}}))"
    answers = list(look({"file": "rows.jsonl"}, command=fake(code)))
    assert answers[-1] == {"report": {"good": 3}}
