"""The Share tab: what would be pushed, who may push, and no token anywhere but in the process of the push."""

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gradio as gr
import pytest

from rlhf.errors import UserError
from rlhf.feedback.events import ModelUsed, Rating
from rlhf.feedback.store import Store
from rlhf.serving.jobs import jobs as jobs_module
from rlhf.serving.jobs.allowed import Allowed, is_repo
from rlhf.serving.jobs.jobs import Jobs
from rlhf.serving.jobs.sharing import Push, read_push, share_words
from rlhf.serving.ui import page as pages
from rlhf.serving.ui import share, texts, theme
from rlhf.serving.ui.share import ShareView, preview_html, pushes_html
from rlhf.serving.ui.texts import Refusal
from tests.serving.jobs.fake_forms import FakeForms

texts.add_texts(share.TEXTS)
TOKEN = "hf_" + "s3cret" * 6
# Instead of `rlhf share`. It prints its arguments, and whether it has the token.
PROGRAM = """
import os, sys
print("words:", *sys.argv[1:], flush=True)
print("token:", os.environ.get("HF_TOKEN", "none"), flush=True)
if "taken" in sys.argv[4]:
    print("error: ann/taken is somebody else's: choose another name", file=sys.stderr)
    sys.exit(2)
print("https://huggingface.co/ann/model (commit 12345678)")
"""
NASTY = "<img src=x onerror='window.bad=1'>"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jobs_module, "POLL", 0.02)


@pytest.fixture(autouse=True)
def hub_preview(monkeypatch):
    """The preview of a run, which another package makes."""
    module = ModuleType("rlhf.hub.share")

    def preview(run, repo, *, merge=False):
        files = [("README.md", 12), ("model.safetensors", 2_000_000)]
        card = f"---\nlicense: other\n---\n\n# {Path(run).name} for {repo}\n\n{NASTY}\n"
        return SimpleNamespace(files=files, card=card)

    module.preview = preview
    monkeypatch.setitem(sys.modules, "rlhf.hub.share", module)


def make_run(root: Path, name: str, **facts) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    record = {"recipe": "sft", "status": "done", "started": "2026-01-01T00:00:00Z", "config": {}}
    (folder / "run.json").write_text(json.dumps(record | facts))
    return folder


