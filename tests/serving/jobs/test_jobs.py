"""The line of jobs: order, ends, stops, restarts of the server, two servers, and names that lead nowhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runs.inputs import DATA_KEYS, MODEL_KEYS, ROLES
from rlhf.serving.jobs import jobs as jobs_module
from rlhf.serving.jobs import process as process_module
from rlhf.serving.jobs.allowed import PATH_KEYS, WORDS, Allowed, check_name, existing_run, folder_of
from rlhf.serving.jobs.command import flag, shell_text, words
from rlhf.serving.jobs.jobs import Jobs, last_lines, read_tail
from rlhf.serving.jobs.process import Held, Process, start_time
from tests.serving.jobs.fake_forms import FORMS, FakeForms

FAKE = [sys.executable, str(Path(__file__).with_name("fake_recipe.py"))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs_module, "POLL", 0.02)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def server(runs):
    """A function that starts a server's line; all are closed at the end, and their jobs killed."""
    servers = []

    def start(**options) -> Jobs:
        options = {"forms": FakeForms(), "command": FAKE} | options
        servers.append(Jobs(runs, **options))
        return servers[-1]

    yield start
    for jobs in servers:
        for job in jobs.list():
            job.process.kill()
        jobs.close()


def until(condition, seconds: float = 10):
    """The value of the condition as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def ended(jobs, job):
    return until(lambda: jobs.get(job.id) if jobs.get(job.id).has_ended else None)


def running(jobs, job):
    """The job once its recipe has begun to work."""
    until(lambda: jobs.get(job.id).pid and "working" in read_tail(Path(job.log)))
    return jobs.get(job.id)


def test_one_job_runs_at_a_time_in_the_order_of_the_line(server, runs):
    jobs = server()
    line = [jobs.start("sft", {"seconds": 0.1}, f"run{i}") for i in range(3)]
    assert [ended(jobs, job).state for job in line] == ["done"] * 3
    times = []
    for i in range(3):
        times += map(float, (runs / f"run{i}" / "order.txt").read_text().split())
    assert times == sorted(times) and len(times) == 6


def test_a_finished_job_is_told_once(server):
    seen = []
    jobs = server(on_finished=seen.append)
    job = jobs.start("sft", {}, "run")
    until(lambda: seen)
    time.sleep(0.1)
    assert [(other.id, other.state) for other in seen] == [(job.id, "done")]


def test_a_callback_that_fails_does_not_stop_the_line(server):
    def fail(job):
        raise RuntimeError("boom")

    jobs = server(on_finished=fail)
    line = [jobs.start("sft", {}, name) for name in ("one", "two")]
    assert [ended(jobs, job).state for job in line] == ["done", "done"]


def test_a_failure_shows_its_error_line(server):
    jobs = server()
    job = ended(jobs, jobs.start("sft", {"ends": 2}, "bad"))
    assert (job.state, job.reason) == ("failed", "error: the rows are bad: fix row 3")


def test_a_stop_lets_the_run_save_a_checkpoint_and_resume_continues_it(server, runs):
    jobs = server()
    job = running(jobs, jobs.start("sft", {"seconds": 60}, "long"))
    jobs.stop(job.id)
    job = ended(jobs, job)
    assert job.state == "stopped" and "at step 3" in job.reason
    assert (runs / "long" / "checkpoint-3").is_dir()
    again = jobs.resume(job.id)
    assert again.command == [*job.command, "--resume_from_checkpoint", "true"]
    assert again.folder == job.folder
    jobs.stop(again.id, at_once=True)
    third = jobs.resume(ended(jobs, again).id)
    assert third.command == again.command
    jobs.stop(third.id, at_once=True)


def test_a_second_stop_sends_no_second_signal(server, monkeypatch):
    jobs = server()
    job = running(jobs, jobs.start("sft", {"seconds": 60}, "long"))
    sent = []
    monkeypatch.setattr(Process, "terminate", lambda self: sent.append(self.pid))
    jobs.stop(job.id)
    jobs.stop(job.id)
    assert sent == [job.pid]


def test_a_waiting_job_is_taken_out_of_the_line(server, runs):
    jobs = server()
    first = running(jobs, jobs.start("sft", {"seconds": 60}, "first"))
    second = jobs.start("sft", {}, "second")
    assert jobs.stop(second.id).state == "stopped"
    jobs.stop(first.id)
    ended(jobs, first)
    time.sleep(0.1)
    assert not (runs / "second").exists()
    with pytest.raises(UserError, match="has ended: stopped"):
        jobs.stop(second.id)


def test_a_killed_job_has_failed_and_the_line_goes_on(server):
    jobs = server()
    job = running(jobs, jobs.start("sft", {"seconds": 60}, "killed"))
    after = jobs.start("sft", {}, "after")
    os.killpg(job.pid, signal.SIGKILL)
    job = ended(jobs, job)
    assert job.state == "failed" and "killed" in job.reason
    assert ended(jobs, after).state == "done"


def test_what_a_killed_launcher_leaves_saves_and_ends_before_the_next_job(server, runs):
    jobs = server()
    job = running(jobs, jobs.start("sft", {"seconds": 60}, "orphan"))
    after = jobs.start("sft", {}, "after")
    os.kill(job.pid, signal.SIGKILL)  # the first process alone; the recipe trains on
    job = ended(jobs, job)
    assert (runs / "orphan" / "checkpoint-3").is_dir() and not job.process.has_others()
    assert job.state == "failed" and "killed" in job.reason and "at step 3" in job.reason
    assert ended(jobs, after).state == "done"


def test_what_ignores_the_end_of_its_launcher_is_killed(server, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE", 0.2)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('work' + 'ing', flush=True); time.sleep(60)"
    jobs = server(command=[sys.executable, "-c", deaf])
    job = running(jobs, jobs.start("sft", {}, "deaf"))
    os.kill(job.pid, signal.SIGKILL)
    assert ended(jobs, job).state == "failed" and not job.process.has_others()


def test_the_group_of_another_boot_or_of_a_later_process_is_not_the_jobs(monkeypatch):
    here = os.getpgid(0)
    monkeypatch.setattr(process_module.os, "getpid", lambda: 0)
    started = process_module.start_time(os.getppid()).rpartition("/")[0]
    assert not process_module.others_of_group(here, "another boot/0")
    assert not process_module.others_of_group(here, f"{started}/{10**15}")


def test_a_job_that_needs_another_waits_for_it_and_is_dropped_if_it_fails(server, runs):
    jobs = server()
    bad = jobs.start("reward", {"ends": 1}, "reward")
    needs = jobs.start("ppo", {}, "ppo", after=bad.id)
    needs = ended(jobs, needs)
    assert needs.state == "stopped" and bad.id in needs.reason
    assert not (runs / "ppo").exists()


# ---- servers come and go -----------------------------------------------------------------------------------------


def test_a_new_server_adopts_the_job_and_continues_the_line(server):
    first = server()
    job = running(first, first.start("sft", {"seconds": 0.5}, "adopted"))
    waits = first.start("sft", {}, "waits")
    first.close()
    assert job.process.is_alive()
    second = server()
    assert ended(second, job).state == "done"
    assert ended(second, waits).state == "done"
    assert second.get(job.id).pid == job.pid


def test_a_job_outlives_a_server_that_is_killed(runs):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from tests.serving.jobs.fake_forms import FakeForms
from rlhf.serving.jobs.jobs import Jobs
jobs = Jobs(Path({str(runs)!r}), forms=FakeForms(), command={FAKE!r})
job = jobs.start("sft", {{"seconds": 0.5}}, "survivor")
jobs.start("sft", {{}}, "next")
print(job.id, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    job_id = process.stdout.readline().strip()
    until((runs / "survivor" / "run.json").exists)
    process.kill()
    process.wait()
    process.stdout.close()
    jobs = Jobs(runs, forms=FakeForms(), command=FAKE)
    try:
        assert ended(jobs, jobs.get(job_id)).state == "done"
        until(lambda: [job.state for job in jobs.list()] == ["done", "done"])
    finally:
        jobs.close()


def test_a_job_whose_server_died_before_it_was_let_go_is_started_by_the_next(server, monkeypatch):
    jobs = server()
    monkeypatch.setattr(Held, "let_go", Held.drop)  # the pipe ends with the server
    job = jobs.start("sft", {}, "run")
    until(lambda: jobs.get(job.id).state == "running" or jobs.get(job.id).has_ended)
    jobs.close()
    monkeypatch.undo()
    assert not jobs.get(job.id).has_ended
    assert ended(server(), job).state == "done"


def test_a_reused_pid_is_not_taken_for_the_job(server, runs):
    jobs = server()
    job = running(jobs, jobs.start("sft", {"seconds": 60}, "old"))
    jobs.close()
    os.killpg(job.pid, signal.SIGKILL)
    until(lambda: not job.process.is_alive())

    # The machine restarted, and the id is now that of this very process.
    def take_over(record):
        record.pid = os.getpid()

    jobs._records.change(job.id, take_over)
    stopping = server()
    with pytest.raises(UserError, match="has ended: failed"):
        ended(stopping, job)
        stopping.stop(job.id, at_once=True)
    assert start_time(os.getpid())  # still here


def test_a_process_is_known_by_its_start():
    here = Process(os.getpid(), start_time(os.getpid()))
    assert here.is_alive()
    assert not Process(os.getpid(), "another start").is_alive()
    assert not Process(os.getpid(), "").is_alive() and not Process(0, "").is_alive()


def test_of_two_servers_one_owns_the_line_and_both_add_to_it(server, runs):
    one, two = server(), server()
    until(lambda: one._owns or two._owns)
    line = []
    for i in range(4):
        line.append((one, two)[i % 2].start("sft", {"seconds": 0.05}, f"run{i}"))
    assert [ended(two, job).state for job in line] == ["done"] * 4
    assert [one._owns, two._owns].count(True) == 1
    for i in range(4):  # each was started once
        assert len((runs / f"run{i}" / "order.txt").read_text().split()) == 2


def test_the_other_server_takes_over_and_hears_of_every_end(server):
    seen = []
    one = server()
    until(lambda: one._owns)
    two = server(on_finished=lambda job: seen.append(job.name))
    ended(two, two.start("sft", {}, "first"))
    one.close()
    until(lambda: two._owns)
    ended(two, two.start("sft", {}, "second"))
    until(lambda: seen == ["first", "second"])


def test_a_folder_of_runs_that_is_replaced_has_one_owner_again(server, runs):
    one = server()
    until(lambda: one._owns)
    shutil.rmtree(runs)
    runs.mkdir()
    two = server()
    job = two.start("sft", {"seconds": 0.1}, "run")
    assert ended(two, job).state == "done"
    until(lambda: [one._owns, two._owns].count(True) == 1)
    one.close()
    until(lambda: two._owns)
    assert (runs / ".jobs" / ".lock").exists()  # that of two was not removed by one


def test_servers_in_different_folders_share_a_line(server, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    owner = server()
    until(lambda: owner._owns)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = Jobs(Path("../runs"), forms=FakeForms(), command=FAKE)
    try:
        job = ended(other, other.start("sft", {"ends": 3}, "run"))
        assert job.reason == "error: the rows are bad: fix row 3"
        assert other.get(job.id).log == str(Path.cwd() / "../runs/.jobs" / f"{job.id}.log")
    finally:
        other.close()


def test_a_clock_that_is_set_back_puts_no_job_in_front(server, monkeypatch):
    jobs = server()
    first = running(jobs, jobs.start("sft", {"seconds": 60}, "first"))
    clock = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: clock)
    line = [jobs.start("sft", {}, f"run{i}") for i in range(3)]
    ids = [job.id for job in jobs.list()]
    assert ids == sorted([first.id, *(job.id for job in line)])
    assert [job.name for job in jobs.list()] == ["first", "run0", "run1", "run2"]


def test_records_that_somebody_edited_stop_nobodys_line(server, runs):
    jobs = server()
    job = ended(jobs, jobs.start("sft", {}, "one"))
    jobs.close()
    path = runs / ".jobs" / f"{job.id}.json"
    record = json.loads(path.read_text()) | {"state": "running"}
    changes = [
        {"pid": "1"},
        {"command": "rm -rf ~"},
        {"command": [1]},
        {"command": []},
        {"id": "20260101-000000-00000000"},
        {"state": "paused"},
        {"state": []},
        {"arguments": None},
        {"folder": None},
        {"started": 5},
    ]
    path.unlink()
    for i, change in enumerate(changes):
        name = f"20260101-000000-0000000{i}"
        edited = record | {"id": name} | change
        path.with_name(f"{name}.json").write_text(json.dumps(edited))
    path.with_name("20260101-000000-00000000.json").write_text(json.dumps(record))
    again = server()
    assert ended(again, again.start("sft", {}, "two")).state == "done"
    assert [job.name for job in again.list()] == ["two"]


def test_an_unforeseen_failure_does_not_end_the_line(server, monkeypatch):
    jobs = server()
    whole = Jobs._start_next

    def fail(self, line):
        monkeypatch.setattr(Jobs, "_start_next", whole)
        raise ValueError("boom")

    monkeypatch.setattr(Jobs, "_start_next", fail)
    assert ended(jobs, jobs.start("sft", {}, "run")).state == "done"


def test_the_reason_is_not_taken_from_the_command(server):
    jobs = server(command=["false", "x\nerror: not this one\r\n"])
    job = ended(jobs, jobs.start("sft", {}, "run"))
    assert (job.state, job.reason) == ("failed", "it ended with exit code 1")


def test_a_file_that_is_no_record_is_passed_over(server, runs):
    jobs = server()
    (runs / ".jobs").mkdir(exist_ok=True)
    for name in ("20260101-000000-aaaaaaaa.json", "notes.json", "20260101-000000-bbbbbbbb.json"):
        (runs / ".jobs" / name).write_text("[1]" if "a" * 8 in name else "{")
    assert jobs.list() == []
    with pytest.raises(UserError, match="no job"):
        jobs.get("20260101-000000-aaaaaaaa")


# ---- names, files and flags --------------------------------------------------------------------------------------

OUTSIDE = [
    "..", "../x", "a/../../x", "/etc/x", "a/./b", ".hidden", "a/.jobs", ".jobs", "~", "~root/x", "a//b", "/", "", " ",
    "a\0b", "a\nb", "-rf", "--help", "a/-b", "con", "a/NUL.txt", "checkpoint-3", "a\\b", "C:\\x", "a" * 65, "a/b/c/d/e",
    "x.", "a;b", "$(id)", "<b>", "a b", "\u202egnp", "..%2fx", "%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_a_name_that_could_leave_the_folder_is_refused(name, server, runs):
    with pytest.raises(UserError, match="name"):
        folder_of(runs, name)
    with pytest.raises(UserError):
        server().start("sft", {}, name)
    assert not [path for path in runs.rglob("*") if ".jobs" not in path.parts]


@pytest.mark.parametrize("name", ["run", "demo/ppo-2", "한국어/보상.1", "A_b-c.d"])
def test_a_plain_name_is_a_folder_inside(name, runs):
    assert folder_of(runs, name) == runs / check_name(name)


def test_a_link_does_not_lead_out(runs, tmp_path):
    (runs / "out").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out"):
        folder_of(runs, "out/x")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no run"):
        existing_run(runs, "out")


@pytest.mark.parametrize("name", [*OUTSIDE, "missing"], ids=repr)
def test_only_a_run_below_the_folder_is_shown(name, runs):
    (runs.parent / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no run"):
        existing_run(runs, name)


@pytest.mark.parametrize(
    "job_id", ["", "..", "../x", "20260101-000000-aaaaaaaa", "/etc/passwd", None, 3]
)
def test_an_id_of_no_job_is_refused(job_id, server):
    with pytest.raises(UserError, match="no job"):
        server().get(job_id)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dataset_name": "/etc/passwd"},
        {"dataset_name": "somebody/dataset"},
        {"model_name_or_path": "gpt2"},
        {"model_name_or_path": "RUNS/../secret"},
        {"model_name_or_path": "RUNS/link"},
        {"reward_model_path": ["RUNS/demo", "/etc"]},
        {"reward_model_path": "RUNS/demo /etc"},
        {"reward_functions": ["os:system"]},
        {"reward_functions": "rlhf.recipes.rewards:on_topic os:system"},
        {"overlap": "kernels/attention"},
        {"overlap": "~/file"},
    ],
    ids=str,
)
def test_where_people_log_in_only_open_files_may_be_named(arguments, runs, tmp_path):
    (runs / "link").symlink_to(tmp_path)
    allowed = Allowed(roots=(runs,), hub_ids=("org/model",))
    given = eval(repr(arguments).replace("RUNS", str(runs)))
    with pytest.raises(UserError, match="open"):
        allowed.check_arguments(given)
    Allowed(anything=True).check_arguments(given)


def test_the_keys_that_name_files_are_those_that_a_run_checks():
    assert {*DATA_KEYS, *MODEL_KEYS, "resume_from_checkpoint"} == PATH_KEYS
    assert WORDS["value_model"] == ROLES


def test_open_files_and_ids_may_be_named(runs):
    given = {
        "model_name_or_path": "org/model",
        "dataset_name": str(runs / "rows.jsonl"),
        "reward_functions": ["rlhf.recipes.rewards:on_topic"],
        "columns": "text=a/b",
        "resume_from_checkpoint": "auto",
    }
    Allowed(roots=(runs,), hub_ids=("org/model",)).check_arguments(given)


KEYS = {key["name"]: key for key in FORMS["sft"]["keys"]}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seconds", 1e-4, ["--seconds", "0.0001"]),
        ("seconds", -1, ["--seconds=-1"]),
        ("use_peft", True, ["--use_peft", "true"]),
        ("use_peft", "false", ["--use_peft", "false"]),
        ("dataset_name", "--config=/etc/x", ["--dataset_name=--config=/etc/x"]),
        ("dataset_name", "a b", ["--dataset_name", "a b"]),
        ("dataset_name", "", []),
        ("reward_model_path", "a 'b c'", ["--reward_model_path", "a", "b c"]),
        ("reward_model_path", [], []),
        ("columns", {"text": "t", "label": "l"}, ["--columns", "text=t,label=l"]),
    ],
)
def test_a_setting_becomes_words(name, value, expected):
    assert flag(KEYS[name], value) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_dir": "/tmp/x"}, "the name of the run"),
        ({"config": "/tmp/x.yaml"}, "settings file"),
        ({"secnds": 1}, "did you mean 'seconds'"),
        ({"reward_model_path": ["--config", "x"]}, "as a flag"),
        ({"reward_model_path": "a 'b"}, "No closing quotation"),
        ({"dataset_name": "a\0b"}, "not a value"),
        ({"dataset_name": ["a"]}, "not a value"),
        ({"dataset_name": "x" * 20_000}, "not a value"),
    ],
)
def test_a_setting_that_is_none_is_refused(arguments, message, runs):
    with pytest.raises(UserError, match=message):
        words(FORMS["sft"], "", arguments, runs / "run")


def test_a_config_is_one_of_the_recipes_own(runs):
    assert words(FORMS["sft"], "demo", {}, runs / "run")[:2] == ["--config", "demo"]
    with pytest.raises(UserError, match="one of demo"):
        words(FORMS["sft"], "../../etc/x", {}, runs / "run")


def test_the_shown_command_is_the_one_that_runs(server, tmp_path):
    nasty = 'it\'s; $(touch x) "q" \\ `id` & 한'
    jobs = server(command=[sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    job = jobs.start("sft", {"dataset_name": nasty, "seconds": -1}, "run")
    text = jobs.shown_command(job)
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert eval(done.stdout) == job.command[3:]
    assert not (tmp_path / "x").exists()


def test_the_shown_command_begins_in_the_folder_of_the_server():
    assert shell_text(["/a/bin/python", "-m", "rlhf", "sft", "--seed", "1"], "/a") == (
        "cd /a && \\\nbin/python -m rlhf sft \\\n    --seed 1"
    )


def test_settings_that_the_recipe_refuses_start_nothing(server, runs):
    jobs = server(forms=FakeForms(refuses="kl_coef=-1.0 must be at least 0"))
    with pytest.raises(UserError, match="kl_coef"):
        jobs.start("sft", {}, "run")
    assert jobs.list() == [] and not (runs / "run").exists()


def test_a_name_that_is_taken_is_refused(server, runs):
    jobs = server()
    (runs / "old").mkdir()
    (runs / "old" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="is there already"):
        jobs.start("sft", {}, "old")
    first = jobs.start("sft", {"seconds": 60}, "new")
    with pytest.raises(UserError, match="is there already|in line or runs"):
        jobs.start("sft", {}, "new")
    jobs.stop(first.id, at_once=True)


def test_the_line_has_an_end(server, monkeypatch):
    monkeypatch.setattr(jobs_module, "LONGEST_LINE", 2)
    jobs = server()
    line = [jobs.start("sft", {"seconds": 60}, f"run{i}") for i in range(2)]
    with pytest.raises(UserError, match="2 jobs are in line"):
        jobs.start("sft", {}, "run3")
    for job in reversed(line):
        jobs.stop(job.id, at_once=True)


def test_keys_of_the_server_do_not_reach_a_job(monkeypatch, server, tmp_path):
    monkeypatch.setenv("RLHF_API_KEYS", "secret")
    jobs = server(
        command=[sys.executable, "-c", "import os; print(os.environ.get('RLHF_API_KEYS'))"]
    )
    job = ended(jobs, jobs.start("sft", {}, "run"))
    assert last_lines(Path(job.log)) == "None"


def test_the_tail_of_a_log_is_short_and_shows_the_last_state_of_a_bar(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x\n" * 100_000 + b" 10%\r 20%\r\n" + "끝\n".encode() + b"\xff\n")
    tail = read_tail(log, 100)
    assert len(tail) <= 120 and tail.splitlines()[-3:] == [" 20%", "끝", "\ufffd"]
    assert read_tail(tmp_path / "missing") == ""


@pytest.mark.slow
def test_a_real_recipe_is_started_from_its_form_and_ends_as_a_run(runs, tmp_path, monkeypatch):
    texts = tmp_path / "texts.txt"
    lines = [f"the {i} small words of a tokenizer, {i * i} of them" for i in range(200)]
    texts.write_text("\n".join(lines))
    finished = []
    jobs = Jobs(runs, on_finished=finished.append)
    try:
        settings = {"dataset_name": str(texts), "vocab_size": "300", "lowercase": "false"}
        with pytest.raises(UserError, match="no such file"):
            jobs.start("tokenizer", settings | {"dataset_name": str(tmp_path / "no.txt")}, "new")
        with pytest.raises(UserError, match="vocab_size"):
            jobs.start("tokenizer", settings | {"vocab_size": "many"}, "new")
        job = jobs.start("tokenizer", settings, "new")
        job = until(lambda: finished, seconds=120)[0]
        assert (job.state, job.reason) == ("done", ""), read_tail(Path(job.log))
        assert (runs / "new" / "tokenizer.json").is_file()
        assert '"done"' in (runs / "new" / "run.json").read_text()
    finally:
        jobs.close()


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, "\ud800x", "ring", "ring/x"])
def test_a_name_that_no_file_system_knows_is_no_run(name, runs):
    (runs / "ring").symlink_to(runs / "ring")
    with pytest.raises(UserError, match="no run"):
        existing_run(runs, name)
    with pytest.raises(UserError):
        folder_of(runs, name)
    if name != "a" * 300:  # a path that the reader of the file refuses
        with pytest.raises(UserError):
            Allowed(roots=(runs,)).check_input(str(runs / name))


def test_a_name_is_counted_in_bytes_and_a_file_is_no_folder_of_runs(runs, server):
    assert folder_of(runs, "\ud55c" * 64)
    with pytest.raises(UserError, match="too long"):
        folder_of(runs, "\U00020000" * 64)
    (runs / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        folder_of(runs, "file/x")
    with pytest.raises(UserError, match="is there already"):
        server().start("sft", {}, "file")


@pytest.mark.parametrize(
    "value", ["\ud800", 10**5000, ["a", "\udc80"]], ids=["half", "huge", "item"]
)
def test_a_value_that_no_command_line_can_hold_is_refused(value):
    kind = "list" if isinstance(value, list) else "text"
    with pytest.raises(UserError, match="not a value"):
        flag({"name": "x", "kind": kind}, value)


def test_nothing_of_a_command_is_read_by_a_shell(server, tmp_path):
    """What runs is what is shown: quotes, line ends and $(...) reach the recipe as they are."""
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    nasty = "--a \n$(touch OWNED) `id` \"'\\ ; rm x & %s * ~"
    jobs = server(command=[sys.executable, "-c", show])
    job = jobs.start("sft", {"dataset_name": nasty, "columns": "$HOME"}, "run")
    ended(jobs, job)
    printed = [line for line in read_tail(Path(job.log)).splitlines() if line.startswith('["')]
    assert json.loads(printed[-1]) == job.command[3:] and f"--dataset_name={nasty}" in job.command
    pasted = subprocess.run(
        ["sh", "-c", jobs.shown_command(job)], capture_output=True, text=True, check=True
    )
    assert json.loads(pasted.stdout) == job.command[3:]
    assert not Path("OWNED").exists()
