"""The ladder tab: the newest ladder.json, answers one after another, rungs that are gone, and inert texts."""

import json
import os
from types import SimpleNamespace

import pytest

from rlhf.errors import UserError
from rlhf.serving.engine.requests import SamplingSettings
from rlhf.serving.ui import ladder, texts
from rlhf.serving.ui.page import has_ladder

texts.add_texts(ladder.TEXTS)
NASTY = "<img src=http://evil.example/x onerror=alert(1)>"
SETTINGS = SamplingSettings(seed=3)


class ScriptedEngine:
    """Each model answers with its own label; "refuse" in a label is an error."""

    def __init__(self, runs):
        self.runs = runs
        self.asked = []

    def sample(self, model, messages, settings, count, *, request, client):
        self.asked.append(model)
        if "refuse" in model:
            raise UserError("your message has 99 tokens")
        return [SimpleNamespace(text=f"I am {model}")]


def rung(path, **changes) -> dict:
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    numbers = {"bits_per_byte": 1.25, "parameters": 1234, "seconds": 7.0}
    facts = {"name": path.name, "path": str(path), "year": 1990, "paper": "Elman"}
    return (
        facts
        | numbers
        | {"rates": {"score_on_topic": rate}, "per_cent": ["score_on_topic"]}
        | changes
    )


@pytest.fixture
def service(tmp_path):
    """A service with a ladder of three rungs, one of which is not served any more."""
    folder = tmp_path / "runs" / "ladder"
    folder.mkdir(parents=True)
    rungs = [rung(folder / "rnn"), rung(folder / "gone"), rung(folder / "gpt2", paper=NASTY)]
    (folder / "ladder.json").write_text(json.dumps({"rungs": rungs}))
    runs = {"base · rnn": folder / "rnn", "base · gpt2": folder / "gpt2"}
    return SimpleNamespace(engine=ScriptedEngine(runs), runs=tmp_path / "runs")


def test_every_rung_that_is_served_answers_in_order(service):
    steps = list(ladder.Ladder(service).ask("hello", SETTINGS, "session"))
    assert len(steps) == 3  # the question, and two answers
    assert [row["answer"] for row in steps[-1]] == ["I am base · rnn", "", "I am base · gpt2"]
    assert service.engine.asked == ["base · rnn", "base · gpt2"]


def test_a_refusal_of_one_rung_is_its_answer_and_the_others_go_on(service):
    runs = service.engine.runs
    service.engine.runs = {"refuse": runs["base · rnn"], "base · gpt2": runs["base · gpt2"]}
    *_, last = ladder.Ladder(service).ask("hello", SETTINGS, "session")
    assert [row["answer"] for row in last] == [
        "(your message has 99 tokens)",
        "",
        "I am base · gpt2",
    ]


def test_an_empty_question_and_a_file_that_is_no_ladder_are_refused(service):
    with pytest.raises(UserError, match="write a message"):
        next(ladder.Ladder(service).ask("  ", SETTINGS, "session"))
    (service.runs / "ladder" / "ladder.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        ladder.Ladder(service).rungs()


def test_the_newest_ladder_is_shown_and_without_one_there_is_no_tab(service, tmp_path):
    assert has_ladder(service)
    newer = service.runs / "other" / "ladder.json"
    newer.parent.mkdir()
    newer.write_text(json.dumps({"rungs": [rung(tmp_path / "lstm")]}))
    os.utime(newer, (2e9, 2e9))
    assert [row["name"] for row in ladder.Ladder(service).rungs()] == ["lstm"]
    service.runs = tmp_path / "empty"
    assert not has_ladder(service)


def test_a_score_that_is_no_share_is_shown_as_a_number(service):
    rates = {"score_chrf": {"mean": 23.46, "low": 22.0, "high": 25.0, "n": 9}}
    facts = ladder.facts_of(rung(service.runs / "gru", rates=rates, per_cent=[]), "ko")
    assert "chrf 23.5" in facts and not any("%" in fact for fact in facts)


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_names_papers_and_answers_are_shown_as_text(service, language):
    *_, rungs = ladder.Ladder(service).ask("hello", SETTINGS, "session")
    rungs[0]["answer"] = NASTY
    page = ladder.rungs_html(rungs, language)
    assert "<img" not in page and page.count("&lt;img") == 2
    assert "1.250" in page and "50%" in page and "1,234" in page