@pytest.fixture
def service(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    root = tmp_path / "runs"
    make_run(root, "demo/sft")
    make_run(root, "demo/tokenizer", recipe="tokenizer")
    make_run(root, "demo/unfinished", status="failed")
    (tmp_path / "program.py").write_text(PROGRAM)
    jobs = Jobs(root, forms=FakeForms(), command=[sys.executable, str(tmp_path / "program.py")])
    yield SimpleNamespace(runs=root, jobs=jobs, feedback=Store(tmp_path / "feedback"))
    jobs.close()


@pytest.fixture
def view(service):
    return ShareView(service)


def asked(repo: str = "ann/model", kind: str = "run", **more) -> dict:
    return {"kind": kind, "repo": repo, "sources": ["demo/sft"]} | more


def ended(view) -> dict:
    """The newest push once it has ended."""
    end = time.monotonic() + 20
    while view.is_live():
        assert time.monotonic() < end
        time.sleep(0.02)
    return view.pushes()[0]


def test_only_finished_runs_are_offered_and_only_models_for_a_space(view):
    assert view.runs() == ["demo/sft", "demo/tokenizer"] and view.models() == ["demo/sft"]
    assert view.kinds() == ["run", "feedback", "space"]


def test_a_preview_shows_files_card_and_command_and_sends_nothing(view):
    shown = view.preview(asked(private=True))
    assert shown["files"][1] == ["model.safetensors", 2_000_000]
    assert "share" in shown["command"] and "--private" in shown["command"]
    page = preview_html(shown, False, "en")
    assert "license: other" in page and "2.0 MB" in page and "<img" not in page
    assert view.pushes() == []


def test_a_push_is_a_job_that_has_the_token_and_nothing_else_does(view, service):
    job = view.push(asked(private=True))
    assert TOKEN not in json.dumps(job.command) and "--repo" in job.command
    push = ended(view)
    assert push["state"] == "done" and push["url"] == "https://huggingface.co/ann/model"
    assert push["name"] == "demo/sft -> ann/model"
    log = Path(service.jobs.get(job.id).log).read_text()
    assert (
        f"token: {TOKEN}" in log
    )  # the program of this test prints it, which `rlhf share` never does
    words = "words: share " + str(service.runs / "demo" / "sft") + " --repo ann/model --private"
    assert words in log
    # Even then it does not reach the page, and it is in no record.
    assert TOKEN not in json.dumps(push) and TOKEN not in pushes_html(view.pushes(), "en")
    records = (service.runs / ".jobs").glob("*.json")
    assert not any(TOKEN in path.read_text() for path in records)


def test_the_page_pushes_only_what_its_preview_shows(view):
    """A slow preview ends after the repository was changed: its button would push what nobody has seen."""
    for other in (None, asked("ann/other"), asked(private=False)):
        previewed = other and view.as_asked(other)
        with pytest.raises(Refusal, match="preview it again"):
            view.push_previewed(asked(private=True), previewed)
    assert view.pushes() == []
    view.push_previewed(asked(private=True), view.as_asked(asked(private=True)))
    assert ended(view)["state"] == "done"


@pytest.mark.parametrize("kind", ["run", "space"])
def test_a_run_that_was_trained_again_needs_another_preview(view, service, kind):
    wanted = asked(kind=kind)
    run = service.runs / "demo" / "sft"
    (run / "model.safetensors").write_bytes(b"old")
    previewed = view.as_asked(wanted)
    (run / "hub.json").write_text("{}")  # of another push of the same
    (run / "model.safetensors").write_bytes(b"new weights")
    with pytest.raises(Refusal, match="the run has changed since"):
        view.push_previewed(wanted, previewed)
    assert view.pushes() == []
    previewed = view.as_asked(wanted)
    (run / "hub.json").write_text("{ }")
    view.push_previewed(wanted, previewed)
    assert ended(view)["state"] == "done"


def test_the_server_never_asks_for_a_token(view, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise AssertionError("the server asked for the token")

    monkeypatch.setattr(huggingface_hub, "get_token", refuse)
    monkeypatch.setattr(huggingface_hub.utils, "get_token", refuse, raising=False)
    view.preview(asked())
    view.push(asked())
    assert ended(view)["state"] == "done"


def test_a_push_that_fails_says_why(view):
    view.push(asked("ann/taken"))
    push = ended(view)
    assert push["state"] == "failed" and push["url"] == ""
    assert push["reason"] == "error: ann/taken is somebody else's: choose another name"
    assert "choose another name" in pushes_html(view.pushes(), "en")
    with pytest.raises(UserError, match="share it again in the tab Share"):
        view.jobs.resume(push["id"])


def test_a_push_does_not_wait_for_a_run(view, service, tmp_path):
    waits = tmp_path / "go"
    run = service.jobs._new(
        "sft", "training", ["sh", "-c", f"until [ -e {waits} ]; do sleep 0.02; done"]
    )
    service.jobs._add(run)
    view.push(asked())
    assert ended(view)["state"] == "done"
    assert service.jobs.get(run.id).state == "running"
    waits.touch()


def test_the_feedback_is_previewed_with_what_was_left_behind(view, service):
    messages = [{"role": "user", "content": "hi"}]
    for consent in (True, False):
        rating = Rating(messages, "yes", ModelUsed("m", "runs/m"), {}, 1, "up", consent=consent)
        service.feedback.append(rating)
    shown = view.preview(asked("ann/feedback", "feedback"))
    assert [name for name, _ in shown["files"]] == ["README.md", "ratings.jsonl"]
    assert shown["notes"] == ["1 events without consent were left behind"]
    assert "--type dataset" in shown["command"].replace(" \\\n   ", "")
    assert "# feedback" in shown["card"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["../x"]}, "no run"),
        ({"sources": ["/etc"]}, "no run"),
        ({"sources": []}, "choose a run to share"),
        ({"sources": ["demo/sft", "demo/sft"]}, "one run goes into one repository"),
        ({"sources": [3]}, "a list of names of runs"),
        ({"kind": "model"}, "one of run, feedback, space"),
        ({"repo": "--private"}, "give a name such as ann/my-model"),
        ({"repo": "a/b/c"}, "give a name such as"),
        ({"repo": ""}, "give a name such as"),
    ],
)
def test_what_is_not_a_push_is_refused(view, change, message):
    for action in (view.preview, view.push):
        with pytest.raises(UserError, match=message):
            action(asked() | change)


