"""The Data tab: the report of a file and the numbers of the feedback, as HTML that nothing in a row can break."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.serving import feedback_view
from rlhf.serving.jobs.allowed import Allowed
from rlhf.serving.ui import data, texts
from rlhf.serving.ui.data import DataView, marked, numbers_html, report_html

texts.add_texts(data.TEXTS)
NASTY = "<img src=x onerror='window.bad=1'>"


@pytest.fixture
def view(tmp_path):
    root = tmp_path / "runs"
    (root / "demo" / "data").mkdir(parents=True)
    row = {"prompt": NASTY, "completion": "[[x]] </mark>"}
    (root / "demo" / "data" / "rows.jsonl").write_text(
        json.dumps(row) + "\n{broken " + NASTY + "\n"
    )
    jobs = SimpleNamespace(allowed=Allowed(roots=(root,)))
    return DataView(SimpleNamespace(runs=root, jobs=jobs, feedback=None))


def test_a_file_is_chosen_from_the_open_folders_and_reported(view):
    [file] = view.files()
    report = view.report(file)
    assert (report["kind"], report["good"], report["bad"]) == ("prompt_completion", 1, 1)
    html = report_html(report, "en")
    assert "<img" not in html and "&lt;img" in html
    assert "rows.jsonl:2" in html and "sft" in html


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "RUNS/../secret.jsonl", "RUNS/link.jsonl", "somebody/dataset", "\0"]
)
def test_a_file_that_is_not_open_is_refused(file, view, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "secret"}\n')
    (view.root / "link.jsonl").symlink_to(secret)
    with pytest.raises(UserError, match="not open|not a path"):
        view.report(file.replace("RUNS", str(view.root)))


def test_a_tokenizer_is_that_of_a_run(view):
    with pytest.raises(UserError, match="no run"):
        view.report(view.files()[0], tokenizer="../../etc")


def test_without_a_store_there_are_no_numbers(view):
    with pytest.raises(UserError, match="keeps no feedback"):
        view.numbers()
    assert "keeps no feedback" in view.export_rows("pairs")["problem"]


def test_what_is_learned_is_marked_and_the_rest_is_text():
    assert (
        marked(["user: <b>", "assistant: [[yes]]"])
        == "user: &lt;b&gt;\nassistant: <mark>yes</mark>"
    )


def test_every_text_of_the_report_is_there_in_korean(view):
    html = report_html(view.report(view.files()[0]), "ko")
    assert "행" in html and "학습 내용" in html


FACTS = {
    "total": 30, "kinds": {"ranking": 20, "comparison": 10}, "people": 2, "prompts": 12, "tie_rate": 0.25,
    "left_rate": (0.6, 0.4, 0.8), "agreement": {"alpha": 0.42}, "problems": [NASTY],
    "strengths": [{"model": NASTY, "strength": 0.5, "low": 0.1, "high": 0.9, "win_rate": 0.7, "comparisons": 10}],
}  # fmt: skip


def test_the_numbers_of_the_feedback_are_shown():
    html = numbers_html(FACTS, "en")
    for shown in ("30", "25.0%", "60.0%", "0.42", "0.10 – 0.90", "70.0%"):
        assert shown in html
    assert "<img" not in html
    assert "rate, compare or rank" in numbers_html({"total": 0}, "en")


@dataclass
class Store:
    """A store with some events."""

    folder: Path
    rows: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    def events(self):
        return iter(self.rows)


def test_an_unknown_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="no export"):
        feedback_view.export(Store(tmp_path), "../x")


def test_numbers_and_exports_come_from_the_store(tmp_path):
    store_module = pytest.importorskip("rlhf.feedback.store")
    from rlhf.feedback.events import Answer, Comparison, ModelUsed

    store = store_module.Store(tmp_path / "feedback")
    assert feedback_view.numbers(store)["total"] == 0
    with pytest.raises(UserError, match="no pairs yet"):
        feedback_view.export(store, "pairs")
    answers = []
    for text, name in (("good", "new"), ("bad", "old")):
        model = ModelUsed(name=name, path=f"runs/{name}", revision="0" * 64)
        answers.append(Answer(text=text, model=model, seed=1, score=None))
    event = Comparison(
        messages=[{"role": "user", "content": "hi"}],
        answers=answers,
        shown=[0, 1],
        settings={},
        verdict="left",
        annotator="0123456789abcdef",
    )
    store.append(event)
    facts = feedback_view.numbers(store)
    assert facts["total"] == 1 and facts["people"] == 1
    json.dumps(facts)
    assert "new" in numbers_html(facts, "en")
    for form in ("rankings", "pairs", "demonstrations", "table", "events"):
        name, content = feedback_view.export(store, form)
        assert "good" in content and name.endswith((".csv", ".jsonl"))


def test_an_export_that_is_too_large_is_refused_before_all_of_it_is_read(monkeypatch):
    from rlhf.feedback.events import Rating

    def endless():
        while True:
            yield Rating([{"role": "user", "content": "hi"}], "yes", None, {}, 1, "up")

    store = SimpleNamespace(events=endless, folder="feedback")
    monkeypatch.setattr(feedback_view, "LARGEST_EXPORT", 10_000)
    for form in ("labels", "table"):
        with pytest.raises(UserError, match="more than 10,000 characters: take feedback itself"):
            feedback_view.export(store, form)
