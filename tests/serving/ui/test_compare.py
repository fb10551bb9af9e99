"""The compare tab: blind until the verdict, one verdict per question, refusals, and inert texts. The engine is scripted."""

import json
import time
from types import SimpleNamespace

import gradio as gr
import pytest

from rlhf.errors import UserError
from rlhf.feedback.store import Store
from rlhf.serving.engine.requests import Limits, SamplingSettings, StreamEnd, TextChunk
from rlhf.serving.ui import blind, compare, texts
from rlhf.serving.ui.blind import Asked, Blind, Draft

texts.add_texts(blind.TEXTS)
texts.add_texts(compare.TEXTS)
NASTY = "<img src=http://evil.example/x onerror=alert(1)> ${1+1} {{value}}"
MODELS = ["secret-ppo", "secret-sft", "secret-base"]
SETTINGS = SamplingSettings(seed=4242)


class ScriptedEngine:
    """Each model answers with its own text; an exception as the answer is raised in the stream."""

    def __init__(self, answers):
        self.answers = answers
        self.runs = {name: f"runs/{name}" for name in answers}
        self.reward_runs = {"judge": "runs/judge"}
        self.limits = Limits()
        self.requests, self.cancelled = [], []

    def stream(self, model, messages, settings, *, request, client):
        if "refuse" in messages[-1]["content"]:
            raise UserError("your message has 99 tokens")
        self.requests.append((model, settings.seed, request, client))
        return self._play(self.answers[model])

    def _play(self, answer):
        if isinstance(answer, Exception):
            raise answer
        for part in answer.partition(" "):
            yield TextChunk(part)
        yield StreamEnd(3, 10.0, "stop", 0, 4242)

    def score(self, reward_run, messages, completions):
        return [float(len(text)) for text in completions]

    def cancel(self, request):
        self.cancelled.append(request)
        return True


def make_service(tmp_path, answers=None):
    answers = answers or {name: f"words {i}" for i, name in enumerate(MODELS)}
    return SimpleNamespace(engine=ScriptedEngine(answers), feedback=Store(tmp_path / "feedback"))


@pytest.fixture
def comparing(tmp_path):
    return compare.Comparing(make_service(tmp_path))


def ask(comparing, models=MODELS[:2], prompt="hi", reward=""):
    return list(comparing.ask(prompt, models, SETTINGS, reward, "session"))[-1]


def test_all_models_get_the_same_prompt_and_seed_and_the_order_is_stored(comparing):
    asked, name = ask(comparing, MODELS)
    engine = comparing.service.engine
    assert sorted(request[:2] for request in engine.requests) == sorted((m, 4242) for m in MODELS)
    assert len({request for *_, request, _ in engine.requests}) == 3
    assert {client for *_, client in engine.requests} == {"session"}
    _, shown = comparing.vote(name, "B", "", "api")
    [event] = comparing.service.feedback.events()
    assert event.shown == asked.shown and event.verdict == 1
    assert shown["B"]["model"] == event.answers[event.shown[1]].model.name
    assert event.ranks[event.shown[1]] == 0 and sum(event.ranks) == 2


def test_the_order_on_the_screen_is_shuffled(comparing):
    orders = {tuple(ask(comparing)[0].shown) for _ in range(40)}
    assert orders == {(0, 1), (1, 0)}


def test_before_the_verdict_no_frame_names_a_model_a_seed_or_a_score(tmp_path):
    service = make_service(tmp_path)
    with gr.Blocks() as page:
        compare.build(service, page)
    on_ask = next(f.fn for f in page.fns.values() if f.name == "on_ask")
    frames = list(on_ask("hi", MODELS, "judge", 0.7, 0.95, 20, "4242", None))
    for (
        answers,
        status,
        _,
        *buttons,
    ) in frames:  # the name of the question stays in gr.State, on the server
        sent = json.dumps([answers, status, buttons])
        assert "secret" not in sent and "4242" not in sent and "7.0" not in sent
    assert "words 0" in frames[-1][0]
    key = frames[-1][2]
    vote = [f.fn for f in page.fns.values() if f.name == "vote"]
    shown = vote[list(compare.VERDICTS).index("tie")](key, None, True, None)
    assert "secret-ppo" in shown[0] and "4242" in shown[0] and "7.00" in shown[0]
    assert [event.consent for event in service.feedback.events()] == [True]  # of the ticked box


def test_the_endpoint_tells_texts_only_until_the_vote(tmp_path):
    service = make_service(tmp_path)
    with gr.Blocks() as page:
        compare.build(service, page)
    named = {f.api_name: f for f in page.fns.values() if f.api_visibility == "public"}
    assert set(named) == {
        "compare_models",
        "compare_ask",
        "compare_vote",
        "compare_strengths",
    }
    asked = named["compare_ask"].fn(prompt="hi", models=MODELS, seed=4242)
    assert sorted(asked["answers"]) == ["A", "B", "C"]
    assert "secret" not in json.dumps(asked) and "4242" not in json.dumps(asked)
    told = named["compare_vote"].fn(comparison=asked["comparison"], verdict="tie", annotator="Ann")
    assert {shown["model"] for shown in told["models"].values()} == set(MODELS)
    [event] = service.feedback.events()
    assert event.source == "api" and event.annotator == service.feedback.annotator("ann")
    assert event.consent is False  # nobody said so
    with pytest.raises(gr.Error, match="decided already"):
        named["compare_vote"].fn(comparison=asked["comparison"], verdict="A")


