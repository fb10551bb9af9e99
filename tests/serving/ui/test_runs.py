"""The Runs tab: what it shows of runs and jobs, its form, its endpoints, and that no name or text runs in the page."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from rlhf.errors import UserError
from rlhf.serving.jobs import jobs as jobs_module
from rlhf.serving.jobs.allowed import Allowed
from rlhf.serving.jobs.jobs import Jobs
from rlhf.serving.jobs.records import Job
from rlhf.serving.ui import data, runs, texts, theme
from rlhf.serving.ui.curves import curves_html, thinned
from rlhf.serving.ui.run_actions import RunsView, form_facts
from rlhf.serving.ui.run_form import form_html, key_of
from rlhf.serving.ui.run_view import head_html, line_html, list_html, markdown_html, samples_html
from tests.serving.jobs.fake_forms import FORMS, FakeForms

FAKE = [sys.executable, str(Path(__file__).parents[1] / "jobs" / "fake_recipe.py")]
NASTY = "<img src=x onerror='window.bad=1'>\"'&"
NAMES = {
    "training": "training",
    "evaluation": "evaluation",
    "other": NASTY,
    "step": "step",
    "more": "{n} more",
}
texts.add_texts(runs.TEXTS)
texts.add_texts(data.TEXTS)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs_module, "POLL", 0.02)


def make_run(root: Path, name: str, **facts) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    record = {
        "recipe": "sft",
        "status": "done",
        "started": "2026-01-01T00:00:00Z",
        "config": {},
        "command": "rlhf sft",
    }
    (folder / "run.json").write_text(json.dumps(record | facts))
    rows = [{"step": i, "loss": 1 / i, "eval_loss": 2 / i} for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def service(tmp_path):
    root = tmp_path / "runs"
    make_run(
        root,
        "demo/sft",
        data=[{"name": str(tmp_path / "prompts.jsonl")}],
        command="rlhf sft --config demo --seed 1",
    )
    make_run(root, "demo/reward", recipe="reward", parents={"policy": {"name": "runs/demo/sft"}})
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi"}\n')
    jobs = Jobs(root, forms=FakeForms(), command=FAKE)
    feedback = SimpleNamespace(folder=tmp_path / "feedback")
    yield SimpleNamespace(runs=root, jobs=jobs, feedback=feedback)
    for job in jobs.list():
        job.process.kill()
    jobs.close()


@pytest.fixture
def view(service):
    return RunsView(service)


def ended(view, job):
    end = time.monotonic() + 20
    while not view.jobs.get(job.id).has_ended:
        assert time.monotonic() < end
        time.sleep(0.02)
    return view.jobs.get(job.id)


# ---- what is shown -----------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_curves_samples_and_log(view):
    facts = view.show("demo/sft")
    assert facts["curves"]["loss"]["training"][0] == (1, 1.0)
    assert facts["log"] == "" and facts["status"] == "done"
    job = ended(view, view.start("sft", {}, "mine"))
    assert "working" in view.show("mine")["log"] and view.show("mine")["job"] == job.id


@pytest.mark.parametrize(
    "name", ["", "..", "../..", "demo", "/etc", "demo/../demo/sft", ".jobs", "a\0"]
)
def test_a_name_that_is_no_run_is_refused_and_shows_nothing(name, view):
    with pytest.raises(UserError, match="no run"):
        view.show(name)
    assert "curves" not in view.curves_html(name, "", "en")
    assert view.texts_html(name, "en") == ("",) * 5


def test_curves_of_two_runs_are_drawn_together(view):
    html = view.curves_html("demo/sft", "demo/reward", "en")
    assert html.count("<figure>") == 1 and html.count("<polyline") == 4
    assert "demo/reward, training" in html and "loss: 1 to 0.2, step 1 to 5" in html


def test_a_curve_is_thinned_and_a_flat_one_is_drawn():
    points = [(i, i) for i in range(10_000)]
    assert len(thinned(points)) <= 241 and thinned(points)[-1] == (9999, 9999)
    html = curves_html({"flat": {"training": [(1, 2.0), (2, 2.0)]}}, {}, NAMES)
    assert "0.0,55.0 300.0,55.0" in html


def test_curves_stay_the_same_text_until_a_row_comes(view, service):
    before = view.curves_html("demo/sft", "", "en")
    assert view.curves_html("demo/sft", "", "en") == before
    with open(service.runs / "demo/sft/metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 9}\n')
    assert "step 1 to 6" in view.curves_html("demo/sft", "", "en")


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_text_is_there_in_both_languages(language):
    for key, both in {**runs.TEXTS, **data.TEXTS}.items():
        assert all(both), key
    assert texts.text("runs.state.cut off", language)


def test_names_samples_and_logs_are_text(view):
    facts = {
        "name": NASTY, "recipe": NASTY, "status": NASTY, "started": NASTY, "steps": 1, "seconds": 1.0,
        "error": NASTY, "metrics": {NASTY: 1.0}, "continue": NASTY,
    }  # fmt: skip
    job = Job(
        id="'><i>", name=NASTY, recipe=NASTY, command=[], folder="", cwd="", log="", reason=NASTY
    )
    pieces = [
        head_html(facts, [{"message": NASTY}], job, "en"),
        samples_html([{NASTY: NASTY, "score": 1.0}], "en"),
        line_html([job], [job], "en"),
        curves_html({NASTY: {"training": [(1, 1), (2, 2)]}}, {NASTY: {"training": [(1, 1), (2, 2)]}}, NAMES),
        list_html([SimpleNamespace(name=NASTY, recipe=NASTY, status=NASTY, started="", numbers={NASTY: 1})], NASTY, "en"),
    ]  # fmt: skip
    for html in pieces:
        assert "<img" not in html and "onerror='" not in html and "&lt;img" in html
        assert "'><i>" not in html


@pytest.mark.parametrize(
    "source",
    [
        "<script>bad()</script>", "![a](http://evil.example/x)", "[a](javascript:alert(1))", "<img src=http://evil.example>",
        "[a](data:text/html,x)", "![a][b]\n\n[b]: http://evil.example/x", "<a href=x style='position:fixed'>x</a>",
        "[a](//evil.example)", "<http://evil.example>",
    ],
)  # fmt: skip
def test_markdown_of_a_run_makes_no_request_and_runs_nothing(source):
    html = markdown_html(source)
    assert "<script" not in html and "<img" not in html
    assert html.count("href=") == html.count('<a href="http') + html.count("&lt;a href=")
    for part in html.split("<a ")[1:]:
        assert part.startswith('href="http') and "noopener" in part


def test_a_table_of_a_card_is_a_table():
    assert "<table>" in markdown_html("| a | b |\n| --- | --- |\n| 1 | 2 |")


# ---- the form ----------------------------------------------------------------------------------------------------


def form(**options) -> str:
    return form_html("sft", FORMS["sft"], **options)


def test_every_field_has_a_name_and_its_help():
    html = form()
    for key in FORMS["sft"]["keys"]:
        name = key["name"]
        assert f"<label for='key-{name}'>" in html and f"id='help-{name}'" in html
        assert f"aria-describedby='help-{name}'" in html


def test_a_settings_file_fills_the_fields_that_it_sets():
    html = form(config="demo", values={"dataset_name": NASTY})
    assert "data-key='seconds' data-given=\"0.1\"" in html and 'value="0.1"' in html
    assert "<img" not in html and "&lt;img" in html
    # Both are seen without opening the rest.
    first, rest = html.split("<details")
    assert "key-seconds" in first and "key-dataset_name" in first and "key-overlap" in rest


@pytest.mark.parametrize(
    ("problem", "key"),
    [
        ("kl_coef=-1.0 must be at least 0", "kl_coef"),
        ("the command line: unknown key 'seed'", "seed"),
        ("name 'x': choose another name", "name"),
        ("the command line: lora_r=4 has no effect: set use_peft: true too", "lora_r"),
        ("eval_dataset_name and dataset_name differ", ""),
        ("something else", ""),
    ],
)
def test_a_problem_is_shown_at_its_field(problem, key):
    assert key_of(problem, ["seed", "kl_coef", "dataset_name", "lora_r", "use_peft"]) == key


def test_the_form_is_checked_while_it_is_filled(view):
    asked = {
        "recipe": "sft",
        "config": "demo",
        "name": "",
        "layout": "",
        "arguments": {"seconds": "1"},
    }
    answer = view.check_form(asked)
    assert "--config demo" in answer["command"] and not answer["ready"] and not answer["problem"]
    assert view.check_form(asked | {"name": "run"})["ready"]
    view.jobs._forms.refuses = "seconds=1 must be at least 2"
    answer = view.check_form(asked | {"name": "run"})
    assert (answer["key"], answer["ready"]) == ("seconds", False) and answer["command"]
    assert view.check_form(asked | {"name": "../x"})["key"] == "name"
    for wrong in (
        None,
        [],
        "x",
        {"recipe": 3},
        {"arguments": []},
        {"recipe": "sft", "arguments": {"a": "x" * 200_000}},
    ):
        assert view.check_form(wrong)["problem"]
    with pytest.raises(UserError):
        form_facts({"recipe": ["sft"]})


def test_a_run_leads_to_the_one_that_usually_follows(view):
    assert view.next_run("demo/sft") == (
        "reward",
        "demo",
        "demo/reward-2",
        {"model_name_or_path": view.path_of("demo/sft")},
    )
    recipe, config, name, values = view.next_run("demo/reward")
    assert (recipe, config, name) == ("ppo", "", "demo/ppo")
    assert values == {
        "reward_model_path": view.path_of("demo/reward"),
        "model_name_or_path": "runs/demo/sft",
    }


# ---- from feedback to PPO ----------------------------------------------------------------------------------------


def test_feedback_trains_a_reward_model_and_then_ppo_with_it(view, service, tmp_path):
    with pytest.raises(UserError, match="no feedback yet"):
        view.train_on_feedback("demo/sft", "loop")
    service.feedback.folder.mkdir()
    (service.feedback.folder / "events.jsonl").write_text("{}\n")
    reward, ppo = view.train_on_feedback("demo/sft", "loop")
    assert reward.arguments["dataset_name"] == str(service.feedback.folder)
    assert (
        ppo.arguments["reward_model_path"] == [view.path_of("loop/reward")]
        and ppo.after == reward.id
    )
    assert ppo.arguments["dataset_name"] == str(tmp_path / "prompts.jsonl")
    assert reward.config == ppo.config == "demo"
    assert [ended(view, job).state for job in (reward, ppo)] == ["done", "done"]


def test_of_the_loop_nothing_starts_where_ppo_would_be_refused(view, service, monkeypatch):
    service.feedback.folder.mkdir()
    (service.feedback.folder / "events.jsonl").write_text("{}\n")
    monkeypatch.setattr(
        FakeForms, "check", lambda self, recipe, argv, coming: "no" if recipe == "ppo" else None
    )
    with pytest.raises(UserError, match="no"):
        view.train_on_feedback("demo/sft", "loop")
    assert view.jobs.list() == []


def test_a_job_that_failed_before_it_was_a_run_is_seen(view, monkeypatch):
    monkeypatch.setattr(
        view.jobs,
        "_command",
        [sys.executable, "-c", "print('error: no such file <b>'); raise SystemExit(2)"],
    )
    job = ended(view, view.start("sft", {}, "gone"))
    shown = view.line_html("en")
    assert job.state == "failed" and "no such file &lt;b&gt;" in shown and "gone" in shown


# ---- clients -----------------------------------------------------------------------------------------------------


@pytest.fixture
def address(service):
    service.jobs.allowed = Allowed(roots=(service.runs,))
    with theme.titled_page("Runs") as page:
        with gr.Tabs():
            with gr.Tab("Runs"):
                runs.build(service, page)
            with gr.Tab("Data"):
                data.build(service, page)
    _, address, _ = page.launch(
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        i18n=texts.i18n(),
        css=runs.CSS + data.CSS,
        theme=theme.theme(),
    )
    yield address
    page.close()


def test_clients_reach_every_action_by_name_and_hear_of_refusals(address, service):
    from gradio_client import Client

    (service.runs / "rows.jsonl").write_text('{"text": "a"}\n')
    client = Client(address, verbose=False, download_files=False)
    assert [run["name"] for run in client.predict(api_name="/runs_list")] == [
        "demo/reward",
        "demo/sft",
    ]
    assert client.predict(run="demo/sft", api_name="/runs_show")["recipe"] == "sft"
    settings = {"seconds": 0.01}
    command = client.predict(recipe="sft", settings=settings, name="new", api_name="/runs_command")
    assert "--seconds 0.01" in command
    job = client.predict(recipe="sft", settings=settings, name="new", api_name="/runs_start")
    end = time.monotonic() + 20
    while client.predict(api_name="/runs_line")[-1]["state"] != "done":
        assert time.monotonic() < end
    report = client.predict(file=str(service.runs / "rows.jsonl"), api_name="/data_look")
    assert report["total"] == 1
    refused = [
        ("/runs_show", {"run": "../x"}, "no run"),
        ("/runs_command", {"recipe": "sft", "settings": {}, "name": "../x"}, "name"),
        ("/runs_start", {"recipe": "rm", "settings": {}, "name": "x"}, "no recipe"),
        (
            "/runs_start",
            {"recipe": "sft", "settings": {"dataset_name": "/etc/passwd"}, "name": "x"},
            "not open",
        ),
        ("/runs_start", {"recipe": "sft", "settings": {}, "name": "new"}, "is there already"),
        ("/runs_stop", {"job": "../x"}, "no job"),
        ("/runs_stop", {"job": job["id"]}, "has ended"),
        ("/runs_continue", {"job": job["id"]}, "is done"),
        ("/data_look", {"file": "/etc/passwd"}, "not open"),
        ("/data_look", {"file": ""}, "choose a file"),
        ("/data_export", {"form": "../x"}, "no export"),
    ]
    for api_name, arguments, message in refused:
        with pytest.raises(Exception, match=message):
            client.predict(**arguments, api_name=api_name)


# ---- the browser -------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(chromium):
    return chromium


@pytest.mark.slow
def test_in_a_browser_nothing_runs_and_a_run_is_started_stopped_and_continued(
    address, service, browser
):
    bad = make_run(
        service.runs,
        "<img src=x onerror=window.bad=1>",
        recipe="<script>window.bad=1</script>",
        error=NASTY,
    )
    (bad / "samples.jsonl").write_text(
        json.dumps({"step": 1, "prompt": NASTY, "<b onclick=x>": "![a](http://evil.example)"})
    )
    (bad / "README.md").write_text(
        "![a](http://evil.example/leak)\n\n<script>window.bad=1</script>\n" + NASTY
    )
    (bad / "alarms.jsonl").write_text(json.dumps({"step": 1, "message": NASTY}))
    page = browser.new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_role("button", name="onerror").click()
    page.get_by_text("onerror=window.bad=1").first.wait_for()
    for tab in ("Samples", "Card", "Report", "Settings"):
        page.get_by_role("tab", name=tab, exact=True).click()
    assert page.evaluate("window.bad") is None

    page.get_by_role("tab", name="Start a run").click()
    page.fill("#run-name", "by-hand")
    page.click(".all-keys summary")
    page.fill("#key-seconds", "60")
    page.wait_for_selector(".run-form .start:enabled")
    assert "--seconds 60" in page.inner_text(".command")
    page.click(".run-form .start")
    page.get_by_role("button", name="Stop: by-hand").wait_for()
    page.reload()  # the line is the server's
    page.locator("[data-run='by-hand']").click()
    page.get_by_role("heading", name="by-hand").wait_for()
    page.get_by_role("button", name="Stop: by-hand").click()
    page.get_by_role("button", name="Continue this run").wait_for()
    assert "at step 3" in page.inner_text(".run-head")
    page.get_by_role("button", name="Continue this run").click()
    page.get_by_role("button", name="Stop: by-hand").wait_for()
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert outside == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_tab_fits_every_width_and_every_control_has_a_name(address, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, locale="ko-KR")
    page.goto(address)
    page.locator("[data-run]").first.click()
    page.wait_for_selector(".curves figure")
    page.get_by_role("tab", name="학습 시작").click()
    page.wait_for_selector(".run-form")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate(
        """[...document.querySelectorAll('.run-form input, .run-form select, .run-form button, .run-list button')]
        .filter(item => !(item.labels?.length || item.getAttribute('aria-label') || item.textContent.trim())).length"""
    )
    assert nameless == 0


def test_a_client_hears_why_a_job_left_no_run_and_the_page_shows_its_log(view, service):
    service.jobs._command = [sys.executable, "-c", "import sys; sys.exit('error: row 3 is bad')"]
    job = service.jobs.start("sft", {}, "early")
    ended(view, service.jobs.get(job.id))
    with pytest.raises(UserError, match="its job failed: error: row 3 is bad"):
        view.show("early")
    assert "row 3 is bad" in view.texts_html("early", "en")[3]
    assert "row 3 is bad" in view.head_html("early", "en")