def test_where_others_use_the_app_pushes_go_to_open_owners_only(view, service):
    service.jobs.allowed = Allowed(roots=(service.runs,))
    with pytest.raises(UserError, match="--allow-push OWNER"):
        view.push(asked())
    assert not pages.may_push(service)
    service.jobs.allowed = Allowed(roots=(service.runs,), push_to=("lab",))
    assert pages.may_push(service)
    for repo in ("ann/model", "model", "lab-2/model"):
        with pytest.raises(UserError, match="repositories may be lab/..."):
            view.push(asked(repo))
    assert view.push(asked("lab/model")).name == "demo/sft -> lab/model"
    ended(view)


def test_words_of_a_push():
    folder = Path("/runs/ppo")
    push = read_push(asked(kind="space", sources=["a", "b"], pr=True, private="yes"))
    assert share_words(push, [folder, folder]) == [
        *["/runs/ppo"] * 2, "--repo", "ann/model", "--space", "--pr"
    ]  # fmt: skip
    merged = Push("run", ("a",), "ann/a", private=False, merge=True)
    assert share_words(merged, [folder])[-1] == "--merge"
    assert is_repo("ann/my-model_1.0") and not is_repo("ann/a--b") and not is_repo("x" * 97)


def test_clients_reach_the_actions_by_name(service):
    from gradio_client import Client

    with theme.titled_page("Share") as page:
        share.build(service, page)
    options = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "i18n": texts.i18n()}
    _, address, _ = page.launch(**options)
    try:
        client = Client(address, verbose=False, download_files=False)
        sources = ["demo/sft"]
        shown = client.predict(
            kind="run", repo="ann/model", sources=sources, api_name="/share_preview"
        )
        assert shown["repo"] == "ann/model"
        client.predict(kind="run", repo="ann/model", sources=sources, api_name="/share_push")
        end = time.monotonic() + 20
        while client.predict(api_name="/share_pushes")[0]["state"] != "done":
            assert time.monotonic() < end
        with pytest.raises(Exception, match="no run"):
            client.predict(kind="run", repo="ann/model", sources=["../x"], api_name="/share_push")
    finally:
        page.close()
        gr.close_all()


@pytest.mark.slow
def test_in_a_browser_a_run_is_previewed_and_pushed(service, chromium):
    with theme.titled_page("Share") as page:
        share.build(service, page)
    _, address, _ = page.launch(
        prevent_thread_lock=True, quiet=True, ssr_mode=False, i18n=texts.i18n(), css=share.CSS
    )
    try:
        tab = chromium.new_page()
        tab.goto(address)
        tab.locator("#share-repo textarea, #share-repo input").first.fill("ann/model")
        push = tab.get_by_role("button", name="Push to the Hub")
        assert not push.is_visible()  # nobody has looked at it yet
        tab.get_by_role("button", name="Preview").click()
        tab.get_by_text("model.safetensors").wait_for()
        assert tab.evaluate("window.bad") is None
        push.click()
        tab.get_by_role("link", name="https://huggingface.co/ann/model").wait_for()
        assert TOKEN not in tab.content() and os.environ["HF_TOKEN"] == TOKEN
    finally:
        page.close()
