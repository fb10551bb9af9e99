"""Runs as the app reads them: growing, torn, hostile and missing files."""

import json
import os
import socket
from pathlib import Path

import pytest

from rlhf.serving import run_files
from rlhf.serving.run_files import (
    CUT_OFF,
    Rows,
    RowsOfRuns,
    alarms,
    card,
    details,
    list_runs,
    pictures,
    samples,
    tail_rows,
)


def make_run(root: Path, name: str, **facts) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    record = {"recipe": "sft", "status": "done", "started": "2026-01-01T00:00:00Z", "config": {}}
    (folder / "run.json").write_text(json.dumps(record | facts))
    return folder


def add_rows(folder: Path, steps, name: str = "metrics.jsonl") -> None:
    with open(folder / name, "a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 1 / step, "eval_loss": 2 / step}) + "\n")


def test_runs_are_listed_newest_first_without_checkpoints_links_and_hidden_folders(tmp_path):
    make_run(tmp_path, "old")
    make_run(
        tmp_path,
        "demo/new",
        started="2026-02-01T00:00:00Z",
        recipe="ppo",
        config={"algorithm": "grpo"},
    )
    make_run(tmp_path, "demo/new/checkpoint-4")
    make_run(tmp_path, ".jobs/hidden")
    make_run(tmp_path.parent / "elsewhere", tmp_path.name)
    (tmp_path / "link").symlink_to(tmp_path.parent / "elsewhere")
    runs = list_runs(tmp_path)
    assert [(run.name, run.recipe) for run in runs] == [("demo/new", "grpo"), ("old", "sft")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"metrics": 3, "config": [], "parents": 1, "seconds": "x", "started": 5}',
        "\0\0",
    ],
)
def test_a_record_that_is_none_is_a_run_without_facts(text, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text(text)
    runs = list_runs(tmp_path)
    assert [(run.name, run.recipe) for run in runs] == [("odd", "?")]
    assert details(tmp_path, tmp_path / "odd")["metrics"] == {}


def test_the_key_numbers_are_finite_and_the_telling_ones_first(tmp_path):
    metrics = {
        "train_rows": 7,
        "parameters": 9,
        "loss": float("nan"),
        "kl": 0.5,
        "score": 1.5,
        "done": True,
        "note": "x",
    }
    make_run(tmp_path, "run", metrics=metrics)
    assert list_runs(tmp_path)[0].numbers == {"score": 1.5, "kl": 0.5, "parameters": 9}


def test_a_run_whose_process_is_gone_is_cut_off(tmp_path):
    folder = make_run(tmp_path, "run", status="running")
    assert list_runs(tmp_path)[0].status == CUT_OFF
    lock = folder / ".lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert list_runs(tmp_path)[0].status == "running"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 7}))
    assert list_runs(tmp_path)[0].status == CUT_OFF
    lock.write_text(json.dumps({"host": "another machine", "pid": 1}))
    assert list_runs(tmp_path)[0].status == "running"


def test_advice_says_how_to_continue(tmp_path):
    make_run(tmp_path, "done")
    failed = make_run(tmp_path, "failed", status="failed", command="rlhf sft --seed 1")
    (failed / "checkpoint-8").mkdir()
    trained = make_run(tmp_path, "trained", status="trained")
    assert details(tmp_path, tmp_path / "done")["continue"] == ""
    assert "checkpoint-8" in details(tmp_path, failed)["continue"]
    assert details(tmp_path, trained)["continue"] == f"rlhf finish {trained}"


def test_only_what_is_new_is_read(tmp_path):
    folder = make_run(tmp_path, "run")
    add_rows(folder, range(1, 101))
    rows = Rows(folder / "metrics.jsonl")
    assert len(rows.look()) == 100
    size = rows.bytes_read
    add_rows(folder, [101])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 102, "lo')  # the run is writing
    assert len(rows.look()) == 101 and rows.bytes_read > size
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('ss": 1}\n')
    assert rows.look()[-1] == {"step": 102, "loss": 1}


def test_a_file_that_a_resumed_run_cut_back_is_read_again(tmp_path):
    folder = make_run(tmp_path, "run")
    add_rows(folder, range(1, 11))
    rows = Rows(folder / "metrics.jsonl")
    assert len(rows.look()) == 10
    temporary = folder / "new"
    temporary.write_text('{"step": 1, "loss": 5}\n')
    temporary.replace(folder / "metrics.jsonl")
    assert rows.look() == [{"step": 1, "loss": 5}]
    (folder / "metrics.jsonl").unlink()
    assert rows.look() == []


def test_many_rows_are_thinned_and_the_last_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "MOST_ROWS", 100)
    folder = make_run(tmp_path, "run")
    add_rows(folder, range(1, 1001))
    rows = Rows(folder / "metrics.jsonl").look()
    assert len(rows) <= 1000 and rows[-1]["step"] == 1000 and rows[0]["step"] == 1
    add_rows(folder, range(1001, 1003))