def test_a_second_verdict_is_refused_and_only_one_is_stored(comparing):
    _, name = ask(comparing)
    with pytest.raises(UserError, match="verdict='up'"):
        comparing.vote(name, "up", "", "app")  # refused, so the question is still open
    comparing.vote(name, "left", "", "app")
    with pytest.raises(UserError, match="decided already"):
        comparing.vote(name, "left", "", "app")
    assert len(list(comparing.service.feedback.events())) == 1


def test_a_verdict_that_was_not_saved_may_be_repeated(comparing, monkeypatch):
    _, name = ask(comparing)
    append = comparing.service.feedback.append

    def full(event):
        raise UserError("no space")

    monkeypatch.setattr(comparing.service.feedback, "append", full)
    with pytest.raises(UserError, match="no space"):
        comparing.vote(name, "left", "", "app")
    monkeypatch.setattr(comparing.service.feedback, "append", append)
    comparing.vote(name, "left", "", "app")


def test_without_models_two_are_drawn(comparing):
    asked, _ = ask(comparing, [])
    assert len({draft.model for draft in asked.drafts}) == 2


@pytest.mark.parametrize(
    ("models", "prompt", "message"),
    [
        (["nope", "secret-ppo"], "hi", "no model 'nope'"),
        (["secret-ppo"], "hi", "1 models: choose 2 to 3 different models"),
        (["secret-ppo", "secret-ppo"], "hi", "2 models: choose 2 to 3 different"),
        (MODELS[:2], "  ", "write a message first"),
        (MODELS[:2], "refuse", "your message has 99 tokens"),
    ],
)
def test_a_bad_question_is_refused_at_once(comparing, models, prompt, message):
    with pytest.raises(UserError, match=message):
        comparing.ask(prompt, models, SETTINGS, "", "session")  # before the first frame is read


def test_a_failure_does_not_name_the_model(tmp_path):
    answers = {"secret-ppo": "fine", "secret-sft": RuntimeError("/models/secret-sft broke")}
    comparing = compare.Comparing(make_service(tmp_path, answers))
    with pytest.raises(UserError) as error:
        ask(comparing)
    assert "secret" not in str(error.value)
    assert len(comparing.service.engine.cancelled) == 2  # the other answer is stopped
    comparing.service.engine.answers["secret-sft"] = " "
    with pytest.raises(UserError, match="empty answer"):
        ask(comparing)


def test_a_reader_that_goes_away_stops_all_answers(comparing):
    frames = comparing.ask("hi", MODELS, SETTINGS, "", "session")
    next(frames)
    frames.close()
    assert len(comparing.service.engine.cancelled) == 3


def test_scores_are_stored_with_the_answers(comparing):
    _, name = ask(comparing, reward="judge")
    comparing.vote(name, "right", "", "app")
    [event] = comparing.service.feedback.events()
    assert [answer.score for answer in event.answers] == [7.0, 7.0]


def test_texts_and_names_are_inert_in_the_page(tmp_path):
    service = make_service(tmp_path, {NASTY: NASTY, "b": "fine"})
    comparing = compare.Comparing(service)
    asked, name = ask(comparing, [NASTY, "b"], NASTY)
    asked, shown = comparing.vote(name, "A", "", "app")
    page = compare.cards(asked, "ko", shown=shown, verdict="A")
    page += compare.strengths_html(service, "en")
    assert "<img" not in page and page.count("&lt;img") == 4


def test_questions_expire_and_are_bounded():
    asked = [Asked([], [Draft("m", 1)], [0], {}) for _ in range(5)]
    kept = Blind(kept=3)
    names = [kept.add(value) for value in asked]
    for name in names[:2]:
        with pytest.raises(UserError, match="asked too long ago"):
            kept.get(name)
    assert kept.get(names[4]) is asked[4]
    with pytest.raises(UserError, match="no such question"):
        kept.claim("../../x")
    asked[4].since = time.monotonic() - 2 * kept.seconds
    with pytest.raises(UserError, match="asked too long ago"):
        kept.claim(names[4])


@pytest.mark.parametrize(
    ("verdict", "count", "stored"),
    [
        ("left", 2, "left"),
        ("B", 2, "right"),
        ("tie", 2, "tie"),
        ("C", 3, 2),
        ("both bad", 3, "both bad"),
    ],
)
def test_verdicts(verdict, count, stored):
    assert compare.read_verdict(verdict, count) == stored
    for bad in ("C", 1, None, ["A"]):
        with pytest.raises(UserError, match="give one of A, left, B, right, tie, both bad"):
            compare.read_verdict(bad, 2)


def test_the_table_tells_of_models_that_never_met(tmp_path):
    answers = {name: f"words of {name}" for name in "abcd"}
    comparing = compare.Comparing(make_service(tmp_path, answers))
    for models in (["a", "b"], ["c", "d"]):
        _, name = ask(comparing, models)
        comparing.vote(name, "left", "", "app")
    page = compare.strengths_html(comparing.service, "en")
    assert "never met" in page and "100% of the decided" in page
    assert len(compare.strengths_list(comparing.service)) == 4


def test_every_text_is_in_both_languages():
    for table in (blind.TEXTS, compare.TEXTS):
        for key, (english, korean) in table.items():
            assert english and korean and key.split(".")[0] in ("judge", "compare")