def test_curves_hold_finite_numbers_of_both_kinds(tmp_path):
    folder = make_run(tmp_path, "run")
    add_rows(folder, [1, 2, 4])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": 5, "loss": NaN}\n{"step": "x", "loss": 1}\n{"loss": 1}\n{"step": 6, "note": "text"}\n[1]\n'
        )
    curves = RowsOfRuns().curves(folder)
    assert curves == {
        "loss": {
            "training": [(1, 1), (2, 0.5), (4, 0.25)],
            "evaluation": [(1, 2), (2, 1), (4, 0.5)],
        }
    }


def test_the_end_of_a_large_file_is_read_alone(tmp_path):
    path = tmp_path / "samples.jsonl"
    with open(path, "w") as file:
        for i in range(20_000):
            file.write(json.dumps({"step": i // 10, "prompt": "x" * 50}) + "\n")
    rows = tail_rows(path, most=5, size=2000)
    assert [row["step"] for row in rows] == [1999] * 5
    assert {row["step"] for row in samples(tmp_path)} == {1999}
    assert samples(tmp_path / "nowhere") == [] == alarms(tmp_path / "nowhere")


def test_a_card_is_shown_without_its_metadata(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Name\n")
    assert card(tmp_path) == "# Name"
    (tmp_path / "README.md").write_text("---\nno end")
    assert card(tmp_path) == "---\nno end"
    assert card(tmp_path / "nowhere") == ""


def test_pictures_are_plots_of_this_run_and_no_links(tmp_path):
    plots = tmp_path / "plots"
    plots.mkdir()
    for name in ("ranking.png", "curves.png", "notes.txt"):
        (plots / name).write_bytes(b"\x89PNG")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x89PNG secret")
    (plots / "link.png").symlink_to(secret)
    assert [path.name for path in pictures(tmp_path)] == ["ranking.png"]


def test_numbers_of_any_length_and_files_of_any_kind_break_no_page(tmp_path):
    huge = 10**400
    folder = make_run(tmp_path, "odd", steps=huge, seconds=huge, metrics={"loss": huge, "f1": 1})
    assert [run.numbers for run in list_runs(tmp_path)] == [{"f1": 1}]
    rows = [{"step": huge, "loss": 1}, {"step": 1, "loss": huge}, {"step": True, "loss": 1}]
    add_rows(folder, [1, 2, 3])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    assert [step for step, _ in RowsOfRuns().curves(folder)["loss"]["training"]] == [1, 2, 3]
    other = make_run(tmp_path, "other")
    (other / "metrics.jsonl").mkdir()
    assert RowsOfRuns().curves(other) == {}
    os.mkfifo(make_run(tmp_path, "pipe") / "metrics.jsonl")
    assert RowsOfRuns().curves(tmp_path / "pipe") == {}


def test_a_name_that_is_no_text_is_passed_over(tmp_path):
    make_run(tmp_path, "good")
    make_run(tmp_path, os.fsdecode(b"bad\xff"))
    assert [run.name for run in list_runs(tmp_path)] == ["good"]


def test_of_too_many_runs_the_newest_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "MOST_RUNS", 2)
    for i in range(4):
        record = make_run(tmp_path, f"run{i}", started=f"2026-01-0{i + 1}") / "run.json"
        os.utime(record, (i, i))
    assert [run.name for run in list_runs(tmp_path)] == ["run3", "run2"]
